"""Sampling: the keys make the sample, and nothing around it does."""

import dataclasses
import json
import os
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.errors import UserError
from r1jax.model import cache, parameters, transformer
from r1jax.model.parameters import parameter_shardings
from r1jax.model.transformer import Transformer
from r1jax.records import FINISH_LENGTH, FINISH_STOP, PromptBatch
from r1jax.rollout import engine as engine_file
from r1jax.rollout.engine import Engine, EngineConfig
from r1jax.rollout.sampling import SamplingParams
from r1jax.rollout.scheduler import Request
from r1jax.sharding import Layout, make_mesh
from r1jax.train import policy_step
from tests.conftest import (
  ROOT,
  dense_config,
  forward,
  make,
  one_device,
  small_config,
)
from tests.rollout import sampling_process

_HOW = SamplingParams(max_new_tokens=10, stop_token_ids=(2, 5))
_SIZES = EngineConfig(
  max_num_seqs=8, max_model_len=32, block_size=4, decode_steps=4
)


def _prompts():
  """Two prompts of different length, left-padded."""
  tokens = np.array([[0, 0, 0, 9, 11], [7, 8, 9, 4, 12]], np.int32)
  valid = np.array([[0, 0, 0, 1, 1], [1, 1, 1, 1, 1]], bool)
  return PromptBatch(
    tokens_PT=tokens, valid_PT=valid, id_P=np.array([17, 4], np.uint32)
  )


def _request(prompt, seed: int = 0, **changes) -> Request:
  key = np.asarray(jax.random.key_data(jax.random.key(seed)))
  return Request(
    name=f'#{seed}',
    prompt=np.asarray(prompt, np.int32),
    key=key,
    sampling_params=dataclasses.replace(_HOW, **changes),
  )


@pytest.fixture(scope='module')
def small():
  """A model, its parameters, and an engine that compiles once."""
  model, params = make(small_config())
  return model, params, Engine(model, _SIZES, detokenize=_text)


def _text(ids) -> str:
  return ''.join(chr(97 + i) if i < 26 else '_' for i in ids)


def _three(engine, params, key, prompts=None, how=_HOW):
  return engine.generate(params, prompts or _prompts(), 3, how, key)


@pytest.mark.parametrize('temperature', [1.0, 0.7])
def test_logp_is_what_the_trainer_computes(small, temperature):
  model, params, engine = small
  how = dataclasses.replace(_HOW, temperature=temperature)
  rollout = _three(engine, params, jax.random.key(1), how=how)
  logp_BT = policy_step.token_logps(model, temperature, 5)(params, rollout)
  np.testing.assert_allclose(rollout.logp_BT, logp_BT, atol=1e-4)
  plain_BT = policy_step.token_logps(model, 1.0, 5)(params, rollout)
  np.testing.assert_allclose(rollout.model_logp_BT, plain_BT, atol=1e-4)
  assert rollout.logp_BT.min() < -0.5


def test_greedy_tokens_are_the_argmax_of_the_full_forward(small):
  model, params, engine = small
  (made,) = engine.run(
    params,
    [
      _request([9, 11, 4], temperature=0.0, stop_token_ids=(), max_new_tokens=8)
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
  sizes = dataclasses.replace(_SIZES, kv_cache_int8=int8)
  key = jax.random.key(5)
  want = _three(Engine(model, sizes) if int8 else engine, params, key)
  for changes in (
    dict(max_num_seqs=1, max_num_batched_tokens=1),
    dict(max_num_seqs=3, decode_steps=3),
    dict(block_size=16, decode_steps=16),
  ):
    if 'max_num_batched_tokens' in changes:
      monkeypatch.setattr(engine_file, '_PREFILL_COLUMNS', 2)
    other = Engine(model, dataclasses.replace(sizes, **changes))
    got = _three(other, params, key)
    np.testing.assert_array_equal(got.tokens_BT, want.tokens_BT, str(changes))
    np.testing.assert_allclose(got.logp_BT, want.logp_BT, atol=1e-5)


def test_rows_that_attend_some_after_others_sample_the_same(small, monkeypatch):
  """In groups of two, longest first, each to the end of its own pages."""
  model, params, engine = small
  rng = np.random.default_rng(0)
  requests = [
    _request(
      rng.integers(3, 30, 1 + 3 * n), n, stop_token_ids=(), max_new_tokens=9 - n
    )
    for n in range(6)
  ]
  want = engine.run(params, requests)
  monkeypatch.setattr(cache, '_MAX_CPU_ROWS', 2)
  monkeypatch.setattr(cache, '_MIN_STRIDE_TOKENS', 4)
  monkeypatch.setattr(cache, '_MAX_STRIDE_TOKENS', 4)
  got = Engine(model, _SIZES).run(params, requests)
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
    engine_file, '_MAX_UNROLLED_LAYERS', model.config.num_hidden_layers - 1
  )
  stacked = Engine(model, _SIZES)
  assert stacked.model.scan_layers
  want = _three(stacked, params, jax.random.key(5))
  got = _three(engine, params, jax.random.key(5))
  np.testing.assert_array_equal(got.tokens_BT, want.tokens_BT)
  np.testing.assert_allclose(got.logp_BT, want.logp_BT, atol=1e-5)


def test_a_sample_does_not_depend_on_the_rest_of_the_batch(small):
  """Either prompt alone, together, or in the other order: the same samples."""
  _, params, engine = small
  key = jax.random.key(5)
  both = _three(engine, params, key)
  for p in (0, 1):
    alone = _three(
      engine, params, key, jax.tree.map(lambda x: x[p : p + 1], _prompts())
    )
    np.testing.assert_array_equal(
      both.tokens_BT[3 * p : 3 * p + 3], alone.tokens_BT
    )
  swapped = _three(
    engine, params, key, jax.tree.map(lambda x: x[::-1], _prompts())
  )
  np.testing.assert_array_equal(both.tokens_BT[:3], swapped.tokens_BT[3:])
  other = _three(engine, params, jax.random.key(6))
  assert (other.tokens_BT != both.tokens_BT).any()


def test_a_short_pool_makes_rows_give_way_and_changes_nothing(small):
  model, params, engine = small
  requests = [
    _request([3, 4, n], n, max_new_tokens=20, stop_token_ids=())
    for n in range(6)
  ]
  want = engine.run(params, requests)
  tight = Engine(
    model, dataclasses.replace(_SIZES, max_model_len=23, kv_cache_tokens=44)
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
    _request([3, 4, n], n, max_new_tokens=20, stop_token_ids=())
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
  engine = Engine(model, dataclasses.replace(_SIZES, decode_steps=2))
  engine.run(params, [_request([1, 2], n) for n in range(40)])
  for rows in (1, 2, 3):  # The narrower programs, too.
    engine.run(params, [_request([1, 2], n) for n in range(rows)])
  compiled = engine.num_compiled_programs()
  rng = np.random.default_rng(0)
  lengths = rng.geometric(0.2, 40).clip(1, 20)
  session = engine.session(params)
  made = [
    session.submit(
      _request(
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
  engine = Engine(model, _SIZES, record_routing=True)
  return _three(engine, params, jax.random.key(1))


def test_recorded_experts_are_those_of_the_full_forward(small, recorded):
  model, params, engine = small
  want = np.sort(_choices(model, params, recorded), -1)
  got = np.sort(recorded.experts_BTLA, -1)
  # The last token drawn was never fed.
  fed = recorded.valid_BT & np.roll(recorded.valid_BT, -1, 1)
  fed[:, -1] = False
  np.testing.assert_array_equal(got[fed], want[fed])
  plain = _three(engine, params, jax.random.key(1))
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
  score = policy_step.token_logps(model, 1.0, 5)
  np.testing.assert_allclose(
    score(moved, recorded), recorded.logp_BT, atol=1e-4
  )
  chosen = score(moved, recorded.replace(experts_BTLA=None))
  assert np.abs(chosen - recorded.logp_BT).max() > 1e-3


def test_masks_come_from_lengths_and_the_stop_token_is_trained(small):
  """Id 0 pads, and may stop as well."""
  _, params, engine = small
  how = dataclasses.replace(_HOW, stop_token_ids=(0, 2, 5))
  rollout = _three(engine, params, jax.random.key(3), how=how)
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


def test_a_group_reads_its_prompt_once(small):
  """Sixteen samples are read as one is."""
  model, params, _ = small
  one = _request(range(3, 20), stop_token_ids=())
  prefilled = {}
  for count in (1, 16):
    wide = Engine(model, dataclasses.replace(_SIZES, max_num_seqs=16))
    session = wide.session(params)
    made = [
      session.submit(dataclasses.replace(one, key=np.array([0, n], np.uint32)))
      for n in range(count)
    ]
    for _ in session:
      pass
    prefilled[count] = session.prefilled_tokens
    assert all(len(c.tokens) == 10 for c in made)
  assert prefilled == {1: 16, 16: 16}


def test_samples_of_a_group_differ(small):
  _, params, engine = small
  rollout = _three(engine, params, jax.random.key(5))
  for p in (0, 1):
    rows = {tuple(row) for row in rollout.tokens_BT[3 * p : 3 * p + 3].tolist()}
    assert len(rows) == 3
  assert rollout.group_B.tolist() == [0, 0, 0, 1, 1, 1]


def test_stop_strings_end_a_completion_where_they_are_complete(small):
  _, params, engine = small
  (free,) = engine.run(params, [_request([9, 4], stop_token_ids=())])
  string = _text(free.tokens)[4:7]  # Beyond the first chunk of four.
  (made,) = engine.run(
    params, [_request([9, 4], stop_token_ids=(), stop_strings=(string,))]
  )
  end = _text(free.tokens).index(string) + 3
  assert made.tokens == free.tokens[:end] and made.finish_reason == 'stop'
  (completion,) = engine.run(
    params,
    [
      _request(
        [9, 4], stop_token_ids=(), stop_strings=(string,), top_logprobs=2
      )
    ],
  )
  for field in ('logp', 'model_logp', 'policy_version', 'top_logprobs'):
    assert len(getattr(completion, field)) == end


def test_prompt_and_completion_have_a_budget_together(small):
  _, params, engine = small
  (free,) = engine.run(params, [_request([9, 4, 3], stop_token_ids=())])
  (made,) = engine.run(
    params, [_request([9, 4, 3], stop_token_ids=(), max_total_tokens=7)]
  )
  assert made.tokens == free.tokens[:4] and made.finish_reason == 'length'
  with pytest.raises(UserError, match='leaves nothing of max_total_tokens = 3'):
    engine.run(params, [_request([9, 4, 3], max_total_tokens=3)])


@pytest.mark.parametrize('int8', [False, True])
def test_the_next_turn_of_a_conversation_reads_what_is_new(small, int8):
  """And samples what it does in a session that has seen nothing."""
  model, params, _ = small
  engine = Engine(
    model, dataclasses.replace(_SIZES, kv_cache_int8=int8), record_routing=True
  )
  session = engine.session(params)
  first = session.submit(
    _request([9, 4, 3], 1, stop_token_ids=(), top_logprobs=1, max_new_tokens=7)
  )
  for _ in session:
    pass
  again = _request(
    [*first.all_tokens, 8, 7, 6], 2, stop_token_ids=(), max_new_tokens=6
  )
  second, before = session.submit(again), session.prefilled_tokens
  for _ in session:
    pass
  assert session.prefilled_tokens - before == 3  # The last one drawn, 8 and 7.
  (want,) = engine.run(params, [again])
  assert second.tokens == want.tokens
  np.testing.assert_allclose(second.logp, want.logp, atol=1e-5)
  np.testing.assert_array_equal(second.prompt_experts, want.prompt_experts)


def test_a_prompt_that_comes_twice_has_other_samples(small):
  """And the first time those that it has alone."""
  _, params, engine = small
  twice = jax.tree.map(lambda x: x[np.array([0, 1, 0])], _prompts())
  rollout = _three(engine, params, jax.random.key(5), twice)
  want = _three(engine, params, jax.random.key(5))
  np.testing.assert_array_equal(rollout.tokens_BT[:6], want.tokens_BT)
  assert (
    len(
      {
        tuple(row)
        for row in np.asarray(rollout.tokens_BT)[[0, 1, 2, 6, 7, 8]].tolist()
      }
    )
    == 6
  )


def test_weights_are_sampled_in_the_compute_dtype(monkeypatch):
  """Every digit that a pass reads is there; those that none reads are not."""
  model, params = make(small_config(dtype='bfloat16'))
  engine = Engine(model, _SIZES)
  laid = jax.tree_util.tree_leaves_with_path(engine.prepare_params(params))
  assert {path[-1].key for path, x in laid if x.dtype != jnp.bfloat16} == {
    'scale',
    'router',
    'bias',
  }
  got = _three(engine, params, jax.random.key(1))
  with monkeypatch.context() as patched:
    patched.setattr(
      engine_file, 'cast_to_compute', lambda config, params: params
    )
    want = _three(Engine(model, _SIZES), params, jax.random.key(1))
  jax.tree.map(np.testing.assert_array_equal, got, want)
  logp_BT = policy_step.token_logps(model, 1.0, 5)(params, got)
  assert 0 < np.abs(got.logp_BT - logp_BT)[got.mask_BT].mean() < 0.03
  # What is as it should be is not copied.
  monkeypatch.setattr(engine_file, '_MAX_UNROLLED_LAYERS', 0)
  stacked = Engine(model, _SIZES)
  laid = stacked.prepare_params(params)
  assert stacked.prepare_params(laid) is laid


def test_requests_of_one_batch_have_settings_of_their_own(small):
  model, params, engine = small
  plain = _request([9, 4], 1, stop_token_ids=())
  (want,) = engine.run(params, [plain])
  greedy = _request(
    [9, 4], 2, temperature=0.0, stop_token_ids=(), top_logprobs=3
  )
  banned = _request(
    [9, 4], 1, stop_token_ids=(), suppress_tokens=(want.tokens[0],)
  )
  got = engine.run(params, [plain, greedy, banned])
  assert got[0].tokens == want.tokens and not got[0].top_logprobs
  assert want.tokens[0] not in got[2].tokens
  logits = forward(model, params, got[1].all_tokens[None])[0]
  for t, best in enumerate(got[1].top_logprobs):
    logp_V = jax.nn.log_softmax(logits[1 + t])
    assert [token for token, _ in best] == np.argsort(-logp_V)[:3].tolist()
    np.testing.assert_allclose(
      [p for _, p in best], np.sort(-logp_V)[:3] * -1, atol=1e-4
    )
  (again,) = engine.run(
    params,
    [
      _request(
        [9, 4],
        3,
        temperature=0.0,
        repetition_penalty=1e6,
        stop_token_ids=(),
        max_new_tokens=6,
      )
    ],
  )
  assert len({9, 4, *again.tokens}) == 8  # Nothing comes twice.


@pytest.mark.slow
@pytest.mark.parametrize(
  'config,sizes',
  [
    (small_config(), _SIZES),
    (
      dense_config(num_attention_heads=4, num_key_value_heads=2),
      dataclasses.replace(_SIZES, kv_cache_int8=True),
    ),
  ],
  ids=['mla', 'gqa-int8'],
)
def test_eight_devices_sample_what_one_does(config, sizes):
  """Two prompts over four parts of a batch: the mesh need not divide them."""
  model, params = make(config)
  want = _three(Engine(model, sizes), params, jax.random.key(2))
  experts = 2 if config.n_routed_experts else 1
  layout = Layout(make_mesh(dict(data=-1, tensor=2, expert=experts)))
  wide = Transformer(config, layout)
  spread = jax.device_put(
    jax.device_get(params), parameter_shardings(wide, layout)
  )
  got = _three(Engine(wide, sizes), spread, jax.random.key(2))
  np.testing.assert_array_equal(got.tokens_BT, want.tokens_BT)
  np.testing.assert_allclose(got.logp_BT, want.logp_BT, atol=1e-5)


def test_nothing_of_an_old_policy_survives_in_a_cache(small):
  model, params, engine = small
  first = _three(engine, params, jax.random.key(0))
  programs = engine.num_compiled_programs()
  changed = jax.tree.map(lambda x: x * 1.5, params)
  second = _three(engine, changed, jax.random.key(0))
  assert engine.num_compiled_programs() == programs
  fresh = _three(Engine(model, _SIZES), changed, jax.random.key(0))
  np.testing.assert_array_equal(second.tokens_BT, fresh.tokens_BT)
  assert (first.logp_BT != second.logp_BT).any()


def test_a_request_that_cannot_be_served_is_named_and_the_others_go_on(small):
  _, params, engine = small
  session = engine.session(params)
  good = session.submit(_request([1, 2], 0))
  for n, (request, message) in enumerate(
    [
      (_request([], 1), 'request #1: the prompt is empty'),
      (
        _request([1] * 30, 2),
        'prompt of 30 and max_new_tokens of 10 exceed max_model_len = 32',
      ),
      (_request([1, 40], 3), 'token outside of the vocabulary of 32'),
      (
        dataclasses.replace(_request([1], 5), key=np.zeros(4, np.uint32)),
        r'#5: its key has shape \(4,\)',
      ),
      (_request([1], 4, stop_token_ids=(77,)), '#4: .*stop_token_ids has 77'),
    ]
  ):
    with pytest.raises(UserError, match=message):
      session.submit(request)
  assert [c for finished in session for c in finished] == [good]
  assert good.finish_reason


def test_a_pool_that_does_not_fit_is_refused_before_it_is_made(small):
  model, *_ = small
  with pytest.raises(
    UserError,
    match='kv_cache_tokens = 20 holds no request of '
    'max_model_len = 32; it needs 36',
  ):
    Engine(model, dataclasses.replace(_SIZES, kv_cache_tokens=20))
  with pytest.raises(
    UserError,
    match='a device has .* GB, and sampling needs '
    'weights as trained.*; lower kv_cache_tokens',
  ):
    Engine(model, dataclasses.replace(_SIZES, kv_cache_tokens=1 << 42))
  with pytest.raises(UserError, match='max_num_seqs = 0 must be at least 1'):
    dataclasses.replace(_SIZES, max_num_seqs=0)


@pytest.mark.parametrize(
  'config',
  [
    small_config(dtype='bfloat16'),
    dense_config(num_attention_heads=4, num_key_value_heads=2),
  ],
  ids=['mla', 'gqa'],
)
@pytest.mark.parametrize(
  'mesh',
  [dict(tensor=2, expert=2, fsdp=2), dict(data=8), dict(data=4, tensor=2)],
  ids=str,
)
def test_the_memory_that_is_counted_is_what_a_device_holds(config, mesh):
  if not config.n_routed_experts:
    mesh = mesh | {
      'fsdp': mesh.get('fsdp', 1) * mesh.get('expert', 1),
      'expert': 1,
    }
  layout = Layout(make_mesh(mesh))
  model = Transformer(config, layout)
  params = parameters.init_params(model, jax.random.key(0))
  engine = Engine(model, _SIZES)
  trained, sampled, pool = (
    sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(tree))
    for tree in (params, engine.prepare_params(params), engine.new_kv_cache())
  )
  counted = engine_file.memory_per_device(model, layout, _SIZES)
  bytes_of = list(counted.values())
  assert bytes_of == [trained, sampled, pool]


def test_weights_that_are_sampled_as_they_are_trained_count_once(
  small, monkeypatch
):
  model, params, _ = small
  monkeypatch.setattr(engine_file, '_MAX_UNROLLED_LAYERS', 0)
  assert Engine(model, _SIZES).prepare_params(params) is params
  trained, sampled, _ = engine_file.memory_per_device(
    model, model.layout, _SIZES
  ).values()
  assert trained and not sampled


def _start(address: str, processes: int, process: int, devices: int):
  env = dict(
    os.environ,
    JAX_PLATFORMS='cpu',
    JAX_COMPILATION_CACHE_DIR=jax.config.jax_compilation_cache_dir,
    JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS='0.5',
  )
  return subprocess.Popen(
    [
      sys.executable,
      '-m',
      'tests.rollout.sampling_process',
      address,
      *map(str, (processes, process, devices)),
    ],
    env=env,
    cwd=ROOT,
    text=True,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
  )


def _told(process) -> dict:
  out, errors = process.communicate(timeout=240)
  assert process.returncode == 0, errors
  return json.loads(out.splitlines()[-1])


@pytest.mark.slow
def test_two_processes_of_two_devices_sample_what_one_device_does():
  """Speculating, with a pool that is short, and with weights that train split
  over both processes and decode whole on each."""
  with socket.socket() as free:
    free.bind(('localhost', 0))
    address = f'localhost:{free.getsockname()[1]}'
  pair = [_start(address, 2, process, 2) for process in (0, 1)]
  alone = sampling_process.drawn(one_device())
  first, second = map(_told, pair)
  assert (first['processes'], first['devices']) == (2, 4)
  assert first == second and first['preempted'] > 0
  assert first['tokens'] == alone['tokens']
  for got, want in zip(first['logp'], alone['logp']):
    np.testing.assert_allclose(got, want, atol=1e-5)
