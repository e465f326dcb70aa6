"""AdamW or Muon, with gradient clipping, warm-up and a learning-rate schedule.

Muon moves a matrix by its momentum with all singular values made one, by a few
iterations of Newton and Schulz (https://kellerjordan.github.io/posts/muon). It
is for the matrices within layers; embedding, output heads, norms and biases have
AdamW. Its steps have the root mean square of AdamW's, so that one learning rate
and one weight decay serve both (arXiv 2502.16982, section 2.2).
"""

from collections.abc import Callable
from functools import partial
import math
from typing import NamedTuple

import jax
import optax
from optax import contrib

from r1jax.config.schema.training import OptimizerConfig
from r1jax.errors import UserError

_RMS = 0.2  # About that of AdamW's steps before the learning rate.


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
    _scaled(config),
    optax.add_decayed_weights(
      config.weight_decay, partial(_decayed, untrained=untrained)
    ),
    optax.scale_by_learning_rate(learning_rate),
  )
  return Optimizer(tx.init, tx.update, learning_rate)


def _scaled(config: OptimizerConfig) -> optax.GradientTransformation:
  """Returns the transformation from gradients to steps of length about one."""
  adam = _stored_as(
    config.moment_dtype,
    optax.scale_by_adam(config.adam_beta1, config.adam_beta2),
  )
  if config.name == 'adamw':
    return adam
  muon = _stored_as(
    config.moment_dtype,
    contrib.scale_by_muon(
      beta=config.muon_momentum, weight_dimension_numbers=_matrices
    ),
  )

  def labels(params):
    return jax.tree_util.tree_map_with_path(
      lambda path, x: 'muon' if _matrix(path, x) else 'adam', params
    )

  return optax.partition(
    {'adam': adam, 'muon': optax.chain(muon, _with_rms_of_adam())}, labels
  )


def num_moments(config: OptimizerConfig, name: str) -> int:
  """Returns how many numbers are kept for each of a parameter.

  Args:
    config: The settings.
    name: The parameter's path, 'moe_layers/ffn/gate'.
  """
  return 1 if config.name == 'muon' and _has_matrices(name) else 2


def _has_matrices(name: str) -> bool:
  """Whether a parameter is of matrices within layers."""
  return '/' in name and not name.endswith(('scale', 'bias'))


def _matrices(updates):
  """Returns the axes of the matrices in a tree of arrays."""
  return jax.tree_util.tree_map_with_path(_matrix, updates)


def _matrix(path, x) -> contrib.MuonDimensionNumbers | None:
  """Returns the axes of the matrices that an array holds; None if it has none.

  Layers and experts are axes of several matrices. The heads of attention are a
  part of one: [L, D, N, H] holds L matrices [D, N · H].
  """
  name = path[-1].key
  if not _has_matrices('/'.join(part.key for part in path)):
    return None
  if x.ndim == 4 and path[-2].key == 'attention':
    if name == 'out':
      return contrib.MuonDimensionNumbers((1, 2), (3,))
    return contrib.MuonDimensionNumbers((1,), (2, 3))
  return contrib.MuonDimensionNumbers((x.ndim - 2,), (x.ndim - 1,))


def _with_rms_of_adam() -> optax.GradientTransformation:
  """Scales orthogonal matrices to a root mean square of 0.2, as AdamW's steps."""

  def scale(path, x):
    axes = _matrix(path, x)
    assert axes is not None
    fans = (
      math.prod(x.shape[axis] for axis in group)
      for group in (axes.reduction_axis, axes.output_axis)
    )
    return _RMS * math.sqrt(max(fans)) * x

  return optax.stateless(
    lambda updates, _: jax.tree_util.tree_map_with_path(scale, updates)
  )


def _stored_as(dtype: str, scaled: optax.GradientTransformation):
  """Returns one that computes in float32 and stores its moments in `dtype`."""

  def cast(state, to):
    moments = [name for name in ('mu', 'nu') if hasattr(state, name)]
    return state._replace(
      **{name: optax.tree.cast(getattr(state, name), to) for name in moments}
    )

  def init(params):
    return cast(scaled.init(params), dtype)

  def update(grads, state, params=None):
    grads = optax.tree.cast(grads, 'float32')
    updates, state = scaled.update(grads, cast(state, 'float32'), params)
    return updates, cast(state, dtype)

  return optax.GradientTransformation(init, update)


def _decayed(params, untrained: tuple[str, ...]):
  """Returns True for trained matrices, False for scales and biases."""

  def is_matrix(path, _):
    return path[0].key not in untrained and not path[-1].key.endswith(
      ('scale', 'bias')
    )

  return jax.tree_util.tree_map_with_path(is_matrix, params)
