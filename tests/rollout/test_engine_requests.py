"""Requests: groups, budgets, stop strings, turns, and what is refused."""

import dataclasses

import jax
import numpy as np
import pytest

from r1jax.errors import UserError
from r1jax.rollout.engine import Engine
from r1jax.rollout.session import Session
from tests.conftest import forward
from tests.rollout.conftest import (
  SIZES,
  request_of,
  sample_three,
  text_of,
  two_prompts,
)


def test_a_group_reads_its_prompt_once(small):
  """Sixteen samples are read as one is."""
  model, params, _ = small
  one = request_of(range(3, 20), stop_token_ids=())
  prefilled = {}
  for count in (1, 16):
    wide = Engine(model, dataclasses.replace(SIZES, max_num_seqs=16))
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
  rollout = sample_three(engine, params, jax.random.key(5))
  for p in (0, 1):
    rows = {tuple(row) for row in rollout.tokens_BT[3 * p : 3 * p + 3].tolist()}
    assert len(rows) == 3
  assert rollout.group_B.tolist() == [0, 0, 0, 1, 1, 1]


def test_stop_strings_end_a_completion_where_they_are_complete(small):
  _, params, engine = small
  (free,) = engine.run(params, [request_of([9, 4], stop_token_ids=())])
  string = text_of(free.tokens)[4:7]  # Beyond the first chunk of four.
  (made,) = engine.run(
    params, [request_of([9, 4], stop_token_ids=(), stop_strings=(string,))]
  )
  end = text_of(free.tokens).index(string) + 3
  assert made.tokens == free.tokens[:end] and made.finish_reason == 'stop'
  (completion,) = engine.run(
    params,
    [
      request_of(
        [9, 4], stop_token_ids=(), stop_strings=(string,), top_logprobs=2
      )
    ],
  )
  for field in ('logp', 'model_logp', 'policy_version', 'top_logprobs'):
    assert len(getattr(completion, field)) == end


def test_prompt_and_completion_have_a_budget_together(small):
  _, params, engine = small
  (free,) = engine.run(params, [request_of([9, 4, 3], stop_token_ids=())])
  (made,) = engine.run(
    params, [request_of([9, 4, 3], stop_token_ids=(), max_total_tokens=7)]
  )
  assert made.tokens == free.tokens[:4] and made.finish_reason == 'length'
  with pytest.raises(UserError, match='leaves nothing of max_total_tokens = 3'):
    engine.run(params, [request_of([9, 4, 3], max_total_tokens=3)])


@pytest.mark.parametrize('int8', [False, True])
def test_the_next_turn_of_a_conversation_reads_what_is_new(small, int8):
  """And samples what it does in a session that has seen nothing."""
  model, params, _ = small
  engine = Engine(
    model, dataclasses.replace(SIZES, kv_cache_int8=int8), record_routing=True
  )
  session = engine.session(params)
  first = session.submit(
    request_of(
      [9, 4, 3], 1, stop_token_ids=(), top_logprobs=1, max_new_tokens=7
    )
  )
  for _ in session:
    pass
  again = request_of(
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
  twice = jax.tree.map(lambda x: x[np.array([0, 1, 0])], two_prompts())
  rollout = sample_three(engine, params, jax.random.key(5), twice)
  want = sample_three(engine, params, jax.random.key(5))
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


def test_requests_of_one_batch_have_settings_of_their_own(small):
  model, params, engine = small
  plain = request_of([9, 4], 1, stop_token_ids=())
  (want,) = engine.run(params, [plain])
  greedy = request_of(
    [9, 4], 2, temperature=0.0, stop_token_ids=(), top_logprobs=3
  )
  banned = request_of(
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
      request_of(
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


def test_a_request_that_cannot_be_served_is_named_and_the_others_go_on(small):
  _, params, engine = small
  session = engine.session(params)
  good = session.submit(request_of([1, 2], 0))
  for n, (request, message) in enumerate(
    [
      (request_of([], 1), 'request #1: the prompt is empty'),
      (
        request_of([1] * 30, 2),
        'prompt of 30 and max_new_tokens of 10 exceed max_model_len = 32',
      ),
      (request_of([1, 40], 3), 'token outside of the vocabulary of 32'),
      (
        dataclasses.replace(request_of([1], 5), key=np.zeros(4, np.uint32)),
        r'#5: its key has shape \(4,\)',
      ),
      (request_of([1], 4, stop_token_ids=(77,)), '#4: .*stop_token_ids has 77'),
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
    Engine(model, dataclasses.replace(SIZES, kv_cache_tokens=20))
  with pytest.raises(
    UserError,
    match='a device has .* GB, and sampling needs '
    'weights as trained.*; lower kv_cache_tokens',
  ):
    Engine(model, dataclasses.replace(SIZES, kv_cache_tokens=1 << 42))
  with pytest.raises(UserError, match='max_num_seqs = 0 must be at least 1'):
    dataclasses.replace(SIZES, max_num_seqs=0)


def test_a_process_that_only_trains_says_so(small):
  _, _, engine = small
  session = Session(engine, None, 1)  # It has no weights to sample with.
  with pytest.raises(UserError, match='this one only trains; give --config.ro'):
    session.submit(request_of([9, 4]))
