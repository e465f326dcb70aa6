"""GRPO, PPO, DPO and group-robust DPO on one base, in miniature.

The base and `grpo` are the base and R1-Zero of pipeline_r1_tiny. The groups are
the two families of problems; most of DPO's pairs are arithmetic, of which the
base solves more.

  r1jax pipeline --config=pipeline_algorithms_tiny --workdir=runs/a
"""

import copy

from ml_collections import ConfigDict

from r1jax.config import algorithms
from r1jax.configs import pipeline_r1_tiny


def get_config() -> ConfigDict:
  r1 = pipeline_r1_tiny.get_config()
  pipeline = ConfigDict(
    dict(
      stages=(
        'base',
        'grpo',
        'grpo_language',
        'ppo',
        'ppo_lam095',
        'pairs',
        'dpo',
        'dpo_robust',
      ),
      seed=0,
      evaluations=('arithmetic', 'countdown'),
    )
  )
  pipeline.base, pipeline.grpo = r1.base, r1.zero
  pipeline.grpo_language = copy.deepcopy(r1.zero)
  pipeline.grpo_language.rl.reward.language = 0.5
  pipeline.ppo, pipeline.ppo_lam095 = (_ppo(r1.zero, lam) for lam in (1, 0.95))
  pipeline.pairs = copy.deepcopy(r1.rejection_sampled)
  pipeline.pairs.init = '@base'
  pipeline.pairs.rejection_sampling.update(
    num_prompts=2000,
    num_samples=8,
    pairs=True,
    max_per_prompt=4,
    extra_data=(),
    min_language=0.0,
    max_repetition=1.0,
  )
  pipeline.dpo, pipeline.dpo_robust = (_dpo(r1.zero, on) for on in (0, 1))
  return pipeline


def _ppo(grpo: ConfigDict, lam: float) -> ConfigDict:
  """The same rollouts and steps, after ten in which the critic learns alone."""
  config = copy.deepcopy(grpo)
  config.rl.update(algorithms.ppo(float(lam)))
  config.rl.max_steps += 10
  config.rl.ppo.update(critic_learning_rate=1e-3, critic_warmup_steps=10)
  return config


def _dpo(grpo: ConfigDict, robust: bool) -> ConfigDict:
  """β = 0.5: at 0.1 and twice the rate a base this small forgets its form."""
  config = copy.deepcopy(grpo)
  config.stages = ('dpo',)
  config.dpo.update(
    data=('@pairs',),
    eval_share=0.1,
    max_eval_rows=0,
    batch_size=32,
    max_tokens=128,
    num_train_epochs=2,
    eval_steps=50,
    save_steps=50,
    router_aux_loss_coef=0.0,
    beta=0.5,
    group_robust=bool(robust),
    group_dro_step_size=0.05,
  )
  config.dpo.optimizer.update(
    learning_rate=5e-5,
    warmup_steps=10,
    lr_scheduler_type='cosine',
    weight_decay=0.0,
  )
  return config
