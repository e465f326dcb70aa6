"""The jitted programs of an RL step, and the checks of their config."""

import dataclasses

import jax
import jax.numpy as jnp

from r1jax import registry
from r1jax.algos.policy_loss import PolicyLoss
from r1jax.config.schema.run import RunConfig
from r1jax.config.schema.section import narrow
from r1jax.data.sample_packing import RowShape
from r1jax.errors import UserError
from r1jax.model.transformer import Transformer
from r1jax.records import RLBatch
from r1jax.sharding import Layout
from r1jax.stages import critic
from r1jax.stages.build import packing
from r1jax.stages.build import parts as build
from r1jax.stages.build.abstract import arrays, train_state_of
from r1jax.stages.stage import Update
from r1jax.train import optimizer, policy_step, value_step


def policy_loss(config: RunConfig) -> PolicyLoss:
  """Returns the loss of a policy update.

  A KL that is a penalty in the reward is no term of the loss.
  """
  c = config.rl
  kl_coef = 0.0 if c.kl_in_reward else c.kl_coef
  return narrow(PolicyLoss, c, kl_coef=kl_coef, max_tokens=c.max_new_tokens)


def policy_optimizer(config: RunConfig, num_updates: int):
  """Returns the policy's optimizer; MTP modules may stay as they are."""
  c = config.rl
  untrained = () if c.mtp_loss_weight else ('mtp',)
  return optimizer.make(c.optimizer, num_updates, untrained=untrained)


def make_policy_step(
  config: RunConfig, model: Transformer, tx, shape: RowShape, extra_loss=None
):
  """Returns the jitted policy update, see train/policy_step.py."""
  c = config.rl
  return policy_step.policy(
    model,
    tx,
    policy_loss(config),
    c.temperature,
    shape,
    c,
    c.mtp_loss_weight,
    extra_loss,
  )


def updates(
  config: RunConfig, layout: Layout, num_updates: int
) -> list[Update]:
  """Returns the programs of one update: of one minibatch.

  An update needs more memory than a whole step holds between updates. PPO with
  a separate critic has two programs.
  """
  check_rl(config, layout)
  critic.check(config)
  c, shape = config.rl, packing.row_shape(config, layout)
  shape = dataclasses.replace(
    shape, num_updates=1, num_samples=shape.num_samples // shape.num_updates
  )
  uses_values = c.adv_estimator == 'gae'
  shared = uses_values and c.ppo.critic == 'shared'
  model = Transformer(config.model, layout)
  tx = policy_optimizer(config, num_updates)
  loss = (
    value_step.shared_value_loss(model, c.ppo, c.ppo.vf_coef)
    if shared
    else None
  )
  num_rows = shape.max_microbatches * shape.microbatch_rows
  batch = abstract_batch(layout, num_rows, shape, uses_values)
  size = shape.microbatch_rows, shape.row_tokens, shape.max_microbatches
  step = make_policy_step(config, model, tx, shape, loss)
  label = 'PPO policy' if uses_values else 'GRPO'
  arguments = (train_state_of(model, tx), batch)
  found = [Update(label, model, step, arguments, *size)]
  if uses_values and not shared:
    model = Transformer(critic.critic_model(config), layout)
    tx = critic.critic_optimizer(config, num_updates)
    step = value_step.critic(model, tx, c.ppo, shape, c)
    arguments = (train_state_of(model, tx), batch)
    found.append(Update('PPO critic', model, step, arguments, *size))
  return found


def abstract_batch(
  layout: Layout, num_rows: int, shape: RowShape, uses_values: bool
) -> RLBatch:
  """Returns rows of samples as shapes and shardings.

  Args:
    layout: The mesh.
    num_rows: Rows of all microbatches together.
    shape: The shape of the rows.
    uses_values: Whether the batch holds values and returns.
  """
  array = arrays(layout, num_rows, shape.row_tokens)
  numbers = lambda: array('BT', jnp.float32)
  ids = lambda: array('BT', jnp.int32)
  return RLBatch(
    tokens_BT=ids(),
    position_BT=ids(),
    segment_BT=ids(),
    sample_BT=ids(),
    mask_BT=array('BT', bool),
    logp_BT=numbers(),
    staleness_BT=ids(),
    num_microbatches_u=jax.ShapeDtypeStruct(
      (1,), jnp.int32, sharding=layout.replicated()
    ),
    adv_BT=numbers(),
    old_logp_BT=numbers(),
    ref_logp_BT=numbers(),
    value_BT=numbers() if uses_values else None,
    return_BT=numbers() if uses_values else None,
    prefix_BT=ids() if shape.repeated_tokens else None,
  )


def check_rl(config: RunConfig, layout: Layout):
  """Refuses a config of RL whose sections do not fit each other.

  Raises:
    UserError: naming the key.
  """
  c, model = config.rl, config.model
  registry.adv_estimator.get(c.adv_estimator, 'rl.adv_estimator')
  registry.policy_loss.get(c.policy_loss, 'rl.policy_loss')
  packing.row_shape(config, layout)
  if c.mtp_loss_weight and not model.num_nextn_predict_layers:
    raise UserError(
      f'rl: mtp_loss_weight = {c.mtp_loss_weight} needs MTP modules, but '
      'model.num_nextn_predict_layers is 0'
    )
  if c.routing_replay and not model.n_routed_experts:
    raise UserError(
      'rl: routing_replay needs experts, but model.n_routed_experts is 0'
    )
  build.check_context(config)
