"""Named model sizes: the values of config.model."""

_V3 = dict(
    num_layers=61, first_k_dense=3, d_model=7168, num_heads=128,
    q_lora_rank=1536, kv_lora_rank=512, qk_nope_head_dim=128,
    qk_rope_head_dim=64, v_head_dim=128, ffn_dim=18432, expert_ffn_dim=2048,
    num_experts=256, num_shared_experts=1, experts_per_token=8,
    num_expert_groups=8, topk_groups=4, routed_scaling=2.5,
    vocab_size=129280, rope_theta=10000.0, norm_eps=1e-6, init_std=0.006,
    max_context=4096, dtype='bfloat16', remat=True, moe_dispatch='auto')


def deepseek_v3() -> dict:
  """671B parameters, 37B active (DeepSeek-V3 section 4.2), before YaRN."""
  return dict(_V3)


def tiny() -> dict:
  """The miniature: every mechanism of V3, 0.7M parameters, characters."""
  return _V3 | dict(
      num_layers=4, first_k_dense=1, d_model=96, num_heads=2, q_lora_rank=48,
      kv_lora_rank=32, qk_nope_head_dim=24, qk_rope_head_dim=16, v_head_dim=32,
      ffn_dim=256, expert_ffn_dim=64, num_experts=8, experts_per_token=2,
      num_expert_groups=2, topk_groups=1, vocab_size=112, init_std=0.02,
      max_context=128, dtype='float32', remat=False)


def small_qwen_vocab() -> dict:
  """A small random model under the real Qwen2.5 vocabulary."""
  return tiny() | dict(
      num_layers=2, d_model=64, vocab_size=151936, max_context=512)
