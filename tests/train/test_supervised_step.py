"""A supervised step against NumPy: MTP loss, its weight, expert balancing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.config.schema.training import LoadBalancingConfig, OptimizerConfig
from r1jax.records import TokenBatch
from r1jax.train import mtp_loss, optimizer, supervised_step
from r1jax.train import state as train_state
from tests.conftest import make, small_config
from tests.reference import transformer as oracle

_DEPTH, _SPEED = 2, 1e-3
_CONFIG = small_config(num_nextn_predict_layers=_DEPTH)
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
_MTP_LOSS = mtp_loss.MTPLoss(weight=0.3, final_weight=0.1, switch_updates=5)


def _batch() -> TokenBatch:
  """Rows of two documents each, the last row with padding behind them."""
  segment_BT = np.array(
    [
      [1] * 4 + [2] * 6,
      [1] * 7 + [2] * 3,
      [1] * 8 + [2] * 2,
      [1] * 5 + [2] * 2 + [0] * 3,
    ]
  )
  tokens_BT = np.random.default_rng(0).integers(0, 32, segment_BT.shape)
  position_BT = np.array(
    [
      [t - list(row).index(segment) for t, segment in enumerate(row)]
      for row in segment_BT
    ]
  )
  follows = (segment_BT[:, 1:] == segment_BT[:, :-1]) & (segment_BT[:, 1:] > 0)
  return TokenBatch(
    tokens_BT=tokens_BT,
    target_BT=np.pad(tokens_BT[:, 1:] * follows, ((0, 0), (0, 1))),
    weight_BT=np.pad(follows, ((0, 0), (0, 1))).astype(np.int32),
    segment_BT=segment_BT,
    position_BT=position_BT,
  )


def _model():
  model, params = make(_CONFIG)
  ahead = params['mtp']['block']['ffn']
  ahead['bias'] = 0.3 * jax.random.normal(
    jax.random.key(8), ahead['bias'].shape
  )
  return model, params


@pytest.fixture(scope='module')
def stepped():
  """Parameters, and (state, metrics) of a step by the updates before it."""
  model, params = _model()
  tx = optimizer.make(_OPTIMIZER, 10)
  step = supervised_step.supervised(
    model,
    tx,
    LoadBalancingConfig(_SPEED, 0.0),
    _MTP_LOSS,
    gradient_accumulation_steps=2,
  )
  outcomes = {}
  for updates in (0, 4, 5):
    state = train_state.create(jax.tree.map(jnp.copy, params), tx)
    outcomes[updates] = step(
      state.replace(updates=jnp.int32(updates)), _batch()
    )
  return params, outcomes


def _mtp_loss(params64, batch, modules):
  """Module k at position i predicts token i + k + 2 of the same document.

  V3 eq. 24 divides by the number of tokens that the main model predicts.
  """
  total = 0.0
  for b, segment_T in enumerate(batch.segment_BT):
    for k, h_TD in enumerate(modules[b]):
      for i in range(len(segment_T) - k - 2):
        if segment_T[i] and segment_T[i] == segment_T[i + k + 2]:
          prob_V = oracle.softmax(h_TD[i] @ params64['head'])
          total -= np.log(prob_V[batch.tokens_BT[b, i + k + 2]])
  return total / batch.weight_BT.sum() / _DEPTH


def _bias(params, layer):
  """Returns the routing bias of a MoE layer; MTP modules are counted last."""
  biases_LE = np.concatenate(
    [params['moe_layers']['ffn']['bias'], params['mtp']['block']['ffn']['bias']]
  )
  return biases_LE[layer]


def test_mtp_loss_and_biases_equal_numpys(stepped, monkeypatch):
  """Of a whole step in two microbatches, every module and MoE layer."""
  chosen = []  # By row, then layer, then token.
  route = oracle.route
  monkeypatch.setattr(
    oracle,
    'route',
    lambda *args: chosen.append(list(gate := route(*args))) or gate,
  )
  (params, outcomes), batch = stepped, _batch()
  state, metrics = outcomes[0]
  params64 = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
  modules = [
    oracle.predict_ahead(params64, *row, _CONFIG)
    for row in zip(batch.tokens_BT, batch.position_BT, batch.segment_BT)
  ]
  np.testing.assert_allclose(
    metrics['mtp_loss'], _mtp_loss(params64, batch, modules), rtol=1e-4
  )

  B, T = batch.tokens_BT.shape
  layers = _CONFIG.num_moe_layers + _DEPTH
  chosen_BLTA = np.array(chosen).reshape(B, layers, T, -1)
  for layer in range(layers):
    load_E = np.bincount(
      chosen_BLTA[:, layer][batch.segment_BT > 0].ravel(),
      minlength=_CONFIG.n_routed_experts,
    )
    short_E = np.sign(load_E.mean() - load_E)
    assert {-1, 1} <= set(short_E)
    np.testing.assert_allclose(
      _bias(state.params, layer),
      _bias(params, layer) + _SPEED * short_E,
      atol=1e-7,
    )


def test_the_weight_of_looking_ahead_falls_at_its_switch(stepped):
  np.testing.assert_allclose(_MTP_LOSS.at(4), 0.3)
  np.testing.assert_allclose(_MTP_LOSS.at(5), 0.1)
  # And the step uses it: nothing but this loss reaches the modules.
  before, after = (
    jax.device_get(stepped[1][updates][0].opt_state[1].mu['mtp'])
    for updates in (4, 5)
  )
  assert np.abs(before['merge']).max() > 1e-4
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, 3 * b, atol=1e-6), before, after
  )
