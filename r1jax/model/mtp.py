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
  """One module; in training they are scanned over depth.

  Attributes:
    config: The model's.
    layout: The model's.
    make_block: Makes a transformer block.
  """

  config: ModelConfig
  layout: Layout
  make_block: type[nn.Module]

  def setup(self):
    c = self.config
    D = c.hidden_size
    self.ahead_norm = RMSNorm(c.rms_norm_eps)
    self.hidden_norm = RMSNorm(c.rms_norm_eps)
    self.merge_dD = weight(self, 'merge', 'dD', (2 * D, D), c.initializer_range)
    self.block = self.make_block(c, self.layout, bool(c.num_moe_layers))
    self.norm = RMSNorm(c.rms_norm_eps)

  def __call__(self, h_BTD, ahead_BTD, position_BT, segment_BT):
    """Returns h_k, normed for the head, twice; and the block's routing.

    Args:
      h_BTD: h_{k−1}, normed.
      ahead_BTD: Embeddings of the tokens k places on.
      position_BT: Of the tokens of h.
      segment_BT: Theirs too.
    """
    x_BTD, routing = self.block(
      self._joined(h_BTD, ahead_BTD), position_BT, segment_BT
    )
    h_BTD = self.norm(x_BTD)
    return h_BTD, (h_BTD, routing)

  def extend(
    self,
    h_BTD,
    ahead_BTD,
    position_BT,
    live_BT,
    see_BTS,
    columns,
    column,
    pages,
    context,
  ):
    """The same over a cache, whose entry of a place lies with the token ahead
    of it: the first token of a row has none.

    Args:
      h_BTD, ahead_BTD, position_BT: See __call__.
      live_BT, see_BTS, column, context: See Transformer.extend.
      columns: Pages with L = 1.
      pages: The module's pool.

    Returns:
      h_1, normed for the head; and the columns.
    """
    (x_BTD, columns), _ = self.block.extend(
      (self._joined(h_BTD, ahead_BTD), columns),
      0,
      pages,
      context,
      position_BT,
      live_BT,
      see_BTS,
      column,
      skip=1,
    )
    return self.norm(x_BTD), columns

  def _joined(self, h_BTD, ahead_BTD):
    both = jnp.concatenate(
      [self.ahead_norm(ahead_BTD), self.hidden_norm(h_BTD)], -1
    )
    return self.layout.constrain(
      linear(both, self.merge_dD, self.layout, self.config.fp8), 'BtD'
    )


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
