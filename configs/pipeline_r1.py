"""DeepSeek-R1 and its distillations, stage by stage, at their real sizes.

DeepSeek-R1 (arXiv 2501.12948): section 2.3 of the first version for the order
of the stages, the second version and its appendix for the numbers. What is
unpublished is marked below.

  r1jax info --config=pipeline_r1 --stage=sft --devices=1024
  r1jax aot --config=pipeline_r1 --stage=sft --topology=v5p:8x8x16
  r1jax pipeline --config=pipeline_r1 --workdir=runs/r1

Stages of the 671B model take 1,024 chips, the students 64 (Qwen 32B 128, Llama
70B 256): jobs of their own, on slices of their own, over one --workdir, each
with --only=STAGE. What a stage waits for must be finished by then.

It expects weights/deepseek-v3-base and the students' bases (`r1jax import-hf`),
tokenizers and data under $R1JAX_DATA. The data are unpublished too:
r1/cold_start.jsonl and r1/general.jsonl are demonstrations of your own
(r1jax/data/demonstrations.py), r1/helpful.jsonl and r1/safe.jsonl preferences;
MATH and MBPP stand for the questions of reasoning.
"""

from ml_collections import ConfigDict

from r1jax.config import models
from r1jax.configs.pipeline_r1_zero import V3_BASE, v3

_FORM = dict(
  template='chat', response_format='think', response_prefix='<think>\n'
)


def _sft(init: str, data: tuple[str, ...]) -> ConfigDict:
  """Cosine 5e-5 → 5e-6, 128 × 32,768 tokens, 2 epochs ("2–3")."""
  config = v3('sft', init)
  config.data.update(_FORM)
  config.sft.update(
    data=data,
    num_train_epochs=2,
    batch_size=128,
    length_tokens=32768,
    gradient_accumulation_steps=1,
  )
  config.sft.optimizer.update(
    learning_rate=5e-5, lr_scheduler_type='cosine', min_lr_ratio=0.1
  )
  return config


def _rl(init: str, steps: int) -> ConfigDict:
  config = v3('rl', init)
  config.data.update(_FORM)
  config.rl.update(
    max_steps=steps,
    prompts_per_step=512,
    group_size=16,
    num_minibatches=16,
    max_new_tokens=32768,
    kl_coef=0.001,
    ref_model_sync_steps=25,
  )
  config.rl.reward.language = 1.0  # Added directly (section 2.3.2).
  config.rl.optimizer.learning_rate = 3e-6
  return config


def _reasoning() -> ConfigDict:
  """RL stage 1: as R1-Zero, clip ε = 10. Its number of steps is unpublished."""
  config = _rl('@cold_start', 500)
  config.rl.update(
    clip_ratio_low=1.0, clip_ratio_high=10.0
  )  # 1 − ε below 0 is 0.
  return config


def _rejection_sampling() -> ConfigDict:
  """Rejection sampling: 600k reasoning rows, and 200k others (section 2.3.3).

  Mixed languages, long paragraphs and code blocks are dropped. How many samples
  a prompt had is unpublished.
  """
  config = v3('rejection_sampling', '@reasoning')
  config.data.update(_FORM)
  config.rl.max_new_tokens = 32768
  config.rejection_sampling.update(
    num_samples=16,
    temperature=1.0,
    require_correct=True,
    require_format=True,
    min_language=0.95,
    max_repetition=0.2,
    forbidden_substrings=('```',),
    max_per_prompt=8,
    max_reasoning_rows=600_000,
    extra_data=('r1/general.jsonl:200000',),
  )
  return config


def _final() -> ConfigDict:
  """RL stage 2: 1,700 updates at temperature 0.7, which are 106 steps of 16;
  general prompts and their preference rewards in the last 400 updates, 25 steps
  (longer is hacked)."""
  config = _rl('@sft', 106)
  config.data.mixture = ('math:0.6', 'mbpp:0.2', 'hh_helpful:0.2')
  config.rl.update(temperature=0.7, general_prompts_after_steps=106 - 25)
  config.rl.reward_models.update(helpful='@helpful', safe='@safe')
  config.rl.general_reward.update(
    helpful=1.0, safe=1.0, format=1.0, language=1.0
  )
  return config


def _judge(kind: str, data: str) -> ConfigDict:
  """66k pairs for helpfulness, 106k labelled responses for safety; batch 256,
  6e-6, one epoch, 8,192 tokens."""
  config = v3('reward_model', V3_BASE)
  config.data.update(_FORM)
  config.model.scalar_head = True
  config.reward_model.update(
    kind=kind, data=(data,), num_train_epochs=1, batch_size=256, max_tokens=8192
  )
  config.reward_model.optimizer.learning_rate = 6e-6
  return config


def _distilled(
  model: dict, weights: str, tokenizer: str, learning_rate: float, tensor: int
) -> ConfigDict:
  """SFT of a dense base on the 800k rows: 2 epochs ("2–3"), batch 64, cosine
  to a tenth (section 2.4)."""
  config = _sft(weights, ('@rejection_sampled',))
  config.model = model | dict(max_position_embeddings=32768 + 1024)
  config.mesh.update(data=1, fsdp=64, tensor=tensor, expert=1)
  config.tokenizer.source = tokenizer
  config.sft.update(batch_size=64)
  config.sft.optimizer.learning_rate = learning_rate
  return config


_QWEN, _LLAMA = 'tokenizer/qwen2.5', 'tokenizer/llama3'
# Size of the student: base, tokenizer, peak learning rate, tensor axis.
_STUDENTS = {
  'qwen_1_5b': (
    models.qwen2_5_math_1_5b,
    'weights/qwen2.5-math-1.5b',
    _QWEN,
    1e-4,
    1,
  ),
  'qwen_7b': (
    models.qwen2_5_math_7b,
    'weights/qwen2.5-math-7b',
    _QWEN,
    8e-5,
    1,
  ),
  'qwen_14b': (models.qwen2_5_14b, 'weights/qwen2.5-14b', _QWEN, 7e-5, 1),
  'qwen_32b': (models.qwen2_5_32b, 'weights/qwen2.5-32b', _QWEN, 6e-5, 2),
  'llama_8b': (models.llama3_1_8b, 'weights/llama3.1-8b', _LLAMA, 5e-5, 1),
  'llama_70b': (
    models.llama3_3_70b,
    'weights/llama3.3-70b-instruct',
    _LLAMA,
    2e-5,
    4,
  ),
}


def _qwen_32b_zero() -> ConfigDict:
  """The control of section 4.1: R1-Zero's RL on the small base, 2e-6, over ten
  thousand updates; 47.0 on AIME against 72.6 distilled."""
  config = _rl('weights/qwen2.5-32b', 650)
  config.model = models.qwen2_5_32b()
  config.mesh.update(data=1, fsdp=64, tensor=2, expert=1)
  config.tokenizer.source = _QWEN
  config.data.update(
    template='r1_zero', response_format='think_answer', response_prefix=''
  )
  config.rl.reward.language = 0.0
  config.rl.optimizer.learning_rate = 2e-6
  return config


def get_config() -> ConfigDict:
  students = {
    name: _distilled(make(), *rest) for name, (make, *rest) in _STUDENTS.items()
  }
  return ConfigDict(
    dict(
      stages=(
        'cold_start',
        'reasoning',
        'rejection_sampled',
        'sft',
        'helpful',
        'safe',
        'final',
        *students,
        'qwen_32b_zero',
      ),
      seed=0,
      evaluations=('aime24', 'math500'),
      # Thousands of long thoughts; size and settings are unpublished.
      cold_start=_sft(V3_BASE, ('r1/cold_start.jsonl',)),
      reasoning=_reasoning(),
      rejection_sampled=_rejection_sampling(),
      sft=_sft(V3_BASE, ('@rejection_sampled',)),  # From the base again.
      helpful=_judge('helpful', 'r1/helpful.jsonl'),
      safe=_judge('safe', 'r1/safe.jsonl'),
      final=_final(),
      qwen_32b_zero=_qwen_32b_zero(),
      **students,
    )
  )
