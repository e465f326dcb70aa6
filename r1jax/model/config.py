"""The architecture as data."""

import dataclasses

import jax.numpy as jnp

from r1jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """A DeepSeek-V3 transformer (technical report, section 2.1) of any size.

  Attributes:
    vocab_size: V, at least the tokenizer's.
    num_layers: L, the dense layers included.
    first_k_dense: How many of the first layers have a dense FFN, not MoE.
    d_model: D.
    num_heads: N.
    q_lora_rank: Q, the query latent; 0 for a full-rank query.
    kv_lora_rank: C, the key-value latent.
    qk_nope_head_dim: H, the part of a query-key head without position.
    qk_rope_head_dim: R, the rotated part, one key for all heads. Even.
    v_head_dim: U.
    ffn_dim: F of the dense layers.
    expert_ffn_dim: F of one expert.
    num_experts: E, the routed experts.
    num_shared_experts: Experts that every token passes through.
    experts_per_token: A.
    num_expert_groups: Experts are split into this many groups...
    topk_groups: ...of which a token may use this many.
    routed_scaling: Factor on the normalised gate weights.
    rope_theta: Base of the rotary frequencies.
    norm_eps: RMSNorm's ε.
    init_std: Standard deviation of the normal initialisation.
    max_context: Longest sequence in tokens, prompt and completion together.
    dtype: Of the activations; parameters are float32.
    remat: Recompute each layer in the backward pass.
    moe_dispatch: 'blocks' (fast on CPU), 'ragged' (TPU, GPU), or 'auto'.
  """

  vocab_size: int
  num_layers: int
  first_k_dense: int
  d_model: int
  num_heads: int
  q_lora_rank: int
  kv_lora_rank: int
  qk_nope_head_dim: int
  qk_rope_head_dim: int
  v_head_dim: int
  ffn_dim: int
  expert_ffn_dim: int
  num_experts: int
  num_shared_experts: int
  experts_per_token: int
  num_expert_groups: int
  topk_groups: int
  routed_scaling: float
  rope_theta: float
  norm_eps: float
  init_std: float
  max_context: int
  dtype: str
  remat: bool
  moe_dispatch: str

  def __post_init__(self):
    def need(ok, message):
      if not ok:
        raise UserError(f'model: {message}')

    for field in ('vocab_size', 'num_layers', 'd_model', 'num_heads',
                  'kv_lora_rank', 'qk_nope_head_dim', 'v_head_dim',
                  'max_context'):
      need(getattr(self, field) >= 1, f'{field} must be at least 1')
    need(self.qk_rope_head_dim % 2 == 0, 'qk_rope_head_dim must be even, got '
         f'{self.qk_rope_head_dim}')
    need(0 <= self.first_k_dense <= self.num_layers,
         f'first_k_dense = {self.first_k_dense} is not within 0 and '
         f'num_layers = {self.num_layers}')
    need(self.moe_dispatch in ('auto', 'blocks', 'ragged'),
         f"moe_dispatch must be 'auto', 'blocks' or 'ragged', got "
         f'{self.moe_dispatch!r}')
    if self.num_moe_layers:
      groups, experts = self.num_expert_groups, self.num_experts
      need(groups >= 1 and experts % groups == 0,
           f'num_expert_groups = {groups} does not divide '
           f'num_experts = {experts}')
      need(1 <= self.topk_groups <= groups,
           f'topk_groups = {self.topk_groups} is not within 1 and '
           f'num_expert_groups = {groups}')
      reach = self.topk_groups * (experts // groups)
      need(1 <= self.experts_per_token <= reach,
           f'experts_per_token = {self.experts_per_token} is not within 1 and '
           f'the {reach} experts of the chosen groups')

  @property
  def num_moe_layers(self) -> int:
    return self.num_layers - self.first_k_dense

  @property
  def compute_dtype(self):
    return jnp.dtype(self.dtype)
