"""What an RL stage knows of values: nothing (GRPO), or a value function (PPO).

The stage asks whichever it has the same things: what the batch's advantages
are, what a policy update learns besides, and how its own state goes on.
"""

import abc
import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_collections

from r1jax.algos import common, gae
from r1jax.checkpoints import convert, weights
from r1jax.checkpoints.storage import SafetensorsReader
from r1jax.errors import UserError
from r1jax.model import parameters
from r1jax.model.config import RUN_DEFAULTS, ModelConfig
from r1jax.model.moe import LoadBalancing
from r1jax.model.transformer import Transformer
from r1jax.records import FINISH_LENGTH, RLBatch
from r1jax.stages.build import parts as build
from r1jax.stages.build import sft_data
from r1jax.train import optimizer, value_step
from r1jax.train import state as train_state
from r1jax.train.state import TrainState


class NoCritic:
  """Advantages come from groups.

  Attributes:
    extra_loss: A loss that is added to the policy's, see
      policy_step.policy; None for none.
    warmup_steps: Steps at first that leave the policy as it is.
  """

  extra_loss = None
  warmup_steps = 0

  def target(self) -> TrainState | None:
    """Its state as shapes and shardings: what a restore aims at."""
    return None

  def fresh(self, base_params) -> TrainState | None:
    """Its state at first, of a policy that begins with these parameters."""
    del base_params

  def judged(self, params, state: TrainState | None, batch: RLBatch, reward_B):
    """The batch with its advantages, and metrics.

    Args:
      params: The policy's.
      state: Its own.
      batch: ScoredRollout, with the advantages of groups.
      reward_B: Without a penalty for KL.
    """
    del params, state, reward_B
    return batch, {}

  def updated(self, state: TrainState | None, batch: RLBatch, key):
    """Its state after the batch, and metrics."""
    del batch, key
    return state, {}


class _Valued(NoCritic, abc.ABC):
  """Advantages come from values, by generalised advantage estimation."""

  def __init__(self, config: ml_collections.ConfigDict, model: Transformer):
    c, how = config.rl, estimator(config)
    self._values = value_step.values(model)
    penalty = c.kl_coef if c.kl_in_reward else 0.0

    @jax.jit
    def estimate(batch: RLBatch, reward_B, value_BT, after_B):
      mask_BT, kl_BT = batch.rollout.mask_BT, None
      if penalty:
        kl_BT = penalty * common.kl_estimate(
          c.kl_estimator, batch.old_logp_BT, batch.ref_logp_BT
        )
      return gae.estimate(
        how,
        gae.token_rewards(reward_B, mask_BT, kl_BT),
        value_BT,
        after_B,
        batch.rollout.finish_B == FINISH_LENGTH,
        mask_BT,
      )

    self._estimate = estimate

  def judged(self, params, state, batch, reward_B):
    value_BT, after_B = self._valued(params, state, batch)
    found = self._estimate(batch, jnp.asarray(reward_B), value_BT, after_B)
    return batch.replace(
      adv_BT=found.adv_BT, value_BT=value_BT, return_BT=found.return_BT
    ), found.metrics

  @abc.abstractmethod
  def _valued(self, params, state: TrainState | None, batch: RLBatch):
    """value_BT and after_B, see train/value_step.py."""


class Shared(_Valued):
  """A scalar head on the policy's trunk, learnt with the policy."""

  def __init__(self, config: ml_collections.ConfigDict, model: Transformer):
    super().__init__(config, model)
    self.extra_loss = value_step.shared_value_loss(
      model, estimator(config), config.rl.ppo.vf_coef
    )

  def _valued(self, params, state, batch):
    return self._values(params, batch.rollout)


class Own(_Valued):
  """A transformer beside the policy, with an optimiser of its own."""

  def __init__(self, config: ml_collections.ConfigDict, parts: build.Parts):
    c = config.rl
    self._file = c.ppo.critic_init
    if self._file:
      sft_data.same_tokens(
        'rl.ppo.critic_init', _file(config), config, parts.tokenizer
      )
    model = self._model = Transformer(model_config(config), parts.model.layout)
    super().__init__(config, model)
    self.warmup_steps = c.ppo.critic_warmup_steps
    self._tx = own_optimizer(config, c.max_steps * c.num_minibatches)
    self._layout = train_state.shardings(model, self._tx)
    self._update = value_step.critic(
      model,
      self._tx,
      estimator(config),
      c.num_minibatches,
      c.gradient_accumulation_steps,
      LoadBalancing(c.routed_bias_update_rate, c.router_aux_loss_coef),
    )

  def target(self):
    shapes = jax.tree.map(
      lambda box: jax.ShapeDtypeStruct(box.value.shape, box.value.dtype),
      parameters.parameter_shapes(self._model),
      is_leaf=lambda x: hasattr(x, 'names'),
    )
    return train_state.abstract(shapes, self._tx, self._layout)

  def fresh(self, base_params):
    if self._file:
      params = weights.load(Path(self._file), self._model)
    else:  # As the policy is; a head that it has not says 0.
      nothing = lambda x: jnp.zeros(x.shape, x.dtype, device=x.sharding)
      params = {
        name: base_params[name]
        if name in base_params
        else jax.tree.map(nothing, part)
        for name, part in self.target().params.items()
      }
    params = jax.tree.map(jnp.copy, params)
    return jax.jit(
      lambda p: train_state.create(p, self._tx), out_shardings=self._layout
    )(params)

  def updated(self, state, batch, key):
    return self._update(state, batch, key)

  def _valued(self, params, state, batch):
    return self._values(  # Which chooses experts of its own.
      state.params, batch.rollout.replace(experts_BTLA=None)
    )


def make(config: ml_collections.ConfigDict, parts: build.Parts) -> NoCritic:
  """What config.rl.adv_estimator asks for.

  Raises:
    UserError: it means nothing, or not with this model or file.
  """
  check(config)
  if config.rl.adv_estimator == 'grpo':
    return NoCritic()
  if config.rl.ppo.critic == 'separate':
    return Own(config, parts)
  return Shared(config, parts.model)


def check(config: ml_collections.ConfigDict):
  """What config.rl.ppo needs, where advantages come from values."""
  if config.rl.adv_estimator == 'grpo':
    return
  c = config.rl.ppo
  estimator(config)
  own_optimizer(config, 1)
  build.one_of('rl.ppo.critic', c.critic, ('separate', 'shared'))
  for field in ('vf_coef', 'critic_warmup_steps'):
    if c[field] < 0:
      raise UserError(f'rl.ppo: {field} must not be below 0, got {c[field]}')
  if c.critic_warmup_steps >= config.rl.max_steps:
    raise UserError(
      f'rl.ppo: critic_warmup_steps = {c.critic_warmup_steps} leaves the '
      f'policy none of rl.max_steps = {config.rl.max_steps}'
    )
  if c.critic == 'separate':
    return
  if not config.model.scalar_head:
    raise UserError(
      "rl.ppo: critic = 'shared' needs model.scalar_head = True: "
      "the value is a head on the policy's trunk"
    )
  for field in ('critic_init', 'critic_warmup_steps'):
    if c[field]:
      raise UserError(
        f"rl.ppo: {field} = {c[field]!r} needs critic = 'separate': a "
        'shared trunk begins and learns with the policy'
      )


def own_optimizer(config: ml_collections.ConfigDict, updates: int):
  """Of a critic of its own."""
  c = config.rl
  return optimizer.make(
    dataclasses.replace(
      build.optimizer_config(c), learning_rate=c.ppo.critic_learning_rate
    ),
    updates,
    untrained=('head', 'mtp'),
  )


def estimator(config: ml_collections.ConfigDict) -> gae.GAE:
  c = config.rl.ppo
  return gae.GAE(
    **{field.name: c[field.name] for field in dataclasses.fields(gae.GAE)}
  )


def model_config(config: ml_collections.ConfigDict) -> ModelConfig:
  """Of a critic of its own: as the policy is, or as its file says.

  Raises:
    UserError: there is no such file, or no scalar head in it.
  """
  if not config.rl.ppo.critic_init:
    return dataclasses.replace(
      build.model_config(config.model),
      scalar_head=True,
      num_nextn_predict_layers=0,
    )
  path = _file(config)
  if 'scalar' not in SafetensorsReader(path):
    raise UserError(
      f'rl.ppo.critic_init: {path} has no scalar head; give what the stage '
      "reward_model leaves, or '' to begin as the policy does"
    )
  return ModelConfig.from_dict(
    convert.model_config_of(path)
    | {field: config.model[field] for field in RUN_DEFAULTS}
    | dict(scalar_head=True)
  )


def _file(config: ml_collections.ConfigDict) -> Path:
  path = Path(config.rl.ppo.critic_init).expanduser()
  if not path.exists():
    raise UserError(f'rl.ppo.critic_init: no file {path}')
  return path
