"""The base model of the miniature, from a noisy corpus of arithmetic.

It is weak because it guesses, not because it cannot compute: three documents
in four give an answer without a thought, mostly a wrong one.

  r1jax train --config=pretrain_tiny --workdir=runs/base

Writes runs/base/pretrain/model.safetensors, the base that ships with r1jax.
On two CPU cores it takes 10 to 15 minutes and ends at a loss of 0.68 nats a
token, most of it the digits of the questions; pass@1 is then 0.25.
"""

from r1jax.config import base, models


def get_config():
  config = base.get_config()
  config.stages = ('pretrain',)
  config.model = models.tiny()
  config.data.template = 'r1_zero_brief'
  config.data.max_prompt_tokens = 12
  config.data.step_delimiter = ' '
  config.pretrain.update(
    max_steps=1500,
    batch_size=86,
    length_tokens=96,
    save_steps=200,
    router_aux_loss_coef=0.0,
  )  # The bias alone keeps eight experts busy.
  config.rl.max_new_tokens = 64
  # The policy itself is measured, not a cooler one.
  config.eval.update(temperature=1.0, top_p=1.0)
  config.eval.search.update(
    budget_tokens=256, max_step_tokens=16, answer_reserve_tokens=48, c_puct=0.5
  )
  config.pretrain.optimizer.update(
    learning_rate=2e-3, warmup_steps=100, lr_scheduler_type='cosine'
  )
  return config
