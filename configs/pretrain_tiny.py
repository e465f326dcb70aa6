"""The base model of the miniature, from a noisy web of arithmetic.

It is weak because it guesses, not because it cannot compute: three documents
in four give an answer without a thought, mostly a wrong one.

  r1jax train --config=configs/pretrain_tiny.py --workdir=runs/base

Writes runs/base/pretrain/model.safetensors, the base that ships with r1jax.
"""

from configs import base, models


def get_config():
  config = base.get_config()
  config.stages = ('pretrain',)
  config.model = models.tiny()
  config.data.template = 'r1_zero_brief'
  config.data.max_prompt_tokens = 12
  config.pretrain.update(
      steps=1500, batch_size=86, length_tokens=96, checkpoint_every=200)
  config.pretrain.optimizer.update(
      learning_rate=2e-3, warmup_steps=100, decay='cosine')
  return config
