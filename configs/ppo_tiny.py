"""PPO in miniature: the same rollouts and rewards, and a critic beside them.

TODO
"""

from configs import algorithms, r1_zero_tiny


def get_config():
  config = r1_zero_tiny.get_config()
  config.rl.update(algorithms.ppo())
  config.rl.ppo.value_learning_rate = 1e-3
  return config
