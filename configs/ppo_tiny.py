"""PPO in miniature: GRPO's rollouts and rewards, a critic beside the policy.

DeepSeek-R1's comparison of the two (second version, appendix) at 0.7M
parameters.

  r1jax train --config=ppo_tiny --workdir=runs/ppo

On one busy CPU core it takes 17 minutes; held-out pass@1 goes from 0.25 to
0.99, as in r1_zero_tiny. With --config.rl.ppo.lam=0.95 it ends at
0.30: what is said early is judged by a critic that knows little yet, and short
guesses win. One seed each. While the policy learns the critic finds little more
than the mean return, so 'critic/vf_explained_var' stays near 0; of a policy
that stands still (--config.rl.ppo.critic_warmup_steps=30) it explains 0.3.
"""

from r1jax.config import algorithms
from r1jax.configs import r1_zero_tiny


def get_config():
  config = r1_zero_tiny.get_config()
  config.rl.update(algorithms.ppo())
  config.rl.ppo.critic_learning_rate = 1e-3
  return config
