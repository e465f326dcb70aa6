"""The architecture as data."""

from collections.abc import Mapping
import dataclasses

import jax
import jax.numpy as jnp

from r1jax.errors import UserError
from r1jax.model.rope import RopeConfig

# The fields that do not change what weights mean. A checkpoint that is older
# than one of them is taken to have said this.
RUN_DEFAULTS = dict(
  init_std=0.02,
  max_context=4096,
  dtype='bfloat16',
  remat=True,
  unroll=1,
  moe_dispatch='auto',
  capacity_factor=0.0,
  attention_kernel='auto',
  fp8=False,
)


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """A transformer of any size: DeepSeek-V3 (technical report, section 2.1), or
  a dense one of the families that it is distilled into.

  Attributes:
    vocab_size: V, at least the tokenizer's.
    num_layers: L, the dense layers included.
    first_k_dense: How many of the first layers have a dense FFN, not MoE.
    d_model: D.
    tie_embeddings: The embedding is the output head too.
    attention: 'mla', or 'gqa' for grouped-query attention.
    num_heads: N.
    q_lora_rank: MLA: Q, the query latent; 0 for a full-rank query.
    kv_lora_rank: MLA: C, the key-value latent.
    qk_nope_head_dim: MLA: H, the part of a query-key head without position.
    qk_rope_head_dim: MLA: R, the rotated part, one key for all heads. Even.
    v_head_dim: MLA: U.
    num_kv_heads: GQA: K, which divides N.
    head_dim: GQA: H, of queries, keys and values. Even.
    qkv_bias: GQA: biases on the three projections (Qwen2).
    qk_norm: GQA: RMSNorm on every query and key head (Qwen3).
    attention_kernel: One of model/kernels.py, or 'auto', which picks one.
    rope: Position.
    ffn_dim: F of the dense layers.
    expert_ffn_dim: I, the width of one expert.
    num_experts: E, the routed experts.
    num_shared_experts: Experts that every token passes through.
    experts_per_token: A.
    affinity: Of a token to the experts: 'sigmoid' (V3) or 'softmax' (V2).
    num_expert_groups: Experts are split into this many groups...
    topk_groups: ...of which a token may use this many.
    group_score: A group is ranked by its 'top2' sum (V3) or its 'max' (V2).
    normalise_gates: Gate weights sum to 1 before they are scaled.
    routed_scaling: Factor on the gate weights.
    capacity_factor: Room that a device has for the pairs of another one, over
      their mean; pairs beyond it are dropped. 0: room for all (dropless).
    mtp_depth: Modules of multi-token prediction; 0 for none.
    scalar_head: A head for values or rewards, beside the language model's.
    norm_eps: RMSNorm's ε.
    init_std: Standard deviation of the normal initialisation.
    max_context: Longest sequence in tokens, prompt and completion together.
    dtype: Of the activations, and of weights where they are used; what the
      optimiser updates is float32.
    fp8: Products of attention's projections, FFN and experts in FP8.
    remat: Recompute each layer in the backward pass.
    unroll: Layers in one turn of the scan: more compile longer, copy less.
    moe_dispatch: 'blocks' (fast on CPU; all that an FP8 unit multiplies),
      'ragged' (TPU, GPU), or 'auto'.
  """

  vocab_size: int
  num_layers: int
  first_k_dense: int
  d_model: int
  tie_embeddings: bool
  attention: str
  num_heads: int
  q_lora_rank: int
  kv_lora_rank: int
  qk_nope_head_dim: int
  qk_rope_head_dim: int
  v_head_dim: int
  num_kv_heads: int
  head_dim: int
  qkv_bias: bool
  qk_norm: bool
  attention_kernel: str
  rope: RopeConfig
  ffn_dim: int
  expert_ffn_dim: int
  num_experts: int
  num_shared_experts: int
  experts_per_token: int
  affinity: str
  num_expert_groups: int
  topk_groups: int
  group_score: str
  normalise_gates: bool
  routed_scaling: float
  capacity_factor: float
  mtp_depth: int
  scalar_head: bool
  norm_eps: float
  init_std: float
  max_context: int
  dtype: str
  fp8: bool
  remat: bool
  unroll: int
  moe_dispatch: str

  def __post_init__(self):
    def need(ok, message):
      if not ok:
        raise UserError(f'model: {message}')

    at_least_one = [
      'vocab_size',
      'num_layers',
      'd_model',
      'num_heads',
      'unroll',
      'max_context',
    ]
    at_least_one += {
      'mla': ['kv_lora_rank', 'qk_nope_head_dim', 'v_head_dim'],
      'gqa': ['num_kv_heads', 'head_dim'],
    }.get(self.attention, [])
    for field in at_least_one:
      need(getattr(self, field) >= 1, f'{field} must be at least 1')
    for field, known in (
      ('attention', ('mla', 'gqa')),
      ('affinity', ('sigmoid', 'softmax')),
      ('group_score', ('top2', 'max')),
      ('dtype', ('float32', 'bfloat16', 'float16', 'float64')),
      ('attention_kernel', ('auto', 'plain', 'blocked', 'flash', 'splash')),
      ('moe_dispatch', ('auto', 'blocks', 'ragged')),
    ):
      value = getattr(self, field)
      need(value in known, f'{field} must be one of {known}, got {value!r}')
    need(
      self.dtype != 'float64' or jax.config.jax_enable_x64,
      "dtype 'float64' needs the environment variable JAX_ENABLE_X64=1",
    )
    need(
      not self.first_k_dense or self.ffn_dim >= 1, 'ffn_dim must be at least 1'
    )
    rotated = 'qk_rope_head_dim' if self.attention == 'mla' else 'head_dim'
    need(
      getattr(self, rotated) % 2 == 0,
      f'{rotated} must be even, got {getattr(self, rotated)}',
    )
    if self.attention == 'gqa':
      need(
        self.num_heads % self.num_kv_heads == 0,
        f'num_kv_heads = {self.num_kv_heads} does not divide '
        f'num_heads = {self.num_heads}',
      )
    need(
      self.mtp_depth >= 0,
      f'mtp_depth must not be below 0, got {self.mtp_depth}',
    )
    need(
      0 <= self.first_k_dense <= self.num_layers,
      f'first_k_dense = {self.first_k_dense} is not within 0 and '
      f'num_layers = {self.num_layers}',
    )
    if self.num_moe_layers:
      groups, experts = self.num_expert_groups, self.num_experts
      need(
        groups >= 1 and experts % groups == 0,
        f'num_expert_groups = {groups} does not divide num_experts = {experts}',
      )
      need(
        1 <= self.topk_groups <= groups,
        f'topk_groups = {self.topk_groups} is not within 1 and '
        f'num_expert_groups = {groups}',
      )
      need(self.expert_ffn_dim >= 1, 'expert_ffn_dim must be at least 1')
      need(
        self.capacity_factor >= 0,
        f'capacity_factor must not be below 0, got {self.capacity_factor}',
      )
      reach = self.topk_groups * (experts // groups)
      need(
        1 <= self.experts_per_token <= reach,
        f'experts_per_token = {self.experts_per_token} is not within 1 and '
        f'the {reach} experts of the chosen groups',
      )

  @classmethod
  def from_dict(cls, fields: Mapping, where: str = 'model') -> 'ModelConfig':
    """From nested fields; `where` names them in an error."""
    wrong = _misfits(cls, fields)
    if 'rope' in fields:
      wrong += _misfits(RopeConfig, fields['rope'], 'rope.')
    if wrong:
      raise UserError(
        f'{where}: {"; ".join(wrong)}; it was written by another '
        'version, make it again'
      )
    return cls(**dict(fields) | {'rope': RopeConfig(**fields['rope'])})

  @property
  def num_moe_layers(self) -> int:
    return self.num_layers - self.first_k_dense

  @property
  def compute_dtype(self):
    return jnp.dtype(self.dtype)

  @property
  def cache_heads(self) -> int:
    """K: key heads of a cached token; MLA's one latent serves all heads."""
    return 1 if self.attention == 'mla' else self.num_kv_heads

  @property
  def cache_parts(self) -> tuple[int, int]:
    """What the numbers of a key head are: MLA's c and rotated key, or a key
    and a value."""
    if self.attention == 'mla':
      return self.kv_lora_rank, self.qk_rope_head_dim
    return self.head_dim, self.head_dim

  @property
  def cache_width(self) -> int:
    """Numbers that a token leaves in the cache of one layer."""
    return self.cache_heads * sum(self.cache_parts)


def _misfits(cls: type, fields: Mapping, prefix: str = '') -> list[str]:
  """What a mapping lacks of a dataclass, or has too much."""
  known = {field.name for field in dataclasses.fields(cls)}
  wrong = [f'{prefix}{x} is missing' for x in sorted(known - set(fields))]
  return wrong + [
    f'{prefix}{x} is unknown' for x in sorted(set(fields) - known)
  ]
