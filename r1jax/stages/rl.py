"""Reinforcement learning: the one RL step (`RL.train_step`), repeated."""

import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from r1jax import buckets, registry
from r1jax.algos import advantage, common, policy_loss
from r1jax.config.schema.rl import RLConfig
from r1jax.config.schema.run import RunConfig
from r1jax.data import sample_packing
from r1jax.errors import UserError
from r1jax.evaluate import evaluator, unanswered
from r1jax.graders import code_grader, dispatch
from r1jax.model import model_flops
from r1jax.records import FINISH_LENGTH, FINISH_STOP, RLBatch, Rollout
from r1jax.rollout import assemble
from r1jax.stages import (
  collect,
  critic,
  report,
  rl_metrics,
  rl_programs,
  rl_update,
)
from r1jax.stages.build import packing, reward_models, sampler
from r1jax.stages.build import parts as build
from r1jax.stages.build.prompts import prompt_files
from r1jax.stages.performance import UPDATE, Work
from r1jax.stages.stage import Kind, Network
from r1jax.stages.trainer import StepOutput, TrainedStage
from r1jax.train import policy_step
from r1jax.train import state as train_state
from r1jax.train.metrics import Stopwatch

_log = logging.getLogger(__name__)

# Streams of randomness: a key is a function of (seed, stream, step).
_ROLLOUT, _SHUFFLE, _EVAL = range(3)


@chex.dataclass(frozen=True)
class RLState:
  """The policy in training, and the reference it is kept near to.

  Attributes:
    train: TrainState of the policy.
    reference: Parameters of the reference policy, or None where β is 0.
    critic: TrainState of a separate critic, or None.
  """

  train: train_state.TrainState
  reference: Any
  critic: train_state.TrainState | None


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
    self._reward = sampler.reward(
      config, parts, reward_models.of_rewards(config, parts)
    )
    self._collector = collect.Collector(config, parts, engine, self._reward)
    self._evaluator = sampler.evaluator(config, parts, engine)
    self._critic = critic.make_critic(config, parts)
    self._tx = rl_update.policy_optimizer(
      config, (c.max_steps - self._critic.warmup_steps) * c.num_minibatches
    )
    self._shape = packing.row_shape(config, parts.model.layout)
    self._logps = [
      policy_step.token_logps(parts.model, c.temperature, self._shape, count)
      for count in (1, 2)
    ]
    self._adv_estimator = registry.adv_estimator.get(c.adv_estimator)
    self._policy_loss = rl_update.policy_loss(config)
    self._update = rl_update.make_policy_step(
      config, parts.model, self._tx, self._shape, self._critic.extra_loss
    )
    self._copy = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree))
    self._mixed = jax.jit(
      lambda reference, policy: optax.incremental_update(
        policy, reference, c.ref_model_mixup_alpha
      ),
      donate_argnums=0,
    )
    self._train_rows: list[dict] = []
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
    shardings = train_state.shardings(self._parts.model, self._tx)
    train = jax.jit(
      lambda p: train_state.create(p, self._tx), out_shardings=shardings
    )(self._copy(params))
    return RLState(
      train=train,
      reference=self._copy(params) if self._config.kl_coef else None,
      critic=self._critic.init_state(params),
    )

  def abstract_state(self, params: Any) -> RLState:
    shardings = train_state.shardings(self._parts.model, self._tx)
    train = train_state.abstract(params, self._tx, shardings)
    return RLState(
      train=train,
      reference=train.params if self._config.kl_coef else None,
      critic=self._critic.abstract_state(),
    )

  def policy(self, state: RLState) -> Any:
    return state.train.params

  def train_step(
    self, state: RLState, step: int, data: collect.Collector
  ) -> StepOutput:
    """Samples groups, rewards them, estimates advantages, updates the policy."""
    c, watch = self._config, Stopwatch()
    group = data.collect(
      state.train.params, step, self._key(_ROLLOUT, step), watch
    )
    scored = group.scored
    rollout = assemble.build_rollout(
      group.batch, c.group_size, group.completions, step
    )
    self._reward.check(scored)
    batch, varied_P, packed = self._with_advantages(
      state, group, rollout, step, watch
    )
    batch, metrics = self._critic.advantages(
      state.train.params,
      state.critic,
      batch,
      jnp.asarray(scored.reward_B),
      jnp.asarray(rollout.finish_B == FINISH_LENGTH),
    )
    batch, values = self._importance_weighted(batch)
    values |= packed
    train = state.train
    critic_state, learnt = self._critic.update(state.critic, batch)
    metrics |= learnt
    if step > self._critic.warmup_steps:
      train, learnt = self._update(train, batch)
      metrics |= learnt
    state = RLState(
      train=train,
      critic=critic_state,
      reference=self._next_reference(state, train.params, step),
    )
    if step < self.num_steps:
      data.prepare(step + 1)  # While the device updates, as what follows.
    values |= group.metrics | rl_metrics.of_rollout(
      scored, rollout, varied_P, self._parts.parser.format.reasoning_end
    )
    drafts = self._engine.speculative_metrics(group.completions)
    values |= {f'rollout/{name}': value for name, value in drafts.items()}
    values |= jax.device_get(metrics)
    watch.lap(UPDATE)
    if not c.kl_coef:
      values.pop('kl', None)
    rows = evaluator.sample_records(
      group.prompts, scored, rollout.length_B, rollout.finish_B
    )
    self._watch.see(step, rows)
    self._train_rows = rows[: c.num_logged_completions]
    counts = {
      'tokens': sum(row['tokens'] for row in rows),
      'completions': len(rows),
    }
    work = self._work(step, group.effort, batch)
    watch.lap('host')
    own_secs = {**group.effort.own_secs, 'host': watch.secs['host']}
    return StepOutput(state, values, counts, watch.secs, own_secs, work)

  def _work(
    self, step: int, effort: collect.Effort, batch: RLBatch
  ) -> dict[str, Work]:
    """Returns the tokens and model FLOPs of the parts of a step."""
    counts = model_flops.counts_of_rows(
      batch.segment_BT, batch.position_BT, batch.mask_BT
    )
    flops = self._critic.flops(counts)
    if step > self._critic.warmup_steps:
      flops += self._info.training(counts)
    sampled = effort.counts
    return {
      'rollout': Work(sampled.predicted_tokens, self._info.forward(sampled)),
      UPDATE: Work(counts.tokens, flops),
    }

  def _with_advantages(
    self,
    state: RLState,
    group: collect.CollectedGroups,
    rollout: Rollout,
    step: int,
    watch: Stopwatch,
  ):
    """Returns the batch with its log-probabilities and advantages of groups.

    Returns:
      The RLBatch; bool [P], whether the rewards of a group differ; and metrics
      of the packing.
    """
    c, scored = self._config, group.scored
    counts_B = scored.scorable_B & group.counts_B
    if c.mask_truncated_completions:
      counts_B = counts_B & (rollout.finish_B == FINISH_STOP)
    if not counts_B.any():
      _log.warning(
        'rl: no sample of step %d counts; the policy stays as it is', step
      )
    order_B = jax.random.permutation(
      self._key(_SHUFFLE, step), self._shape.num_samples
    )
    # A penalty for the KL in the reward is of all samples of a group.
    included_B = counts_B | c.kl_in_reward
    batch = sample_packing.pack(
      rollout, included_B, np.asarray(order_B), self._shape
    )
    packed = sample_packing.metrics(
      batch, self._shape, rollout.valid_BT.sum(1) * included_B
    )
    watch.lap('host')
    batch = self._log_probs(state, batch)
    jax.block_until_ready(batch.ref_logp_BT)
    watch.lap('reference')
    samples = common.Samples(batch.sample_BT, self._shape.num_samples)
    reward_B = jnp.asarray(scored.reward_B)
    if c.kl_in_reward:
      reward_B -= c.kl_coef * samples.sum(
        common.kl_estimate(
          c.kl_estimator, batch.old_logp_BT, batch.ref_logp_BT
        ),
        batch.mask_BT,
      )
    groups = rollout.group_B, len(group.prompts)
    scorable_B = jnp.asarray(scored.scorable_B)
    adv_B = self._adv_estimator(reward_B, *groups, scorable_B, c)
    varied_P = advantage.varied_groups(reward_B, *groups, scorable_B)
    batch = dataclasses.replace(
      batch,
      adv_BT=samples.spread(adv_B),
      mask_BT=batch.mask_BT & counts_B[batch.sample_BT],
    )
    return batch, varied_P, packed

  def evaluate(self, state: RLState, step: int, directory: Path) -> dict:
    """Evaluates held-out problems and writes completions to samples/."""
    report = self._evaluator.run(state.train.params, self._key(_EVAL, step))
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

  def _log_probs(self, state: RLState, batch: RLBatch) -> RLBatch:
    """Returns it with log-probabilities of the old and the reference policy."""
    recompute = self._config.old_logp_source == 'recompute'
    policy, reference = state.train.params, state.reference
    old_logp_BT = batch.logp_BT
    if recompute and reference is not None:
      old_logp_BT, ref_logp_BT = self._logps[1](policy, reference, batch)
    elif recompute:
      (old_logp_BT,) = (ref_logp_BT,) = self._logps[0](policy, batch)
    elif reference is not None:
      # The reference policy routes tokens itself: recorded experts are dropped.
      own_routing = dataclasses.replace(batch, experts_BTLA=None)
      (ref_logp_BT,) = self._logps[0](reference, own_routing)
    else:
      ref_logp_BT = old_logp_BT
    return dataclasses.replace(
      batch, old_logp_BT=old_logp_BT, ref_logp_BT=ref_logp_BT
    )

  def _importance_weighted(self, batch: RLBatch) -> tuple[RLBatch, dict]:
    """Returns it with the weights that rl.rollout_is asks for, and metrics."""
    if self._config.rollout_is == 'none':
      return batch, {}
    weight_BT = policy_loss.rollout_is_weights(
      self._policy_loss,
      batch.old_logp_BT,
      batch.logp_BT,
      batch.mask_BT,
      common.Samples(batch.sample_BT, self._shape.num_samples),
    )
    weights = np.asarray(weight_BT, np.float64)[np.asarray(batch.mask_BT)]
    total, squares = weights.sum(), (weights**2).sum()
    values = {
      'rollout_is/mean': float(weights.mean()) if weights.size else 0.0,
      # Effective sample size, as a share of the tokens.
      'rollout_is/eff_sample_size': float(total**2 / (squares * weights.size))
      if squares
      else 0.0,
    }
    return dataclasses.replace(batch, rollout_is_weight_BT=weight_BT), values

  def _next_reference(self, state: RLState, params: Any, step: int) -> Any:
    """Returns the reference policy of the next step."""
    c = self._config
    if state.reference is None or step % c.ref_model_sync_steps:
      return state.reference
    if c.ref_model_mixup_alpha < 1:
      return self._mixed(state.reference, params)
    return self._copy(params)
