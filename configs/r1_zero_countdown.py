"""The R1-Zero loop on the countdown file (Countdown-Tasks-3to4's rows).

As r1_zero_gsm8k.py, with exact grading of the equation. R1JAX_DATA names a
folder with countdown/countdown_{train,test}.jsonl (rows of id, question, nums,
target) and tokenizer/qwen2.5/.

  R1JAX_DATA=data r1jax train --config=r1_zero_countdown \
    --workdir=runs/countdown
"""

from r1jax.configs import r1_zero_gsm8k


def get_config():
  config = r1_zero_gsm8k.get_config()
  config.data.update(task='countdown_file', max_prompt_tokens=160)
  return config
