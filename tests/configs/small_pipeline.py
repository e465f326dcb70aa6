"""A pipeline of five stages at a size that a test can afford."""

from ml_collections import ConfigDict

from tests.configs import small


def _stage(kind: str, init: str):
  config = small.get_config()
  config.stages = (kind,)
  config.init = init
  config.model.vocab_size = 138
  config.tokenizer.source = 'bilingual'
  config.data.max_prompt_tokens = 16
  config.corpus.update(
    connective_rate=0.5, language_mixing_rate=0.5, general_error_rate=0.3
  )
  return config


def get_config():
  base = _stage('pretrain', 'pretrain')
  cold_start = _stage('sft', '@base')
  cold_start.sft.update(
    data=('arithmetic:40', 'manners:20'),
    num_train_epochs=1,
    batch_size=8,
    length_tokens=128,
    logging_steps=1,
    reasoning_loss_weight=0.7,
  )
  reasoning = _stage('rl', '@cold_start')
  reasoning.rl.update(max_steps=2, eval_steps=2, oversample=1.0)
  kept = _stage('rejection_sampling', '@reasoning')
  kept.rejection_sampling.update(
    num_prompts=12,
    num_samples=3,
    prompts_per_chunk=4,
    require_correct=False,
    require_format=False,
    max_per_prompt=2,
    extra_data=('manners:6',),
    top_logprobs=4,
  )
  kept.rl.max_new_tokens = 40
  student = _stage('sft', '@base')
  student.sft.update(
    data=('@kept',),
    num_train_epochs=2,
    batch_size=8,
    length_tokens=128,
    logging_steps=1,
    teacher_model='@reasoning',
    distillation_alpha=0.5,
    save_steps=1,
  )
  return ConfigDict(
    dict(
      stages=('base', 'cold_start', 'reasoning', 'kept', 'student'),
      seed=0,
      evaluations=('arithmetic', 'manners'),
      base=base,
      cold_start=cold_start,
      reasoning=reasoning,
      kept=kept,
      student=student,
    )
  )
