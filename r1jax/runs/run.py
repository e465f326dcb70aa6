"""The stages of one config, in order, each fed by the one before."""

from collections.abc import Collection
import json
import os
from pathlib import Path
import shutil
import time

import jax
import ml_collections

from r1jax.checkpoints import weights
from r1jax.checkpoints.storage import SafetensorsReader
from r1jax.config.keys import flatten
from r1jax.errors import UserError, unknown
from r1jax.model import parameters
from r1jax.runs import lineage
from r1jax.runs.workdir import Workdir, compare
from r1jax.stages import (
  label_steps,
  preferences,
  prm,
  rejection_sampling,
  rl,
  supervised,
)
from r1jax.stages.build import parts as build
from r1jax.stages.stage import OUTPUT, Stage
from r1jax.train import optimizer

# In the order in which a config may name them.
STAGES: dict[str, type[Stage]] = {
  stage.name: stage
  for stage in (
    supervised.Pretrain,
    supervised.SFT,
    preferences.RewardModel,
    preferences.DPO,
    prm.PRM,
    rl.RL,
    rejection_sampling.RejectionSampler,
    label_steps.LabelSteps,
  )
}


def train(
  config: ml_collections.ConfigDict,
  workdir: str,
  claimed: ml_collections.ConfigDict | None = None,
) -> Path:
  """Runs what is left to run of the config's stages in its workdir.

  Args:
    config: What to do.
    workdir: Where.
    claimed: The config as the workdir keeps it, where that is another: of a
      pipeline, whose stages name each other.

  Returns:
    What the last stage left.

  Raises:
    UserError: bad input, before anything is written.
  """
  began = time.monotonic()
  check_names(config)
  parts = build.parts(config)
  stages = [STAGES[name](config, parts) for name in build.running(config)]
  params = None if stages[0].fresh else base_params(config, parts)
  claimed = (claimed or config).to_dict()
  place = Workdir(workdir, claimed)

  last = place.stage(stages[-1].name)
  finished = last / stages[-1].output
  if finished.exists():
    print(f'{last} is finished already; nothing to do')
    lineage.write(place.path, config, finished)  # If it was killed before.
    summary = last / 'summary.txt'
    print(summary.read_text() if summary.exists() else '', end='')
    return finished
  (place.path / lineage.FILE).unlink(missing_ok=True)  # Of what is gone.
  about = {'config': flatten(claimed)}
  for i, stage in enumerate(stages):
    made = _made(config, parts, stage, place, params, about)
    if made.suffix == '.safetensors' and i + 1 < len(stages):
      params = weights.load(made, parts.model)
  lineage.write(place.path, config, made)
  print(f'{place.path}: done in {time.monotonic() - began:.0f} s')
  return made


def check(config: ml_collections.ConfigDict, missing: Collection[str] = ()):
  """Refuses what `train` would refuse before it begins.

  Args:
    config: What to do.
    missing: Keys whose files are not there yet.

  Raises:
    UserError: naming the key.
  """
  check_names(config)
  parts = build.parts(config)
  running = build.running(config)
  if not (STAGES[running[0]].fresh or config.init in ('random', 'pretrain')):
    _check_init(config)
  for name in running:
    if not missing:
      STAGES[name](config, parts)
      continue
    if 'optimizer' in config[name]:
      optimizer.make(build.optimizer_config(config[name]), 1)
    STAGES[name].check(config, parts, missing)


def check_names(config: ml_collections.ConfigDict):
  """Raises UserError unless config.stages names stages, in their order."""
  names = tuple(config.stages)
  for name in names:
    if name not in STAGES:
      raise unknown('stages', name, STAGES)
  if not names or names != tuple(name for name in STAGES if name in names):
    raise UserError(
      f'stages: {names} is not some of {tuple(STAGES)}, in that order'
    )
  for name in names[:-1]:
    if not STAGES[name].leaves_policy:
      raise UserError(
        f'stages: {name} leaves no policy for {names[-1]} to '
        'begin with; make it in a run of its own'
      )


def output(config: ml_collections.ConfigDict, workdir: Path) -> Path:
  """What a run of this config leaves in its workdir."""
  last = STAGES[config.stages[-1]]
  return workdir / last.name / last.output


def _made(
  config, parts: build.Parts, stage: Stage, place: Workdir, params, about: dict
) -> Path:
  """What a stage leaves: made earlier, or made now."""
  directory = place.stage(stage.name)
  made = directory / stage.output
  if stage.name == supervised.Pretrain.name:
    return _pretrained(config, parts, stage, directory, about)
  if not made.exists():
    stage.run(directory, params, about)
  return made


def _pretrained(
  config, parts: build.Parts, stage: Stage, directory: Path, about: dict
):
  """The base of this config: made before anywhere, or made now."""
  kept = build.base_file(config)
  made = directory / OUTPUT
  if not made.exists():
    if kept.exists():
      _check_base(kept)
      print(f'pretrain: found the base of this config in {kept}')
      _copy(kept, made)
    else:
      stage.run(
        directory,
        parameters.init_params(parts.model, jax.random.key(config.seed)),
        about,
      )
  if not kept.exists():
    try:
      _copy(made, kept)
    except OSError as error:  # The run itself lacks nothing.
      print(f'pretrain: the base is not kept for the next run: {error}')
  return made


def _check_base(kept: Path):
  try:
    SafetensorsReader(kept)
  except UserError as error:
    raise UserError(
      f'pretrain: the base that was kept of this config is '
      f'broken; remove {kept} to make it again'
    ) from error


def _copy(source: Path, target: Path):
  """Atomic, also with several processes at it."""
  target.parent.mkdir(parents=True, exist_ok=True)
  partial = target.with_suffix(f'.partial{os.getpid()}')
  shutil.copyfile(source, partial)
  partial.replace(target)


def base_params(config: ml_collections.ConfigDict, parts: build.Parts):
  """The parameters that config.init names, when no stage makes them."""
  if config.init == 'random':
    return parameters.init_params(parts.model, jax.random.key(config.seed))
  _check_init(config)
  return weights.load(build.init_file(config), parts.model, new_scalar=True)


def _check_init(config: ml_collections.ConfigDict):
  if config.init and build.init_file(config).exists():
    return
  if config.init == 'pretrain':
    raise UserError(
      "init: no base was pre-trained with this config yet; add 'pretrain' "
      'to config.stages'
    )
  raise UserError(
    f"init: {config.init!r} is neither 'shipped', 'pretrain' nor "
    "'random', nor a file or folder of weights"
  )


def trained_params(
  config: ml_collections.ConfigDict, parts: build.Parts, workdir: str
):
  """What a workdir holds: final weights, else its newest checkpoint.

  Raises:
    UserError: it holds neither, or another model, tokenizer or template.
  """
  place = Path(workdir).expanduser()
  if not (place / 'config.json').exists():
    raise UserError(f'workdir: {place} holds no run of r1jax')
  compare(
    place,
    config.to_dict(),
    (
      'model.',
      'tokenizer.',
      'data.template',
      'data.system',
      'data.response_prefix',
    ),
  )
  for stage in reversed(STAGES.values()):
    final = place / stage.name / OUTPUT
    if stage.leaves_policy and final.exists():
      return weights.load(final, parts.model)
    if stage is rl.RL and (place / stage.name / 'checkpoints').exists():
      base = jax.eval_shape(
        lambda: parameters.init_params(parts.model, jax.random.key(0))
      )
      params = rl.RL(config, parts).latest(place / stage.name, base)
      if params is not None:
        return params
  said = json.loads((place / 'config.json').read_text())['stages']
  if not STAGES[said[-1]].leaves_policy:
    raise UserError(
      f'workdir: {place} holds what {said[-1]} leaves, which is no policy'
    )
  raise UserError(f'workdir: {place} holds no weights yet')
