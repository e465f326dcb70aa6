"""PPO at a size that a test can afford: one completion a prompt."""

from r1jax.config import algorithms
from tests.configs import small


def get_config():
  config = small.get_config()
  config.rl.update(algorithms.ppo(lam=0.95))
  config.rl.update(
    max_steps=4,
    prompts_per_step=16,
    group_size=1,
    eval_steps=4,
    overlong_buffer_tokens=12,
  )
  config.rl.reward.overlong = 1.0  # A random model earns nothing else.
  config.rl.ppo.update(critic_learning_rate=1e-2, critic_warmup_steps=1)
  return config
