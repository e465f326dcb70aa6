"""Sampling: the keys make the sample, and nothing around it does."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.data.sample_packing import RowShape
from r1jax.model import cache, transformer
from r1jax.records import FINISH_LENGTH, FINISH_STOP
from r1jax.rollout import engine as engine_file
from r1jax.rollout import sizes
from r1jax.rollout.engine import Engine
from r1jax.train import policy_step
from tests.conftest import forward, make, small_config
from tests.rollout.conftest import (
  PARAMS,
  SIZES,
  request_of,
  sample_three,
  two_prompts,
)
from tests.train.batches import packed, unpacked


def _scored(model, params, rollout, temperature=1.0) -> np.ndarray:
  """Log-probabilities of a rollout by the trainer, from packed rows."""
  B, T = rollout.tokens_BT.shape
  shape = RowShape(
    row_tokens=2 * T,
    microbatch_rows=2,
    num_updates=1,
    num_samples=B,
    max_sample_tokens=T,
  )
  batch = packed(rollout, shape)
  (logp_BT,) = policy_step.token_logps(model, temperature, shape)(params, batch)
  return unpacked(batch, rollout, logp_BT)


@pytest.mark.parametrize('temperature', [1.0, 0.7])
def test_logp_is_what_the_trainer_computes(small, temperature):
  model, params, engine = small
  how = dataclasses.replace(PARAMS, temperature=temperature)
  rollout = sample_three(engine, params, jax.random.key(1), how=how)
  logp_BT = _scored(model, params, rollout, temperature)
  np.testing.assert_allclose(rollout.logp_BT, logp_BT, atol=1e-4)
  plain_BT = _scored(model, params, rollout)
  np.testing.assert_allclose(rollout.model_logp_BT, plain_BT, atol=1e-4)
  assert rollout.logp_BT.min() < -0.5


def test_greedy_tokens_are_the_argmax_of_the_full_forward(small):
  model, params, engine = small
  (made,) = engine.run(
    params,
    [
      request_of(
        [9, 11, 4], temperature=0.0, stop_token_ids=(), max_new_tokens=8
      )
    ],
  )
  want = forward(model, params, made.all_tokens[None])[0].argmax(-1)
  assert made.tokens == want[2:-1].tolist()


@pytest.mark.slow
@pytest.mark.parametrize('int8', [False, True])
def test_a_sample_does_not_depend_on_the_sampler_s_sizes(
  small, monkeypatch, int8
):
  """Few rows, large pages, short chunks, prompts read by twos: the same. So
  with an 8-bit cache: an entry is rounded before anybody sees it."""
  model, params, engine = small
  sizes = dataclasses.replace(SIZES, kv_cache_int8=int8)
  key = jax.random.key(5)
  want = sample_three(Engine(model, sizes) if int8 else engine, params, key)
  for changes in (
    dict(max_num_seqs=1, max_num_batched_tokens=1),
    dict(max_num_seqs=3, decode_steps=3),
    dict(block_size=16, decode_steps=16),
  ):
    if 'max_num_batched_tokens' in changes:
      monkeypatch.setattr(engine_file, '_PREFILL_COLUMNS', 2)
    other = Engine(model, dataclasses.replace(sizes, **changes))
    got = sample_three(other, params, key)
    np.testing.assert_array_equal(got.tokens_BT, want.tokens_BT, str(changes))
    np.testing.assert_allclose(got.logp_BT, want.logp_BT, atol=1e-5)


def test_rows_that_attend_some_after_others_sample_the_same(small, monkeypatch):
  """In groups of two, longest first, each to the end of its own pages."""
  model, params, engine = small
  rng = np.random.default_rng(0)
  requests = [
    request_of(
      rng.integers(3, 30, 1 + 3 * n), n, stop_token_ids=(), max_new_tokens=9 - n
    )
    for n in range(6)
  ]
  want = engine.run(params, requests)
  monkeypatch.setattr(cache, '_MAX_CPU_ROWS', 2)
  monkeypatch.setattr(cache, '_MIN_STRIDE_TOKENS', 4)
  monkeypatch.setattr(cache, '_MAX_STRIDE_TOKENS', 4)
  got = Engine(model, SIZES).run(params, requests)
  assert [c.tokens for c in got] == [c.tokens for c in want]
  np.testing.assert_allclose(
    np.concatenate([c.logp for c in got]),
    np.concatenate([c.logp for c in want]),
    atol=1e-5,
  )


def test_unrolled_layers_sample_what_scanned_layers_do(small, monkeypatch):
  """Few layers are unrolled on CPU; deep models stay scanned."""
  model, params, engine = small
  assert not engine.model.scan_layers
  monkeypatch.setattr(
    sizes, '_MAX_UNROLLED_LAYERS', model.config.num_hidden_layers - 1
  )
  stacked = Engine(model, SIZES)
  assert stacked.model.scan_layers
  want = sample_three(stacked, params, jax.random.key(5))
  got = sample_three(engine, params, jax.random.key(5))
  np.testing.assert_array_equal(got.tokens_BT, want.tokens_BT)
  np.testing.assert_allclose(got.logp_BT, want.logp_BT, atol=1e-5)


def test_a_sample_does_not_depend_on_the_rest_of_the_batch(small):
  """Either prompt alone, together, or in the other order: the same samples."""
  _, params, engine = small
  key = jax.random.key(5)
  both = sample_three(engine, params, key)
  for p in (0, 1):
    alone = sample_three(
      engine, params, key, jax.tree.map(lambda x: x[p : p + 1], two_prompts())
    )
    np.testing.assert_array_equal(
      both.tokens_BT[3 * p : 3 * p + 3], alone.tokens_BT
    )
  swapped = sample_three(
    engine, params, key, jax.tree.map(lambda x: x[::-1], two_prompts())
  )
  np.testing.assert_array_equal(both.tokens_BT[:3], swapped.tokens_BT[3:])
  other = sample_three(engine, params, jax.random.key(6))
  assert (other.tokens_BT != both.tokens_BT).any()


def test_a_short_pool_preempts_sequences_and_changes_nothing(small):
  model, params, engine = small
  requests = [
    request_of([3, 4, n], n, max_new_tokens=20, stop_token_ids=())
    for n in range(6)
  ]
  want = engine.run(params, requests)
  tight = Engine(
    model, dataclasses.replace(SIZES, max_model_len=23, kv_cache_tokens=44)
  ).session(params)
  got = [tight.submit(request) for request in requests]
  for _ in tight:
    pass
  assert tight.num_preemptions > 0
  assert [c.tokens for c in got] == [c.tokens for c in want]
  np.testing.assert_allclose(
    [c.logp for c in got], [c.logp for c in want], atol=1e-5
  )


def test_what_one_session_begins_another_ends(small):
  """Stopped half-way and taken up again: the same tokens, each with the
  version of the policy that drew it."""
  _, params, engine = small
  requests = [
    request_of([3, 4, n], n, max_new_tokens=20, stop_token_ids=())
    for n in range(4)
  ]
  want = engine.run(params, requests)
  first = engine.session(params, policy_version=7)
  for request in requests:
    first.submit(request)
  first.step()
  begun = first.unfinished()
  assert [len(c.tokens) for c in begun] == [4] * 4
  second = engine.session(params, policy_version=8)
  for completion in begun:
    second.submit(completion.request, completion)
  for _ in second:
    pass
  assert [c.tokens for c in begun] == [c.tokens for c in want]
  assert begun[0].policy_version == [7] * 4 + [8] * 16


def test_uneven_lengths_are_refilled_without_recompiling(small):
  """Forty requests of all lengths through eight rows: two programs, and about
  as many forward passes as the tokens need."""
  model, params, _ = small
  engine = Engine(model, dataclasses.replace(SIZES, decode_steps=2))
  engine.run(params, [request_of([1, 2], n) for n in range(40)])
  for rows in (1, 2, 3):  # The narrower programs, too.
    engine.run(params, [request_of([1, 2], n) for n in range(rows)])
  compiled = engine.num_compiled_programs()
  rng = np.random.default_rng(0)
  lengths = rng.geometric(0.2, 40).clip(1, 20)
  session = engine.session(params)
  made = [
    session.submit(
      request_of(
        rng.integers(0, 32, rng.integers(1, 12)),
        n,
        stop_token_ids=(),
        max_new_tokens=int(length),
      )
    )
    for n, length in enumerate(lengths)
  ]
  for _ in session:
    pass
  assert [len(c.tokens) for c in made] == lengths.tolist()
  assert engine.num_compiled_programs() == compiled
  assert session.decode_steps < 1.6 * lengths.sum() / 8 + lengths.max()


def _choices(model, params, rollout):
  """The experts of each token in a full forward pass that chooses freely."""
  out = model.apply(
    {'params': params},
    rollout.tokens_BT,
    transformer.positions(rollout.valid_BT),
    rollout.valid_BT.astype(np.int32),
  )
  return jnp.moveaxis(out.routing['moe_layers'].expert_BTA, 0, 2)


@pytest.fixture(scope='module')
def recorded(small):
  model, params, _ = small
  engine = Engine(model, SIZES, record_routing=True)
  return sample_three(engine, params, jax.random.key(1))


def test_recorded_experts_are_those_of_the_full_forward(small, recorded):
  model, params, engine = small
  want = np.sort(_choices(model, params, recorded), -1)
  got = np.sort(recorded.experts_BTLA, -1)
  # The last token drawn was never fed.
  fed = recorded.valid_BT & np.roll(recorded.valid_BT, -1, 1)
  fed[:, -1] = False
  np.testing.assert_array_equal(got[fed], want[fed])
  plain = sample_three(engine, params, jax.random.key(1))
  assert plain.experts_BTLA is None
  np.testing.assert_array_equal(plain.tokens_BT, recorded.tokens_BT)


def test_training_replays_the_experts_that_sampled(small, recorded):
  """After the router moved: other choices, unless the old are replayed."""
  model, params, _ = small
  router = params['moe_layers']['ffn']['router']
  moved = params | {
    'moe_layers': params['moe_layers']
    | {
      'ffn': params['moe_layers']['ffn']
      | {
        'bias': params['moe_layers']['ffn']['bias']
        + jax.random.normal(
          jax.random.key(2), (router.shape[0], router.shape[-1])
        )
      }
    }
  }
  free = _choices(model, moved, recorded)
  assert (np.sort(free, -1) != np.sort(recorded.experts_BTLA, -1)).any()
  # The bias selects only: with the old choices nothing else has changed.
  np.testing.assert_allclose(
    _scored(model, moved, recorded), recorded.logp_BT, atol=1e-4
  )
  chosen = _scored(model, moved, recorded.replace(experts_BTLA=None))
  assert np.abs(chosen - recorded.logp_BT).max() > 1e-3


def test_masks_come_from_lengths_and_the_stop_token_is_trained(small):
  """Id 0 pads, and may stop as well."""
  _, params, engine = small
  how = dataclasses.replace(PARAMS, stop_token_ids=(0, 2, 5))
  rollout = sample_three(engine, params, jax.random.key(3), how=how)
  own, seen = rollout.tokens_BT[:, 5:], set()
  for b in range(6):
    stops = np.flatnonzero(
      np.isin(own[b], how.stop_token_ids) & rollout.mask_BT[b, 5:]
    )
    length = rollout.length_B[b]
    if rollout.finish_B[b] == FINISH_STOP:
      assert stops.tolist() == [length - 1]  # The first one, and it counts.
    else:
      assert length == 10 and not stops.size
    assert rollout.mask_BT[b].sum() == length
    assert not rollout.mask_BT[b, :5].any()
    seen.add(int(rollout.finish_B[b]))
  assert seen == {FINISH_STOP, FINISH_LENGTH}


@pytest.mark.slow
def test_weights_are_sampled_in_the_compute_dtype(monkeypatch):
  """Every digit that a pass reads is there; those that none reads are not."""
  model, params = make(small_config(dtype='bfloat16'))
  engine = Engine(model, SIZES)
  laid = jax.tree_util.tree_leaves_with_path(engine.prepare_params(params))
  assert {path[-1].key for path, x in laid if x.dtype != jnp.bfloat16} == {
    'scale',
    'router',
    'bias',
  }
  got = sample_three(engine, params, jax.random.key(1))
  with monkeypatch.context() as patched:
    patched.setattr(
      engine_file, 'cast_to_compute', lambda config, params: params
    )
    want = sample_three(Engine(model, SIZES), params, jax.random.key(1))
  jax.tree.map(np.testing.assert_array_equal, got, want)
  logp_BT = _scored(model, params, got)
  assert 0 < np.abs(got.logp_BT - logp_BT)[got.mask_BT].mean() < 0.03
  # What is as it should be is not copied.
  monkeypatch.setattr(sizes, '_MAX_UNROLLED_LAYERS', 0)
  stacked = Engine(model, SIZES)
  laid = stacked.prepare_params(params)
  assert stacked.prepare_params(laid) is laid


def test_prepared_parameters_of_unrolled_layers_are_taken_as_they_are(small):
  _, params, engine = small
  assert not engine.model.scan_layers
  laid = engine.prepare_params(params)
  assert engine.prepare_params(laid) is laid
  # Layers that have another dtype are cast, not split once more.
  half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), laid)
  again = engine.prepare_params(half)
  assert jax.tree.structure(again) == jax.tree.structure(laid)
  assert {x.dtype for x in jax.tree.leaves(again)} == {jnp.dtype('float32')}
  with pytest.raises(ValueError, match='moe_layers'):
    engine.prepare_params(
      {name: x for name, x in laid.items() if name != 'moe_layers_0'}
    )


def test_nothing_of_an_old_policy_survives_in_a_cache(small):
  model, params, engine = small
  first = sample_three(engine, params, jax.random.key(0))
  programs = engine.num_compiled_programs()
  changed = jax.tree.map(lambda x: x * 1.5, params)
  second = sample_three(engine, changed, jax.random.key(0))
  assert engine.num_compiled_programs() == programs
  fresh = sample_three(Engine(model, SIZES), changed, jax.random.key(0))
  np.testing.assert_array_equal(second.tokens_BT, fresh.tokens_BT)
  assert (first.logp_BT != second.logp_BT).any()
