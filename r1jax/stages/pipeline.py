"""The stages of a config, in order, each fed by the one before."""

import os
from pathlib import Path
import shutil
import time

import jax
import ml_collections

from r1jax.errors import UserError
from r1jax.model import transformer
from r1jax.settings import flatten
from r1jax.stages import build, rl, supervised
from r1jax.stages.workdir import Workdir, compare
from r1jax.train import weights

_STAGES = (supervised.NAME, rl.NAME)
_FINAL = 'model.safetensors'  # Its presence says that the stage is done.


def train(config: ml_collections.ConfigDict, workdir: str):
  """Runs what is left to run of the config's stages in its workdir.

  Raises:
    UserError: bad input, before anything is written.
  """
  began = time.monotonic()
  stages = tuple(config.stages)
  if not stages or stages != tuple(s for s in _STAGES if s in stages):
    raise UserError(
        f'stages: {stages} is not some of {_STAGES}, in that order')
  parts = build.parts(config)
  pretrain = supervised.Pretrain(config, parts) if _pretrains(config) else None
  policy = rl.RL(config, parts) if rl.NAME in stages else None
  base = base_params(config, parts) if policy and not pretrain else None
  place = Workdir(workdir, config.to_dict())

  finished = place.stage(stages[-1]) / _FINAL
  if finished.exists():
    print(f'{finished.parent} is finished already; nothing to do')
    summary = finished.parent / 'summary.txt'
    print(summary.read_text() if summary.exists() else '', end='')
    return
  about = {'config': flatten(config.to_dict())}
  if pretrain:
    made = _pretrained(config, pretrain, place, about)
    base = weights.load(made, parts.model) if policy else None
  if policy:
    policy.run(place.stage(rl.NAME), base, about)
  print(f'{place.path}: done in {time.monotonic() - began:.0f} s')


def _pretrains(config: ml_collections.ConfigDict) -> bool:
  return (supervised.NAME in config.stages
          and (config.init == 'pretrain' or rl.NAME not in config.stages))


def _pretrained(config, pretrain: supervised.Pretrain, place: Workdir,
                about: dict):
  """The base of this config: made before anywhere, or made now."""
  kept = build.base_file(config)
  made = place.stage(supervised.NAME) / _FINAL
  if not made.exists():
    if kept.exists():
      print(f'pretrain: found the base of this config in {kept}')
      _copy(kept, made)
    else:
      pretrain.run(made.parent, about)
  if not kept.exists():
    try:
      _copy(made, kept)
    except OSError as error:  # The run itself lacks nothing.
      print(f'pretrain: the base is not kept for the next run: {error}')
  return made


def _copy(source: Path, target: Path):
  """Atomic, also with several processes at it."""
  target.parent.mkdir(parents=True, exist_ok=True)
  partial = target.with_suffix(f'.partial{os.getpid()}')
  shutil.copyfile(source, partial)
  partial.replace(target)


def base_params(config: ml_collections.ConfigDict, parts: build.Parts):
  """The parameters that config.init names, when no stage makes them."""
  init = config.init
  if init == 'random':
    return transformer.init_params(parts.model, jax.random.key(config.seed))
  if init == 'pretrain':
    kept = build.base_file(config)
    if not kept.exists():
      raise UserError(
          "init: no base was pre-trained with this config yet; add 'pretrain' "
          'to config.stages')
    return weights.load(kept, parts.model)
  path = build.SHIPPED_BASE if init == 'shipped' else Path(init).expanduser()
  if not path.exists():
    raise UserError(f"init: {init!r} is neither 'shipped', 'pretrain' nor "
                    "'random', nor a file or folder of weights")
  return weights.load(path, parts.model)


def trained_params(config: ml_collections.ConfigDict, parts: build.Parts,
                   workdir: str):
  """What a workdir holds: final weights, else its newest checkpoint.

  Raises:
    UserError: it holds neither, or another model, tokenizer or template.
  """
  place = Path(workdir).expanduser()
  if not (place / 'config.json').exists():
    raise UserError(f'workdir: {place} holds no run of r1jax')
  compare(place, config.to_dict(), (
      'model.', 'tokenizer.', 'data.template', 'data.system', 'data.prefill'))
  for stage in (rl.NAME, supervised.NAME):
    final = place / stage / _FINAL
    if final.exists():
      return weights.load(final, parts.model)
    if stage == rl.NAME and (place / stage / 'checkpoints').exists():
      base = jax.eval_shape(
          lambda: transformer.init_params(parts.model, jax.random.key(0)))
      params = rl.RL(config, parts).latest(place / stage, base)
      if params is not None:
        return params
  raise UserError(f'workdir: {place} holds no weights yet')
