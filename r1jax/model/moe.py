"""DeepSeekMoE: routing, dispatch, expert parallelism (V3 section 2.1.2).

On a mesh each device routes its own tokens and sends them to the devices that
hold their experts, by one all-to-all there and one back. What the experts do
with them is in experts.py.
"""

from collections.abc import Callable
import dataclasses
from functools import partial
import math
from typing import NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp

from r1jax.model import experts, quant
from r1jax.model.config import ModelConfig
from r1jax.model.layers import SwiGLU, weight
from r1jax.sharding import Layout


class Routing(NamedTuple):
  """What one MoE layer tells of its routing; stacked along L by the scan.

  Attributes:
    load_E: float32, how many counted tokens chose each expert.
    balance: Scalar, the sequence-wise balance loss without its α (V3 eq.
      17–20), the mean over sequences. 1 when the load is even.
    dropped: Scalar float32, (token, expert) pairs that found no room.
    expert_BTA: int32, the experts of each token.
  """

  load_E: jax.Array
  balance: jax.Array
  dropped: jax.Array
  expert_BTA: jax.Array


@dataclasses.dataclass(frozen=True)
class Balancing:
  """How the load of the experts is kept even.

  Attributes:
    speed: γ of the selection bias, 0 leaves it alone (V3 section 2.1.2).
    loss: α of the sequence-wise balance loss (V3 eq. 17).
  """

  speed: float
  loss: float


def route(affinity, bias_E, config: ModelConfig):
  """Group-limited top-k over affinities (V3 eq. 13–16).

  The bias chooses and nothing else: a group's score is the sum of its two
  best biased affinities; the gate weights are the unbiased affinities of the
  chosen experts, normalised to 1 and scaled. DeepSeek-V2 scores a group by
  its best expert, and does not normalise.

  Args:
    affinity: float32 [..., E] in (0, 1).
    bias_E: float32, the selection bias.
    config: The model's.

  Returns:
    expert int32 [..., A] and gate float32 [..., A].
  """
  E, groups = config.num_experts, config.num_expert_groups
  biased = affinity + bias_E
  if groups > 1:
    grouped = biased.reshape(*biased.shape[:-1], groups, E // groups)
    counted = min(2 if config.group_score == 'top2' else 1, E // groups)
    score = jax.lax.top_k(grouped, counted)[0].sum(-1)
    chosen = jax.lax.top_k(score, config.topk_groups)[1]
    allowed = jax.nn.one_hot(chosen, groups, dtype=bool).any(-2)
    biased = jnp.where(
      jnp.repeat(allowed, E // groups, axis=-1), biased, -jnp.inf
    )
  expert = jax.lax.top_k(biased, config.experts_per_token)[1]
  return expert, gates(affinity, expert, config)


def gates(affinity, expert, config: ModelConfig):
  """The weights of chosen experts: [..., E] at [..., A] → [..., A]."""
  gate = jnp.take_along_axis(affinity, expert, axis=-1)
  if config.normalise_gates:
    gate /= gate.sum(-1, keepdims=True) + 1e-20
  return gate * config.routed_scaling


def balance_loss(affinity_BTE, expert_BTA, counted_BT):
  """Σ_i f_i P_i of each sequence, their mean (V3 eq. 17–20, without α).

  f_i = E / (A T) · tokens that chose expert i; P_i = the mean of i's share of
  a token's affinities. Only counted tokens enter; a row is one sequence.

  Returns:
    The loss, and load_E: how many counted tokens chose each expert.
  """
  E, A = affinity_BTE.shape[-1], expert_BTA.shape[-1]
  counted_BT1 = counted_BT[..., None].astype(jnp.float32)
  tokens_B1 = jnp.maximum(counted_BT1.sum(1), 1)
  chose_BTE = jax.nn.one_hot(expert_BTA, E).sum(-2) * counted_BT1
  load_BE = chose_BTE.sum(1)
  share_BTE = affinity_BTE / (affinity_BTE.sum(-1, keepdims=True) + 1e-20)
  P_BE = (share_BTE * counted_BT1).sum(1) / tokens_B1
  rows = jnp.maximum(jnp.any(counted_BT, 1).sum(), 1)
  loss = jnp.sum(E / A * load_BE / tokens_B1 * P_BE) / rows
  return loss, load_BE.sum(0)


def _local(x_RD, expert_RA, gate_RA, valid_R, weights, swiglu: Callable):
  """All experts are here. Padding goes to none of them: it is never read."""
  expert_RA = jnp.where(valid_R[:, None], expert_RA, weights[0].shape[0])
  return swiglu(x_RD, expert_RA, gate_RA, weights), jnp.zeros(())


def _exchanged(
  x_RD,
  expert_RA,
  gate_RA,
  valid_R,
  weights,
  swiglu: Callable,
  axes: tuple[str, ...],
  shards: int,
  capacity_factor: float,
):
  """Experts lie on `shards` devices; runs on each of them (shard_map).

  A device has `room` slots for each other one: with a capacity factor that
  many times the mean, and pairs beyond it are dropped and counted; without
  one as many as could ever be needed, and none is dropped.
  """
  (R, A), D = expert_RA.shape, x_RD.shape[-1]
  here = weights[0].shape[0]  # Experts of this device.
  if capacity_factor:
    mean = R * A / shards
    room = min(math.ceil(capacity_factor * mean), R * min(A, here))
  else:
    room = R * min(A, here)
  pair_expert = jnp.where(valid_R[:, None], expert_RA, shards * here).reshape(
    -1
  )
  order = experts.in_order(pair_expert, shards * here)
  target = pair_expert[order] // here  # `shards` for those that go nowhere.
  count = jnp.bincount(target, length=shards + 1)
  rank = jnp.arange(R * A) - (jnp.cumsum(count) - count)[target]
  goes = (target < shards) & (rank < room)
  slot = jnp.where(goes, target * room + rank, shards * room)

  def slots(none, of_pair):  # `none` where no pair has come.
    return (
      jnp.full(shards * room, none, of_pair.dtype)
      .at[slot]
      .set(of_pair, mode='drop')
    )

  swap = partial(
    jax.lax.all_to_all, axis_name=axes, split_axis=0, concat_axis=0, tiled=True
  )
  came_SD = swap(x_RD.at[slots(R, order // A)].get(mode='fill', fill_value=0))
  out_SD = swiglu(
    came_SD,
    swap(slots(here, pair_expert[order] % here))[:, None],
    swap(slots(0, gate_RA.reshape(-1)[order]))[:, None],
    weights,
  )
  slot_of_pair = jnp.zeros(R * A, jnp.int32).at[order].set(slot)
  pairs = swap(out_SD).at[slot_of_pair].get(mode='fill', fill_value=0)
  y_RD = pairs.reshape(R, A, D).sum(1, dtype=quant.wide(x_RD.dtype))
  return y_RD.astype(x_RD.dtype), jnp.sum((target < shards) & ~goes).astype(
    jnp.float32
  )


class MoE(nn.Module):
  """Routed experts plus shared ones."""

  config: ModelConfig
  layout: Layout

  @nn.compact
  def __call__(self, x_BTD, counted_BT, replay_BTA=None):
    """Applies the experts.

    Args:
      x_BTD: Tokens.
      counted_BT: bool; only these tokens count. Padding does not.
      replay_BTA: int, the experts to use instead of choosing any; their gate
        weights are computed as ever.

    Returns:
      y_BTD, and a Routing.
    """
    c = self.config
    D, E, I = c.d_model, c.num_experts, c.expert_ffn_dim
    init = nn.with_partitioning(nn.initializers.normal(c.init_std), ('D', 'e'))
    router_DE = self.param('router', init, (D, E), jnp.float32)
    init = nn.with_partitioning(nn.initializers.zeros, ('e',))
    bias_E = self.param('bias', init, (E,), jnp.float32)
    weights = (
      weight(self, 'gate', 'EdI', (E, D, I), c.init_std),
      weight(self, 'up', 'EdI', (E, D, I), c.init_std),
      weight(self, 'down', 'EId', (E, I, D), c.init_std),
    )

    x_BTD = self.layout.constrain(x_BTD, 'BtD')
    to_affinity = {'sigmoid': jax.nn.sigmoid, 'softmax': jax.nn.softmax}[
      c.affinity
    ]
    affinity_BTE = to_affinity(
      jnp.einsum(
        'BTD,DE->BTE', x_BTD.astype(quant.wide(x_BTD.dtype)), router_DE
      )
    )
    if replay_BTA is None:
      expert_BTA, gate_BTA = route(
        affinity_BTE, jax.lax.stop_gradient(bias_E), c
      )
    else:
      expert_BTA = replay_BTA.astype(jnp.int32)
      gate_BTA = gates(affinity_BTE, expert_BTA, c)
    y_BTD, dropped = _dispatched(
      x_BTD, expert_BTA, gate_BTA, counted_BT, weights, c, self.layout
    )
    if c.num_shared_experts:
      shared = SwiGLU(c, self.layout, I * c.num_shared_experts, name='shared')
      y_BTD += shared(x_BTD)

    balance, load_E = balance_loss(affinity_BTE, expert_BTA, counted_BT)
    return y_BTD, Routing(load_E, balance, dropped, expert_BTA)


def _dispatched(
  x_BTD,
  expert_BTA,
  gate_BTA,
  valid_BT,
  weights,
  config: ModelConfig,
  layout: Layout,
):
  """The routed experts' sum for every token, and how many pairs it lost."""
  native = config.fp8 and quant.has_unit(layout.device)
  dispatch = config.moe_dispatch
  if dispatch == 'auto':
    blocks = native or layout.platform == 'cpu'
    dispatch = 'blocks' if blocks else 'ragged'
  swiglu = partial(
    experts.swiglu,
    dispatch=dispatch,
    fp8=config.fp8,
    units=layout.alone() if native else None,
  )

  def flat(function, x, expert, gate, valid, *weights):
    rows = x.shape[0] * x.shape[1]
    y, dropped = function(
      x.reshape(rows, -1),
      expert.reshape(rows, -1),
      gate.reshape(rows, -1),
      valid.reshape(rows),
      weights,
      swiglu,
    )
    return y.reshape(x.shape), dropped

  if layout.mesh.size == 1:
    return flat(_local, x_BTD, expert_BTA, gate_BTA, valid_BT, *weights)

  tokens = layout.fitting_spec(x_BTD.shape[:2], 'Bt')
  axes = layout.weight_axes('E')
  shards, split_I = layout.weight_parts('E'), layout.weight_axes('I')
  function = (
    _local
    if shards == 1
    else partial(
      _exchanged,
      axes=axes,
      shards=shards,
      capacity_factor=config.capacity_factor,
    )
  )
  # Tokens that an axis does not divide are sent by each of its devices.
  copies = layout.mesh.size / layout.parts(tokens)

  def on_device(x, expert, gate, valid, gate_EDI, up_EDI, down_EID):
    if split_I:
      gather = partial(jax.lax.all_gather, axis_name=split_I, tiled=True)
      gate_EDI, up_EDI = gather(gate_EDI, axis=2), gather(up_EDI, axis=2)
      down_EID = gather(down_EID, axis=1)
    y, dropped = flat(
      function, x, expert, gate, valid, gate_EDI, up_EDI, down_EID
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
  )(x_BTD, expert_BTA, gate_BTA, valid_BT, *weights)


BIAS = {  # Where each stack keeps its selection bias.
  'moe_layers': ('moe_layers', 'ffn', 'bias'),
  'mtp': ('mtp', 'block', 'ffn', 'bias'),
}


def balanced_bias(bias_LE, load_LE, speed: float):
  """One step of auxiliary-loss-free balancing (V3 section 2.1.2).

  An overloaded expert's selection bias falls by `speed` (γ), an underloaded
  one's rises by it. load_LE counts the tokens of the whole global batch.
  """
  mean_L1 = load_LE.mean(-1, keepdims=True)
  return bias_LE + speed * jnp.sign(mean_L1 - load_LE)


def load_metrics(load_LE) -> dict[str, jax.Array]:
  """How uneven the load of each MoE layer is, counted from the first of them.

  Violation (V3 section 4.5.3's MaxVio) is the most loaded expert's load over
  the mean, less 1; entropy is that of the load as a distribution, over its
  maximum ln E; a dead expert got no token at all.
  """
  mean_L = jnp.maximum(load_LE.mean(-1), 1e-9)
  violation_L = load_LE.max(-1) / mean_L - 1
  share_LE = load_LE / jnp.maximum(load_LE.sum(-1, keepdims=True), 1e-9)
  entropy_L = -jnp.sum(
    share_LE * jnp.log(jnp.maximum(share_LE, 1e-30)), -1
  ) / jnp.log(load_LE.shape[-1])
  dead_L = jnp.sum(load_LE == 0, -1).astype(jnp.float32)
  by_layer = {}
  for i in range(load_LE.shape[0]):
    by_layer |= {
      f'moe/layer_{i}/violation': violation_L[i],
      f'moe/layer_{i}/entropy': entropy_L[i],
      f'moe/layer_{i}/dead': dead_L[i],
    }
  return {
    'moe/max_violation': violation_L.max(),
    'moe/min_entropy': entropy_L.min(),
    'moe/dead_experts': dead_L.sum(),
  } | by_layer
