"""DeepSeek-R1-Zero as it was: pure GRPO on DeepSeek-V3-Base.

DeepSeek-R1 (arXiv 2501.12948, second version), section 2.2.

  r1jax info --config=pipeline_r1_zero --stage=zero --devices=1024
  r1jax pipeline --config=pipeline_r1_zero --workdir=runs/zero

It expects DeepSeek-V3-Base in weights/deepseek-v3-base (`r1jax import-hf`), and
its tokenizer in tokenizer/deepseek-r1 under $R1JAX_DATA. The questions of
R1-Zero are unpublished: MATH and MBPP stand here for them.

Lengths go from 32,768 tokens to 65,536 after step 8,200 of 10,400 updates: two
stages. A step here is a rollout of 16 updates, so 512 and 138 of them.
"""

from ml_collections import ConfigDict

from r1jax.config import base, models

V3_BASE = 'weights/deepseek-v3-base'
TOKENIZER = 'tokenizer/deepseek-r1'


def v3(kind: str, init: str) -> ConfigDict:
  """Returns the config that all stages of DeepSeek-V3 share."""
  config = base.get_config()
  config.stages = (kind,)
  config.init = init
  config.model = models.deepseek_v3_yarn()
  config.model.capacity_factor = 1.25
  # Rows lie over the eight chips of `tensor`: 128 rows at once on 1,024 chips, each
  # of several samples. One expert a device: 256 lie over expert × tensor.
  config.mesh.update(data=-1, fsdp=4, tensor=8, expert=32)
  config.tokenizer.source = TOKENIZER
  config.data.task = 'aime24'
  config.data.mixture = ('math:0.8', 'mbpp:0.2')
  config.data.decontaminate = ('aime24', 'math500', 'humaneval')
  config.data.max_bad_row_share = 0.01
  config.eval.update(num_problems=30, num_samples=64)
  return config


def zero(init: str, steps: int, max_new_tokens: int) -> ConfigDict:
  """Section 2.2: 32 questions × 16 samples an update, 16 updates a rollout."""
  config = v3('rl', init)
  config.tokenizer.add_bos_token = True  # R1-Zero's is no chat template.
  config.rl.update(
    max_steps=steps,
    prompts_per_step=512,
    group_size=16,
    num_minibatches=16,
    max_new_tokens=max_new_tokens,
    kl_coef=0.001,
    temperature=1.0,
    ref_model_sync_steps=25,
  )
  config.rl.optimizer.learning_rate = 3e-6
  return config


def get_config() -> ConfigDict:
  return ConfigDict(
    dict(
      stages=('zero', 'zero_long'),
      seed=0,
      evaluations=('aime24', 'math500'),
      zero=zero(V3_BASE, 512, 32768),
      zero_long=zero('@zero', 138, 65536),
    )
  )
