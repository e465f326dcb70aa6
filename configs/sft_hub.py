"""Supervised fine-tuning of a base model of the hub on R1's thoughts.

  r1jax train --config=sft_hub:qwen2.5-0.5b --workdir=runs/sft
  r1jax info --config=sft_hub:qwen3-8b --devices=16

The sizes are those of grpo_hub. The data are OpenR1-Math-220k, whose messages end
in a thought and an answer of DeepSeek-R1; --config.sft.data and --config.sft.columns
take others. Two passes in batches of 64 with R1's learning rates for its
distillations, which fall to a tenth. Prompts have the chat template that comes with
Qwen's base models; Llama's has none, and gets the tokenizer of R1's distillation of
it, whose vocabulary is the same. Qwen2.5-Math reads 4,096 tokens; the rotation of
its positions is slowed down for 32,768. The small ones fit eight chips of v5e, the
large ones sixteen of v6e.
"""

from r1jax.config import base
from r1jax.configs.grpo_hub import SIZES
from r1jax.errors import UserError

_LEARNING_RATES = {  # By the billions of weights; Llama has its own.
  '0.5b': 1e-4,
  '0.6b': 1e-4,
  '1.5b': 1e-4,
  '1.7b': 1e-4,
  '7b': 8e-5,
  '8b': 8e-5,
}


def get_config(size: str = 'qwen2.5-0.5b'):
  if size not in SIZES:
    raise UserError(f'--config=sft_hub:SIZE: one of {", ".join(SIZES)}')
  repository, model, tensor = SIZES[size]
  config = base.get_config()
  config.stages = ('sft',)
  config.model = model()
  if 'math' in size:
    config.model.max_position_embeddings = 32768
    config.model.rope.rope_theta = 300_000.0
  config.init = config.tokenizer.source = f'hf://{repository}'
  if 'llama' in size:
    config.tokenizer.source = 'hf://deepseek-ai/DeepSeek-R1-Distill-Llama-8B'
  config.data.update(template='chat', response_format='think')
  config.sft.update(
    data=('hf://datasets/open-r1/OpenR1-Math-220k/data/train-*.parquet',),
    num_train_epochs=2,
    batch_size=64,
    # A row of a microbatch for each of eight chips, or four of sixteen.
    gradient_accumulation_steps=8 if tensor == 1 else 16,
    length_tokens=32768,
    save_steps=100,
  )
  rate = _LEARNING_RATES[size.rpartition('-')[2]]
  config.sft.optimizer.update(
    learning_rate=5e-5 if 'llama' in size else rate, lr_scheduler_type='cosine'
  )
  config.mesh.update(data=1, fsdp=-1, tensor=tensor)
  return config
