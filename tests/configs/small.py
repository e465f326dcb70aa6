"""The whole of r1_zero_tiny at a size that a test can afford."""

from configs import r1_zero_tiny


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
  config.pretrain.update(steps=4, batch_size=8, checkpoint_every=2, log_every=1)
  config.rl.update(
    steps=6,
    prompts_per_step=4,
    group_size=4,
    max_new_tokens=16,
    minibatches=2,
    microbatches=1,
    reference_every=3,
    eval_every=3,
    checkpoint_every=2,
    complete_share=0.8,
  )  # Five groups in flight.
  config.rollout.chunk_steps = 4
  config.eval.update(num_problems=8, num_samples=2)
  return config
