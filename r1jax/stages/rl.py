"""Reinforcement learning: the one RL step (`RL._step`), repeated."""

from collections import Counter
import json
from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from r1jax.algos import advantage, common, policy_loss
from r1jax.checkpoints import weights
from r1jax.data.datasets import GENERAL
from r1jax.evaluate import evaluator
from r1jax.graders import code_grader, dispatch
from r1jax.graders.verdict import Verdict
from r1jax.model.moe import LoadBalancing
from r1jax.records import FINISH_STOP, RLBatch, Rollout, ScoredRollout
from r1jax.rollout import assemble
from r1jax.stages import collect, critic, report
from r1jax.stages.build import parts as build
from r1jax.stages.build import reward_models
from r1jax.stages.stage import OUTPUT, Stage
from r1jax.train import optimizer, policy_step
from r1jax.train import state as train_state
from r1jax.train.checkpoint import Checkpointer
from r1jax.train.metrics import MetricsWriter, Progress

# Streams of randomness: a key is a function of (seed, stream, step).
_ROLLOUT, _SHUFFLE, _EVAL = range(3)


@chex.dataclass(frozen=True)
class RLState:
  """The policy in training, and the reference it is kept near to.

  Attributes:
    train: Policy parameters and optimiser.
    reference: Parameters, or None where β is 0.
    critic: Of a value function of its own, or None.
  """

  train: train_state.TrainState
  reference: Any
  critic: train_state.TrainState | None


class RL(Stage):
  """Groups of completions, rewarded, and a policy that follows."""

  name = 'rl'

  def __init__(self, config: ml_collections.ConfigDict, parts: build.Parts):
    c = self._config = config.rl
    self._eval_samples = config.eval.num_samples
    self._seed = config.seed
    self._parts = parts
    self._width = config.data.max_prompt_tokens
    build.check_rl(config, parts.model.layout)
    self._engine = build.engine(config, parts)
    self._reward = build.reward(
      config, parts, reward_models.of_rewards(config, parts)
    )
    self._collector = collect.Collector(
      config, parts, self._engine, self._reward
    )
    self._evaluator = build.evaluator(config, parts, self._engine)
    model = parts.model
    self._critic = critic.make(config, parts)
    self._tx = optimizer.make(
      build.optimizer_config(c),
      (c.max_steps - self._critic.warmup_steps) * c.num_minibatches,
      untrained=() if c.mtp_loss_weight else ('mtp',),
    )
    self._logp = policy_step.token_logps(model, c.temperature, self._width)
    self._policy_loss = build.policy_loss(config)
    self._update = policy_step.policy(
      model,
      self._tx,
      self._policy_loss,
      c.temperature,
      self._width,
      c.num_minibatches,
      c.gradient_accumulation_steps,
      LoadBalancing(c.routed_bias_update_rate, c.router_aux_loss_coef),
      c.mtp_loss_weight,
      self._critic.extra_loss,
    )
    self._copy = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree))
    self._averaged = jax.jit(
      lambda old, new: optax.incremental_update(
        new, old, c.ref_model_mixup_alpha
      ),
      donate_argnums=0,
    )

  @classmethod
  def check(cls, config, parts, missing):
    build.check_rl(config, parts.model.layout)
    critic.check(config)
    if 'rl.ppo.critic_init' not in missing:
      critic.make(config, parts)
    engine = build.engine(config, parts)
    reward = build.reward(
      config, parts, reward_models.expected(config, missing)
    )
    if not any(key.startswith('data.') for key in missing):
      collect.Collector(config, parts, engine, reward)
      build.evaluator(config, parts, engine)

  def run(self, directory: Path, base_params, about: dict) -> Path:
    """Trains, or goes on from a checkpoint; returns the weights' file."""
    c = self._config
    collector = self._collector
    tier = code_grader.tier()
    shown: dict[str, str] = {}
    with (
      dispatch.shutdown_on_exit(),  # Its worker processes.
      Checkpointer(
        directory / 'checkpoints', c.save_total_limit, self._seed
      ) as checkpoints,
    ):
      restored = checkpoints.restore(self._target(base_params))
      start = restored[0] if restored else 0
      with (
        MetricsWriter(directory, start) as writer,
        Progress(self.name, start, c.max_steps, print_steps=10) as progress,
      ):
        if restored:
          _, state, position = restored
          progress.log(f'goes on after step {start}')
          collector.set_state(position)
        else:
          state = self._fresh(base_params)
          collector.begin()
          progress.log('compiles, and evaluates the base')
          writer.write(0, self._evaluate(state, 0, directory, [], shown))
          progress.log('starts at ' + ', '.join(map(' '.join, shown.items())))
        for step in range(start + 1, c.max_steps + 1):
          progress.step_secs()
          state, values, rows = self._step(state, step)
          speed = _speed(rows, progress.step_secs())
          evaluates = step % c.eval_steps == 0 or step == c.max_steps
          if evaluates:
            values |= self._evaluate(
              state, step, directory, rows[: c.num_logged_completions], shown
            )
          writer.write(step, values, speed)
          progress.update(step, _line(values, speed, shown), keep=evaluates)
          if step % c.save_steps == 0 or step == c.max_steps:
            checkpoints.save(step, state, collector.get_state())
    report.write(directory, self._eval_samples)
    path = directory / OUTPUT  # Last: it says that all is there.
    if tier:
      about = about | {'sandbox': tier}
    weights.save(path, state.train.params, 'float32', about)
    return path

  def _step(self, state: RLState, step: int):
    """groups → rollout → rewards → scores → advantages → updates.

    Returns:
      The state, the step's metrics, and a row for each completion.
    """
    c = self._config
    found = self._collector.collect(
      state.train.params, step, self._key(_ROLLOUT, step)
    )
    prompts, scored = found.prompts, found.scored
    rollout = assemble.build_rollout(
      found.batch, c.group_size, c.max_new_tokens, found.made, step
    )
    self._reward.check(scored)
    old_logp_BT, ref_logp_BT = self._logps(state, rollout)
    reward_B = jnp.asarray(scored.reward_B)
    if c.kl_in_reward:
      reward_B -= c.kl_coef * common.masked_sum(
        common.kl_estimate(c.kl_estimator, old_logp_BT, ref_logp_BT),
        rollout.mask_BT,
        axis=1,
      )
    adv_B, varied_P = advantage.group(
      reward_B,
      rollout.group_B,
      len(prompts),
      scale_rewards=c.scale_rewards,
      scorable_B=jnp.asarray(scored.scorable_B),
    )
    batch = RLBatch(
      rollout=_trained(
        rollout,
        scored.scorable_B & found.counts_B,
        c.mask_truncated_completions,
      ),
      adv_BT=adv_B[:, None],
      old_logp_BT=old_logp_BT,
      ref_logp_BT=ref_logp_BT,
    )
    batch, metrics = self._critic.judged(
      state.train.params, state.critic, batch, scored.reward_B
    )
    values = {}
    if self._policy_loss.rollout_is != 'none':
      batch, values = _weighted(self._policy_loss, batch)
    key, train = self._key(_SHUFFLE, step), state.train
    valued, learnt = self._critic.updated(state.critic, batch, key)
    metrics |= learnt
    if step > self._critic.warmup_steps:
      train, learnt = self._update(train, batch, key)
      metrics |= learnt
    state = RLState(
      train=train,
      critic=valued,
      reference=self._referred(state, train.params, step),
    )
    values |= (
      jax.device_get(metrics) | found.told | _told(scored, rollout, varied_P)
    )
    values |= {
      f'rollout/{name}': value
      for name, value in assemble.speculative_metrics(found.made).items()
    }
    if not c.kl_coef:
      values.pop('kl', None)
    rows = evaluator.sample_records(
      prompts, scored, rollout.length_B, rollout.finish_B
    )
    return state, values, rows

  def latest(self, directory: Path, base_params):
    """Policy parameters of the newest checkpoint, or None."""
    with Checkpointer(
      directory / 'checkpoints', self._config.save_total_limit, self._seed
    ) as checkpoints:
      restored = checkpoints.restore(self._target(base_params))
    return restored and restored[1].train.params

  def _fresh(self, base_params) -> RLState:
    layout = train_state.shardings(self._parts.model, self._tx)
    train = jax.jit(
      lambda p: train_state.create(p, self._tx), out_shardings=layout
    )(self._copy(base_params))
    reference = self._copy(base_params) if self._config.kl_coef else None
    return RLState(
      train=train, reference=reference, critic=self._critic.fresh(base_params)
    )

  def _target(self, base_params) -> RLState:
    """The state as shapes and shardings: what a restore aims at."""
    layout = train_state.shardings(self._parts.model, self._tx)
    train = train_state.abstract(base_params, self._tx, layout)
    return RLState(
      train=train,
      reference=train.params if self._config.kl_coef else None,
      critic=self._critic.target(),
    )

  def _key(self, stream: int, step: int) -> jax.Array:
    key = jax.random.fold_in(jax.random.key(self._seed), stream)
    return jax.random.fold_in(key, step)

  def _logps(self, state: RLState, rollout: Rollout):
    """Under the policy that sampled, and under the reference."""
    old_logp_BT = rollout.logp_BT
    if self._config.old_logp_source == 'recompute':
      old_logp_BT = self._logp(state.train.params, rollout)
    ref_logp_BT = old_logp_BT
    if state.reference is not None:
      ref_logp_BT = self._logp(  # Which chooses experts of its own.
        state.reference, rollout.replace(experts_BTLA=None)
      )
    return old_logp_BT, ref_logp_BT

  def _referred(self, state: RLState, params, step: int):
    """The reference of the next step."""
    c = self._config
    if state.reference is None:
      return None
    if step % c.ref_model_sync_steps:
      return state.reference
    if c.ref_model_mixup_alpha < 1:
      return self._averaged(state.reference, params)
    return self._copy(params)

  def _evaluate(
    self,
    state: RLState,
    step: int,
    directory: Path,
    train_rows: list[dict],
    shown: dict,
  ) -> dict[str, float]:
    found = self._evaluator.run(state.train.params, self._key(_EVAL, step))
    folder = directory / 'samples'
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / f'step_{step:06d}.jsonl', 'w') as file:
      for kind, rows in (('eval', found.samples), ('train', train_rows)):
        for row in rows:
          file.write(json.dumps({'kind': kind} | row) + '\n')
    name = next(
      name
      for name in ('pass@1', 'quality', 'format')
      if f'eval/{name}' in found.metrics
    )
    shown[name] = f'{found.metrics[f"eval/{name}"]:.3f}'
    return found.metrics


def _trained(rollout: Rollout, scorable_B, mask_truncated: bool) -> Rollout:
  """What of it counts in the loss; lengths are told of all of it."""
  counts_B = scorable_B
  if mask_truncated:
    counts_B = counts_B & (rollout.finish_B == FINISH_STOP)
  return rollout.replace(mask_BT=rollout.mask_BT & counts_B[:, None])


def _weighted(config: policy_loss.PolicyLoss, batch: RLBatch):
  """The batch with the weights of policy_loss.rollout_is_weights, and their metrics."""
  rollout = batch.rollout
  weight_BT = policy_loss.rollout_is_weights(
    config, batch.old_logp_BT, rollout.logp_BT, rollout.mask_BT
  )
  weights = np.asarray(weight_BT, np.float64)[np.asarray(rollout.mask_BT)]
  total, squares = weights.sum(), (weights**2).sum()
  return batch.replace(rollout_is_weight_BT=weight_BT), {
    'rollout_is/mean': float(weights.mean()) if weights.size else 0.0,
    # Effective sample size, as a share of the tokens.
    'rollout_is/eff_sample_size': float(total**2 / (squares * weights.size))
    if squares
    else 0.0,
  }


def _speed(rows: list[dict], secs: float) -> dict[str, float]:
  """Of the step alone, without its evaluation."""
  return {
    'speed/tokens_per_sec': sum(row['tokens'] for row in rows) / secs,
    'speed/completions_per_sec': len(rows) / secs,
  }


def _line(values: dict, speed: dict, shown: dict[str, str]) -> dict[str, str]:
  """What the live line shows."""
  return (
    {
      'reward': f'{values["reward"]:.3f}',
      'accuracy': f'{values["rewards/accuracy/mean"]:.3f}',
      'length': f'{values["completions/mean_length"]:.1f}',
    }
    | shown
    | {
      'compl/s': f'{speed["speed/completions_per_sec"]:.0f}',
      'tok/s': f'{speed["speed/tokens_per_sec"]:,.0f}',
    }
  )


def _known_mean(x_B) -> float:
  known_B = x_B[~np.isnan(x_B)]
  return known_B.mean() if known_B.size else np.nan


def _told(
  scored: ScoredRollout, rollout: Rollout, varied_P
) -> dict[str, float]:
  """What the rollout says of the policy, in the field's names."""
  age = rollout.staleness_BT[rollout.mask_BT]
  ok_B = scored.scorable_B
  graded = lambda reduce, x_B: reduce(x_B[ok_B]) if ok_B.any() else np.nan
  verdicts = Counter(scored.verdicts)
  # Of the samples that have the part: general ones have no accuracy.
  parts = {
    f'rewards/{name}/mean': graded(_known_mean, part)
    for name, part in scored.parts.items()
  }
  return (
    parts
    | {
      f'verdict/{name}': verdicts[name] / len(ok_B)
      for name in (*Verdict, GENERAL)
    }
    | {
      'reward': graded(np.mean, scored.reward_B),
      'reward_std': graded(np.std, scored.reward_B),
      'completions/mean_length': np.mean(rollout.length_B),
      'completions/max_length': np.max(rollout.length_B),
      'completions/clipped_ratio': np.mean(rollout.finish_B == 0),
      'rollout/stale_token_frac': np.mean(age > 0),
      'rollout/max_staleness': np.max(age),
      'completions/self_correction': np.mean(
        [evaluator.self_corrects(text) for text in scored.texts]
      ),
      'frac_reward_zero_std': np.mean(~np.asarray(varied_P)),
    }
  )
