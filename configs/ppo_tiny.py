"""PPO in miniature: GRPO's rollouts and rewards, and a critic beside the policy.

DeepSeek-R1's comparison of the two (second version, appendix) at 0.7M
parameters: λ = 1, and with --config.rl.ppo.lam=0.95 the usual one.

  r1jax train --config=configs/ppo_tiny.py --workdir=runs/ppo

On one busy CPU core it takes 17 minutes; held-out pass@1 goes from 0.25 to
0.99, as in configs/r1_zero_tiny.py. While the policy learns the critic finds
little more than the mean return, which leaves 'value/explained_variance' near
0; of a policy that stands still (value_warmup_steps=30) it explains 0.3.
"""

from configs import algorithms, r1_zero_tiny


def get_config():
  config = r1_zero_tiny.get_config()
  config.rl.update(algorithms.ppo())
  config.rl.ppo.value_learning_rate = 1e-3
  return config
