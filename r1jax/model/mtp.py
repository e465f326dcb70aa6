"""Multi-token prediction (DeepSeek-V3 section 2.2): modules that look ahead.

Module k joins what the model knows at token i with token i + k, and predicts
token i + k + 1 through the model's own embedding and head:

  h_k = block_k(M_k [norm(Emb(t_{i+k})); norm(h_{k−1})])    (eq. 21, 22)

h_0 is the main model's state after its final norm, as the released weights
are used; M_k's two halves lie in the order of the released checkpoints.
"""

from flax import linen as nn
import jax
import jax.numpy as jnp

from r1jax.model.config import ModelConfig
from r1jax.model.layers import RMSNorm, linear, weight
from r1jax.sharding import Layout


class MTP(nn.Module):
  """One module; they are scanned over depth.

  Attributes:
    config: The model's.
    layout: The model's.
    block: Makes a transformer block.
  """

  config: ModelConfig
  layout: Layout
  block: type[nn.Module]

  @nn.compact
  def __call__(self, h_BTD, ahead_BTD, position_BT, segment_BT):
    """Returns h_k, normed for the head, twice; and the block's routing.

    Args:
      h_BTD: h_{k−1}, normed.
      ahead_BTD: Embeddings of the tokens k places on.
      position_BT: Of the tokens of h.
      segment_BT: Theirs too.
    """
    c = self.config
    D = c.d_model
    merge_dD = weight(self, 'merge', 'dD', (2 * D, D), c.init_std)
    both = jnp.concatenate(
        [RMSNorm(c.norm_eps, name='ahead_norm')(ahead_BTD),
         RMSNorm(c.norm_eps, name='hidden_norm')(h_BTD)], -1)
    x_BTD = self.layout.constrain(linear(
        both, merge_dD, self.layout, c.fp8), 'BtD')
    x_BTD, routing = self.block(
        c, self.layout, bool(c.num_moe_layers), name='block')(
            x_BTD, position_BT, segment_BT)
    h_BTD = RMSNorm(c.norm_eps, name='norm')(x_BTD)
    return h_BTD, (h_BTD, routing)


def shift(x_BT: jax.Array, by: int) -> jax.Array:
  """x[i + by] at i, 0 beyond the end: [7 8 9], 1 → [8 9 0]."""
  return jnp.pad(x_BT[:, by:], ((0, 0), (0, min(by, x_BT.shape[1]))))


def targets(target_BT, weight_BT, segment_BT, depth: int):
  """What module `depth` is asked for, and what of it counts.

  Documents [7, 8, 9] and [4, 5], whose next tokens are target_BT, depth 1:
    target_BT   = [8, 9, 0, 5, 0]     weight_BT = [1, 1, 0, 1, 0]
    segment_BT  = [1, 1, 1, 2, 2]
    target_1    = [9, 0, 5, 0, 0]     weight_1  = [1, 0, 0, 0, 0]

  A place counts when it is `depth` before one that counts in the same
  document.
  """
  same_BT = segment_BT == shift(segment_BT, depth)
  return shift(target_BT, depth), shift(weight_BT, depth) * same_BT
