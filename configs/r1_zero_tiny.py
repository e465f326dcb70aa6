"""R1-Zero in miniature: pure GRPO on a weak base, on a laptop CPU.

DeepSeek-R1 section 2.2 at 0.7M parameters. The base guesses; reinforcement
with rule rewards alone makes it think step by step.

  r1jax train --config=configs/r1_zero_tiny.py --workdir=runs/zero
"""

from configs import pretrain_tiny


def get_config():
  config = pretrain_tiny.get_config()
  config.stages = ('pretrain', 'rl')
  config.init = 'shipped'
  config.rl.update(
      steps=80, prompts_per_step=32, group_size=16, max_new_tokens=64,
      minibatches=2, microbatches=4, reference_every=40, eval_every=10,
      checkpoint_every=10)
  config.rl.optimizer.update(
      learning_rate=3e-4, warmup_steps=5, decay='cosine', weight_decay=0.0)
  # The policy itself is measured, not a cooler one.
  config.eval.update(
      num_problems=128, samples=8, batch_size=64, temperature=1.0, top_p=1.0)
  return config
