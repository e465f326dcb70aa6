"""Sampling: cached decoding is the full forward, and keys make the sample."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.errors import UserError
from r1jax.model import transformer
from r1jax.model.transformer import Transformer, parameter_shardings
from r1jax.records import FINISH_LENGTH, FINISH_STOP, PromptBatch
from r1jax.rollout import sampling
from r1jax.rollout.engine import Engine
from r1jax.rollout.sampling import SamplingConfig
from r1jax.sharding import Layout, make_mesh
from r1jax.train import step as train_step
from tests.conftest import forward, make, small_config

_CONFIG = SamplingConfig(group_size=3, max_new_tokens=10, temperature=1.0,
                         top_p=1.0, stop_ids=(2, 5))


def _prompts():
  """Two prompts of different length, left-padded."""
  tokens = np.array([[0, 0, 0, 9, 11], [7, 8, 9, 4, 12]], np.int32)
  valid = np.array([[0, 0, 0, 1, 1], [1, 1, 1, 1, 1]], bool)
  return PromptBatch(tokens_PT=tokens, valid_PT=valid,
                     id_P=np.array([17, 4], np.uint32))


def _prefill(model, params, prompts, group_size, budget):
  return jax.jit(lambda p, tokens, valid: model.apply(
      {'params': p}, tokens, valid, group_size, budget, method='prefill'))(
          params, prompts.tokens_PT, prompts.valid_PT)


@pytest.mark.parametrize('changes', [{}, {'q_lora_rank': 0},
                                     {'first_k_dense': 0}], ids=str)
def test_cached_decoding_equals_the_full_forward(changes):
  """Absorbed attention over the latent cache, token by token, row by row."""
  model, params = make(small_config(**changes))
  prompts, G, S = _prompts(), 2, 6
  own = np.random.default_rng(0).integers(0, 32, (2, G, S))
  logits_PV, cache, _ = _prefill(model, params, prompts, G, S)
  decode = jax.jit(lambda t, c, s: model.apply(
      {'params': params}, t, c, s, method='decode'))
  got = []
  for slot in range(S):
    logits_PGV, cache, _ = decode(jnp.asarray(own[:, :, slot]), cache, slot)
    got.append(np.asarray(logits_PGV))
  for p in range(2):
    prompt = prompts.tokens_PT[p][prompts.valid_PT[p]]
    for g in range(G):
      row = np.concatenate([prompt, own[p, g]])[None]
      want = forward(model, params, row)[0]
      np.testing.assert_allclose(logits_PV[p], want[len(prompt) - 1],
                                 atol=1e-4)
      for slot in range(S):
        np.testing.assert_allclose(
            got[slot][p, g], want[len(prompt) + slot], atol=1e-4)


def test_the_cache_holds_the_latent_and_nothing_more():
  config = small_config()
  model, params = make(config)
  prompts = _prompts()
  _, cache, _ = _prefill(model, params, prompts, 4, 6)
  entry = config.kv_lora_rank + config.qk_rope_head_dim
  assert sum(x.size for x in cache.prefix) == config.num_layers * 2 * 5 * entry
  assert sum(x.size for x in cache.own) == config.num_layers * 8 * 6 * entry


@pytest.mark.parametrize('temperature', [1.0, 0.7])
def test_logp_is_what_the_trainer_computes(temperature):
  model, params = make(small_config())
  config = dataclasses.replace(_CONFIG, temperature=temperature)
  rollout = Engine(model, config).generate(
      params, _prompts(), jax.random.key(1))
  logp_BT = train_step.score(model, temperature, 5)(params, rollout)
  np.testing.assert_allclose(rollout.logp_BT, logp_BT, atol=1e-4)
  assert float(jnp.min(rollout.logp_BT)) < -0.5


def _choices(model, params, rollout):
  """The experts of each token in a full forward pass that chooses freely."""
  out = model.apply(
      {'params': params}, rollout.tokens_BT,
      transformer.positions(rollout.valid_BT),
      rollout.valid_BT.astype(np.int32))
  return jnp.moveaxis(out.routing['moe_layers'].expert_BTA, 0, 2)


def test_recorded_experts_are_those_of_the_full_forward():
  model, params = make(small_config())
  rollout = Engine(model, _CONFIG, record_routing=True).generate(
      params, _prompts(), jax.random.key(1))
  want = np.sort(_choices(model, params, rollout), -1)
  got = np.sort(rollout.experts_BTLA, -1)
  np.testing.assert_array_equal(got[rollout.valid_BT], want[rollout.valid_BT])
  plain = Engine(model, _CONFIG).generate(
      params, _prompts(), jax.random.key(1))
  assert plain.experts_BTLA is None
  np.testing.assert_array_equal(plain.tokens_BT, rollout.tokens_BT)


def test_training_replays_the_experts_that_sampled():
  """After the router moved: other choices, unless the old are replayed."""
  model, params = make(small_config())
  rollout = Engine(model, _CONFIG, record_routing=True).generate(
      params, _prompts(), jax.random.key(1))
  router = params['moe_layers']['ffn']['router']
  moved = params | {'moe_layers': params['moe_layers'] | {
      'ffn': params['moe_layers']['ffn'] | {
          'bias': params['moe_layers']['ffn']['bias'] + jax.random.normal(
              jax.random.key(2), (router.shape[0], router.shape[-1]))}}}
  free = _choices(model, moved, rollout)
  assert (np.sort(free, -1) != np.sort(rollout.experts_BTLA, -1)).any()
  # The bias selects only: with the old choices nothing else has changed.
  score = train_step.score(model, 1.0, 5)
  np.testing.assert_allclose(score(moved, rollout), rollout.logp_BT, atol=1e-4)
  chosen = score(moved, rollout.replace(experts_BTLA=None))
  assert np.abs(chosen - rollout.logp_BT).max() > 1e-3


def test_masks_come_from_lengths_and_the_stop_token_is_trained():
  model, params = make(small_config())
  rollout = jax.device_get(Engine(model, _CONFIG).generate(
      params, _prompts(), jax.random.key(3)))
  own = rollout.tokens_BT[:, 5:]
  seen = set()
  for b in range(6):
    stops = np.flatnonzero(np.isin(own[b], _CONFIG.stop_ids)
                           & rollout.mask_BT[b, 5:])
    length = rollout.length_B[b]
    if rollout.finish_B[b] == FINISH_STOP:
      assert stops.tolist() == [length - 1]  # The first one, and it counts.
    else:
      assert length == 10 and not stops.size
    assert rollout.mask_BT[b].sum() == length
    assert not rollout.mask_BT[b, :5].any()
    seen.add(int(rollout.finish_B[b]))
  assert seen == {FINISH_STOP, FINISH_LENGTH}


def test_a_sample_does_not_depend_on_the_rest_of_the_batch():
  """Either prompt alone, together, or in the other order: the same samples."""
  model, params = make(small_config())
  engine, key = Engine(model, _CONFIG), jax.random.key(5)
  both = engine.generate(params, _prompts(), key)
  for p in (0, 1):
    alone = engine.generate(
        params, jax.tree.map(lambda x: x[p:p + 1], _prompts()), key)
    np.testing.assert_array_equal(
        both.tokens_BT[3 * p:3 * p + 3], alone.tokens_BT)
  swapped = engine.generate(
      params, jax.tree.map(lambda x: x[::-1], _prompts()), key)
  np.testing.assert_array_equal(both.tokens_BT[:3], swapped.tokens_BT[3:])
  other = engine.generate(params, _prompts(), jax.random.key(6))
  assert (np.asarray(other.tokens_BT) != np.asarray(both.tokens_BT)).any()


def test_samples_of_a_group_differ():
  model, params = make(small_config())
  rollout = Engine(model, _CONFIG).generate(
      params, _prompts(), jax.random.key(5))
  for p in (0, 1):
    rows = {tuple(row) for row in np.asarray(
        rollout.tokens_BT[3 * p:3 * p + 3]).tolist()}
    assert len(rows) == 3
  assert rollout.group_B.tolist() == [0, 0, 0, 1, 1, 1]


def test_padding_may_be_the_stop_token():
  """Prompts are padded with id 0; let it be a stop id as well."""
  model, params = make(small_config())
  config = dataclasses.replace(_CONFIG, stop_ids=(0, 2))
  rollout = jax.device_get(Engine(model, config).generate(
      params, _prompts(), jax.random.key(3)))
  for b in range(6):
    assert rollout.mask_BT[b].sum() == rollout.length_B[b]
    if rollout.finish_B[b] == FINISH_STOP:
      assert rollout.tokens_BT[b, 4 + rollout.length_B[b]] in (0, 2)
  assert (rollout.finish_B == FINISH_STOP).any()


def test_eight_devices_sample_what_one_does():
  """Two prompts over four parts of a batch: the mesh need not divide them."""
  config = small_config()
  model, params = make(config)
  want = Engine(model, _CONFIG).generate(
      params, _prompts(), jax.random.key(2))
  layout = Layout(make_mesh(dict(data=2, tensor=2, expert=2)))
  wide = Transformer(config, layout)
  spread = jax.device_put(
      jax.device_get(params), parameter_shardings(wide, layout))
  got = Engine(wide, _CONFIG).generate(spread, _prompts(), jax.random.key(2))
  np.testing.assert_array_equal(got.tokens_BT, want.tokens_BT)
  np.testing.assert_allclose(got.logp_BT, want.logp_BT, atol=1e-5)


def test_samples_follow_the_distribution():
  """20,000 first tokens against the softmax that drew them (χ²)."""
  logits_V = jnp.array([2.0, 0.5, 0.0, -1.0])
  keys_B = jax.random.split(jax.random.key(0), 20000)
  token_B, logp_B = sampling.draw(
      jnp.tile(logits_V, (20000, 1)), keys_B, _CONFIG)
  want_V = np.asarray(jax.nn.softmax(logits_V))
  count_V = np.bincount(token_B, minlength=4)
  chi2 = ((count_V - 20000 * want_V) ** 2 / (20000 * want_V)).sum()
  assert chi2 < 16.3  # 0.1 % of χ² with three degrees of freedom.
  np.testing.assert_allclose(logp_B, np.log(want_V)[token_B], atol=1e-5)


def test_greedy_and_nucleus():
  logits = jnp.log(jnp.array([[0.5, 0.3, 0.15, 0.05]]))
  kept = jax.nn.softmax(sampling.nucleus(logits, 0.7))
  np.testing.assert_allclose(kept, [[0.625, 0.375, 0, 0]], atol=1e-6)
  np.testing.assert_allclose(
      jax.nn.softmax(sampling.nucleus(logits, 0.4)), [[1, 0, 0, 0]], atol=1e-6)
  greedy = SamplingConfig(group_size=1, max_new_tokens=1, temperature=0.0,
                          top_p=1.0, stop_ids=(2,))
  token_B, _ = sampling.draw(logits, jax.random.split(jax.random.key(0), 1),
                             greedy)
  assert token_B.tolist() == [0]


def test_a_new_batch_and_new_parameters_do_not_recompile():
  model, params = make(small_config())
  engine = Engine(model, _CONFIG)
  first = engine.generate(params, _prompts(), jax.random.key(0))
  changed = jax.tree.map(lambda x: x * 1.5, params)
  second = engine.generate(changed, _prompts(), jax.random.key(0))
  assert engine._generate._cache_size() == 1
  # Nothing of the old policy survives in a cache.
  fresh = Engine(model, _CONFIG).generate(
      changed, _prompts(), jax.random.key(0))
  np.testing.assert_array_equal(second.tokens_BT, fresh.tokens_BT)
  assert (np.asarray(first.logp_BT) != np.asarray(second.logp_BT)).any()


@pytest.mark.parametrize('changes,message', [
    ({'group_size': 0}, 'group_size'), ({'max_new_tokens': 0}, 'max_new'),
    ({'temperature': -1.0}, 'temperature'), ({'top_p': 0.0}, 'top_p'),
    ({'top_p': 1.5}, 'top_p')])
def test_a_wrong_setting_is_named(changes, message):
  settings = dict(group_size=2, max_new_tokens=4, temperature=1.0, top_p=1.0,
                  stop_ids=(2,))
  with pytest.raises(UserError, match=message):
    SamplingConfig(**(settings | changes))
