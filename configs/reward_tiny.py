"""A helpful reward model in miniature: pairs of answers to general questions.

DeepSeek-R1 section 3.1 (second version) at 0.1M parameters, on the synthetic
task `manners`, whose labels are drawn by Bradley and Terry's rule.

  r1jax train --config=reward_tiny --workdir=runs/helpful

On one CPU core it takes half a minute and ends at an accuracy of 0.82 on held-
out pairs, where one who knew every chance would reach 0.86.
"""

from r1jax.config import base, models


def get_config():
  config = base.get_config()
  config.stages = ('reward_model',)
  config.init = 'random'
  config.model = models.tiny() | dict(
    num_hidden_layers=2,
    first_k_dense_replace=2,
    hidden_size=64,
    q_lora_rank=32,
    kv_lora_rank=16,
    intermediate_size=192,
    scalar_head=True,
  )
  config.data.template = 'r1_zero_brief'
  config.reward_model.update(
    data=('manners:6000',),
    max_eval_rows=1024,
    batch_size=64,
    max_tokens=64,
    num_train_epochs=2,
    eval_steps=50,
    save_steps=100,
    router_aux_loss_coef=0.0,
  )
  config.reward_model.optimizer.update(
    learning_rate=3e-3, warmup_steps=20, lr_scheduler_type='cosine'
  )
  return config
