"""The stages of a config, in order, each fed by the one before."""

from pathlib import Path
import time

import jax
import ml_collections

from r1jax.errors import UserError
from r1jax.model import transformer
from r1jax.settings import flatten
from r1jax.stages import build, rl, supervised
from r1jax.stages.workdir import Workdir
from r1jax.train import weights

_STAGES = (supervised.NAME, rl.NAME)


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

  about = {'config': flatten(config.to_dict())}
  if pretrain:
    made = _pretrained(config, pretrain, place, about)
    base = weights.load(made, parts.model) if policy else None
  if policy:
    path = place.stage(rl.NAME) / 'model.safetensors'
    if path.exists():
      print(f'rl: finished in {place.path} already; nothing to do')
      print((place.stage(rl.NAME) / 'summary.txt').read_text(), end='')
      return
    policy.run(place.stage(rl.NAME), base, about)
  print(f'{place.path}: done in {time.monotonic() - began:.0f} s')


def _pretrains(config: ml_collections.ConfigDict) -> bool:
  return (supervised.NAME in config.stages
          and (config.init == 'pretrain' or rl.NAME not in config.stages))


def _pretrained(config, pretrain: supervised.Pretrain, place: Workdir,
                about: dict):
  """The base of this config: made before anywhere, or made now."""
  kept = build.base_file(config)
  if kept.exists():
    print(f'pretrain: found the base of this config in {kept}')
    return kept
  made = pretrain.run(place.stage(supervised.NAME), about)
  kept.parent.mkdir(parents=True, exist_ok=True)
  partial = kept.with_suffix('.partial')
  partial.write_bytes(made.read_bytes())
  partial.replace(kept)
  return kept


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
  path = build.SHIPPED_BASE if init == 'shipped' else init
  return weights.load(Path(path), parts.model)


def trained_params(config: ml_collections.ConfigDict, parts: build.Parts,
                   workdir: str):
  """What a workdir holds: final weights, else its newest checkpoint.

  Raises:
    UserError: it holds neither, or belongs to another config.
  """
  place = Path(workdir).expanduser()
  record = place / 'config.json'
  if not record.exists():
    raise UserError(f'workdir: {place} holds no run of r1jax')
  for stage in (rl.NAME, supervised.NAME):
    final = place / stage / 'model.safetensors'
    if final.exists():
      return weights.load(final, parts.model)
    if stage == rl.NAME and (place / stage / 'checkpoints').exists():
      base = jax.eval_shape(
          lambda: transformer.init_params(parts.model, jax.random.key(0)))
      params = rl.RL(config, parts).latest(place / stage, base)
      if params is not None:
        return params
  raise UserError(f'workdir: {place} holds no weights yet')
