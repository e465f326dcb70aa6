"""Sends tokens to their experts and back, where devices share the experts.

Each device routes its own tokens, sends them to the devices that hold their
experts by one all-to-all, and receives the results by another. Where tokens are
few, as in decoding, every device reads those of all instead.
"""

from collections.abc import Callable
from functools import partial
import math

import jax
import jax.numpy as jnp

from r1jax.config.schema.model import ModelConfig
from r1jax.model import experts, quant
from r1jax.sharding import Layout


def _local(x_TD, expert_TA, gating_TA, valid_T, weights, swiglu: Callable):
  """Applies the experts where one device holds all of them.

  Padding is sent to no expert, so its output is 0.
  """
  expert_TA = jnp.where(valid_T[:, None], expert_TA, weights[0].shape[0])
  return swiglu(x_TD, expert_TA, gating_TA, weights), jnp.zeros(())


def _exchanged(
  x_TD,
  expert_TA,
  gating_TA,
  valid_T,
  weights,
  swiglu: Callable,
  axes: tuple[str, ...],
  shards: int,
  capacity_factor: float,
):
  """Applies experts that are sharded over devices; runs inside shard_map.

  Each device reserves `capacity` slots for the pairs of each other device:
  capacity_factor times their mean number, or all that are possible if it is 0.
  Pairs beyond it are dropped.

  Args:
    x_TD, expert_TA, gating_TA, valid_T: This device's tokens.
    weights: The experts of this device.
    swiglu: experts.swiglu with its options bound.
    axes, shards: Mesh axes of the experts, and the number of devices.
    capacity_factor: See ModelConfig.

  Returns:
    y_TD, and the number of this device's pairs that were dropped.
  """
  (T, A), D = expert_TA.shape, x_TD.shape[-1]
  local_experts = weights[0].shape[0]
  capacity = T * min(A, local_experts)  # The most that could be needed.
  if capacity_factor:
    capacity = min(math.ceil(capacity_factor * (T * A / shards)), capacity)
  num_experts = shards * local_experts
  expert_p = jnp.where(valid_T[:, None], expert_TA, num_experts).reshape(-1)
  order = experts.sorted_pairs(expert_p, num_experts)
  target = expert_p[order] // local_experts  # `shards` for pairs of padding.
  slot, dropped = _send_slots(target, shards, capacity)

  def slots(empty, pair_value):  # `empty` is the value of an unused slot.
    unused = jnp.full(shards * capacity, empty, pair_value.dtype)
    return unused.at[slot].set(pair_value, mode='drop')

  exchange = partial(
    jax.lax.all_to_all, axis_name=axes, split_axis=0, concat_axis=0, tiled=True
  )
  received_sD = exchange(
    x_TD.at[slots(T, order // A)].get(mode='fill', fill_value=0)
  )
  # The share of slots that even loads fill, which FLOPs are counted for.
  with jax.named_scope(f'filled_{min(1, T * A / (shards * capacity)):.6f}'):
    out_sD = swiglu(
      received_sD,
      exchange(slots(local_experts, expert_p[order] % local_experts))[:, None],
      exchange(slots(0, gating_TA.reshape(-1)[order]))[:, None],
      weights,
    )
  slot_p = jnp.zeros(T * A, jnp.int32).at[order].set(slot)
  pair_out_pD = exchange(out_sD).at[slot_p].get(mode='fill', fill_value=0)
  y_TD = pair_out_pD.reshape(T, A, D).sum(1, dtype=quant.wide(x_TD.dtype))
  return y_TD.astype(x_TD.dtype), dropped


def _gathered(
  x_TD,
  expert_TA,
  gating_TA,
  valid_T,
  weights,
  swiglu: Callable,
  axes: tuple[str, ...],
  token_axes: tuple[str, ...],
):
  """Applies experts that are sharded over devices; runs inside shard_map.

  Each device reads all tokens, applies its own experts to those that chose
  them, and the outputs are added up. Where tokens are few, as in decoding, that
  moves less than slots for all pairs that are possible. No pair is dropped.

  Args:
    x_TD, expert_TA, gating_TA, valid_T: This device's tokens.
    weights: The experts of this device.
    swiglu: experts.swiglu with its options bound.
    axes: Mesh axes of the experts.
    token_axes: The axes among them that tokens are sharded over too.

  Returns:
    y_TD, and 0 dropped pairs.
  """
  local_experts, active = weights[0].shape[0], expert_TA.shape[1]
  if token_axes:
    x_TD, expert_TA, gating_TA, valid_T = (
      jax.lax.all_gather(x, token_axes, tiled=True)
      for x in (x_TD, expert_TA, gating_TA, valid_T)
    )
  expert_TA = jnp.where(valid_T[:, None], expert_TA, -1)
  expert_TA -= jax.lax.axis_index(axes) * local_experts
  if local_experts < expert_TA.shape[1]:
    # A pair for each expert here are fewer than one for each that is chosen.
    chosen_TAe = expert_TA[..., None] == jnp.arange(local_experts)
    gating_TA = jnp.sum(jnp.where(chosen_TAe, gating_TA[..., None], 0), 1)
    expert_TA = jnp.where(chosen_TAe.any(1), jnp.arange(local_experts), -1)
  is_mine_TA = (expert_TA >= 0) & (expert_TA < local_experts)
  mean_pairs = active / (jax.lax.axis_size(axes) * expert_TA.shape[1])
  with jax.named_scope(f'filled_{min(1, mean_pairs):.6f}'):
    y_TD = swiglu(
      x_TD, jnp.where(is_mine_TA, expert_TA, local_experts), gating_TA, weights
    )
  y_TD = y_TD.astype(quant.wide(x_TD.dtype))
  if token_axes:
    y_TD = jax.lax.psum_scatter(y_TD, token_axes, tiled=True)
  if others := tuple(axis for axis in axes if axis not in token_axes):
    y_TD = jax.lax.psum(y_TD, others)
  return y_TD.astype(x_TD.dtype), jnp.zeros(())


def _gathers(
  tokens: int, group: int, shards: int, experts: int, config: ModelConfig
) -> bool:
  """Whether reading all tokens moves less than slots for all possible pairs.

  Args:
    tokens: T, tokens of a device.
    group: Devices whose tokens are read together.
    shards: Devices that hold the experts.
    experts: Experts of a device.
    config: The model's configuration.
  """
  if config.capacity_factor:
    return False
  slots = shards * tokens * min(config.num_experts_per_tok, experts)
  # Outputs are added up in float32.
  item = config.compute_dtype.itemsize
  return tokens * group * (item + 4) < 2 * slots * item


def _send_slots(target_p, shards: int, capacity: int):
  """Assigns pairs, sorted by target device, to slots of the send buffer.

  Args:
    target_p: The device that each pair goes to; `shards` for none.
    shards: Number of devices.
    capacity: Slots per target device.

  Returns:
    The slot of each pair, shards · capacity for a pair that is not sent; and
    the number of pairs beyond capacity, a float32 scalar.
  """
  count = jnp.bincount(target_p, length=shards + 1)
  start = jnp.cumsum(count) - count
  rank_p = jnp.arange(target_p.shape[0]) - start[target_p]
  is_sent_p = (target_p < shards) & (rank_p < capacity)
  slot_p = jnp.where(is_sent_p, target_p * capacity + rank_p, shards * capacity)
  dropped = jnp.sum((target_p < shards) & ~is_sent_p)
  return slot_p, dropped.astype(jnp.float32)


def _swiglu(config: ModelConfig, layout: Layout) -> Callable:
  """Returns experts.swiglu with the options for these devices bound."""
  native = config.fp8 and quant.has_unit(layout.device)
  dispatch = config.moe_dispatch
  if dispatch == 'auto':
    blocks = native or layout.platform == 'cpu'
    dispatch = 'blocks' if blocks else 'ragged'
  return partial(
    experts.swiglu,
    dispatch=dispatch,
    fp8=config.fp8,
    units=layout.alone() if native else None,
  )


def _flattened(function, swiglu: Callable, x, expert, gating, valid, *weights):
  """Calls _local or _exchanged with batch and sequence as one axis."""
  rows = x.shape[0] * x.shape[1]
  y, dropped = function(
    x.reshape(rows, -1),
    expert.reshape(rows, -1),
    gating.reshape(rows, -1),
    valid.reshape(rows),
    weights,
    swiglu,
  )
  return y.reshape(x.shape), dropped


def dispatched(
  x_BTD,
  expert_BTA,
  gating_BTA,
  valid_BT,
  weights,
  config: ModelConfig,
  layout: Layout,
):
  """Sums the routed experts' outputs over each token's experts.

  Returns:
    y_BTD, and the number of (token, expert) pairs dropped on all devices.
  """
  swiglu = _swiglu(config, layout)
  if layout.mesh.size == 1:
    return _flattened(
      _local, swiglu, x_BTD, expert_BTA, gating_BTA, valid_BT, *weights
    )

  tokens = layout.fitting_spec(x_BTD.shape[:2], 'Bt')
  shards, split_I = layout.weight_parts('E'), layout.weight_axes('I')
  function = _local
  if shards > 1:
    function = _between(x_BTD.shape[:2], tokens, shards, config, layout)
  # If an axis does not divide the tokens, each of its devices sends them all.
  copies = layout.mesh.size / layout.parts(tokens)

  def on_device(x, expert, gating, valid, gate_EDI, up_EDI, down_EID):
    if split_I:
      gather = partial(jax.lax.all_gather, axis_name=split_I, tiled=True)
      gate_EDI, up_EDI = gather(gate_EDI, axis=2), gather(up_EDI, axis=2)
      down_EID = gather(down_EID, axis=1)
    y, dropped = _flattened(
      function, swiglu, x, expert, gating, valid, gate_EDI, up_EDI, down_EID
    )
    return y, jax.lax.psum(dropped, layout.mesh.axis_names) / copies

  spec = jax.sharding.PartitionSpec
  by_weight = [layout.weight_spec(letters) for letters in ('EdI', 'EdI', 'EId')]
  return jax.shard_map(
    on_device,
    mesh=layout.mesh,
    in_specs=(spec(*tokens, None),) * 3 + (tokens, *by_weight),
    out_specs=(spec(*tokens, None), spec()),
    check_vma=False,
  )(x_BTD, expert_BTA, gating_BTA, valid_BT, *weights)


def _between(
  shape: tuple[int, int],
  tokens: jax.sharding.PartitionSpec,
  shards: int,
  config: ModelConfig,
  layout: Layout,
) -> Callable:
  """Returns _gathered or _exchanged, whichever moves less.

  Args:
    shape: Batch and sequence of the hidden states.
    tokens: How these two are sharded.
    shards: Devices that hold the experts.
    config: The model's configuration.
    layout: The mesh and its tables.
  """
  axes = layout.weight_axes('E')
  used = {axis for entry in tokens for axis in _axes(entry)}
  token_axes = tuple(axis for axis in axes if axis in used)
  group = math.prod(layout.mesh.shape[axis] for axis in token_axes)
  per_device = math.prod(shape) // layout.parts(tokens)
  if _gathers(
    per_device, group, shards, config.n_routed_experts // shards, config
  ):
    return partial(_gathered, axes=axes, token_axes=token_axes)
  return partial(
    _exchanged, axes=axes, shards=shards, capacity_factor=config.capacity_factor
  )


def _axes(entry) -> tuple[str, ...]:
  """The mesh axes of one entry of a PartitionSpec."""
  if entry is None:
    return ()
  return (entry,) if isinstance(entry, str) else tuple(entry)
