"""The half of an RL step that trains: from rewards to the updated policy.

  rewards → log-probabilities of old and reference policy → advantages → updates

It needs the samples and their rewards, not the engine that sampled them: that
one may be on other devices, and go on meanwhile (collect.py).
"""

import dataclasses
import logging
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from r1jax import registry
from r1jax.algos import advantage, common, policy_loss
from r1jax.config.schema.run import RunConfig
from r1jax.data import sample_packing
from r1jax.model import model_flops
from r1jax.records import FINISH_LENGTH, FINISH_STOP, RLBatch, Rollout
from r1jax.stages import critic, rl_update
from r1jax.stages.build import packing
from r1jax.stages.build import parts as build
from r1jax.stages.collect import CollectedGroups
from r1jax.train import policy_step
from r1jax.train import state as train_state
from r1jax.train.metrics import Stopwatch

_log = logging.getLogger(__name__)


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


class Learnt(NamedTuple):
  """The result of the updates of a step, which the devices may still compute.

  Attributes:
    state: The state after them.
    batch: The rows that they trained on.
    known: Metrics on the host.
    computed: Metrics on the devices.
  """

  state: RLState
  batch: RLBatch
  known: dict[str, float]
  computed: dict[str, jax.Array]

  def values(self) -> dict[str, float]:
    """Waits for the devices; returns all metrics."""
    found = self.known | jax.device_get(self.computed)
    return {name: float(value) for name, value in found.items()}


class Learner:
  """Advantages and updates of one step after another, on the training mesh."""

  def __init__(self, config: RunConfig, parts: build.Parts, shuffle_key):
    """Makes the programs, which are compiled by their first calls.

    Args:
      config: The run.
      parts: Its model.
      shuffle_key: Function from a step to the key that orders its samples.

    Raises:
      UserError: the critic's file is missing or unfit, or a batch does not
        divide.
    """
    c = self._config = config.rl
    self._model, self._shuffle_key = parts.model, shuffle_key
    self._info = model_flops.count(config.model)
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

  def init_state(self, params: Any) -> RLState:
    """Returns the state before the first step.

    Args:
      params: Parameters of the policy; they are copied.

    Returns:
      The state; its shapes alone in a process that only samples.
    """
    if not self._model.layout.is_local:
      return self.abstract_state(params)
    shardings = train_state.shardings(self._model, self._tx)
    train = jax.jit(
      lambda p: train_state.create(p, self._tx), out_shardings=shardings
    )(self._copy(params))
    return RLState(
      train=train,
      reference=self._copy(params) if self._config.kl_coef else None,
      critic=self._critic.init_state(params),
    )

  def abstract_state(self, params: Any) -> RLState:
    """Returns the state's shapes, dtypes and shardings."""
    shardings = train_state.shardings(self._model, self._tx)
    train = train_state.abstract(params, self._tx, shardings)
    return RLState(
      train=train,
      reference=train.params if self._config.kl_coef else None,
      critic=self._critic.abstract_state(),
    )

  def learn(
    self,
    state: RLState,
    group: CollectedGroups,
    rollout: Rollout,
    step: int,
    watch: Stopwatch,
  ) -> Learnt:
    """Estimates advantages and starts the updates of a step on the devices.

    Args:
      state: The state before the step, which the updates consume.
      group: The groups of the step.
      rollout: Their completions.
      step: The step, counted from 1.
      watch: Measures 'host' and 'reference'.
    """
    batch, packed = self._with_advantages(state, group, rollout, step, watch)
    batch, metrics = self._critic.advantages(
      state.train.params,
      state.critic,
      batch,
      jnp.asarray(group.scored.reward_B),
      jnp.asarray(rollout.finish_B == FINISH_LENGTH),
    )
    batch, weighted = self._importance_weighted(batch)
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
    return Learnt(state, batch, packed | weighted, metrics)

  def flops(self, step: int, counts: model_flops.TokenCounts) -> float:
    """Returns the model FLOPs of the values and updates of a step."""
    flops = self._critic.flops(counts)
    if step > self._critic.warmup_steps:
      flops += self._info.training(counts)
    return flops

  def _with_advantages(
    self,
    state: RLState,
    group: CollectedGroups,
    rollout: Rollout,
    step: int,
    watch: Stopwatch,
  ) -> tuple[RLBatch, dict[str, float]]:
    """Returns the batch with its log-probabilities and advantages of groups.

    Returns:
      The RLBatch; and metrics of the packing and of the rewards of groups.
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
      self._shuffle_key(step), self._shape.num_samples
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
    unvaried_P = ~np.asarray(varied_P)
    return batch, packed | {'frac_reward_zero_std': float(unvaried_P.mean())}

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
