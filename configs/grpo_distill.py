"""GRPO on a distilled R1, DeepSeek-R1-Distill-Qwen in three sizes.

  r1jax info --config=grpo_distill:7b --devices=256
  r1jax plan --config=grpo_distill:7b --chip=v5e --chips=256
  r1jax aot --config=grpo_distill:7b --topology=v5e:16x16
  r1jax train --config=grpo_distill:7b --config.init=FOLDER \
    --config.tokenizer.source=FOLDER --config.data.task=gsm8k

FOLDER is the checkpoint from Hugging Face or an output of `r1jax import-hf`. The
sizes are 1.5b, 7b and 32b. `tensor` is at most the number of key-value heads; the
other devices share weights and batch.
"""

from r1jax.config import base, models
from r1jax.errors import UserError

_SIZES = {
  '1.5b': (models.qwen2_5_math_1_5b, 2),
  '7b': (models.qwen2_5_math_7b, 4),
  '32b': (models.qwen2_5_32b, 8),
}


def get_config(size: str = '7b'):
  if size not in _SIZES:
    raise UserError(f'--config=grpo_distill:SIZE: one of {", ".join(_SIZES)}')
  model, tensor = _SIZES[size]
  config = base.get_config()
  config.stages = ('rl',)
  config.model = model()
  # The distilled models' own files say so; their bases have other values.
  config.model.update(max_position_embeddings=131072, tie_word_embeddings=False)
  config.data.update(max_prompt_tokens=1024)
  config.rl.update(
    prompts_per_step=64,
    group_size=8,
    max_new_tokens=8192,
    num_minibatches=1,
    kl_coef=0.001,
  )
  config.rl.optimizer.update(learning_rate=1e-6)
  config.rollout.update(max_num_seqs=256)
  config.mesh.update(data=1, fsdp=-1, tensor=tensor)
  return config
