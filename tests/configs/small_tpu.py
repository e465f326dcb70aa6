"""r1_zero_671b at its depth's smallest: widths that TPU kernels still take."""

from r1jax.configs import r1_zero_671b


def get_config():
  config = r1_zero_671b.get_config()
  config.model.update(
    num_hidden_layers=5,
    hidden_size=128,
    num_attention_heads=4,
    q_lora_rank=128,
    kv_lora_rank=128,
    intermediate_size=512,
    moe_intermediate_size=128,
    n_routed_experts=16,
    vocab_size=1024,
  )
  config.mesh.update(data=1, fsdp=2, tensor=1, expert=2)
  config.data.max_prompt_tokens = 128
  config.rl.update(
    prompts_per_step=8, group_size=4, num_minibatches=8, max_new_tokens=128
  )
  return config
