"""The model configuration: architecture and compute options."""

from collections.abc import Mapping
import dataclasses

import jax
import jax.numpy as jnp

from r1jax.errors import UserError
from r1jax.model.rope import RopeConfig

# Fields that may differ between the runs that write and read a checkpoint. A
# checkpoint that lacks one of them is read with this value.
RUN_DEFAULTS = dict(
  initializer_range=0.02,
  max_position_embeddings=4096,
  dtype='bfloat16',
  remat=True,
  scan_unroll=1,
  moe_dispatch='auto',
  capacity_factor=0.0,
  attention_kernel='auto',
  fp8=False,
)


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """The architecture of a transformer and how it is computed.

  It describes DeepSeek-V3 (technical report, section 2.1) and the dense
  families that R1 is distilled into (Qwen2, Qwen3, Llama 3). A field that a
  Hugging Face config has with the same meaning has its name.

  Attributes:
    vocab_size: V, at least the tokenizer's.
    num_hidden_layers: L, dense layers included, MTP modules not.
    first_k_dense_replace: Number of first layers with a dense FFN instead of
      MoE.
    hidden_size: D.
    tie_word_embeddings: Whether the embedding is also the output head.
    attention: 'mla' for multi-head latent attention, or 'gqa' for
      grouped-query attention.
    num_attention_heads: N.
    q_lora_rank: MLA: Q, width of the query latent; 0 for a full-rank query.
    kv_lora_rank: MLA: C, width of the key-value latent.
    qk_nope_head_dim: MLA: H, the part of a query or key head without position.
    qk_rope_head_dim: MLA: R, the rotated part, one key for all heads. Even.
    v_head_dim: MLA: U.
    num_key_value_heads: GQA: K, which divides N.
    head_dim: GQA: H of queries, keys and values. Even.
    qkv_bias: GQA: biases on the query, key and value projections, as Qwen2 has
      them. (Hugging Face's attention_bias adds one to the output too.)
    qk_norm: GQA: RMSNorm on every query and key head (Qwen3).
    attention_kernel: Name of a kernel in model/kernels.py ('plain', 'blocked',
      'flash', 'splash'), or 'auto' for the device's.
    rope: Rotary position embedding.
    intermediate_size: F of dense layers.
    moe_intermediate_size: I, hidden size of one expert.
    n_routed_experts: E.
    n_shared_experts: Number of experts that every token passes through.
    num_experts_per_tok: A, routed experts of each token.
    scoring_func: Function from router logits to affinity scores: 'sigmoid'
      (V3) or 'softmax' (V2).
    n_group: Number of groups that the routed experts are split into.
    topk_group: Number of groups that one token's experts may come from.
    group_scoring: Score that ranks groups: 'top2_sum', the sum of a group's
      two highest affinities (V3), or 'max', the highest (V2).
    norm_topk_prob: Whether a token's gate weights are normalized to sum 1
      before they are scaled.
    routed_scaling_factor: Factor on the gate weights.
    capacity_factor: Slots that a device reserves for (token, expert) pairs of
      each other device, over their mean number; pairs beyond it are dropped.
      0 reserves slots for all (dropless).
    num_nextn_predict_layers: Z, modules for multi-token prediction (MTP).
    scalar_head: Whether the model has a head for values or rewards besides
      the language model head.
    rms_norm_eps: ε of RMSNorm.
    initializer_range: Standard deviation of the normal initialization.
    max_position_embeddings: Longest sequence in tokens, prompt and completion
      together.
    dtype: Compute dtype of activations and weights; the stored parameters that
      the optimizer updates are float32.
    fp8: Whether the projections of attention, FFN and experts are multiplied
      in FP8 (model/quant.py).
    remat: Whether the backward pass recomputes each layer's activations.
    scan_unroll: Layers per iteration of the scan over layers; more of them
      compile longer and copy less.
    moe_dispatch: 'blocks' (fast on CPU, and what an FP8 unit can multiply),
      'ragged' (jax.lax.ragged_dot, for TPU and GPU), or 'auto'.
  """

  vocab_size: int
  num_hidden_layers: int
  first_k_dense_replace: int
  hidden_size: int
  tie_word_embeddings: bool
  attention: str
  num_attention_heads: int
  q_lora_rank: int
  kv_lora_rank: int
  qk_nope_head_dim: int
  qk_rope_head_dim: int
  v_head_dim: int
  num_key_value_heads: int
  head_dim: int
  qkv_bias: bool
  qk_norm: bool
  attention_kernel: str
  rope: RopeConfig
  intermediate_size: int
  moe_intermediate_size: int
  n_routed_experts: int
  n_shared_experts: int
  num_experts_per_tok: int
  scoring_func: str
  n_group: int
  topk_group: int
  group_scoring: str
  norm_topk_prob: bool
  routed_scaling_factor: float
  capacity_factor: float
  num_nextn_predict_layers: int
  scalar_head: bool
  rms_norm_eps: float
  initializer_range: float
  max_position_embeddings: int
  dtype: str
  fp8: bool
  remat: bool
  scan_unroll: int
  moe_dispatch: str

  def __post_init__(self):
    self._check_choices()
    self._check_sizes()
    if self.num_moe_layers:
      self._check_experts()

  def _check_choices(self):
    for field, known in (
      ('attention', ('mla', 'gqa')),
      ('scoring_func', ('sigmoid', 'softmax')),
      ('group_scoring', ('top2_sum', 'max')),
      ('dtype', ('float32', 'bfloat16', 'float16', 'float64')),
      ('attention_kernel', ('auto', 'plain', 'blocked', 'flash', 'splash')),
      ('moe_dispatch', ('auto', 'blocks', 'ragged')),
    ):
      value = getattr(self, field)
      _need(value in known, f'{field} must be one of {known}, got {value!r}')
    _need(
      self.dtype != 'float64' or jax.config.jax_enable_x64,
      "dtype 'float64' needs the environment variable JAX_ENABLE_X64=1",
    )

  def _check_sizes(self):
    at_least_one = [
      'vocab_size',
      'num_hidden_layers',
      'hidden_size',
      'num_attention_heads',
      'scan_unroll',
      'max_position_embeddings',
      *{
        'mla': ('kv_lora_rank', 'qk_nope_head_dim', 'v_head_dim'),
        'gqa': ('num_key_value_heads', 'head_dim'),
      }[self.attention],
    ]
    if self.first_k_dense_replace:
      at_least_one.append('intermediate_size')
    for field in at_least_one:
      _need(getattr(self, field) >= 1, f'{field} must be at least 1')
    rotated = 'qk_rope_head_dim' if self.attention == 'mla' else 'head_dim'
    _need(
      getattr(self, rotated) % 2 == 0,
      f'{rotated} must be even, got {getattr(self, rotated)}',
    )
    if self.attention == 'gqa':
      _need(
        self.num_attention_heads % self.num_key_value_heads == 0,
        f'num_key_value_heads = {self.num_key_value_heads} does not divide '
        f'num_attention_heads = {self.num_attention_heads}',
      )
    depth, dense = self.num_nextn_predict_layers, self.first_k_dense_replace
    _need(
      depth >= 0, f'num_nextn_predict_layers must not be below 0, got {depth}'
    )
    _need(
      0 <= dense <= self.num_hidden_layers,
      f'first_k_dense_replace = {dense} is not within 0 and '
      f'num_hidden_layers = {self.num_hidden_layers}',
    )

  def _check_experts(self):
    groups, experts = self.n_group, self.n_routed_experts
    _need(
      groups >= 1 and experts % groups == 0,
      f'n_group = {groups} does not divide n_routed_experts = {experts}',
    )
    _need(
      1 <= self.topk_group <= groups,
      f'topk_group = {self.topk_group} is not within 1 and n_group = {groups}',
    )
    _need(
      self.moe_intermediate_size >= 1,
      'moe_intermediate_size must be at least 1',
    )
    _need(
      self.capacity_factor >= 0,
      f'capacity_factor must not be below 0, got {self.capacity_factor}',
    )
    reachable = self.topk_group * (experts // groups)
    _need(
      1 <= self.num_experts_per_tok <= reachable,
      f'num_experts_per_tok = {self.num_experts_per_tok} is not within 1 and '
      f'the {reachable} experts of the chosen groups',
    )

  @classmethod
  def from_dict(cls, fields: Mapping, where: str = 'model') -> 'ModelConfig':
    """Builds the config from nested fields, as a ConfigDict or JSON has them.

    Args:
      fields: Values of all fields, `rope` as a mapping.
      where: Name of their origin in error messages.

    Raises:
      UserError: a field is missing, unknown or out of range.
    """
    wrong = _misfits(cls, fields)
    if 'rope' in fields:
      wrong += _misfits(RopeConfig, fields['rope'], 'rope.')
    if wrong:
      raise UserError(
        f'{where}: {"; ".join(wrong)}; another version of r1jax '
        'wrote it, so create it again'
      )
    return cls(**dict(fields) | {'rope': RopeConfig(**fields['rope'])})

  @property
  def num_moe_layers(self) -> int:
    """Number of layers with a mixture of experts."""
    return self.num_hidden_layers - self.first_k_dense_replace

  @property
  def compute_dtype(self):
    """The `dtype` field as a NumPy dtype."""
    return jnp.dtype(self.dtype)

  @property
  def cache_heads(self) -> int:
    """K of the cache: key-value heads in GQA, 1 in MLA (the shared latent)."""
    return 1 if self.attention == 'mla' else self.num_key_value_heads

  @property
  def cache_parts(self) -> tuple[int, int]:
    """Widths of the two parts of a cache entry, which sum to X.

    They are the key-value latent and the rotated key in MLA, and the key and
    the value of one head in GQA.
    """
    if self.attention == 'mla':
      return self.kv_lora_rank, self.qk_rope_head_dim
    return self.head_dim, self.head_dim

  @property
  def cache_width(self) -> int:
    """Numbers that the cache of one layer holds per token, K·X."""
    return self.cache_heads * sum(self.cache_parts)


def _need(ok: bool, message: str):
  if not ok:
    raise UserError(f'model: {message}')


def _misfits(cls: type, fields: Mapping, prefix: str = '') -> list[str]:
  """Lists the fields of a dataclass that a mapping lacks or has in excess."""
  known = {field.name for field in dataclasses.fields(cls)}
  wrong = [f'{prefix}{x} is missing' for x in sorted(known - set(fields))]
  return wrong + [
    f'{prefix}{x} is unknown' for x in sorted(set(fields) - known)
  ]
