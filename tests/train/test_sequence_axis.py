"""Rows whose tokens are sharded over devices: the numbers of one device."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.algos import gae
from r1jax.algos.policy_loss import PolicyLoss
from r1jax.config.schema.rl import GAEConfig
from r1jax.config.schema.training import LoadBalancingConfig, OptimizerConfig
from r1jax.data.sample_packing import RowShape
from r1jax.model import parameters
from r1jax.model.transformer import Transformer
from r1jax.records import Rollout, TokenBatch
from r1jax.sharding import Layout, make_mesh
from r1jax.train import (
  mtp_loss,
  optimizer,
  policy_step,
  supervised_step,
  value_step,
)
from r1jax.train import state as train_state
from tests.conftest import dense_config, make, small_config
from tests.train.batches import packed

# An update that neither clips nor decays: moments are (1 − β₁) · gradient.
_OPTIMIZER = OptimizerConfig(
  learning_rate=1e-3,
  warmup_steps=0,
  lr_scheduler_type='constant',
  min_lr_ratio=0.1,
  adam_beta1=0.9,
  adam_beta2=0.95,
  weight_decay=0.0,
  max_grad_norm=1e9,
  moment_dtype='float32',
)
_BALANCING = LoadBalancingConfig(
  routed_bias_update_rate=1e-3, router_aux_loss_coef=0.01
)
_GAE = GAEConfig()
_PROMPT, _OWN, _SAMPLES, _GROUP, _ROW = 9, 7, 16, 4, 40
# Samples share all but two tokens of their prompt; a row has room for three of
# the longest, of 7 + 3 · (2 + 7) tokens. Four devices hold ten tokens of it each.
_SHAPE = RowShape(
  row_tokens=_ROW,
  microbatch_rows=4,
  num_updates=1,
  num_samples=_SAMPLES,
  max_sample_tokens=_PROMPT + _OWN,
  repeated_tokens=2,
)
_MLA = small_config(
  num_hidden_layers=2,
  num_attention_heads=4,
  kv_lora_rank=16,
  num_nextn_predict_layers=1,
  scalar_head=True,
)
# Tokens of three documents and of padding in each row of a corpus.
_LENGTHS = [[7, 13, 20, 0], [10, 10, 10, 10], [25, 1, 9, 5], [38, 1, 1, 0]]
_GQA = dense_config(scalar_head=True)  # Four heads, two key-value heads.


def _corpus(model, params) -> tuple:
  """A supervised step on documents that lie across the devices' parts."""
  del params
  rng = np.random.default_rng(0)
  segment_BT = np.stack(
    [np.repeat([1, 2, 3, 0], lengths) for lengths in _LENGTHS]
  )
  tokens_BT = rng.integers(0, 32, segment_BT.shape)
  starts = np.pad(np.diff(segment_BT) != 0, ((0, 0), (1, 0)))
  column = np.arange(_ROW)
  position_BT = column - np.maximum.accumulate(starts * column, 1)
  follows = ~np.pad(starts[:, 1:], ((0, 0), (0, 1)), constant_values=True)
  batch = TokenBatch(
    tokens_BT=tokens_BT,
    target_BT=np.pad(tokens_BT[:, 1:], ((0, 0), (0, 1))) * follows,
    weight_BT=(follows & (segment_BT > 0)).astype(np.float32),
    segment_BT=segment_BT,
    position_BT=position_BT,
  )

  def step(model, tx):
    return supervised_step.supervised(
      model, tx, _BALANCING, mtp_loss.MTPLoss(0.3, 0.1, 5), 1
    )

  return step, batch


def _rollout() -> Rollout:
  """Groups of one prompt, with completions of different lengths."""
  rng = np.random.default_rng(0)
  T = _PROMPT + _OWN
  length_B = rng.integers(1, _OWN + 1, _SAMPLES)
  tokens = rng.integers(3, 32, (_SAMPLES, T)).astype(np.int32)
  tokens[:, :_PROMPT] = np.repeat(tokens[::_GROUP, :_PROMPT], _GROUP, 0)
  column = np.arange(T)
  mask = (column >= _PROMPT) & (column < _PROMPT + length_B[:, None])
  return Rollout(
    tokens_BT=tokens,
    valid_BT=mask | (column < _PROMPT),
    mask_BT=mask,
    logp_BT=np.zeros((_SAMPLES, T), np.float32),
    model_logp_BT=np.zeros((_SAMPLES, T), np.float32),
    staleness_BT=np.zeros((_SAMPLES, T), np.int32),
    finish_B=np.ones(_SAMPLES, np.int32),
    length_B=length_B.astype(np.int32),
    group_B=np.arange(_SAMPLES, dtype=np.int32) // _GROUP,
  )


def _samples(model, params):
  """Packed samples that share prompts, with the signals of an RL update.

  The log-probabilities and values are of the mesh that the model lies on.
  """
  rng = np.random.default_rng(1)
  batch = packed(_rollout(), _SHAPE)
  assert (batch.prefix_BT > 0).any()
  (logp_BT,) = policy_step.token_logps(model, 1.0, _SHAPE)(params, batch)
  value_BT, after_BT = value_step.values(model, _SHAPE)(params, batch)
  reward_B = jnp.asarray(rng.normal(size=_SAMPLES), jnp.float32)

  @jax.jit
  def estimate(value_BT, after_BT, batch):
    rewards = gae.token_rewards(
      reward_B[batch.sample_BT], batch.mask_BT, batch.segment_BT
    )
    nothing = jnp.zeros(batch.mask_BT.shape, bool)
    return gae.estimate(
      _GAE,
      rewards,
      value_BT,
      after_BT,
      nothing,
      batch.mask_BT,
      batch.segment_BT,
    )

  found = estimate(value_BT, after_BT, batch)
  noise = 0.3 * rng.normal(size=batch.mask_BT.shape).astype(np.float32)
  return batch.replace(
    logp_BT=logp_BT,
    old_logp_BT=logp_BT + noise * batch.mask_BT,
    ref_logp_BT=logp_BT - noise * batch.mask_BT,
    adv_BT=found.adv_BT,
    value_BT=value_BT,
    return_BT=found.return_BT,
  ), found.metrics


def _grpo(model, params) -> tuple:
  """A policy update with MTP and KL losses, where the model has modules."""

  def step(model, tx):
    return policy_step.policy(
      model,
      tx,
      PolicyLoss(kl_coef=0.1),
      1.0,
      _SHAPE,
      _BALANCING,
      0.3 if model.config.num_nextn_predict_layers else 0.0,
    )

  return step, _samples(model, params)[0]


def _ppo(model, params) -> tuple:
  """A policy update with a value loss on the same trunk."""

  def step(model, tx):
    return policy_step.policy(
      model,
      tx,
      PolicyLoss(kl_coef=0.0),
      1.0,
      _SHAPE,
      _BALANCING,
      extra_loss=value_step.shared_value_loss(model, _GAE, 0.5),
    )

  return step, _samples(model, params)[0]


def _updated(algorithm, model, params):
  """Returns the batch's arrays, gradients, routing biases and metrics.

  Other parameters follow from the gradients, but Adam divides these by their
  size: where one is nearly 0, its rounding alone moves a parameter.
  """
  step, batch = algorithm(model, params)
  tx = optimizer.make(_OPTIMIZER, 10)
  state = train_state.create(jax.tree.map(jnp.copy, params), tx)
  state, metrics = step(model, tx)(state, jax.tree.map(np.asarray, batch))
  gradients = jax.tree.map(lambda x: x / 0.1, state.opt_state[1].mu)
  biases = [
    x
    for path, x in jax.tree.leaves_with_path(state.params)
    if 'bias' == path[-1].key
  ]
  return jax.device_get((batch, gradients, biases, metrics))


@pytest.fixture(scope='module')
def one_device():
  """Returns the update of an algorithm on one device, computed once."""
  found = {}

  def update(algorithm, config):
    if (algorithm, config) not in found:
      found[algorithm, config] = _updated(algorithm, *_made(config))
    return found[algorithm, config]

  return update


def _made(config, layout: Layout | None = None):
  """Returns a model and parameters, whose scalar head is not 0, on a mesh."""
  model, params = make(config)
  params['scalar'] = 0.3 * jax.random.normal(
    jax.random.key(0), params['scalar'].shape
  )
  if layout is None:
    return model, params
  wide = Transformer(config, layout)
  return wide, jax.device_put(
    jax.device_get(params), parameters.parameter_shardings(wide, layout)
  )


def _assert_equal(got, want):
  batch, gradients, biases, metrics = got
  _assert_close(batch, want[0])
  largest = max(np.abs(x).max() for x in jax.tree.leaves(want[1]))
  _assert_close(gradients, want[1], 1e-5 * max(1, largest))
  _assert_close(biases, want[2], 1e-6)
  assert metrics.keys() == want[3].keys()
  for name, value in want[3].items():
    np.testing.assert_allclose(
      metrics[name], value, rtol=1e-5, atol=1e-5, err_msg=name
    )
  assert metrics.get('moe/dropped', 0) == 0


def _assert_close(got, want, atol=1e-5):
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=atol), got, want
  )


def _check(algorithm, config, mesh, one_device):
  wide = _made(config, Layout(make_mesh(mesh)))
  _assert_equal(_updated(algorithm, *wide), one_device(algorithm, config))


@pytest.mark.slow
def test_documents_over_the_devices_of_a_row(one_device):
  """Grouped-query attention: each device has a head, and its keys' copy."""
  _check(_corpus, _GQA, dict(sequence=2, tensor=2, data=2), one_device)


@pytest.mark.slow
@pytest.mark.parametrize('algorithm', [_grpo, _ppo])
def test_grouped_query_attention(algorithm, one_device):
  _check(algorithm, _GQA, dict(sequence=4, fsdp=2), one_device)


@pytest.mark.slow
@pytest.mark.parametrize(
  'algorithm, mesh',
  [
    (_corpus, dict(sequence=4, data=2)),
    (_corpus, dict(sequence=2, tensor=2, expert=2)),
    (_grpo, dict(sequence=4, data=2)),
    (_grpo, dict(sequence=2, tensor=2, expert=2)),
    (_ppo, dict(sequence=2, fsdp=2, expert=2)),
  ],
  ids=lambda value: getattr(value, '__name__', str(value)),
)
def test_latent_attention_experts_and_mtp(algorithm, mesh, one_device):
  """Loss, all metrics, all gradients of pretraining, GRPO and PPO."""
  _check(algorithm, _MLA, mesh, one_device)
