"""The jitted programs of an RL step, and the checks of their config."""

import jax
import jax.numpy as jnp

from r1jax import registry
from r1jax.algos.policy_loss import PolicyLoss
from r1jax.config.schema.run import RunConfig
from r1jax.config.schema.section import narrow
from r1jax.errors import UserError
from r1jax.model.transformer import Transformer
from r1jax.records import RLBatch, Rollout
from r1jax.sharding import Layout
from r1jax.stages import critic
from r1jax.stages.build import parts as build
from r1jax.stages.build.abstract import arrays, random_key, train_state_of
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
  config: RunConfig,
  model: Transformer,
  tx,
  num_minibatches: int,
  extra_loss=None,
):
  """Returns the jitted policy update, see train/policy_step.py."""
  c = config.rl
  return policy_step.policy(
    model,
    tx,
    policy_loss(config),
    c.temperature,
    config.data.max_prompt_tokens,
    num_minibatches,
    c.gradient_accumulation_steps,
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
  c = config.rl
  rows = c.prompts_per_step * c.group_size // c.num_minibatches
  tokens = config.data.max_prompt_tokens + c.max_new_tokens
  uses_values = c.adv_estimator == 'gae'
  shared = uses_values and c.ppo.critic == 'shared'
  model = Transformer(config.model, layout)
  tx = policy_optimizer(config, num_updates)
  loss = (
    value_step.shared_value_loss(model, c.ppo, c.ppo.vf_coef)
    if shared
    else None
  )
  step = make_policy_step(config, model, tx, 1, loss)
  batch = _batch(layout, rows, tokens, uses_values)
  key = random_key(layout)
  label = 'PPO policy' if uses_values else 'GRPO'
  arguments = (train_state_of(model, tx), batch, key)
  found = [Update(label, model, step, arguments, rows, tokens)]
  if uses_values and not shared:
    model = Transformer(critic.critic_model(config), layout)
    tx = critic.critic_optimizer(config, num_updates)
    step = value_step.critic(
      model, tx, c.ppo, 1, c.gradient_accumulation_steps, c
    )
    arguments = (train_state_of(model, tx), batch, key)
    found.append(Update('PPO critic', model, step, arguments, rows, tokens))
  return found


def _batch(
  layout: Layout, rows: int, tokens: int, uses_values: bool
) -> RLBatch:
  """Returns a minibatch as shapes and shardings."""
  array = arrays(layout, rows, tokens)
  numbers = lambda: array('BT', jnp.float32)
  shared_advantage = jax.ShapeDtypeStruct(
    (rows, 1), jnp.float32, sharding=layout.sharding('BT')
  )
  return RLBatch(
    rollout=Rollout(
      tokens_BT=array('BT', jnp.int32),
      valid_BT=array('BT', bool),
      mask_BT=array('BT', bool),
      logp_BT=numbers(),
      model_logp_BT=numbers(),
      staleness_BT=array('BT', jnp.int32),
      finish_B=array('B', jnp.int32),
      length_B=array('B', jnp.int32),
      group_B=array('B', jnp.int32),
    ),
    adv_BT=numbers() if uses_values else shared_advantage,
    old_logp_BT=numbers(),
    ref_logp_BT=numbers(),
    value_BT=numbers() if uses_values else None,
    return_BT=numbers() if uses_values else None,
  )


def check_rl(config: RunConfig, layout: Layout):
  """Refuses a config of RL whose sections do not fit each other.

  Raises:
    UserError: naming the key.
  """
  c, model = config.rl, config.model
  registry.adv_estimator.get(c.adv_estimator, 'rl.adv_estimator')
  registry.policy_loss.get(c.policy_loss, 'rl.policy_loss')
  build.divides(
    'rl.prompts_per_step × rl.group_size',
    c.prompts_per_step * c.group_size,
    c.num_minibatches * c.gradient_accumulation_steps,
    layout,
  )
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
