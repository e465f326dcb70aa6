"""The weights of another run's checkpoint, which a run begins with.

`init = 'runs/a@40'` takes the policy that the run in runs/a had after step 40.
With `init_optimizer` the first stage takes the moments of its optimizer too.
"""

import dataclasses
import json
from typing import Any

import jax
import jax.numpy as jnp
import optax

from r1jax import processes
from r1jax.checkpoints import weights
from r1jax.config.keys import flatten
from r1jax.config.schema.run import RunConfig
from r1jax.errors import UserError
from r1jax.model.transformer import Transformer
from r1jax.stages import run_record
from r1jax.stages.initial import SavedStep
from r1jax.train import saved_arrays

# A state is a TrainState, or has one as this field; see RLState and DPOState.
_INNER = 'train'
_PARAMS, _OPTIMIZER = 'params', 'opt_state'
_SCALAR_HEAD = 'scalar'


def check(config: RunConfig, saved: SavedStep):
  """Refuses a checkpoint of another model before anything is read.

  Raises:
    UserError: naming the keys of the model that differ.
  """
  if config.rollout.sampling_devices and processes.several():
    raise UserError(
      f'init: {saved.init!r}: processes that only sample read no checkpoint; '
      'name a model.safetensors with rollout.sampling_devices'
    )
  path = saved.stage.parent / run_record.CONFIG
  if path.exists():
    stored = flatten(json.loads(path.read_text()))
    weights.check_config(stored, config.model, f'init: {saved.init!r}')


def load_params(saved: SavedStep, model: Transformer) -> dict:
  """Returns the parameters of a checkpoint, laid out on a model's mesh.

  A scalar head that the checkpoint lacks begins at zero, as in other weights.

  Raises:
    UserError: it is broken, of another model, or no training state.
  """
  leaves, inner = _described(saved)
  target = weights.abstract(model)
  head = target.get(_SCALAR_HEAD)
  lacks_head = head is not None and not any(
    name.startswith(f'{_prefix(inner)}{_PARAMS}/{_SCALAR_HEAD}')
    for name in leaves
  )
  if lacks_head:
    del target[_SCALAR_HEAD]
  params = _restore(saved, leaves, inner, _PARAMS, target)
  if lacks_head:
    params[_SCALAR_HEAD] = jax.tree.map(
      lambda x: jnp.zeros(x.shape, x.dtype, device=x.sharding), head
    )
  return params


def with_optimizer(saved: SavedStep, state: Any) -> Any:
  """Returns a first training state with the moments of a checkpoint.

  The count of a learning-rate schedule stays at 0.

  Raises:
    UserError: the optimizer there is another one.
  """
  leaves, inner = _described(saved)
  train = getattr(state, _INNER, state)
  target = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
    train.opt_state,
  )
  moments = _restore(saved, leaves, inner, _OPTIMIZER, target)
  is_schedule = lambda x: isinstance(x, optax.ScaleByScheduleState)
  opt_state = jax.tree.map(
    lambda new, old: new if is_schedule(new) else old,
    train.opt_state,
    moments,
    is_leaf=is_schedule,
  )
  train = dataclasses.replace(train, opt_state=opt_state)
  if not hasattr(state, _INNER):
    return train
  return dataclasses.replace(state, train=train)


def _described(saved: SavedStep) -> tuple[saved_arrays.Leaves, bool]:
  """Returns the arrays of a checkpoint, and whether a TrainState is a field."""
  leaves = saved_arrays.described(saved.folder, f'init: {saved.init!r}')
  for inner in (True, False):
    start = f'{_prefix(inner)}{_PARAMS}/'
    if any(name.startswith(start) for name in leaves):
      return leaves, inner
  raise UserError(f'init: {saved.init!r} holds no weights of a model')


def _prefix(inner: bool) -> str:
  return f'{_INNER}/' if inner else ''


def _restore(
  saved: SavedStep,
  leaves: saved_arrays.Leaves,
  inner: bool,
  field: str,
  target: Any,
) -> Any:
  """Returns one field of the TrainState of a checkpoint."""
  nested = {field: target}
  found = saved_arrays.restore(
    saved.folder,
    leaves,
    {_INNER: nested} if inner else nested,
    f'init: {saved.init!r}',
  )
  return (found[_INNER] if inner else found)[field]
