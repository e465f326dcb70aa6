"""The architecture of a transformer: `config.model`."""

from collections.abc import Iterator
import dataclasses

import ml_dtypes
import numpy as np

from r1jax.config.conditions import above, is_set, none_of, one_of
from r1jax.config.field import key, section
from r1jax.config.run_conditions import (
  dense_layers,
  draws_parameters,
  experts,
  trains,
)
from r1jax.config.schema.section import Problem, Section

_DTYPES = {
  name: np.dtype(kind)
  for name, kind in (
    ('float32', np.float32),
    ('bfloat16', ml_dtypes.bfloat16),
    ('float16', np.float16),
    ('float64', np.float64),
  )
}


@dataclasses.dataclass(frozen=True)
class RopeConfig(Section):
  """Rotary position embedding (RoFormer, eq. 34), and how its context grows."""

  rope_theta: float = key(1e4, 'Base of the frequencies.', above=1)
  pairs: str = key(
    'adjacent',
    "Which two numbers are rotated together: 'adjacent', (2i, 2i + 1), as in "
    "RoFormer and DeepSeek; 'halves', (i, i + R/2), as in Llama and Qwen.",
    choices=('adjacent', 'halves'),
  )
  rope_type: str = key(
    'default',
    "How frequencies change for a longer context: not at all, 'default'; "
    "'yarn' (arXiv 2309.00071); or 'llama3' (Llama 3.1's rule).",
    choices=('default', 'yarn', 'llama3'),
  )
  factor: float = key(
    1.0,
    'How many times longer the context is than '
    'original_max_position_embeddings.',
    at_least=1,
    only_if=none_of('rope_type', 'default'),
  )
  original_max_position_embeddings: int = key(
    4096,
    'Context length of the first training.',
    unit='tokens',
    at_least=1,
    only_if=none_of('rope_type', 'default'),
  )
  beta_fast: float = key(
    32.0,
    'YaRN: pairs that turn more often than this within the original context '
    'keep their frequency.',
    above=0,
    only_if=one_of('rope_type', 'yarn'),
  )
  beta_slow: float = key(
    1.0,
    'YaRN: pairs that turn less often than this are slowed down by `factor`; '
    'between beta_slow and beta_fast the two are blended.',
    above=0,
    only_if=one_of('rope_type', 'yarn'),
  )
  mscale: float = key(
    1.0,
    'YaRN: the rotated part is multiplied by m(mscale) / m(mscale_all_dim), '
    'with m(s) = 0.1 · s · ln(factor) + 1.',
    only_if=one_of('rope_type', 'yarn'),
  )
  mscale_all_dim: float = key(
    1.0,
    'YaRN: the softmax scale is multiplied by m(mscale_all_dim)².',
    only_if=one_of('rope_type', 'yarn'),
  )
  low_freq_factor: float = key(
    1.0,
    'Llama 3: wavelengths above original_max_position_embeddings / this are '
    'slowed down.',
    above=0,
    only_if=one_of('rope_type', 'llama3'),
  )
  high_freq_factor: float = key(
    4.0,
    'Llama 3: wavelengths below original_max_position_embeddings / this are '
    'kept.',
    above=0,
    only_if=one_of('rope_type', 'llama3'),
  )

  def conflicts(self) -> Iterator[Problem]:
    if self.rope_type == 'llama3' and (
      self.low_freq_factor >= self.high_freq_factor
    ):
      yield (
        'low_freq_factor',
        f'must be below high_freq_factor = {self.high_freq_factor}',
      )


# Values of `remat`, from the one that keeps most in memory.
REMAT_POLICIES = ('none', 'attention', 'block', 'offload')
# The fields that do not change what weights mean.
_RUN_FIELDS = (
  'initializer_range',
  'max_position_embeddings',
  'dtype',
  'remat',
  'scan_unroll',
  'moe_dispatch',
  'capacity_factor',
  'attention_kernel',
  'fp8',
  'mtp_depth',
)


@dataclasses.dataclass(frozen=True)
class ModelConfig(Section):
  """A transformer of any size; the defaults are DeepSeek-V3's.

  DeepSeek-V3 is in its technical report, section 2.1; the dense families that
  DeepSeek-R1 is distilled into are other values of the same fields. Names are
  those of Hugging Face's configs where one exists.
  """

  vocab_size: int = key(
    129280,
    "V, the size of the vocabulary; at least the tokenizer's.",
    at_least=1,
  )
  num_hidden_layers: int = key(
    61, 'L, the number of layers, the dense ones included.', at_least=1
  )
  first_k_dense_replace: int = key(
    3,
    'How many of the first layers have a dense FFN instead of MoE.',
    at_least=0,
  )
  hidden_size: int = key(7168, 'D, the width of the model.', at_least=1)
  tie_word_embeddings: bool = key(
    False, 'Whether the embedding is the output head too.'
  )
  attention: str = key(
    'mla',
    "Multi-head latent attention ('mla'), or grouped-query attention ('gqa').",
    choices=('mla', 'gqa'),
  )
  num_attention_heads: int = key(
    128, 'N, the number of attention heads.', at_least=1
  )
  q_lora_rank: int = key(
    1536,
    'MLA: Q, the width of the query latent; 0 for a full-rank query.',
    at_least=0,
    only_if=one_of('attention', 'mla'),
  )
  kv_lora_rank: int = key(
    512,
    'MLA: C, the width of the key-value latent.',
    at_least=0,
    only_if=one_of('attention', 'mla'),
  )
  qk_nope_head_dim: int = key(
    128,
    'MLA: H, the part of a query or key head without position.',
    at_least=0,
    only_if=one_of('attention', 'mla'),
  )
  qk_rope_head_dim: int = key(
    64,
    'MLA: R, the rotated part, one key for all heads; even.',
    at_least=0,
    only_if=one_of('attention', 'mla'),
  )
  v_head_dim: int = key(
    128,
    'MLA: U, the width of a value head.',
    at_least=0,
    only_if=one_of('attention', 'mla'),
  )
  num_key_value_heads: int = key(
    0,
    'GQA: K, the number of key and value heads, which divides N.',
    at_least=0,
    only_if=one_of('attention', 'gqa'),
  )
  head_dim: int = key(
    0,
    'GQA: H, the width of a query, key or value head; even.',
    at_least=0,
    only_if=one_of('attention', 'gqa'),
  )
  qkv_bias: bool = key(
    False,
    'GQA: biases on the query, key and value projections (Qwen2).',
    only_if=one_of('attention', 'gqa'),
  )
  qk_norm: bool = key(
    False,
    'GQA: RMSNorm on every query and key head (Qwen3).',
    only_if=one_of('attention', 'gqa'),
  )
  attention_kernel: str = key(
    'auto',
    "Implementation of attention, see model/kernels.py; 'auto' picks one.",
    choices=('auto', 'plain', 'blocked', 'flash', 'splash'),
  )
  rope: RopeConfig = section(RopeConfig)
  intermediate_size: int = key(
    18432,
    'F, the width of the FFN of dense layers.',
    at_least=0,
    only_if=dense_layers(),
  )
  moe_intermediate_size: int = key(
    2048, 'I, the FFN width of one expert.', at_least=0, only_if=experts()
  )
  n_routed_experts: int = key(
    256,
    'E, the number of routed experts in a layer.',
    at_least=0,
    only_if=experts(),
  )
  n_shared_experts: int = key(
    1,
    'Number of experts that every token passes through.',
    at_least=0,
    only_if=experts(),
  )
  num_experts_per_tok: int = key(
    8,
    'A, the number of routed experts that a token is sent to.',
    at_least=0,
    only_if=experts(),
  )
  scoring_func: str = key(
    'sigmoid',
    "How router logits become affinities: 'sigmoid' (V3) or 'softmax' (V2).",
    choices=('sigmoid', 'softmax'),
    only_if=experts(),
  )
  n_group: int = key(
    8,
    'Number of groups that the routed experts are split into.',
    at_least=0,
    only_if=experts(),
  )
  topk_group: int = key(
    4,
    'Number of expert groups that a token may be sent to.',
    at_least=0,
    only_if=experts(),
  )
  group_scoring: str = key(
    'top2_sum',
    "How a group is ranked: by the sum of its two best affinities, 'top2_sum' "
    "(V3), or by its best one, 'max' (V2).",
    choices=('top2_sum', 'max'),
    only_if=(experts(), above('n_group', 1).quiet),
  )
  norm_topk_prob: bool = key(
    True,
    'Whether gate weights are normalised to sum to 1 before scaling.',
    only_if=experts(),
  )
  routed_scaling_factor: float = key(
    2.5,
    'Factor on the gate weights of the routed experts.',
    above=0,
    only_if=experts(),
  )
  capacity_factor: float = key(
    0.0,
    'Room that a device has for the (token, expert) pairs of another device, '
    'over their mean; pairs beyond it are dropped. 0 has room for all '
    '(dropless).',
    at_least=0,
    only_if=experts(),
  )
  num_nextn_predict_layers: int = key(
    0, 'Number of multi-token prediction (MTP) modules.', at_least=0
  )
  mtp_depth: int = key(
    0,
    'D of the MTP loss: training predicts the next D tokens after the next one. '
    'Above the number of modules, which must then be 1, that module is applied '
    'to its own hidden states with the same weights, as it is to draft more '
    'than one token. 0 for the number of modules.',
    unit='tokens',
    at_least=0,
    only_if=is_set('model.num_nextn_predict_layers'),
  )
  scalar_head: bool = key(
    False, "A head for values or rewards beside the language model's."
  )
  rms_norm_eps: float = key(1e-6, 'ε of RMSNorm.', above=0)
  initializer_range: float = key(
    0.006,
    'Standard deviation of the normal initialisation.',
    at_least=0,
    only_if=draws_parameters(),
  )
  max_position_embeddings: int = key(
    4096,
    'Longest sequence, prompt and completion together.',
    unit='tokens',
    at_least=1,
  )
  dtype: str = key(
    'bfloat16',
    'Type of activations, and of weights where they are used. The optimizer '
    "updates float32 master weights. 'float64' needs JAX_ENABLE_X64=1.",
    choices=tuple(_DTYPES),
  )
  fp8: bool = key(
    False,
    'Whether products in attention projections, FFN and experts are in FP8.',
  )
  remat: str = key(
    'block',
    'Activations that the backward pass computes again instead of keeping them: '
    "'none'; those of each 'attention'; those of each layer, 'block'; or those "
    "of each layer, whose input waits in the host's memory, 'offload'. Each "
    "needs less memory of a device than the one before. 'auto' is the first of "
    'them whose update fits, by the numbers of `r1jax info`.',
    choices=('auto', *REMAT_POLICIES),
    only_if=trains(),
  )
  scan_unroll: int = key(
    1,
    'Layers in one turn of the scan: more compile longer and copy less.',
    at_least=1,
  )
  moe_dispatch: str = key(
    'auto',
    "How tokens reach experts: 'blocks' (fast on CPU, and all that an FP8 "
    "unit multiplies), 'ragged' (TPU and GPU), or 'auto'.",
    choices=('auto', 'blocks', 'ragged'),
    only_if=experts(),
  )

  def conflicts(self) -> Iterator[Problem]:
    yield from self._attention_conflicts()
    modules, depth = self.num_nextn_predict_layers, self.mtp_depth
    if depth and depth != modules and modules != 1:
      yield (
        'mtp_depth',
        f'must be 0 or num_nextn_predict_layers = {modules}; only a single MTP '
        'module is applied again',
      )
    if self.first_k_dense_replace and self.intermediate_size < 1:
      yield 'intermediate_size', 'must be at least 1 where layers are dense'
    if self.first_k_dense_replace > self.num_hidden_layers:
      yield (
        'first_k_dense_replace',
        f'must be at most num_hidden_layers = {self.num_hidden_layers}',
      )
    elif self.num_moe_layers:
      yield from self._moe_conflicts()

  def _attention_conflicts(self) -> Iterator[Problem]:
    needed, rotated = {
      'mla': (
        ('kv_lora_rank', 'qk_nope_head_dim', 'v_head_dim'),
        'qk_rope_head_dim',
      ),
      'gqa': (('num_key_value_heads', 'head_dim'), 'head_dim'),
    }[self.attention]
    missing = [name for name in needed if getattr(self, name) < 1]
    for name in missing:
      yield name, f'must be at least 1 with attention = {self.attention!r}'
    if getattr(self, rotated) % 2:
      yield rotated, 'must be even'
    if self.attention == 'gqa' and not missing:
      if self.num_attention_heads % self.num_key_value_heads:
        yield (
          'num_key_value_heads',
          f'does not divide num_attention_heads = {self.num_attention_heads}',
        )

  def _moe_conflicts(self) -> Iterator[Problem]:
    groups, experts = self.n_group, self.n_routed_experts
    if groups < 1 or experts % groups:
      yield 'n_group', f'does not divide n_routed_experts = {experts}'
      return
    if not 1 <= self.topk_group <= groups:
      yield 'topk_group', f'must lie within 1 and n_group = {groups}'
      return
    if self.moe_intermediate_size < 1:
      yield 'moe_intermediate_size', 'must be at least 1'
    reach = self.topk_group * (experts // groups)
    if not 1 <= self.num_experts_per_tok <= reach:
      yield (
        'num_experts_per_tok',
        f'must lie within 1 and the {reach} experts of the chosen groups',
      )

  @property
  def num_moe_layers(self) -> int:
    """Number of layers with a mixture of experts."""
    return self.num_hidden_layers - self.first_k_dense_replace

  @property
  def prediction_depth(self) -> int:
    """D, the tokens after the next one that the MTP loss predicts."""
    return self.mtp_depth or self.num_nextn_predict_layers

  @property
  def compute_dtype(self) -> np.dtype:
    """The NumPy dtype of activations and of weights where they are used."""
    return _DTYPES[self.dtype]

  @property
  def cache_heads(self) -> int:
    """K, the key heads of a cached token; MLA's one latent serves all heads."""
    return 1 if self.attention == 'mla' else self.num_key_value_heads

  @property
  def cache_parts(self) -> tuple[int, int]:
    """Widths of a cached entry's two parts.

    With MLA these are the latent c and the rotated key, with GQA a key and a
    value.
    """
    if self.attention == 'mla':
      return self.kv_lora_rank, self.qk_rope_head_dim
    return self.head_dim, self.head_dim

  @property
  def cache_width(self) -> int:
    """Numbers that a token leaves in the cache of one layer."""
    return self.cache_heads * sum(self.cache_parts)


RUN_DEFAULTS = {
  field.name: field.default
  for field in dataclasses.fields(ModelConfig)
  if field.name in _RUN_FIELDS
}
