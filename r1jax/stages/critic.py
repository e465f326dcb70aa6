"""The value function of PPO, which an RL stage may have beside its policy.

With a shared trunk, the value loss is added to the policy's loss. A separate
critic is a transformer of its own and has its own jitted update.
"""

import abc
import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from r1jax import buckets
from r1jax.algos import common, gae
from r1jax.checkpoints import convert, weights
from r1jax.checkpoints.storage import SafetensorsReader
from r1jax.config.load import model_config
from r1jax.config.schema.model import RUN_DEFAULTS, ModelConfig
from r1jax.config.schema.run import RunConfig
from r1jax.errors import UserError
from r1jax.model import model_flops
from r1jax.model.model_flops import TokenCounts
from r1jax.model.transformer import Transformer
from r1jax.records import RLBatch
from r1jax.stages.build import packing
from r1jax.stages.build import parts as build
from r1jax.stages.build.abstract import train_state_of
from r1jax.stages.build.tokenizers import check_same_tokens
from r1jax.train import optimizer, value_step
from r1jax.train import state as train_state
from r1jax.train.state import TrainState


class Critic:
  """No value function: advantages come from groups.

  Attributes:
    extra_loss: A loss that is added to the policy's, see
      policy_step.policy; None for none.
    warmup_steps: First steps, which leave the policy as it is.
  """

  extra_loss: Any = None
  warmup_steps = 0

  def abstract_state(self) -> TrainState | None:
    """Returns its state's shapes and shardings; None without a state."""
    return None

  def init_state(self, params: Any) -> TrainState | None:
    """Returns its first state beside a policy with these parameters."""
    del params
    return None

  def advantages(
    self,
    params: Any,
    state: TrainState | None,
    batch: RLBatch,
    reward_B,
    truncated_B,
  ) -> tuple[RLBatch, dict]:
    """Returns the batch with its advantages, and metrics.

    Args:
      params: The policy's parameters.
      state: The critic's state.
      batch: The scored batch, with the advantages of groups.
      reward_B: float32 rewards of the samples, without a penalty for the KL.
      truncated_B: bool, samples that were cut off.
    """
    del params, state, reward_B, truncated_B
    return batch, {}

  def update(
    self, state: TrainState | None, batch: RLBatch
  ) -> tuple[TrainState | None, dict]:
    """Returns its state after the batch, and metrics."""
    del batch
    return state, {}

  def flops(self, counts: TokenCounts) -> float:
    """Returns the model FLOPs of values and of its own update of a batch."""
    del counts
    return 0.0


class _ValueCritic(Critic, abc.ABC):
  """Advantages come from values, by generalised advantage estimation."""

  def __init__(self, config: RunConfig, model: Transformer):
    c = config.rl
    shape = packing.row_shape(config, model.layout)
    self._values = value_step.values(model, shape)
    self.info = model_flops.count(model.config)
    penalty = c.kl_coef if c.kl_in_reward else 0.0

    @jax.jit
    def estimate(batch: RLBatch, reward_B, truncated_B, value_BT, after_BT):
      mask_BT, kl_BT = batch.mask_BT, None
      samples = common.Samples(batch.sample_BT, shape.num_samples)
      if penalty:
        kl_BT = penalty * common.kl_estimate(
          c.kl_estimator, batch.old_logp_BT, batch.ref_logp_BT
        )
      return gae.estimate(
        c.ppo,
        gae.token_rewards(
          samples.spread(reward_B), mask_BT, batch.segment_BT, kl_BT
        ),
        value_BT,
        after_BT,
        samples.spread(truncated_B),
        mask_BT,
        batch.segment_BT,
      )

    self._estimate = estimate

  def advantages(self, params, state, batch, reward_B, truncated_B):
    value_BT, after_BT = self._values_of(params, state, batch)
    estimate = self._estimate(batch, reward_B, truncated_B, value_BT, after_BT)
    valued = dataclasses.replace(
      batch,
      adv_BT=estimate.adv_BT,
      value_BT=value_BT,
      return_BT=estimate.return_BT,
    )
    return valued, estimate.metrics

  @abc.abstractmethod
  def _values_of(self, params, state: TrainState | None, batch: RLBatch):
    """Returns value_BT and after_BT, see train/value_step.py."""


class SharedCritic(_ValueCritic):
  """A scalar head on the policy's trunk, trained with the policy."""

  def __init__(self, config: RunConfig, model: Transformer):
    super().__init__(config, model)
    self.extra_loss = value_step.shared_value_loss(
      model, config.rl.ppo, config.rl.ppo.vf_coef
    )

  def _values_of(self, params, state, batch):
    return self._values(params, batch)

  def flops(self, counts):
    return self.info.forward(counts._replace(predicted_tokens=0))


class SeparateCritic(_ValueCritic):
  """A transformer beside the policy, with an optimizer of its own."""

  def __init__(self, config: RunConfig, parts: build.Parts):
    c = config.rl
    self._file = critic_file(config) if c.ppo.critic_init else None
    if self._file:
      check_same_tokens(
        'rl.ppo.critic_init', self._file, config, parts.tokenizer
      )
    architecture = dataclasses.replace(
      critic_model(config), remat=parts.model.config.remat
    )
    model = Transformer(architecture, parts.model.layout)
    self._model = model
    super().__init__(config, model)
    self.warmup_steps = c.ppo.critic_warmup_steps
    self._tx = critic_optimizer(config, c.max_steps * c.num_minibatches)
    self._shardings = train_state.shardings(model, self._tx)
    self._update = value_step.critic(
      model, self._tx, c.ppo, packing.row_shape(config, model.layout), c
    )

  def abstract_state(self):
    return train_state_of(self._model, self._tx)

  def init_state(self, params):
    if self._file:
      own = weights.load(self._file, self._model)
    else:  # Copies the policy; a value head that it lacks starts at zero.
      zeros = lambda x: jnp.zeros(x.shape, x.dtype, device=x.sharding)
      own = {
        name: params[name] if name in params else jax.tree.map(zeros, part)
        for name, part in self.abstract_state().params.items()
      }
    own = jax.tree.map(jnp.copy, own)
    return jax.jit(
      lambda p: train_state.create(p, self._tx), out_shardings=self._shardings
    )(own)

  def update(self, state, batch):
    return self._update(state, batch)

  def flops(self, counts):
    counts = counts._replace(predicted_tokens=0)  # Values need no output head.
    return self.info.forward(counts) + self.info.training(counts)

  def _values_of(self, params, state, batch):
    # The critic routes tokens itself, so recorded experts are dropped.
    return self._values(
      state.params, dataclasses.replace(batch, experts_BTLA=None)
    )


def make_critic(config: RunConfig, parts: build.Parts) -> Critic:
  """Returns the critic that config.rl.adv_estimator needs.

  Raises:
    UserError: its file is missing, or holds no critic for this run.
  """
  check(config)
  if config.rl.adv_estimator != 'gae':
    return Critic()
  if config.rl.ppo.critic == 'separate':
    return SeparateCritic(config, parts)
  return SharedCritic(config, parts.model)


def check(config: RunConfig):
  """Refuses a shared critic on a model without a scalar head."""
  c = config.rl
  if c.adv_estimator != 'gae' or c.ppo.critic != 'shared':
    return
  if not config.model.scalar_head:
    raise UserError(
      "rl.ppo: critic = 'shared' needs model.scalar_head = True: the value is "
      "a head on the policy's trunk"
    )


def critic_optimizer(config: RunConfig, num_updates: int):
  """Returns the optimizer of a separate critic."""
  c = config.rl
  return optimizer.make(
    dataclasses.replace(c.optimizer, learning_rate=c.ppo.critic_learning_rate),
    num_updates,
    untrained=('head', 'mtp'),
  )


def critic_model(config: RunConfig) -> ModelConfig:
  """Returns the architecture of a separate critic: its file's, or the policy's.

  Raises:
    UserError: there is no such file, or no scalar head in it.
  """
  if not config.rl.ppo.critic_init:
    return dataclasses.replace(
      config.model, scalar_head=True, num_nextn_predict_layers=0
    )
  path = critic_file(config)
  if 'scalar' not in SafetensorsReader(path):
    raise UserError(
      f'rl.ppo.critic_init: {path} has no scalar head; give what the stage '
      "reward_model leaves, or '' to begin as the policy does"
    )
  return dataclasses.replace(
    model_config(convert.model_config_of(path), str(path)),
    scalar_head=True,
    **{field: getattr(config.model, field) for field in RUN_DEFAULTS},
  )


def critic_file(config: RunConfig) -> Path:
  """Returns the file of config.rl.ppo.critic_init; UserError without one."""
  path = buckets.given(config.rl.ppo.critic_init)
  if not path.exists():
    raise UserError(f'rl.ppo.critic_init: no file {path}')
  return path
