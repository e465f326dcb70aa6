"""DeepSeekMoE: routing, dispatch and expert parallelism (V3 section 2.1.2).

How tokens reach their experts on a mesh is in dispatch.py, and what experts
compute in experts.py.

Attributes:
  BIAS_PATHS: Path of the routing bias in the parameters of each stack of layers
    that has experts.
"""

from typing import NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp

from r1jax.config.schema.model import ModelConfig
from r1jax.model import dispatch, quant
from r1jax.model.layers import SwiGLU, weight
from r1jax.sharding import Layout


class Routing(NamedTuple):
  """Routing statistics of one MoE layer; the scan over layers stacks them.

  Attributes:
    load_E: float32, number of counted tokens that chose each expert.
    aux_loss: float32 scalar, the sequence-wise balance loss without its factor
      α (V3 eq. 17–20), mean over sequences. It is 1 when the load is even.
    dropped: float32 scalar, number of (token, expert) pairs beyond capacity.
    expert_BTA: int32, the experts of each token.
  """

  load_E: jax.Array
  aux_loss: jax.Array
  dropped: jax.Array
  expert_BTA: jax.Array


def route(affinity, bias_E, config: ModelConfig):
  """Chooses A experts per token by group-limited top-k (V3 eq. 13–16).

  The routing bias influences the choice of experts but not their weights. The
  topk_group groups with the highest score are allowed, and the A experts with
  the highest biased affinity within them are chosen. In V3 a group's score is
  the sum of its two highest biased affinities, in V2 the highest.

  Args:
    affinity: float32 [..., E] in (0, 1).
    bias_E: float32, the routing bias.
    config: The model's configuration.

  Returns:
    The chosen experts, int32 [..., A], and their gating weights, float32
    [..., A]; see `gating_weights`.
  """
  E, groups = config.n_routed_experts, config.n_group
  biased = affinity + bias_E
  if groups > 1:
    grouped = biased.reshape(*biased.shape[:-1], groups, E // groups)
    counted = min(2 if config.group_scoring == 'top2_sum' else 1, E // groups)
    score = jax.lax.top_k(grouped, counted)[0].sum(-1)
    chosen = jax.lax.top_k(score, config.topk_group)[1]
    allowed = jax.nn.one_hot(chosen, groups, dtype=bool).any(-2)
    biased = jnp.where(
      jnp.repeat(allowed, E // groups, axis=-1), biased, -jnp.inf
    )
  expert = jax.lax.top_k(biased, config.num_experts_per_tok)[1]
  return expert, gating_weights(affinity, expert, config)


def gating_weights(affinity, expert, config: ModelConfig):
  """Returns the gating weights of chosen experts, [..., A].

  They are the experts' affinities without bias, normalized to sum 1 if
  config.norm_topk_prob, times config.routed_scaling_factor.

  Args:
    affinity: float32 [..., E].
    expert: int32 [..., A].
    config: The model's configuration.
  """
  gate = jnp.take_along_axis(affinity, expert, axis=-1)
  if config.norm_topk_prob:
    gate /= gate.sum(-1, keepdims=True) + 1e-20
  return gate * config.routed_scaling_factor


def sequence_aux_loss(
  affinity_BTE, expert_BTA, counted_BT, balance_BT=None, prefix_BT=None
):
  """Computes the sequence-wise balance loss (V3 eq. 17–20) without its α.

  It is the mean over sequences of Σ_i f_i P_i, with f_i = E / (A T) · (tokens
  that chose expert i) and P_i = the mean over tokens of expert i's share of
  the affinities.

  Args:
    affinity_BTE: float32.
    expert_BTA: int32, the chosen experts.
    counted_BT: bool, False for tokens to leave out, such as padding.
    balance_BT: int32 in [0, T], the sequence of its row that each token belongs
      to; None where a row is one sequence.
    prefix_BT: int32, the sequence that precedes that of the token and belongs
      to it, such as a shared prompt; −1 for tokens of a sequence that precedes
      others and is none by itself, 0 for others. None where all are 0.

  Returns:
    The float32 scalar loss, and load_E: the number of counted tokens that
    chose each expert. A shared token counts in each sequence that it precedes.
  """
  E, A = affinity_BTE.shape[-1], expert_BTA.shape[-1]

  def total(x_BTE):  # Of each sequence, [B, sequences, E].
    if balance_BT is None:
      return x_BTE.sum(1, keepdims=True)
    num = balance_BT.shape[1] + 1
    sum_ = jax.vmap(lambda x, ids: jax.ops.segment_sum(x, ids, num))
    own = sum_(x_BTE, balance_BT)
    if prefix_BT is None:
      return own
    max_ = jax.vmap(lambda x, ids: jax.ops.segment_max(x, ids, num))
    prefix_BS1 = max_(prefix_BT, balance_BT)[..., None]
    before = jnp.take_along_axis(own, jnp.maximum(prefix_BS1, 0), 1)
    own += jnp.where(prefix_BS1 > 0, before, 0)
    return jnp.where(prefix_BS1 >= 0, own, 0)

  counted_BT1 = counted_BT[..., None].astype(jnp.float32)
  count = total(counted_BT1)
  tokens = jnp.maximum(count, 1)
  chose_BTE = jax.nn.one_hot(expert_BTA, E).sum(-2) * counted_BT1
  load = total(chose_BTE)
  share_BTE = affinity_BTE / (affinity_BTE.sum(-1, keepdims=True) + 1e-20)
  P = total(share_BTE * counted_BT1) / tokens
  sequences = jnp.maximum((count > 0).sum(), 1)
  loss = jnp.sum(E / A * load / tokens * P) / sequences
  return loss, load.sum((0, 1))


class MoE(nn.Module):
  """A layer of routed and shared experts (DeepSeekMoE)."""

  config: ModelConfig
  layout: Layout

  @nn.compact
  def __call__(
    self, x_BTD, counted_BT, replay_BTA=None, balance_BT=None, prefix_BT=None
  ):
    """Routes each token and applies its experts.

    Args:
      x_BTD: Hidden states.
      counted_BT: bool, False for padding, which is routed to no expert and
        counts in no statistic.
      replay_BTA: int, experts to use instead of the router's choice (routing
        replay); their gating weights are computed by the router all the same.
      balance_BT, prefix_BT: See sequence_aux_loss.

    Returns:
      y_BTD, and the layer's Routing.
    """
    c = self.config
    D, E, I = c.hidden_size, c.n_routed_experts, c.moe_intermediate_size
    init = nn.with_partitioning(
      nn.initializers.normal(c.initializer_range), ('D', 'e')
    )
    router_DE = self.param('router', init, (D, E), jnp.float32)
    init = nn.with_partitioning(nn.initializers.zeros, ('e',))
    bias_E = self.param('bias', init, (E,), jnp.float32)
    weights = (
      weight(self, 'gate', 'EdI', (E, D, I), c.initializer_range),
      weight(self, 'up', 'EdI', (E, D, I), c.initializer_range),
      weight(self, 'down', 'EId', (E, I, D), c.initializer_range),
    )

    x_BTD = self.layout.constrain(x_BTD, 'BtD')
    to_affinity = {'sigmoid': jax.nn.sigmoid, 'softmax': jax.nn.softmax}[
      c.scoring_func
    ]
    affinity_BTE = to_affinity(
      jnp.einsum(
        'BTD,DE->BTE', x_BTD.astype(quant.wide(x_BTD.dtype)), router_DE
      )
    )
    if replay_BTA is None:
      expert_BTA, gating_BTA = route(
        affinity_BTE, jax.lax.stop_gradient(bias_E), c
      )
    else:
      expert_BTA = replay_BTA.astype(jnp.int32)
      gating_BTA = gating_weights(affinity_BTE, expert_BTA, c)
    y_BTD, dropped = dispatch.dispatched(
      x_BTD, expert_BTA, gating_BTA, counted_BT, weights, c, self.layout
    )
    if c.n_shared_experts:
      shared = SwiGLU(c, self.layout, I * c.n_shared_experts, name='shared')
      y_BTD += shared(x_BTD)

    aux_loss, load_E = sequence_aux_loss(
      affinity_BTE, expert_BTA, counted_BT, balance_BT, prefix_BT
    )
    return y_BTD, Routing(load_E, aux_loss, dropped, expert_BTA)


BIAS_PATHS = {
  'moe_layers': ('moe_layers', 'ffn', 'bias'),
  'mtp': ('mtp', 'block', 'ffn', 'bias'),
}


def updated_bias(bias_LE, load_LE, update_rate: float):
  """Makes one step of auxiliary-loss-free load balancing (V3 section 2.1.2).

  The routing bias of an overloaded expert falls by the update rate γ, that of
  an underloaded one rises by it.

  Args:
    bias_LE: float32 routing biases.
    load_LE: Tokens of the whole global batch that each expert received.
    update_rate: γ.
  """
  mean_L1 = load_LE.mean(-1, keepdims=True)
  return bias_LE + update_rate * jnp.sign(mean_L1 - load_LE)


def load_metrics(load_LE) -> dict[str, jax.Array]:
  """Measures how uneven the load of the experts is in each MoE layer.

  `violation` is V3's MaxVio (section 4.5.3): the highest load over the mean
  load, minus 1. `entropy` is that of the load as a distribution over experts,
  divided by its maximum ln E. `dead` counts experts that received no token.
  Layers are numbered from the first MoE layer.

  Args:
    load_LE: float32, tokens that each expert received.

  Returns:
    The three measures of each layer, 'moe/layer_0/violation' and so on, and
    their extremes over all layers.
  """
  mean_L = jnp.maximum(load_LE.mean(-1), 1e-9)
  violation_L = load_LE.max(-1) / mean_L - 1
  share_LE = load_LE / jnp.maximum(load_LE.sum(-1, keepdims=True), 1e-9)
  entropy_L = -jnp.sum(
    share_LE * jnp.log(jnp.maximum(share_LE, 1e-30)), -1
  ) / jnp.log(load_LE.shape[-1])
  dead_L = jnp.sum(load_LE == 0, -1).astype(jnp.float32)
  by_layer: dict[str, jax.Array] = {}
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
