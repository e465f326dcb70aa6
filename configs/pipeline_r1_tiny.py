"""The whole of DeepSeek-R1 in miniature, on a laptop CPU.

Two families of problems that rules can verify, arithmetic and countdown; a
general task that only reward models judge, manners; and a web in which English
and a second language are mixed.

  r1jax pipeline --config=configs/pipeline_r1_tiny.py --workdir=runs/r1
"""

from ml_collections import ConfigDict

from configs import base, models


def _config(kind: str, init: str) -> ConfigDict:
  """What all stages share."""
  config = base.get_config()
  config.stages = (kind,)
  config.init = init
  config.model = models.tiny() | dict(vocab_size=144, max_context=160)
  config.tokenizer.source = 'bilingual'
  config.data.template = 'r1_zero_brief'
  config.data.max_prompt_tokens = 20
  config.data.step_delimiter = ' '
  config.corpus.update(
      tasks=('arithmetic:0.55', 'countdown:0.25', 'manners:0.2'),
      spoken=0.8, foreign=0.4, rude=0.35)
  config.rl.max_new_tokens = 96
  config.eval.update(num_problems=96, samples=8, temperature=1.0, top_p=1.0)
  return config


def _pretrain() -> ConfigDict:
  config = _config('pretrain', 'pretrain')
  config.pretrain.update(
      steps=1500, batch_size=72, length_tokens=128, checkpoint_every=300,
      balance_loss=0.0)
  config.pretrain.optimizer.update(
      learning_rate=2e-3, warmup_steps=100, decay='cosine')
  return config


def _sft(init: str, *data: str) -> ConfigDict:
  config = _config('sft', init)
  config.corpus.update(  # Demonstrations are clean, and in one language.
      direct=0.0, slip=0.02, noticed=1.0, reconsidered=0.0, malformed=0.0,
      spoken=1.0, foreign=0.0, rude=0.0)
  config.sft.update(
      data=data, epochs=3, batch_size=16, length_tokens=128, log_every=5,
      balance_loss=0.0)
  config.sft.optimizer.update(
      learning_rate=1e-3, warmup_steps=10, decay='cosine', weight_decay=0.0)
  return config


def _rl(init: str, steps: int) -> ConfigDict:
  config = _config('rl', init)
  config.data.mixture = ('arithmetic:0.6', 'countdown:0.4')
  config.rl.update(
      steps=steps, prompts_per_step=32, group_size=16, minibatches=2,
      microbatches=4, reference_every=40, eval_every=10, checkpoint_every=20)
  config.rl.optimizer.update(
      learning_rate=3e-4, warmup_steps=5, decay='cosine', weight_decay=0.0)
  return config


def get_config() -> ConfigDict:
  pipeline = ConfigDict(dict(
      stages=('base', 'zero', 'cold_start', 'reasoning'),
      evaluations=('arithmetic', 'countdown', 'manners')))
  pipeline.base = _pretrain()
  pipeline.zero = _rl('@base', 60)
  pipeline.cold_start = _sft('@base', 'arithmetic:600', 'countdown:400')
  pipeline.reasoning = _rl('@cold_start', 40)
  pipeline.reasoning.rl.reward.language = 1.0
  return pipeline
