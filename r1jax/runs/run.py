"""Runs the stages of one config in order, each fed by the one before."""

from collections.abc import Collection, Sequence
import contextlib
import dataclasses
from functools import partial
import json
import logging
import os
from pathlib import Path
import shutil
import time

import jax

from r1jax import buckets, compilation_cache, processes, registry, waits
from r1jax.checkpoints import weights
from r1jax.config import effects
from r1jax.config.keys import flatten, record
from r1jax.config.schema.run import RunConfig
from r1jax.errors import UserError
from r1jax.model import parameters
from r1jax.model.transformer import Transformer
from r1jax.runs import agreement, changes, continued, inputs, lineage
from r1jax.runs.stage_list import check_names, running, stage_class
from r1jax.runs.workdir import Workdir, compare
from r1jax.stages import ending, initial, memory
from r1jax.stages.build import parts as build
from r1jax.stages.profile import Profiler, Steps
from r1jax.stages.stage import Kind, Stage
from r1jax.stages.trainer import TrainedStage
from r1jax.tracking import trackers

_log = logging.getLogger(__name__)


def train(
  config: RunConfig,
  workdir: str,
  claimed: RunConfig | None = None,
  given: Collection[str] = (),
  profile_steps: Steps | None = None,
) -> Path:
  """Runs the stages that are not finished yet.

  Args:
    config: The run.
    workdir: Its folder; each stage has a folder of its name in it.
    claimed: The config as the workdir records it, where that differs: that of
      a pipeline's stage, whose keys name other stages.
    given: Keys that the command line gives: an error where without effect.
    profile_steps: Steps of the last stage's training loop to profile.

  Returns:
    The output of the last stage.

  Raises:
    UserError: bad input, before anything is written.
    Interrupted: a signal came; after the last step of a stage, the stage is
      finished first.
  """
  began = time.monotonic()
  with processes.agreed():
    registry.load_plugins(config.plugins)
    check_names(config)
    trackers.check(config.tracking)
    if claimed is None:  # A pipeline has checked the keys of all its runs.
      effects.check(config, given)
  agreement.check(config)
  with processes.agreed():
    compilation_cache.enable(config.compilation_cache_dir)
    waits.watch_compiles()
    parts = build.parts(config)
    classes = [stage_class(name) for name in running(config)]
  parts = _with_remat(config, parts, classes)
  with processes.agreed():
    stages = [_built(stage, config, parts) for stage in classes]
    _profile(stages[-1], profile_steps)
    _take_optimizer(config, stages[0])
    params = None if stages[0].starts_fresh else base_params(config, parts)
  recorded = claimed or config
  with contextlib.closing(Workdir(workdir, recorded)) as place:
    processes.from_first(lambda: _claim(place, config, recorded))
    output = place.stage(stages[-1].name) / stages[-1].output
    if processes.from_first(output.exists):
      processes.from_first(lambda: _say_finished(place, config, output))
      _push(place.path)
      return output
    processes.from_first(lambda: _claim_inputs(place, config))
    metadata = {'config': flatten(record(recorded))}
    output = _run_stages(config, parts, stages, place, params, metadata)
    processes.from_first(lambda: lineage.write(place.path, config, output))
    _push(place.path)
    where = buckets.shown(place.path)
    _log.info('%s: done in %.0f s', where, time.monotonic() - began)
    return output


def _built(stage: type[Stage], config: RunConfig, parts: build.Parts) -> Stage:
  """Returns a stage, which reads its data, with what all stages are given."""
  with waits.told(f'reading what the stage {stage.name} learns from'):
    built = stage(config, parts)
  if isinstance(built, TrainedStage):
    built.skipped_limit = config.skipped_updates
    built.tracking = config.tracking
  return built


def _profile(stage: Stage, steps: Steps | None):
  """Sets the steps that a stage profiles, or refuses a stage without steps."""
  if steps is None:
    return
  if not isinstance(stage, TrainedStage):
    raise UserError(f'--profile_steps: {stage.name!r} has no training loop')
  Profiler(steps, Path()).check(stage.name, 0, stage.num_steps)
  stage.profile_steps = steps


def _take_optimizer(config: RunConfig, stage: Stage):
  """Lets the first stage begin with the optimizer of the checkpoint of `init`."""
  saved = initial.saved_step(config.init) if config.init_optimizer else None
  if saved is None:
    return
  if not isinstance(stage, TrainedStage):
    raise UserError(f'init_optimizer: {stage.name!r} has no optimizer')
  stage.change_first_state = partial(continued.with_optimizer, saved)


def _claim(place: Workdir, config: RunConfig, recorded: RunConfig):
  place.claim_plugins({name: registry.digest(name) for name in config.plugins})
  if changes.reopens(place.path, recorded):
    (place.path / lineage.FILE).unlink(missing_ok=True)
  changes.apply(place.path, recorded)


def _claim_inputs(place: Workdir, config: RunConfig):
  inputs.claim(place.path, config)
  lineage.check_inputs(place.path)
  (place.path / lineage.FILE).unlink(missing_ok=True)
  buckets.push(place.path)  # A run on another host reads whose folder it is.


def _say_finished(place: Workdir, config: RunConfig, output: Path):
  """Says that a run is finished already, and how it ended."""
  where = buckets.shown(output.parent)
  _log.info('%s is finished already; nothing to do', where)
  if changed := inputs.changes(place.path, config):
    _log.warning('%s was made of other data: %s', where, changed)
  lineage.write(place.path, config, output)  # If it was killed before.
  summary = output.parent / 'summary.txt'
  print(summary.read_text() if summary.exists() else '', end='')


def _with_remat(
  config: RunConfig, parts: build.Parts, stages: Sequence[type[Stage]]
) -> build.Parts:
  """Returns the parts with a model whose model.remat is not 'auto'."""
  if config.model.remat != 'auto':
    return parts
  layout = parts.model.layout
  with processes.agreed():
    own = memory.device_bytes(layout)
  limit = min(processes.exchange(own))
  model = memory.chosen(config, layout, stages, limit).model
  return dataclasses.replace(parts, model=Transformer(model, layout))


def check(config: RunConfig, missing: Collection[str] = ()):
  """Refuses what `train` would refuse before it begins.

  Args:
    config: The run.
    missing: Keys whose files other stages are still to write.

  Raises:
    UserError: naming the key.
  """
  registry.load_plugins(config.plugins)
  check_names(config)
  trackers.check(config.tracking)
  parts = build.parts(config)
  names = running(config)
  fresh = stage_class(names[0]).starts_fresh
  # Another run may still make the base of this config.
  if (
    not fresh
    and config.init != 'random'
    and not initial.names_stage(config.init)
  ):
    _check_init(config)
  for name in names:
    if missing:
      stage_class(name).check(config, parts, missing)
    else:
      stage_class(name)(config, parts)


def _run_stages(
  config: RunConfig,
  parts: build.Parts,
  stages: Sequence[Stage],
  place: Workdir,
  params,
  metadata: dict,
) -> Path:
  """Runs each stage on the weights that the one before left.

  Returns:
    The output of the last stage.

  Raises:
    Interrupted: a signal came in the last step of a stage that others follow.
  """
  for i, stage in enumerate(stages):
    output = _run_stage(config, parts, stage, place, params, metadata)
    if i + 1 < len(stages):
      processes.stop_if_asked(
        f'{stage.name} is finished, and the same command goes on with '
        f'{stages[i + 1].name}'
      )
    if stage.leaves(config).is_weights and i + 1 < len(stages):
      with processes.agreed():
        params = weights.load(output, parts.model)
  return output


def _run_stage(
  config: RunConfig,
  parts: build.Parts,
  stage: Stage,
  place: Workdir,
  params,
  metadata: dict,
) -> Path:
  """Returns a stage's output: made earlier, kept in the cache, or made now."""
  directory = place.stage(stage.name)
  path, kept = directory / stage.output, stage.cache_file(config)
  if not processes.from_first(
    lambda: path.exists() or _found(stage, kept, path)
  ):
    if config.rollout.sampling_devices and processes.several():
      _check_apart(stage)
    if stage.starts_fresh:
      params = parameters.init_params(parts.model, jax.random.key(config.seed))
    stage.run(directory, params, metadata)
  processes.from_first(lambda: _keep(stage, path, kept))
  _push(directory, stage.output)
  return path


def _check_apart(stage: Stage):
  """Refuses a stage in which processes that only sample have no part."""
  if not stage.samples_apart:
    raise UserError(
      f'rollout.sampling_devices: the stage {stage.name!r} has no work for '
      'processes that only sample; make its output in a run without them '
      'first, and name it as init'
    )


def _push(folder: Path, last: str = ''):
  """Brings a folder of the run to its bucket, if it is in one."""
  with processes.agreed():
    own = processes.own_folder(folder)
    buckets.push(own, last if own == folder else '')


def _found(stage: Stage, kept: Path | None, path: Path) -> bool:
  """Takes a stage's output from the cache; returns whether it is there."""
  if not kept or not kept.exists():
    return False
  stage.check_cached(kept)
  _log.info('%s: found the output of this config in %s', stage.name, kept)
  _copy(kept, path)
  return True


def _keep(stage: Stage, path: Path, kept: Path | None):
  """Copies a stage's output to the cache, if it is not there."""
  if kept and not kept.exists():
    try:
      _copy(path, kept)
    except OSError as error:  # The run itself lacks nothing.
      _log.warning(
        '%s: the output is not kept for the next run: %s', stage.name, error
      )


def _copy(source: Path, target: Path):
  """Copies a file atomically, also with several processes at it."""
  target.parent.mkdir(parents=True, exist_ok=True)
  partial = target.with_suffix(f'.partial{os.getpid()}')
  shutil.copyfile(source, partial)
  partial.replace(target)


def base_params(config: RunConfig, parts: build.Parts):
  """Returns the parameters that config.init names, where no stage makes them.

  Raises:
    UserError: they are not there, or do not fit the model.
  """
  if config.init == 'random':
    return parameters.init_params(parts.model, jax.random.key(config.seed))
  _check_init(config)
  with waits.told(f'loading the weights of {config.init}'):
    if saved := initial.saved_step(config.init):
      return continued.load_params(saved, parts.model)
    return weights.load(initial.init_file(config), parts.model, new_scalar=True)


def _check_init(config: RunConfig):
  if saved := initial.saved_step(config.init):
    continued.check(config, saved)
    return
  if config.init and initial.init_file(config).exists():
    return
  if initial.names_stage(config.init):
    raise UserError(
      f'init: no output of {config.init} was made with this config yet; add '
      f'{config.init!r} to config.stages'
    )
  raise UserError(
    f"init: {config.init!r} is neither 'shipped', 'pretrain' nor 'random', "
    'nor a file or folder of weights'
  )


def trained_params(config: RunConfig, parts: build.Parts, workdir: str):
  """Returns the policy in a workdir: final weights, or the newest checkpoint.

  Raises:
    UserError: it holds neither, or another model, tokenizer or template.
  """
  place = buckets.given(workdir)
  name, is_final = processes.from_first(lambda: _newest_policy(config, place))
  stage = stage_class(name)
  if is_final:
    with processes.agreed():
      return weights.load(place / name / stage.output, parts.model)
  shapes = jax.eval_shape(
    lambda: parameters.init_params(parts.model, jax.random.key(0))
  )
  params = stage(config, parts).latest_params(place / name, shapes)
  if params is None:
    where = buckets.shown(place)
    raise UserError(f'workdir: {where} holds no whole checkpoint of {name} yet')
  return params


def _newest_policy(config: RunConfig, place: Path) -> tuple[str, bool]:
  """Returns the last stage in a workdir with a policy, and if it is finished.

  Raises:
    UserError: as trained_params.
  """
  if not (place / 'config.json').exists():
    raise UserError(f'workdir: {buckets.shown(place)} holds no run of r1jax')
  compare(
    place,
    config,
    (
      'model.',
      'tokenizer.',
      'data.template',
      'data.system',
      'data.response_prefix',
    ),
  )
  names = json.loads((place / 'config.json').read_text())['stages']
  for name in reversed(names):
    stage = stage_class(name)
    if stage.leaves(config) is not Kind.POLICY:
      continue
    if (place / name / stage.output).exists():
      return name, True
    if ending.latest_step(place / name) is not None:
      return name, False
  last = stage_class(names[-1]).leaves(config)
  if last is not Kind.POLICY:
    raise UserError(
      f'workdir: {buckets.shown(place)} holds {last.value} of {names[-1]}, which '
      'is no policy'
    )
  raise UserError(f'workdir: {buckets.shown(place)} holds no weights yet')
