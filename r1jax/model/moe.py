"""DeepSeekMoE with auxiliary-loss-free balancing (V3 section 2.1.2)."""

from typing import NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp

from r1jax.model.config import ModelConfig
from r1jax.model.layers import SwiGLU, weight
from r1jax.sharding import Layout


def route(affinity_BE, bias_E, config: ModelConfig):
  """Group-limited top-k over affinities (V3 eq. 13–16).

  The bias chooses and nothing else: a group's score is the sum of its two
  best biased affinities; the gate weights are the unbiased affinities of the
  chosen experts, normalised to 1 and scaled. DeepSeek-V2 scores a group by
  its best expert, and does not normalise.

  Args:
    affinity_BE: float32 in (0, 1).
    bias_E: float32, the selection bias.
    config: The model's.

  Returns:
    expert_BA int32 and gate_BA float32.
  """
  B, E = affinity_BE.shape
  groups = config.num_expert_groups
  biased_BE = affinity_BE + bias_E
  if groups > 1:
    grouped = biased_BE.reshape(B, groups, E // groups)
    counted = min(2 if config.group_score == 'top2' else 1, E // groups)
    score = jax.lax.top_k(grouped, counted)[0].sum(-1)
    chosen = jax.lax.top_k(score, config.topk_groups)[1]
    allowed = jax.nn.one_hot(chosen, groups, dtype=bool).any(1)
    biased_BE = jnp.where(
        jnp.repeat(allowed, E // groups, axis=1), biased_BE, -jnp.inf)
  expert_BA = jax.lax.top_k(biased_BE, config.experts_per_token)[1]
  gate_BA = jnp.take_along_axis(affinity_BE, expert_BA, axis=1)
  if config.normalise_gates:
    gate_BA /= gate_BA.sum(-1, keepdims=True) + 1e-20
  return expert_BA, gate_BA * config.routed_scaling


class Dispatch(NamedTuple):
  """Where each (token, choice) pair is computed: slots sorted by expert.

  'ragged': a slot a pair, back to back; `size_E` slots for each expert.
  'blocks': each expert's slots are padded up to whole blocks of one size;
  `expert_W` is the expert of each block.

  Attributes:
    token_S: The token in each slot; an empty slot repeats token 0, and nothing
      ever reads its result.
    slot_BA: The slot of each pair.
    size_E: int32, pairs of each expert.
    expert_W: int32, or None for 'ragged'.
  """

  token_S: jax.Array
  slot_BA: jax.Array
  size_E: jax.Array
  expert_W: jax.Array | None


def plan(expert_BA, num_experts: int, dispatch: str) -> Dispatch:
  """Sorts the pairs by expert. 'auto' is 'blocks' on CPU, else 'ragged'."""
  if dispatch == 'auto':
    dispatch = 'blocks' if jax.default_backend() == 'cpu' else 'ragged'
  (B, A), E = expert_BA.shape, num_experts
  pairs = B * A
  expert_of_pair = expert_BA.reshape(-1)
  order = jnp.argsort(expert_of_pair, stable=True)  # The pair in each rank.
  size_E = jnp.bincount(expert_of_pair, length=E).astype(jnp.int32)
  slot_of_rank, slots, expert_W = jnp.arange(pairs), pairs, None
  if dispatch == 'blocks':
    block = block_slots(pairs, E)
    blocks_E = -(-size_E // block)
    W = -(-pairs // block) + E  # Each expert pads less than one block.
    slots = W * block
    expert_W = jnp.repeat(jnp.arange(E), blocks_E, total_repeat_length=W)
    shift_E = (_starts(blocks_E) * block) - _starts(size_E)
    slot_of_rank += jnp.repeat(shift_E, size_E, total_repeat_length=pairs)
  token_S = jnp.zeros(slots, jnp.int32).at[slot_of_rank].set(order // A)
  slot_BA = jnp.zeros(pairs, jnp.int32).at[order].set(slot_of_rank)
  return Dispatch(token_S, slot_BA.reshape(B, A), size_E, expert_W)


def grouped_matmul(x_SD, w_EDF, where: Dispatch):
  """Every slot times the matrix of its expert: [S, F].

  XLA's ragged_dot is a fused kernel on TPU, but on CPU it multiplies every row
  with every expert. There the slots lie in blocks, and one batched product
  costs at most E blocks more than the ideal. Both give the same numbers.
  """
  if where.expert_W is None:
    return jax.lax.ragged_dot(x_SD, w_EDF, where.size_E)
  W = where.expert_W.shape[0]
  x_WbD = x_SD.reshape(W, -1, x_SD.shape[-1])
  y_WbF = jnp.einsum('WbD,WDF->WbF', x_WbD, w_EDF[where.expert_W])
  return y_WbF.reshape(x_SD.shape[0], -1)


def block_slots(pairs: int, experts: int) -> int:
  """A power of two in [16, 256], near half an expert's fair share of pairs."""
  share = max(pairs // (2 * experts), 1)
  return min(256, max(16, 1 << (share.bit_length() - 1)))


def _starts(size_E):
  return jnp.cumsum(size_E) - size_E


class MoE(nn.Module):
  """Routed experts plus shared ones; every token is served (dropless)."""

  config: ModelConfig
  layout: Layout

  @nn.compact
  def __call__(self, x_BD, counted_B):
    """Applies the experts.

    Args:
      x_BD: Tokens, all sequences flattened into one axis.
      counted_B: bool; only these tokens count as load. Padding does not.

    Returns:
      y_BD, and load_E: float32, how many counted tokens chose each expert.
    """
    c = self.config
    D, E = x_BD.shape[-1], c.num_experts
    F, std = c.expert_ffn_dim, c.init_std
    init = nn.with_partitioning(nn.initializers.normal(std), ('D', '1'))
    router_DE = self.param('router', init, (D, E), jnp.float32)
    init = nn.with_partitioning(nn.initializers.zeros, ('1',))
    bias_E = self.param('bias', init, (E,), jnp.float32)
    gate_EDF = weight(self, 'gate', 'EDF', (E, D, F), std)
    up_EDF = weight(self, 'up', 'EDF', (E, D, F), std)
    down_EFD = weight(self, 'down', 'EFD', (E, F, D), std)

    to_affinity = {
        'sigmoid': jax.nn.sigmoid, 'softmax': jax.nn.softmax}[c.affinity]
    affinity_BE = to_affinity(x_BD.astype(jnp.float32) @ router_DE)
    expert_BA, gate_BA = route(
        affinity_BE, jax.lax.stop_gradient(bias_E), c)

    where = plan(expert_BA, E, c.moe_dispatch)
    x_SD = x_BD[where.token_S]
    hidden_SF = (jax.nn.silu(grouped_matmul(x_SD, gate_EDF, where))
                 * grouped_matmul(x_SD, up_EDF, where))
    out_SD = grouped_matmul(hidden_SF, down_EFD, where)
    y_BD = jnp.einsum(
        'BAD,BA->BD', out_SD[where.slot_BA], gate_BA.astype(out_SD.dtype))
    if c.num_shared_experts:
      shared = SwiGLU(c, self.layout, F * c.num_shared_experts, name='shared')
      y_BD += shared(x_BD)

    load_E = jnp.zeros(E).at[expert_BA].add(
        counted_B[:, None].astype(jnp.float32))
    return y_BD, load_E


def balanced_bias(bias_LE, load_LE, speed: float):
  """One step of auxiliary-loss-free balancing (V3 section 2.1.2).

  An overloaded expert's selection bias falls by `speed` (γ), an underloaded
  one's rises by it. load_LE counts the tokens of the whole global batch.
  """
  mean_L1 = load_LE.mean(-1, keepdims=True)
  return bias_LE + speed * jnp.sign(mean_L1 - load_LE)
