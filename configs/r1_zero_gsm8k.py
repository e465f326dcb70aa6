"""The R1-Zero loop on the real GSM8K, with the Qwen2.5 tokenizer.

A small random model and a few steps: it shows that real files, a real
tokenizer and grader run through the same loop, not that it learns.
R1JAX_DATA names a folder with math/gsm8k_train.jsonl, math/gsm8k_test.jsonl
(openai/grade-school-math, as rows of id, question, answer) and
tokenizer/qwen2.5/ (tokenizer.json, tokenizer_config.json of Qwen2.5).

On two CPU cores it takes two to three minutes; its rewards stay at 0.

  R1JAX_DATA=data r1jax train --config=r1_zero_gsm8k \
    --workdir=runs/gsm8k
"""

from r1jax.config import base, models


def get_config():
  config = base.get_config()
  config.stages = ('rl',)
  config.init = 'random'
  config.model = models.small_qwen_vocab()
  config.tokenizer.source = 'tokenizer/qwen2.5'
  config.data.update(task='gsm8k', template='r1_zero', max_prompt_tokens=320)
  config.rl.update(
    max_steps=4,
    prompts_per_step=4,
    group_size=4,
    max_new_tokens=64,
    num_minibatches=2,
    eval_steps=2,
    save_steps=2,
  )
  config.eval.update(num_problems=8, num_samples=2)
  return config
