"""AdamW with gradient clipping, warm-up and a learning-rate schedule."""

from collections.abc import Callable
import dataclasses
from functools import partial
from typing import NamedTuple

import jax
import optax

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


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
  """The settings of AdamW.

  Attributes:
    learning_rate: Peak learning rate.
    warmup_steps: Updates of linear warm-up from 0.
    lr_scheduler_type: 'constant', or 'cosine' down to learning_rate ·
      min_lr_ratio.
    min_lr_ratio: Final learning rate of the cosine, as a ratio of the peak.
    adam_beta1: Decay rate of the first moment.
    adam_beta2: Decay rate of the second moment.
    weight_decay: Decoupled weight decay, applied to matrices only, never to
      norms or biases.
    max_grad_norm: Gradients are clipped to this global norm.
    moment_dtype: Storage dtype of both moments: 'float32', or 'bfloat16' (V3
      section 3.3).
  """

  learning_rate: float
  warmup_steps: int
  lr_scheduler_type: str
  min_lr_ratio: float
  adam_beta1: float
  adam_beta2: float
  weight_decay: float
  max_grad_norm: float
  moment_dtype: str

  def __post_init__(self):
    for field in ('learning_rate', 'warmup_steps', 'weight_decay'):
      if not getattr(self, field) >= 0:
        raise UserError(
          f'optimizer: {field} must not be below 0, got {getattr(self, field)}'
        )
    if not self.max_grad_norm > 0:
      raise UserError(
        f'optimizer: max_grad_norm must be above 0, got {self.max_grad_norm}'
      )


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
  elif config.lr_scheduler_type == 'constant':
    after = optax.constant_schedule(peak)
  else:
    raise UserError(
      "optimizer: lr_scheduler_type must be 'constant' or 'cosine', got "
      f'{config.lr_scheduler_type!r}'
    )
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
