"""The jitted steps: next-token prediction, scoring, and the policy update."""

from collections.abc import Callable
import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import optax

from r1jax.algos import common, distill, policy_loss
from r1jax.model import moe, mtp
from r1jax.model.mtp import shift
from r1jax.model.transformer import Transformer, output_head, positions
from r1jax.records import RLBatch, Rollout, TokenBatch
from r1jax.train import update
from r1jax.train.state import TrainState


@dataclasses.dataclass(frozen=True)
class MTPLoss:
  """Weight of the multi-token prediction loss (V3 section 4.2).

  Attributes:
    weight: λ at first.
    final_weight: λ after that.
    switch_updates: Optimiser updates until then.
  """

  weight: float
  final_weight: float
  switch_updates: int

  def at(self, updates) -> jax.Array:
    return jnp.where(
      updates < self.switch_updates, self.weight, self.final_weight
    )


@dataclasses.dataclass(frozen=True)
class Distillation:
  """Soft targets, and the model that gives them.

  Attributes:
    soft: Their weight and temperature.
    teacher: The model; None where batches bring its distributions along.
  """

  soft: distill.SoftTargets
  teacher: Transformer | None = None


def supervised(
  model: Transformer,
  tx: optax.GradientTransformation,
  balancing: moe.LoadBalancing,
  mtp_loss: MTPLoss,
  gradient_accumulation_steps: int,
  distillation: Distillation | None = None,
) -> Callable:
  """Returns step(state, TokenBatch, teacher_params) → (state, metrics), jitted.

  The loss is a mean over the tokens that have a weight, each times its weight.
  Teacher parameters are None without a teacher.
  """

  def loss_fn(params, batch: TokenBatch, taught, total, live, updates):
    inputs = batch.tokens_BT, batch.position_BT, batch.segment_BT
    out = model.apply({'params': params}, *inputs)
    head = output_head(model, params)

    def mean(x_BT):
      return jnp.sum(x_BT * batch.weight_BT) / total

    if distillation:
      logp_BT, entropy_BT, kl_BT = _taught(
        model, distillation, out.hidden_BTD, head, batch, taught
      )
      loss = mean(distillation.soft.mix(-logp_BT, kl_BT))
      metrics = {'loss': loss, 'nll': mean(-logp_BT), 'kl': mean(kl_BT)}
    else:
      logp_BT, entropy_BT = common.token_logp(
        out.hidden_BTD, head, batch.target_BT, layout=model.layout
      )
      loss = mean(-logp_BT)
      metrics = {'loss': loss}
    metrics['entropy'] = mean(entropy_BT)
    routing = out.routing
    if model.config.num_nextn_predict_layers:
      ahead, routed = _ahead_loss(
        model,
        params,
        out.hidden_BTD,
        inputs,
        batch.target_BT,
        batch.weight_BT,
        total,
      )
      loss += mtp_loss.at(updates) * ahead
      metrics['mtp_loss'] = ahead
      routing = routing | routed
    rows = update.live_rows(batch.segment_BT > 0)
    loss += update.balance(routing, balancing, rows / live)
    return loss, (metrics | {'routing': update.loads(routing)}, {})

  @partial(jax.jit, donate_argnums=0, out_shardings=update.outputs(model, tx))
  def step(state: TrainState, batch: TokenBatch, teacher_params=None):
    batch = update.constrain(model, batch)
    total = jnp.maximum(jnp.sum(batch.weight_BT > 0), 1)
    live = update.live_rows(batch.segment_BT > 0)
    head = None
    if distillation and distillation.teacher:
      head = output_head(distillation.teacher, teacher_params)

    def of_micro(params, micro):
      taught = None
      if head is not None:
        taught = _hidden(distillation.teacher, teacher_params, micro), head
      return loss_fn(params, micro, taught, total, live, state.updates)

    grads, metrics, _ = update.accumulate(
      of_micro, state.params, batch, gradient_accumulation_steps
    )
    routing = metrics.pop('routing')
    state, applied = update.apply(state, tx, grads, routing, balancing)
    return state, metrics | applied

  return step


def _hidden(teacher: Transformer, params, batch: TokenBatch):
  """What the teacher thinks of every token; nothing of it is learnt."""
  return jax.lax.stop_gradient(
    teacher.apply(
      {'params': params}, batch.tokens_BT, batch.position_BT, batch.segment_BT
    ).hidden_BTD
  )


def _taught(
  model: Transformer,
  distillation: Distillation,
  hidden_BTD,
  head_DV,
  batch: TokenBatch,
  taught,
):
  """logp_BT, entropy_BT and kl_BT: from the teacher, or from what it left."""
  temperature, layout = distillation.soft.temperature, model.layout
  if taught is not None:
    return distill.full_kl(
      hidden_BTD, head_DV, *taught, batch.target_BT, temperature, layout=layout
    )
  return distill.top_k_kl(
    hidden_BTD,
    head_DV,
    batch.top_ids_BTO,
    batch.top_logp_BTO,
    batch.target_BT,
    temperature,
    layout=layout,
  )


def score(
  model: Transformer, temperature: float, prompt_tokens: int
) -> Callable:
  """Returns logp(params, rollout) → [B, T], jitted; 0 outside the mask.

  Rollouts have `prompt_tokens` columns of prompt before their completions.
  Where they hold their experts, these are used again.
  """

  @jax.jit
  def logp(params, rollout: Rollout):
    rollout = update.constrain(model, rollout)
    return _rollout_logp(model, params, rollout, temperature, prompt_tokens)[0]

  return logp


def policy(
  model: Transformer,
  tx: optax.GradientTransformation,
  config: policy_loss.PolicyLoss,
  temperature: float,
  prompt_tokens: int,
  num_minibatches: int,
  gradient_accumulation_steps: int,
  balancing: moe.LoadBalancing,
  mtp_loss_weight: float = 0.0,
  also: Callable | None = None,
) -> Callable:
  """Returns step(state, RLBatch, key) → (state, metrics), jitted.

  One inner epoch: the rows are shuffled and cut into `num_minibatches`, each an
  optimiser update, each summed over `gradient_accumulation_steps` microbatches. The first update meets the
  policy that sampled, so its ratio is 1 but for rounding: 'rollout_logp_diff/mean' and
  'rollout_logp_diff/max' say how far its log-probabilities are from the sampler's, of
  all its tokens that this policy drew. With a weight λ
  the multi-token prediction modules go on learning from the completions, and
  nothing else learns from them. `also` is what else is learnt from the same
  pass: (params, hidden_BTD, RLBatch, Totals) → loss, metrics that sum.
  """

  def loss_fn(params, batch: RLBatch, totals: policy_loss.Totals):
    rollout, live_tokens = batch.rollout, totals.tokens
    logp_BT, entropy_BT, out = _rollout_logp(
      model, params, rollout, temperature, prompt_tokens
    )
    loss, metrics = policy_loss.loss(
      config,
      logp_BT,
      batch.old_logp_BT,
      batch.ref_logp_BT,
      batch.adv_BT,
      rollout.mask_BT,
      totals,
      batch.rollout_is_weight_BT,
    )
    metrics['entropy'] = common.masked_sum(
      entropy_BT, rollout.mask_BT
    ) / jnp.maximum(live_tokens, 1)
    if also:
      more, told = also(params, out.hidden_BTD, batch, totals)
      loss += more
      metrics |= told
    routing = out.routing
    if mtp_loss_weight:
      inputs = rollout_inputs(rollout)
      only_mtp = jax.lax.stop_gradient(params) | {'mtp': params['mtp']}
      ahead, routed = _ahead_loss(
        model,
        only_mtp,
        jax.lax.stop_gradient(out.hidden_BTD),
        inputs,
        shift(rollout.tokens_BT, 1),
        shift(rollout.mask_BT, 1).astype(jnp.float32),
        live_tokens,
      )
      loss += mtp_loss_weight * ahead
      metrics['mtp_loss'] = ahead
      routing = routing | routed
    loss += update.balance(routing, balancing, 1 / gradient_accumulation_steps)
    fresh_BT = rollout.mask_BT & (rollout.staleness_BT == 0)
    gap_BT = jnp.where(fresh_BT, jnp.abs(logp_BT - rollout.logp_BT), 0.0)
    metrics['routing'] = update.loads(routing)
    metrics['rollout_logp_diff'] = jnp.stack([gap_BT.sum(), fresh_BT.sum()])
    return loss, (metrics, {'rollout_logp_diff': gap_BT.max()})

  epoch = update.epoch(
    model, tx, loss_fn, num_minibatches, gradient_accumulation_steps, balancing
  )

  @partial(jax.jit, donate_argnums=0, out_shardings=update.outputs(model, tx))
  def step(state: TrainState, batch: RLBatch, key: jax.Array):
    state, metrics, largest = epoch(state, batch, key)
    gap_sum, tokens = metrics.pop('rollout_logp_diff')[0]
    return state, update.told(metrics) | {
      'rollout_logp_diff/mean': gap_sum / jnp.maximum(tokens, 1),
      'rollout_logp_diff/max': largest['rollout_logp_diff'][0],
    }

  return step


def _rollout_logp(
  model, params, rollout: Rollout, temperature, prompt_tokens: int
):
  """Log-probability and entropy of each token, given those before it.

  Token t is predicted at t − 1, and only completions are asked for. With one
  column of prompt, a:
    tokens   = [a, b, c]
    hidden   = [h(a), h(ab), h(abc)]
    logp_BT  = [0, log p(b | a), log p(c | ab)]
  """
  out = model.apply(
    {'params': params}, *rollout_inputs(rollout), rollout.experts_BTLA
  )
  logp, entropy = common.token_logp(
    out.hidden_BTD[:, prompt_tokens - 1 : -1],
    output_head(model, params),
    rollout.tokens_BT[:, prompt_tokens:],
    temperature,
    layout=model.layout,
  )

  def whole(x):
    x_BT = jnp.pad(x, ((0, 0), (prompt_tokens, 0)))
    return jnp.where(rollout.mask_BT, x_BT, 0.0)

  return whole(logp), whole(entropy), out


def rollout_inputs(rollout: Rollout):
  """Tokens, positions and segments, as the model takes them."""
  return (
    rollout.tokens_BT,
    positions(rollout.valid_BT),
    rollout.valid_BT.astype(jnp.int32),
  )


def _ahead_loss(
  model: Transformer,
  params,
  hidden_BTD,
  inputs,
  target_BT,
  weight_BT,
  total_weight,
):
  """Mean cross-entropy of the look-ahead modules (V3 eq. 24, 25, without λ).

  Returns:
    The loss, and the modules' routing.
  """
  hidden_ZBTD, routing = model.apply(
    {'params': params}, hidden_BTD, *inputs, method='look_ahead'
  )
  head, depth, total = (
    output_head(model, params),
    model.config.num_nextn_predict_layers,
    0.0,
  )
  for k in range(depth):
    target, weight = mtp.targets(target_BT, weight_BT, inputs[2], k + 1)
    logp_BT, _ = common.token_logp(
      hidden_ZBTD[k], head, target, layout=model.layout
    )
    total -= jnp.sum(logp_BT * weight) / jnp.maximum(total_weight, 1)
  return total / depth, routing
