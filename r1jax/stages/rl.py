"""Reinforcement learning: the one RL step (`RL.train_step`), repeated."""

import json
import logging
from pathlib import Path
from typing import Any

import jax

from r1jax import buckets, processes, registry
from r1jax.config.schema.rl import RLConfig
from r1jax.config.schema.run import RunConfig
from r1jax.errors import UserError
from r1jax.evaluate import evaluator, unanswered
from r1jax.graders import code_grader, dispatch
from r1jax.model import model_flops
from r1jax.records import RLBatch, Rollout
from r1jax.rollout import assemble
from r1jax.stages import (
  collect,
  critic,
  report,
  rl_learner,
  rl_metrics,
  rl_programs,
  rl_update,
)
from r1jax.stages.build import parts as build
from r1jax.stages.build import reward_models, sampler
from r1jax.stages.build.prompts import prompt_files
from r1jax.stages.performance import UPDATE, Work
from r1jax.stages.rl_learner import RLState
from r1jax.stages.stage import Kind, Network
from r1jax.stages.trainer import StepOutput, TrainedStage
from r1jax.train.metrics import Stopwatch

_log = logging.getLogger(__name__)

# Streams of randomness: a key is a function of (seed, stream, step).
_ROLLOUT, _SHUFFLE, _EVAL = range(3)


@registry.stage('rl')
class RL(TrainedStage):
  """Samples groups of completions, rewards them and updates the policy."""

  section = RLConfig
  takes = {
    'data.': (Kind.SFT_DATA,),
    'rl.ppo.critic_init': (Kind.REWARD_MODEL, Kind.PRM, Kind.POLICY),
    'rl.reward_models.prm': (Kind.PRM,),
    'rl.reward_models': (Kind.REWARD_MODEL,),
  }
  print_steps = 10
  logging_steps = 1
  samples_apart = True

  def __init__(self, config: RunConfig, parts: build.Parts):
    c = self._config = config.rl
    self.seed, self.num_steps = config.seed, c.max_steps
    self.eval_steps = c.eval_steps
    self.set_checkpoints(c)
    self.updates_per_step = c.num_minibatches
    self.fp8 = config.model.fp8
    self._info = model_flops.count(config.model)
    self._parts, self._eval_samples = parts, config.eval.num_samples
    rl_update.check_rl(config, parts.model.layout)
    self._engine = engine = sampler.engine(config, parts)
    self.holders = engine.replicas.trainers
    self._reward = sampler.reward(
      config, parts, reward_models.of_rewards(config, parts)
    )
    self._collector = collect.Collector(config, parts, engine, self._reward)
    self._evaluator = sampler.evaluator(config, parts, engine)
    self._learner = rl_learner.Learner(
      config, parts, lambda step: self._key(_SHUFFLE, step)
    )
    self._train_rows: list[dict] = []
    self._shown: list[dict] = []
    self._watch = unanswered.StepWatch(
      parts.parser, unanswered.Limit(c.max_new_tokens)
    )

  @classmethod
  def reads(cls, config: RunConfig) -> dict[str, list[Path]]:
    c = config.rl
    found = prompt_files(config) | {
      key: [path] for key, path in cls.loaded_models(config).items()
    }
    if c.adv_estimator == 'gae' and c.ppo.critic_init:
      found['rl.ppo.critic_init'] = [buckets.given(c.ppo.critic_init)]
    return found

  @classmethod
  def loaded_models(cls, config: RunConfig) -> dict[str, Path]:
    return {
      f'rl.reward_models.{name}': buckets.given(file)
      for name, file in reward_models.named_files(config).items()
    }

  @classmethod
  def networks(cls, config: RunConfig) -> list[Network]:
    c = config.rl
    found = [Network('', config.model, c.optimizer)]
    if c.kl_coef:
      found.append(Network('reference policy', config.model))
    if c.adv_estimator == 'gae' and c.ppo.critic == 'separate':
      found.append(Network('critic', critic.critic_model(config), c.optimizer))
    return found

  @classmethod
  def check(cls, config, parts, missing):
    rl_update.check_rl(config, parts.model.layout)
    critic.check(config)
    if 'rl.ppo.critic_init' not in missing:
      critic.make_critic(config, parts)
    engine = sampler.engine(config, parts)
    reward = sampler.reward(
      config, parts, reward_models.expected(config, missing)
    )
    if not any(key.startswith('data.') for key in missing):
      collect.Collector(config, parts, engine, reward)
      sampler.evaluator(config, parts, engine)

  @classmethod
  def check_input(cls, config, key, parent, parent_name):
    """Refuses a critic without a scalar head, or an unfit reward model."""
    if key == 'rl.ppo.critic_init' and not parent.model.scalar_head:
      raise UserError(
        f'it needs a scalar head; set {parent_name}.model.scalar_head'
      )
    reward_models.check_input(config, key, parent, parent_name)

  @classmethod
  def update(cls, config, layout, *, num_updates=1000):
    """Returns the programs of one update; see Stage.update."""
    return rl_update.updates(config, layout, num_updates)

  @classmethod
  def programs(cls, config, layout):
    """Returns the programs of an RL step; see Stage.programs."""
    return rl_programs.of_step(config, layout)

  def resources(self):
    return dispatch.shutdown_on_exit()  # Its worker processes.

  def data(self) -> collect.Collector:
    self._collector.begin()
    return self._collector

  def init_state(self, params: Any) -> RLState:
    return self._learner.init_state(params)

  def abstract_state(self, params: Any) -> RLState:
    return self._learner.abstract_state(params)

  def policy(self, state: RLState) -> Any:
    return state.train.params

  def train_step(
    self, state: RLState, step: int, data: collect.Collector
  ) -> StepOutput:
    """Samples groups, rewards them, estimates advantages, updates the policy."""
    c, watch = self._config, Stopwatch()
    params = state.train.params
    group = data.collect(params, step, self._key(_ROLLOUT, step), watch)
    self._reward.check(group.scored)
    rollout = assemble.build_rollout(
      group.batch, c.group_size, group.completions, step
    )
    effort = group.effort
    ahead = c.one_step_off_policy and step < self.num_steps
    if ahead:
      data.begin_ahead(params, step, self._key(_ROLLOUT, step + 1))
    # Devices of this process sample while others of it train.
    overlaps = bool(ahead and self._engine.replicas.apart and not self.holders)
    learnt = None
    if self._parts.model.layout.is_local:
      learnt = self._learner.learn(state, group, rollout, step, watch)
      state = learnt.state
    if ahead:
      if learnt and not overlaps:
        jax.block_until_ready(learnt.computed)
        watch.lap(UPDATE)
      effort += data.sample_ahead(step, state.train.params, watch)
    if step + ahead < self.num_steps:
      data.prepare(step + 1 + ahead)  # While the device updates.
    values = self._values(group, rollout)
    values |= processes.from_holders(
      state.train.params, lambda: learnt.values() if learnt else {}
    )
    watch.lap(UPDATE)
    if not c.kl_coef:
      values.pop('kl', None)
    rows = evaluator.sample_records(
      group.prompts, group.scored, rollout.length_B, rollout.finish_B
    )
    self._watch.see(step, rows)
    self._train_rows = rows[: c.num_logged_completions]
    counts = {
      'tokens': sum(row['tokens'] for row in rows),
      'completions': len(rows),
    }
    # The update's own time is unknown if sampling overlaps it.
    batch = learnt.batch if learnt and not overlaps else None
    work = self._work(step, effort, batch)
    watch.lap('host')
    own_secs = {**effort.own_secs, 'host': watch.secs['host']}
    return StepOutput(state, values, counts, watch.secs, own_secs, work)

  def _values(
    self, group: collect.CollectedGroups, rollout: Rollout
  ) -> dict[str, float]:
    """Returns the metrics of the samples of a step."""
    values = group.metrics | rl_metrics.of_rollout(
      group.scored, rollout, self._parts.parser.format.reasoning_end
    )
    drafts = self._engine.speculative_metrics(group.completions)
    return values | {f'rollout/{name}': value for name, value in drafts.items()}

  def _work(
    self, step: int, effort: collect.Effort, batch: RLBatch | None
  ) -> dict[str, Work]:
    """Returns the tokens and model FLOPs of the parts of a step.

    Args:
      step: The step.
      effort: The work of sampling.
      batch: The rows that were trained on; None if their time is not measured.
    """
    sampled, apart = effort.counts, len(self._parts.model.layout.sampling)
    share = apart / (apart + self._parts.model.layout.mesh.size)
    work = {
      'rollout': Work(
        sampled.predicted_tokens,
        self._info.forward(sampled),
        share if apart else 1.0,
      )
    }
    if batch is None:
      return work
    counts = model_flops.counts_of_rows(
      batch.segment_BT, batch.position_BT, batch.mask_BT
    )
    flops = self._learner.flops(step, counts)
    return work | {UPDATE: Work(counts.tokens, flops, 1 - share)}

  def evaluate(self, state: RLState, step: int, directory: Path) -> dict:
    """Evaluates held-out problems and writes completions to samples/."""
    report = self._evaluator.run(state.train.params, self._key(_EVAL, step))
    num_shown = self._config.num_logged_completions
    self._shown = [
      {'kind': kind} | row
      for kind, rows in (('eval', report.samples), ('train', self._train_rows))
      for row in rows[:num_shown]
    ]
    folder = directory / 'samples'
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / f'step_{step:06d}.jsonl', 'w') as file:
      for kind, rows in (
        ('eval', report.samples),
        ('train', self._train_rows if step else []),
      ):
        for row in rows:
          file.write(json.dumps({'kind': kind} | row) + '\n')
    return report.metrics

  def completions(self) -> list[dict]:
    return self._shown

  def headline(self, values: dict) -> dict[str, str]:
    name = next(
      name
      for name in ('pass@1', 'quality', 'format')
      if f'eval/{name}' in values
    )
    return {name: f'{values[f"eval/{name}"]:.3f}'}

  def progress_numbers(self, values: dict, speed: dict) -> dict[str, str]:
    shown = {
      'reward': f'{values["reward"]:.3f}',
      'accuracy': f'{values["rewards/accuracy/mean"]:.3f}',
      'length': f'{values["completions/mean_length"]:.1f}',
    }
    if speed:
      shown['compl/s'] = f'{speed["speed/completions_per_sec"]:.0f}'
      shown['tok/s'] = f'{speed["speed/tokens_per_sec"]:,.0f}'
    return shown

  def metadata(self, state: RLState) -> dict:
    tier = code_grader.tier()
    return {'sandbox': tier} if tier else {}

  def report(self, directory: Path):
    report.write(directory, self._eval_samples)

  def _key(self, stream: int, step: int) -> jax.Array:
    key = jax.random.fold_in(jax.random.key(self.seed), stream)
    return jax.random.fold_in(key, step)
