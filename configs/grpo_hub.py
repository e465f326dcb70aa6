"""GRPO on a model of the Hugging Face hub, with GSM8K from there.

  r1jax train --config=grpo_hub:qwen2.5-0.5b --workdir=runs/gsm8k
  r1jax info --config=grpo_hub:qwen3-8b --devices=16
  r1jax aot --config=grpo_hub:qwen3-8b --topology=v5e:4x4

The sizes are qwen2.5-0.5b, -1.5b and -7b, qwen2.5-math-1.5b and -7b, qwen3-0.6b,
-1.7b and -8b, and llama-3.1-8b, which is gated: accept its terms and set
HF_TOKEN. They are base models, trained with R1-Zero's template. Weights, moments
and batch are shared by all devices that there are; the small ones fit eight
chips of v5e, the large ones sixteen.  Other
models: docs/data.md.
"""

from r1jax.config import base, models
from r1jax.errors import UserError

# The repository, the architecture, and the shards of key-value heads.
SIZES = {
  'qwen2.5-0.5b': ('Qwen/Qwen2.5-0.5B', models.qwen2_5_0_5b, 1),
  'qwen2.5-1.5b': ('Qwen/Qwen2.5-1.5B', models.qwen2_5_1_5b, 1),
  'qwen2.5-7b': ('Qwen/Qwen2.5-7B', models.qwen2_5_7b, 4),
  'qwen2.5-math-1.5b': ('Qwen/Qwen2.5-Math-1.5B', models.qwen2_5_math_1_5b, 1),
  'qwen2.5-math-7b': ('Qwen/Qwen2.5-Math-7B', models.qwen2_5_math_7b, 4),
  'qwen3-0.6b': ('Qwen/Qwen3-0.6B-Base', models.qwen3_0_6b, 1),
  'qwen3-1.7b': ('Qwen/Qwen3-1.7B-Base', models.qwen3_1_7b, 1),
  'qwen3-8b': ('Qwen/Qwen3-8B-Base', models.qwen3_8b, 4),
  'llama-3.1-8b': ('meta-llama/Llama-3.1-8B', models.llama3_1_8b, 4),
}


def get_config(size: str = 'qwen2.5-0.5b'):
  if size not in SIZES:
    raise UserError(f'--config=grpo_hub:SIZE: one of {", ".join(SIZES)}')
  repository, model, tensor = SIZES[size]
  config = base.get_config()
  config.stages = ('rl',)
  config.model = model()
  config.init = config.tokenizer.source = f'hf://{repository}'
  config.data.update(
    task='rows',
    path='hf://datasets/openai/gsm8k/main/train-*.parquet',
    eval_path='hf://datasets/openai/gsm8k/main/test-*.parquet',
    answer_in='hashes',
    max_prompt_tokens=512,
  )
  config.rl.update(
    max_steps=200,
    prompts_per_step=128,
    group_size=8,
    max_new_tokens=1024,
    num_minibatches=2,
    eval_steps=20,
    save_steps=20,
  )
  config.rl.optimizer.update(learning_rate=1e-6, warmup_steps=10)
  config.eval.update(num_problems=512, num_samples=1)
  config.rollout.update(max_num_seqs=256 if tensor == 1 else 128)
  config.mesh.update(data=1, fsdp=-1, tensor=tensor)
  return config
