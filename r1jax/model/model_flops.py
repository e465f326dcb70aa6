"""Counts the parameters of an architecture, and its model FLOPs.

Model FLOPs are those that a step must do, whatever a program computes again or
pads (PaLM, arXiv:2204.02311, appendix B): 2 FLOPs a parameter and token for a
forward pass, 6 for training, and the attention core. PaLM counts every pair of
tokens of a sequence; here a token meets itself and those before it, in its own
sequence. MTP modules are left out.
"""

from collections.abc import Iterable
import dataclasses
import math
from typing import NamedTuple

from flax import linen as nn
from flax import traverse_util
import jax
import numpy as np

from r1jax.config.schema.model import ModelConfig
from r1jax.model import parameters
from r1jax.model.transformer import Transformer
from r1jax.records import Array
from r1jax.sharding import Layout, make_mesh


class TokenCounts(NamedTuple):
  """How many tokens a forward pass computes.

  Attributes:
    tokens: Tokens, without padding.
    context_tokens: The tokens that each of them attends to, itself among them,
      summed: T · (T + 1) / 2 for a sequence of T.
    predicted_tokens: Tokens at which the output head is needed.
  """

  tokens: int
  context_tokens: int
  predicted_tokens: int


def counts_of_rows(
  segment_BT: Array, position_BT: Array, predicted_BT: Array
) -> TokenCounts:
  """Counts the tokens of packed rows.

  Args:
    segment_BT: int32, 0 on padding.
    position_BT: int32, a token's position in its sequence.
    predicted_BT: bool, where the output head is needed.
  """
  used_BT = np.asarray(segment_BT) > 0
  context_BT = (np.asarray(position_BT, np.int64) + 1) * used_BT
  return TokenCounts(
    int(used_BT.sum()),
    int(context_BT.sum()),
    int((np.asarray(predicted_BT) & used_BT).sum()),
  )


def counts_of_samples(
  prompt_tokens: int, completions: Iterable[tuple[int, int]]
) -> TokenCounts:
  """Counts the tokens that sampling completions of one prompt computes.

  The prompt is read once, and its last token by each completion, as is every
  sampled token but the last. Tokens that an earlier policy sampled are read
  again. Example, a prompt of 3 and two completions that grow from 0 to 2
  tokens: 2 + 2 · 2 tokens are computed, which attend to (1 + 2) + 2 · (3 + 4)
  tokens; 4 are predicted.

  Args:
    prompt_tokens: Tokens of the prompt.
    completions: Tokens of each completion before and after.
  """
  grown = [(before, after) for before, after in completions if after > before]
  if not grown:
    return TokenCounts(0, 0, 0)
  shared = prompt_tokens - 1
  return TokenCounts(
    shared + sum(after for _, after in grown),
    shared * prompt_tokens // 2
    + sum(
      after * prompt_tokens + after * (after - 1) // 2 for _, after in grown
    ),
    sum(after - before for before, after in grown),
  )


def total(counts: Iterable[TokenCounts]) -> TokenCounts:
  """Returns the sum of several counts."""
  return TokenCounts(*map(sum, zip(TokenCounts(0, 0, 0), *counts)))


@dataclasses.dataclass(frozen=True)
class Info:
  """Counts for one architecture.

  MTP modules are counted apart, as in published sizes: the policy is the same
  without them.

  Attributes:
    total: Number of parameters, without routing biases.
    active: Number of parameters that one token uses: its num_experts_per_tok
      experts and the shared ones. The embedding lookup is not counted.
    head: Number of parameters of the output head, which are among `active`.
    mtp: Number of parameters of the MTP modules, in neither of the two.
    cache_bytes: Bytes of cache a token, in the compute dtype.
    forward_flops: FLOPs of a token's matrix products, without the attention
      core.
    attention_flops: FLOPs of the attention core for one token and each token
      of its context: scores and weighted sums, over all layers.
  """

  total: int
  active: int
  head: int
  mtp: int
  cache_bytes: int
  forward_flops: int
  attention_flops: int

  def forward(self, counts: TokenCounts) -> float:
    """Returns the model FLOPs of a forward pass over these tokens."""
    return float(
      2 * (self.active - self.head) * counts.tokens
      + 2 * self.head * counts.predicted_tokens
      + self.attention_flops * counts.context_tokens
    )

  def training(self, counts: TokenCounts) -> float:
    """Returns the model FLOPs of an update: a forward pass, times three."""
    return 3 * self.forward(counts)


def count(config: ModelConfig) -> Info:
  """Counts parameters, cache and FLOPs of an architecture."""
  total = active = mtp = 0
  for name, box in _parameters(config).items():
    if name.endswith('ffn/bias'):
      continue
    size = math.prod(box.value.shape)
    if name.startswith('mtp/'):
      mtp += size
      continue
    total += size
    if name == 'embedding' and not config.tie_word_embeddings:
      continue  # A lookup, not a matrix product.
    if 'E' in box.names:
      size = size // config.n_routed_experts * config.num_experts_per_tok
    active += size
  if config.attention == 'mla':
    head = config.qk_nope_head_dim + config.qk_rope_head_dim + config.v_head_dim
  else:
    head = 2 * config.head_dim
  return Info(
    total=total,
    active=active,
    head=config.vocab_size * config.hidden_size,
    mtp=mtp,
    cache_bytes=(
      config.num_hidden_layers
      * config.cache_width
      * config.compute_dtype.itemsize
    ),
    forward_flops=2 * active,
    attention_flops=2
    * config.num_hidden_layers
    * config.num_attention_heads
    * head,
  )


def _parameters(config: ModelConfig) -> dict[str, nn.Partitioned]:
  layout = Layout(make_mesh({}, jax.local_devices()[:1]))
  return traverse_util.flatten_dict(
    parameters.parameter_shapes(Transformer(config, layout)), sep='/'
  )
