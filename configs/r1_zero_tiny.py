"""R1-Zero in miniature: pure GRPO on a weak base, on a laptop CPU.

DeepSeek-R1 section 2.2 at 0.7M parameters. The base guesses; reinforcement
with rule rewards alone makes it think step by step.

  r1jax train --config=r1_zero_tiny --workdir=runs/zero

On two CPU cores it takes 3 to 6 minutes; held-out pass@1 goes from 0.25 to
0.99, and the mean response from 15 to 33 tokens.
"""

from r1jax.configs import pretrain_tiny


def get_config():
  config = pretrain_tiny.get_config()
  config.stages = ('pretrain', 'rl')
  config.init = 'shipped'
  config.rl.update(
    max_steps=80,
    prompts_per_step=32,
    group_size=16,
    num_minibatches=2,
    ref_model_sync_steps=40,
    eval_steps=10,
    save_steps=10,
  )
  config.rl.optimizer.update(
    learning_rate=3e-4,
    warmup_steps=5,
    lr_scheduler_type='cosine',
    weight_decay=0.0,
  )
  return config
