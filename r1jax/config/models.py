"""Named model sizes: the values of config.model."""

import dataclasses
from typing import Any

from r1jax.config.schema.model import ModelConfig, RopeConfig


def rope(rope_theta: float, pairs: str, **changes) -> dict:
  """Returns config.model.rope; by default without context extension."""
  fields: dict[str, Any] = dict(rope_theta=rope_theta, pairs=pairs) | changes
  return dataclasses.asdict(RopeConfig(**fields))


_V3 = dataclasses.asdict(ModelConfig())

# Dense: what the mixture of experts and MLA need is not there.
_DENSE = _V3 | dict(
  attention='gqa',
  q_lora_rank=0,
  kv_lora_rank=0,
  qk_nope_head_dim=0,
  qk_rope_head_dim=0,
  v_head_dim=0,
  moe_intermediate_size=0,
  n_routed_experts=0,
  n_shared_experts=0,
  num_experts_per_tok=0,
  n_group=0,
  topk_group=0,
  initializer_range=0.02,
)


def deepseek_v3() -> dict:
  """671B parameters, 37B active (DeepSeek-V3 section 4.2), before YaRN."""
  return dict(_V3)


def deepseek_v3_yarn() -> dict:
  """DeepSeek-V3 with its context stretched to 160K (config_671B.json)."""
  return _V3 | dict(
    rope=rope(1e4, 'adjacent', rope_type='yarn', factor=40.0),
    max_position_embeddings=163840,
  )


def _dense(
  layers: int,
  hidden_size: int,
  heads: int,
  kv_heads: int,
  ffn: int,
  vocab: int,
  **changes,
) -> dict:
  return (
    _DENSE
    | dict(
      num_hidden_layers=layers,
      first_k_dense_replace=layers,
      hidden_size=hidden_size,
      num_attention_heads=heads,
      num_key_value_heads=kv_heads,
      head_dim=hidden_size // heads,
      intermediate_size=ffn,
      vocab_size=vocab,
    )
    | changes
  )


def _qwen2(*sizes: int, **changes) -> dict:
  defaults: dict[str, Any] = dict(
    qkv_bias=True, rope=rope(1e6, 'halves'), max_position_embeddings=131072
  )
  return _dense(*sizes, **defaults | changes)


def qwen2_5_math_1_5b() -> dict:
  """Qwen2.5-Math-1.5B: the base of R1-Distill-Qwen-1.5B."""
  return _qwen2(
    28,
    1536,
    12,
    2,
    8960,
    151936,
    tie_word_embeddings=True,
    rope=rope(1e4, 'halves'),
    max_position_embeddings=4096,
  )


def qwen2_5_math_7b() -> dict:
  """Qwen2.5-Math-7B: the base of R1-Distill-Qwen-7B."""
  return _qwen2(
    28,
    3584,
    28,
    4,
    18944,
    152064,
    rope=rope(1e4, 'halves'),
    max_position_embeddings=4096,
  )


def qwen2_5_0_5b() -> dict:
  """Qwen2.5-0.5B (config.json on the Hugging Face hub, as those below)."""
  return _qwen2(
    24,
    896,
    14,
    2,
    4864,
    151936,
    tie_word_embeddings=True,
    max_position_embeddings=32768,
  )


def qwen2_5_1_5b() -> dict:
  """Qwen2.5-1.5B."""
  return _qwen2(28, 1536, 12, 2, 8960, 151936, tie_word_embeddings=True)


def qwen2_5_7b() -> dict:
  """Qwen2.5-7B."""
  return _qwen2(28, 3584, 28, 4, 18944, 152064)


def qwen2_5_14b() -> dict:
  """Qwen2.5-14B: the base of R1-Distill-Qwen-14B."""
  return _qwen2(48, 5120, 40, 8, 13824, 152064, rms_norm_eps=1e-5)


def qwen2_5_32b() -> dict:
  """Qwen2.5-32B: the base of R1-Distill-Qwen-32B and Qwen-32B-Zero."""
  return _qwen2(64, 5120, 40, 8, 27648, 152064, rms_norm_eps=1e-5)


def _qwen3(*sizes: int, **changes) -> dict:
  defaults: dict[str, Any] = dict(
    head_dim=128,
    qk_norm=True,
    rope=rope(1e6, 'halves'),
    max_position_embeddings=40960,
  )
  return _dense(*sizes, **defaults | changes)


def qwen3_0_6b() -> dict:
  """Qwen3-0.6B, whose heads are wider than hidden_size over their number."""
  return _qwen3(28, 1024, 16, 8, 3072, 151936, tie_word_embeddings=True)


def qwen3_1_7b() -> dict:
  """Qwen3-1.7B."""
  return _qwen3(28, 2048, 16, 8, 6144, 151936, tie_word_embeddings=True)


def qwen3_8b() -> dict:
  """Qwen3-8B."""
  return _qwen3(36, 4096, 32, 8, 12288, 151936)


def _llama3(*sizes: int, **changes) -> dict:
  defaults: dict[str, Any] = dict(
    rms_norm_eps=1e-5,
    max_position_embeddings=131072,
    rope=rope(
      5e5,
      'halves',
      rope_type='llama3',
      factor=8.0,
      original_max_position_embeddings=8192,
    ),
  )
  return _dense(*sizes, **defaults | changes)


def llama3_1_8b() -> dict:
  """Llama-3.1-8B: the base of R1-Distill-Llama-8B."""
  return _llama3(32, 4096, 32, 8, 14336, 128256)


def llama3_3_70b() -> dict:
  """Llama-3.3-70B-Instruct: the base of R1-Distill-Llama-70B."""
  return _llama3(80, 8192, 64, 8, 28672, 128256)


def tiny() -> dict:
  """The miniature: V3's attention and experts, 0.7M parameters, characters."""
  return _V3 | dict(
    num_hidden_layers=4,
    first_k_dense_replace=1,
    hidden_size=96,
    num_attention_heads=2,
    q_lora_rank=48,
    kv_lora_rank=32,
    qk_nope_head_dim=24,
    qk_rope_head_dim=16,
    v_head_dim=32,
    intermediate_size=256,
    moe_intermediate_size=64,
    n_routed_experts=8,
    num_experts_per_tok=2,
    n_group=2,
    topk_group=1,
    vocab_size=112,
    initializer_range=0.02,
    max_position_embeddings=128,
    dtype='float32',
    remat='none',
  )


def small_qwen_vocab() -> dict:
  """A small random model under the real Qwen2.5 vocabulary."""
  return tiny() | dict(
    num_hidden_layers=2,
    hidden_size=64,
    vocab_size=151936,
    max_position_embeddings=512,
  )
