"""The updates of a config's last stage as programs: steps and the shapes that
they take. No array is ever allocated."""

from collections.abc import Callable
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

from r1jax.algos import dpo, reward_model
from r1jax.data import scored_text
from r1jax.errors import UserError
from r1jax.model import parameters
from r1jax.model.moe import LoadBalancing
from r1jax.model.transformer import Transformer
from r1jax.records import LabelledBatch, PairBatch, RLBatch, Rollout, TokenBatch
from r1jax.sharding import Layout
from r1jax.stages import critic
from r1jax.stages.build import parts as build
from r1jax.train import (
  dpo_step,
  mtp_loss,
  optimizer,
  policy_step,
  reward_model_step,
  supervised_step,
  value_step,
)
from r1jax.train import state as train_state

_UPDATES = 1000  # Of a schedule: the program is the same for any number.


@dataclasses.dataclass(frozen=True)
class Update:
  """One program.

  Attributes:
    kind: For the reader: 'GRPO'.
    model: What it trains.
    step: Jitted.
    arguments: Its arguments, abstract and laid out.
    rows, tokens: The shape of its batch.
  """

  kind: str
  model: Transformer
  step: Callable
  arguments: tuple[Any, ...]
  rows: int
  tokens: int


def of(config: ml_collections.ConfigDict, layout: Layout) -> list[Update]:
  """What one step of the config's last stage runs; PPO with a critic of its
  own runs two.

  Raises:
    UserError: the stage has no such update, or it does not divide.
  """
  build.check_counts(config)
  stage = config.stages[-1]
  if stage not in _STAGES:
    raise UserError(
      f'aot: the stage {stage!r} is not compiled ahead; '
      f'{", ".join(_STAGES)} are'
    )
  model = Transformer(build.model_config(config.model), layout)
  return _STAGES[stage](config, model)


def _supervised(config: ml_collections.ConfigDict, model: Transformer):
  name = config.stages[-1]
  c = config[name]
  if name == 'sft' and c.teacher_model:
    raise UserError(
      'aot: sft.teacher_model has a model of its own; compile without'
    )
  build.divides(
    f'{name}.batch_size',
    c.batch_size,
    c.gradient_accumulation_steps,
    model.layout,
  )
  tx = optimizer.make(build.optimizer_config(c), _UPDATES)
  step = supervised_step.supervised(
    model,
    tx,
    _balancing(c),
    mtp_loss.MTPLoss(c.mtp.loss_weight, c.mtp.final_loss_weight, 0),
    c.gradient_accumulation_steps,
  )
  array = _arrays(model.layout, c.batch_size, c.length_tokens)
  batch = TokenBatch(
    tokens_BT=array('BT', jnp.int32),
    target_BT=array('BT', jnp.int32),
    weight_BT=array('BT', jnp.float32),
    segment_BT=array('BT', jnp.int32),
    position_BT=array('BT', jnp.int32),
  )
  return [
    Update(
      {'sft': 'SFT'}.get(name, 'pre-training'),
      model,
      step,
      (_state(model, tx), batch),
      c.batch_size,
      c.length_tokens,
    )
  ]


def _rl(config: ml_collections.ConfigDict, model: Transformer):
  """Of the rows of one minibatch: an update is what fills the memory."""
  build.check_rl(config, model.layout)
  c, width = config.rl, config.data.max_prompt_tokens
  critic.check(config)
  shape = (
    c.prompts_per_step * c.group_size // c.num_minibatches,
    width + c.max_new_tokens,
  )
  valued = c.adv_estimator == 'gae'
  shared = valued and c.ppo.critic == 'shared'
  tx = optimizer.make(
    build.optimizer_config(c),
    _UPDATES,
    untrained=() if c.mtp_loss_weight else ('mtp',),
  )
  how = critic.estimator(config) if valued else None
  step = policy_step.policy(
    model,
    tx,
    build.policy_loss(config),
    c.temperature,
    width,
    1,
    c.gradient_accumulation_steps,
    _balancing(c),
    c.mtp_loss_weight,
    value_step.shared_value_loss(model, how, c.ppo.vf_coef) if shared else None,
  )
  batch, key = _rollouts(model.layout, *shape, valued), _key(model.layout)
  found = [
    Update(
      'PPO policy' if valued else 'GRPO',
      model,
      step,
      (_state(model, tx), batch, key),
      *shape,
    )
  ]
  if valued and not shared:
    other = Transformer(critic.model_config(config), model.layout)
    tx = critic.own_optimizer(config, _UPDATES)
    step = value_step.critic(
      other, tx, how, 1, c.gradient_accumulation_steps, _balancing(c)
    )
    found.append(
      Update('PPO critic', other, step, (_state(other, tx), batch, key), *shape)
    )
  return found


def _reward_model(config: ml_collections.ConfigDict, model: Transformer):
  c = config.reward_model
  labelled = c.kind == scored_text.SAFE
  tx = optimizer.make(
    build.optimizer_config(c), _UPDATES, untrained=('mtp', 'head')
  )
  step = reward_model_step.reward_model(
    model,
    tx,
    reward_model.PairwiseLoss(c.margin, c.center_rewards_coefficient),
    _balancing(c),
    c.gradient_accumulation_steps,
  )
  batch, shape = _compared(config, model.layout, labelled)
  return [
    Update('reward model', model, step, (_state(model, tx), batch), *shape)
  ]


def _dpo(config: ml_collections.ConfigDict, model: Transformer):
  """Of group-robust DPO with two groups, as good as with any other number."""
  c = config.dpo
  tx = optimizer.make(
    build.optimizer_config(c), _UPDATES, untrained=('mtp', 'scalar')
  )
  robust = (
    dpo.GroupRobust(c.group_dro_step_size, (1, 1)) if c.group_robust else None
  )
  step = dpo_step.dpo(
    model,
    tx,
    dpo.DPOLoss(c.beta, c.loss_type, c.label_smoothing),
    robust,
    _balancing(c),
    c.gradient_accumulation_steps,
  )
  batch, shape = _compared(config, model.layout)
  train = _state(model, tx)
  state = dpo_step.DPOState(
    train=train,
    alpha_g=jax.ShapeDtypeStruct(
      (2,), jnp.float32, sharding=model.layout.replicated()
    )
    if robust
    else None,
  )
  return [Update('DPO', model, step, (state, batch, train.params), *shape)]


_STAGES = {
  'pretrain': _supervised,
  'sft': _supervised,
  'rl': _rl,
  'reward_model': _reward_model,
  'dpo': _dpo,
}


def _balancing(c: ml_collections.ConfigDict) -> LoadBalancing:
  return LoadBalancing(c.routed_bias_update_rate, c.router_aux_loss_coef)


def _state(model: Transformer, tx) -> train_state.TrainState:
  params = jax.tree.map(
    lambda box: jax.ShapeDtypeStruct(box.value.shape, box.value.dtype),
    parameters.parameter_shapes(model),
    is_leaf=lambda x: hasattr(x, 'names'),
  )
  return train_state.abstract(params, tx, train_state.shardings(model, tx))


def _key(layout: Layout):
  return jax.ShapeDtypeStruct(
    (), jax.random.key(0).dtype, sharding=layout.replicated()
  )


def _arrays(layout: Layout, rows: int, tokens: int) -> Callable:
  """Returns array('BT', dtype) of this shape; 'B' is of its rows alone."""

  def array(letters, dtype):
    return jax.ShapeDtypeStruct(
      (rows, tokens)[: len(letters)], dtype, sharding=layout.sharding(letters)
    )

  return array


def _rollouts(layout: Layout, rows: int, tokens: int, valued: bool) -> RLBatch:
  array = _arrays(layout, rows, tokens)
  each = lambda: array('BT', jnp.float32)
  return RLBatch(
    rollout=Rollout(
      tokens_BT=array('BT', jnp.int32),
      valid_BT=array('BT', bool),
      mask_BT=array('BT', bool),
      logp_BT=each(),
      model_logp_BT=each(),
      staleness_BT=array('BT', jnp.int32),
      finish_B=array('B', jnp.int32),
      length_B=array('B', jnp.int32),
      group_B=array('B', jnp.int32),
    ),
    adv_BT=each()
    if valued
    else jax.ShapeDtypeStruct(
      (rows, 1), jnp.float32, sharding=layout.sharding('BT')
    ),
    old_logp_BT=each(),
    ref_logp_BT=each(),
    value_BT=each() if valued else None,
    return_BT=each() if valued else None,
  )


def _compared(
  config: ml_collections.ConfigDict, layout: Layout, labelled: bool = False
):
  """The widest batch of preferences, and its shape in rows and tokens."""
  name = config.stages[-1]
  c = config[name]
  build.divides(
    f'{name}.batch_size', c.batch_size, c.gradient_accumulation_steps, layout
  )
  build.widths(name, c.length_buckets, config.model.max_position_embeddings)
  shape = c.batch_size * (1 if labelled else 2), c.length_buckets[-1]
  array = _arrays(layout, *shape)
  one = _arrays(layout, c.batch_size, 0)
  rows = dict(tokens_BT=array('BT', jnp.int32), valid_BT=array('BT', bool))
  if labelled:
    return LabelledBatch(
      **rows,
      safe_B=one('B', jnp.float32),
      weight_B=one('B', jnp.float32),
      group_B=one('B', jnp.int32),
    ), shape
  return PairBatch(
    **rows,
    mask_BT=array('BT', bool),
    weight_P=one('B', jnp.float32),
    group_P=one('B', jnp.int32),
  ), shape
