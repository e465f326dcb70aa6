"""AdamW with gradient clipping, warm-up and a learning-rate schedule."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import optax

from r1jax.config.schema.training import OptimizerConfig
from r1jax.errors import UserError


class Optimizer(NamedTuple):
  """An Optax transformation together with its learning-rate schedule.

  Attributes:
    init: params → optimizer state.
    update: (grads, optimizer state, params) → (updates, optimizer state).
    learning_rate: Number of updates made before → learning rate of the next.
  """

  init: Callable
  update: Callable
  learning_rate: optax.Schedule


def schedule(config: OptimizerConfig, total_steps: int) -> optax.Schedule:
  """Returns the learning rate as a function of the number of updates.

  Args:
    config: The settings.
    total_steps: Number of updates after which the cosine ends.
  """
  peak, warmup = config.learning_rate, config.warmup_steps
  if config.lr_scheduler_type == 'cosine':
    after = optax.cosine_decay_schedule(
      peak, max(total_steps - warmup, 1), config.min_lr_ratio
    )
  else:
    after = optax.constant_schedule(peak)
  if not warmup:
    return after
  return optax.join_schedules(
    [optax.linear_schedule(0.0, peak, warmup), after], [warmup]
  )


def make(
  config: OptimizerConfig, total_steps: int, untrained: tuple[str, ...] = ()
) -> Optimizer:
  """Returns the optimizer of a model.

  Args:
    config: The settings.
    total_steps: Number of updates after which the cosine ends.
    untrained: Top-level parts of the model that get no gradient; they are left
      out of weight decay.
  """
  if config.moment_dtype not in ('float32', 'bfloat16'):
    raise UserError(
      "optimizer: moment_dtype must be 'float32' or 'bfloat16', "
      f'got {config.moment_dtype!r}'
    )
  learning_rate = schedule(config, total_steps)
  tx = optax.chain(
    optax.clip_by_global_norm(config.max_grad_norm),
    _stored_as(
      config.moment_dtype,
      optax.scale_by_adam(config.adam_beta1, config.adam_beta2),
    ),
    optax.add_decayed_weights(
      config.weight_decay, partial(_decayed, untrained=untrained)
    ),
    optax.scale_by_learning_rate(learning_rate),
  )
  return Optimizer(tx.init, tx.update, learning_rate)


def _stored_as(dtype: str, adam: optax.GradientTransformation):
  """Returns Adam that computes in float32 and stores its moments in `dtype`."""

  def cast(state, to):
    return state._replace(
      mu=optax.tree.cast(state.mu, to), nu=optax.tree.cast(state.nu, to)
    )

  def init(params):
    return cast(adam.init(params), dtype)

  def update(grads, state, params=None):
    grads = optax.tree.cast(grads, 'float32')
    updates, state = adam.update(grads, cast(state, 'float32'), params)
    return updates, cast(state, dtype)

  return optax.GradientTransformation(init, update)


def _decayed(params, untrained: tuple[str, ...]):
  """Returns True for trained matrices, False for scales and biases."""

  def is_matrix(path, _):
    return path[0].key not in untrained and not path[-1].key.endswith(
      ('scale', 'bias')
    )

  return jax.tree_util.tree_map_with_path(is_matrix, params)
