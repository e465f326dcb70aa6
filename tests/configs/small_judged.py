"""Reward models, and what is done with them, at a size for a test."""

from ml_collections import ConfigDict

from tests.configs import small


def _stage(kind: str, init: str):
  config = small.get_config()
  config.stages = (kind,)
  config.init = init
  config.model.update(
    num_hidden_layers=1, vocab_size=106
  )  # Every id has a text.
  return config


def _judge(kind: str):
  config = _stage('reward_model', '@base')
  config.model.scalar_head = True
  config.reward_model.update(
    kind=kind,
    data=('manners:16',),
    max_eval_rows=8,
    batch_size=8,
    max_tokens=96,
    logging_steps=1,
  )
  config.reward_model.optimizer.learning_rate = 1e-2
  return config


def get_config():
  base = _stage('pretrain', 'pretrain')
  base.pretrain.max_steps = 2
  liked = _stage('dpo', '@base')
  liked.dpo.update(
    data=('manners:16',), max_eval_rows=8, batch_size=8, max_tokens=96
  )
  reasoning = _stage('rl', '@liked')
  reasoning.data.mixture = ('arithmetic:1', 'manners:1')
  reasoning.data.max_prompt_tokens = 24
  reasoning.rl.update(max_steps=2, eval_steps=2, oversample=1.0)
  reasoning.rl.general_reward.update(helpful=0.5, safe=1.0)
  reasoning.rl.reward_models.update(helpful='@helpful', safe='@safe')
  kept = _stage('rejection_sampling', '@reasoning')
  kept.data.task = 'manners'
  kept.data.max_prompt_tokens = 24
  kept.rl.max_new_tokens = 60
  kept.rejection_sampling.update(
    num_prompts=6,
    num_samples=2,
    prompts_per_chunk=6,
    require_correct=False,
    require_format=False,
    reward_model='@helpful',
    min_score=-1e6,
    sort_by_score=True,
  )
  return ConfigDict(
    dict(
      stages=('base', 'helpful', 'safe', 'liked', 'reasoning', 'kept'),
      seed=0,
      evaluations=(),
      base=base,
      helpful=_judge('helpful'),
      safe=_judge('safe'),
      liked=liked,
      reasoning=reasoning,
      kept=kept,
    )
  )
