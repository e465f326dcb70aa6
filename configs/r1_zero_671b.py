"""R1-Zero as it was: DeepSeek-V3-Base by pure GRPO.

DeepSeek-R1 section 2.2, with the numbers of its second version; those that
are unpublished are marked in configs/base.py.

  r1jax info --config=configs/r1_zero_671b.py --devices=1024
"""

from configs import base, models


def get_config():
  config = base.get_config()
  config.stages = ('rl',)
  config.model = models.deepseek_v3_yarn()
  return config
