"""Multi-token prediction (MTP, DeepSeek-V3 section 2.2).

Module k combines the hidden state of token i with the embedding of token i + k,
and predicts token i + k + 1, with the main model's embedding and head:

  h_k = block_k(M_k [norm(Emb(t_{i+k})); norm(h_{k−1})])    (eq. 21, 22)

h_0 is the main model's hidden state after its final norm, and M_k takes its two
inputs in this order, both as in the released weights.

A single module can stand for all k, with the same weights: it learns to go on
from its own hidden states, as it must to draft several tokens (EAGLE-2 and -3,
Li et al. 2024 and 2025).
"""

from flax import linen as nn
import jax
import jax.numpy as jnp

from r1jax.config.schema.model import ModelConfig
from r1jax.model.layers import RMSNorm, linear, weight
from r1jax.model.moe import Routing
from r1jax.sharding import Layout


class MTP(nn.Module):
  """One MTP module; the model scans them over their depth.

  Attributes:
    config: The model's configuration.
    layout: The mesh and its sharding tables.
    make_block: Class of the transformer layer.
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

  def __call__(
    self,
    h_BTD,
    ahead_BTD,
    position_BT,
    segment_BT,
    balance_BT=None,
    prefix_BT=None,
  ):
    """Computes h_k of whole sequences.

    Args:
      h_BTD: h_{k−1} after its norm.
      ahead_BTD: Embeddings of the tokens k positions ahead.
      position_BT: Positions of the tokens of h.
      segment_BT: Their segments.
      balance_BT: See Transformer.__call__.
      prefix_BT: The second segments that they see, or None.

    Returns:
      h_k after its norm, as carry of the scan; and the pair of h_k and the
      layer's Routing, as its output.
    """
    x_BTD, routing = self.block(
      self._combined(h_BTD, ahead_BTD),
      position_BT,
      segment_BT,
      None,
      balance_BT,
      prefix_BT,
    )
    h_BTD = self.norm(x_BTD)
    return h_BTD, (h_BTD, routing)

  def extend(
    self,
    h_BTD,
    ahead_BTD,
    position_BT,
    valid_BT,
    see_BTS,
    columns,
    column,
    pool,
    block_tables,
  ):
    """Computes h_1 of T new tokens per sequence with a KV cache.

    The MTP cache is shifted by one slot against the main cache: slot i + 1
    holds the entry of the pair (hidden state i, token i + 1). Slot 0 of a
    sequence has no entry and is skipped.

    Args:
      h_BTD, ahead_BTD, position_BT: See __call__.
      valid_BT, see_BTS, column, block_tables: See Transformer.extend.
      columns: Columns of the module, with L = 1.
      pool: Block pool of the module.

    Returns:
      h_1 after its norm, and the columns.
    """
    (x_BTD, columns), _ = self.block.extend(
      (self._combined(h_BTD, ahead_BTD), columns),
      0,
      pool,
      block_tables,
      position_BT,
      valid_BT,
      see_BTS,
      column,
      skip=1,
    )
    return self.norm(x_BTD), columns

  def _combined(self, h_BTD, ahead_BTD):
    both = jnp.concatenate(
      [self.ahead_norm(ahead_BTD), self.hidden_norm(h_BTD)], -1
    )
    return self.layout.constrain(
      linear(both, self.merge_dD, self.layout, self.config.fp8), 'BtD'
    )


def shift(x_BT: jax.Array, by: int) -> jax.Array:
  """Shifts rows left and pads with 0: shift([7 8 9], 1) = [8 9 0]."""
  return jnp.pad(x_BT[:, by:], ((0, 0), (0, min(by, x_BT.shape[1]))))


def tokens_ahead(tokens_BT, segment_BT, prefix_BT, by: int) -> jax.Array:
  """Returns the token `by` places later in each token's segment.

  It is 0 for the last tokens of a segment. The last ones of a shared prefix are
  paired with the segment after it, which attends to it: all that do must begin
  alike.

  Args:
    tokens_BT: int32.
    segment_BT, prefix_BT: See Transformer.__call__.
    by: At least 1.
  """
  same_BT = shift(segment_BT, by) == segment_BT
  if prefix_BT is not None:
    same_BT |= shift(prefix_BT, by) == segment_BT
  return jnp.where(same_BT, shift(tokens_BT, by), 0)


def joined(hidden_NZBTD: jax.Array, routing: Routing | None):
  """Joins N applications of the modules to their own hidden states.

  Returns:
    hidden_ZBTD of all depths; and one Routing of each module: its tokens and
    dropped pairs add up, its balance loss is the mean, and its experts are those
    of the first time.
  """
  hidden_ZBTD = hidden_NZBTD.reshape(-1, *hidden_NZBTD.shape[2:])
  if routing is None:
    return hidden_ZBTD, None
  return hidden_ZBTD, Routing(
    load_E=routing.load_E.sum(0),
    aux_loss=routing.aux_loss.mean(0),
    dropped=routing.dropped.sum(0),
    expert_BTA=routing.expert_BTA[0],
  )


def by_stack(hidden_ZBTD: jax.Array, routing: Routing | None):
  """Returns hidden_ZBTD, and the modules' Routing by the name of their stack."""
  return hidden_ZBTD, {} if routing is None else {'mtp': routing}


def targets(target_BT, weight_BT, segment_BT, depth: int):
  """Returns the targets and loss weights of the MTP module at a depth.

  A position counts if the position `depth` later counts in the next-token loss
  and belongs to the same document. Example, documents [7, 8, 9] and [4, 5],
  depth 1:
    target_BT   = [8, 9, 0, 5, 0]     weight_BT = [1, 1, 0, 1, 0]
    segment_BT  = [1, 1, 1, 2, 2]
    target_1    = [9, 0, 5, 0, 0]     weight_1  = [1, 0, 0, 0, 0]

  Args:
    target_BT: int32, the next token of each position.
    weight_BT: Weights of the next-token loss.
    segment_BT: int32, the document of each position.
    depth: k of the module, at least 1.
  """
  same_BT = segment_BT == shift(segment_BT, depth)
  return shift(target_BT, depth), shift(weight_BT, depth) * same_BT
