"""The smallest whole run of R1-Zero: a rollout, a reward, an update a step.

  python experiments/faults/run.py --out=runs/faults

hooks.py is its plugin, which injects faults where FAULT says so.
"""

from pathlib import Path

from r1jax.configs import r1_zero_tiny


def get_config():
  config = r1_zero_tiny.get_config()
  config.stages, config.init = ('rl',), 'random'
  config.plugins = (str(Path(__file__).with_name('hooks.py')),)
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
  config.rl.optimizer.warmup_steps = 1
  config.rl.update(
    max_steps=8,
    prompts_per_step=4,
    group_size=4,
    max_new_tokens=16,
    num_minibatches=2,
    ref_model_sync_steps=3,
    eval_steps=8,
    save_steps=1,
    oversample=1.25,
  )
  config.rollout.decode_steps = 4
  config.eval.update(num_problems=4, num_samples=1)
  return config
