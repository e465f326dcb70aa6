"""The whole of r1_zero_tiny at a size that a test can afford."""

from r1jax.configs import r1_zero_tiny


def get_config():
  config = r1_zero_tiny.get_config()
  config.init = 'pretrain'
  config.model.update(
    hidden_size=16,
    num_hidden_layers=2,
    q_lora_rank=8,
    kv_lora_rank=8,
    qk_nope_head_dim=6,
    qk_rope_head_dim=4,
    v_head_dim=5,
    intermediate_size=32,
    moe_intermediate_size=8,
    n_routed_experts=4,
    initializer_range=0.1,
  )
  config.pretrain.update(
    max_steps=4, batch_size=8, save_steps=2, logging_steps=1
  )
  config.pretrain.optimizer.warmup_steps = 1
  config.rl.optimizer.warmup_steps = 1
  config.rl.update(
    max_steps=6,
    prompts_per_step=4,
    group_size=4,
    max_new_tokens=16,
    num_minibatches=2,
    ref_model_sync_steps=3,
    eval_steps=3,
    save_steps=2,
    oversample=1.25,
  )  # Five groups in flight.
  config.rollout.decode_steps = 4
  config.eval.update(num_problems=8, num_samples=2)
  return config
