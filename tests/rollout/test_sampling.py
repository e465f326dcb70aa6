"""One draw: its distribution, what is cut, and the probabilities it tells."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.errors import UserError
from r1jax.rollout import sampling, speculative
from r1jax.rollout.sampling import SamplingParams

_PLAIN = SamplingParams(max_new_tokens=4, stop_token_ids=(2,))


def _draw(
  logits_V,
  rows: int = 1,
  seen=None,
  seed: int = 0,
  top_logprobs: int = 0,
  **changes,
):
  """So many draws from the same logits, each from a key of its own."""
  params = dataclasses.replace(_PLAIN, **changes)
  keys = np.asarray(
    jax.random.key_data(jax.random.split(jax.random.key(seed), rows))
  )
  ones = np.ones(rows, np.int32)
  metadata = sampling.build_metadata(
    [params] * rows,
    keys,
    0 * ones,
    ones,
    sampling.required_features([params]),
    len(logits_V),
    [seen] * rows,
  )
  return jax.jit(sampling.sample_tokens, static_argnames='num_top_logprobs')(
    jnp.tile(jnp.asarray(logits_V, jnp.float32), (rows, 1)),
    metadata,
    0,
    num_top_logprobs=top_logprobs,
  )


def _softmax(x):
  e = np.exp(x - np.max(x))
  return e / e.sum()


def _kept(probabilities, **changes) -> list[int]:
  """Which tokens can be sampled."""
  sampled = _draw(np.log(probabilities), 500, **changes)
  return sorted(set(sampled.token_B.tolist()))


@pytest.mark.parametrize('temperature', [1.0, 0.5, 2.0])
def test_samples_follow_the_distribution(temperature):
  """20,000 draws against the softmax (χ²), and both log-probabilities."""
  logits_V = np.array([2.0, 0.5, 0.0, -1.0])
  sampled = _draw(logits_V, 20000, temperature=temperature)
  want_V = _softmax(logits_V / temperature)
  count_V = np.bincount(sampled.token_B, minlength=4)
  chi2 = ((count_V - 20000 * want_V) ** 2 / (20000 * want_V)).sum()
  assert chi2 < 16.3  # 0.1 % of χ² with three degrees of freedom.
  np.testing.assert_allclose(
    sampled.logp_B, np.log(want_V)[sampled.token_B], atol=1e-5
  )
  np.testing.assert_allclose(
    sampled.model_logp_B, np.log(_softmax(logits_V))[sampled.token_B], atol=1e-5
  )


def test_what_is_cut_and_what_is_left():
  p = np.array([0.15, 0.5, 0.05, 0.3])
  assert _kept(p) == [0, 1, 2, 3]
  assert _kept(p, top_k=2) == [1, 3]
  assert _kept(p, top_p=0.8) == [1, 3]
  assert _kept(p, top_p=0.81) == [0, 1, 3]
  assert _kept(p, top_p=0.2) == [1]
  assert _kept(p, min_p=0.25) == [0, 1, 3]
  assert _kept(p, min_p=0.31) == [1, 3]
  # The nucleus is of what top_k left: 0.5 and 0.3 are 62.5 % and 37.5 %.
  assert _kept(p, top_k=2, top_p=0.6) == [1]
  sampled = _draw(np.log(p), 50, top_k=2)
  want = np.log(np.array([0, 0.625, 0, 0.375]) + 1e-30)
  np.testing.assert_allclose(sampled.logp_B, want[sampled.token_B], atol=1e-5)
  np.testing.assert_allclose(
    sampled.model_logp_B, np.log(p)[sampled.token_B], atol=1e-5
  )


def test_bans_biases_and_the_repetition_penalty():
  p = np.array([0.4, 0.3, 0.2, 0.1])
  assert _kept(p, suppress_tokens=(0, 3)) == [1, 2]
  sampled = _draw(np.log(p), 20, temperature=0.0, logit_bias={3: 5.0})
  assert set(sampled.token_B.tolist()) == {3}
  # CTRL: a positive logit is divided, a negative one multiplied.
  logits = np.array([1.0, 0.9, -1.0, -1.1])
  assert _draw(
    logits, temperature=0.0, seen=[0], repetition_penalty=1.2
  ).token_B.tolist() == [1]
  penalised = np.array([1.0, 0.9, -2.0, -1.1])
  sampled = _draw(logits, 4000, seen=[2], repetition_penalty=2.0)
  np.testing.assert_allclose(
    sampled.logp_B, np.log(_softmax(penalised))[sampled.token_B], atol=1e-5
  )


def _reference(x, params: SamplingParams, seen) -> np.ndarray:
  """The documented order in float64: bias, penalty, temperature, cuts."""
  x = np.array(x, np.float64)
  for token, bias in params.logit_bias.items():
    x[token] += bias
  x[list(params.suppress_tokens)] = -np.inf
  for token in set(seen):
    x[token] *= (
      1 / params.repetition_penalty
      if x[token] > 0
      else params.repetition_penalty
    )
  x /= params.temperature
  order = np.argsort(-x)
  x[order[params.top_k :]] = -np.inf
  p = _softmax(x)
  inside = order[np.cumsum(p[order]) - p[order] < params.top_p]
  x[~np.isin(np.arange(len(x)), inside)] = -np.inf
  x[p < params.min_p * p.max()] = -np.inf
  return x


def test_settings_are_applied_in_the_documented_order_in_float32():
  """All of them at once, on logits in bfloat16."""
  rng = np.random.default_rng(0)
  params = dataclasses.replace(
    _PLAIN,
    temperature=2.5,
    top_k=9,
    top_p=0.9,
    min_p=0.2,
    repetition_penalty=1.7,
    suppress_tokens=(4,),
    logit_bias={1: 3.0, 7: -2.0},
  )
  kept = set()
  for _ in range(20):
    logits_V = jnp.asarray(rng.normal(0, 4, 16), jnp.bfloat16)
    seen = rng.integers(0, 16, 5)
    metadata = sampling.build_metadata(
      [params],
      np.zeros((1, 2), np.uint32),
      np.zeros(1, np.int32),
      np.ones(1, np.int32),
      sampling.required_features([params]),
      16,
      [seen],
    )
    got = sampling.process_logits(logits_V[None], metadata)
    assert got.dtype == jnp.float32
    want = _reference(logits_V, params, seen)
    np.testing.assert_allclose(got[0], want, rtol=1e-5)
    kept.add(int(np.isfinite(want).sum()))
  assert len(kept) > 3  # The cuts differ from one to the other.


def test_few_programs_serve_all_settings():
  params = [
    dataclasses.replace(
      _PLAIN, top_logprobs=top, suppress_tokens=tuple(range(bans))
    )
    for top in (3, 4)
    for bans in (5, 8)
  ]
  assert len({sampling.required_features([p]) for p in params}) == 1


def test_greedy_is_exact_and_certain():
  sampled = _draw([0.1, 3.0, 2.9, -1.0], 8, temperature=0.0)
  assert sampled.token_B.tolist() == [1] * 8
  assert sampled.logp_B.tolist() == [0.0] * 8
  np.testing.assert_allclose(
    sampled.model_logp_B, np.log(_softmax([0.1, 3.0, 2.9, -1.0])[1]), atol=1e-6
  )


def test_the_first_of_equals_is_taken_and_nan_draws_a_token_still():
  """As jnp.argmax, but that a policy of NaN gives its last token."""
  assert _draw([0, 2, 2, 1], 3, temperature=0.0).token_B.tolist() == [1] * 3
  for temperature in (0.0, 1.0):
    sampled = _draw([np.nan] * 4, 3, temperature=temperature)
    assert sampled.token_B.tolist() == [3] * 3


def test_draws_are_those_of_jax_s_categorical():
  """A seed's samples: bit for bit, with tokens that are cut among them."""
  rng = np.random.default_rng(0)
  logits_BV = rng.normal(size=(64, 300)).astype(np.float32)
  logits_BV[:, ::7] = -np.inf
  keys_B = jax.random.split(jax.random.key(3), 64)
  metadata = sampling.build_metadata(
    [_PLAIN] * 64,
    np.asarray(jax.random.key_data(keys_B)),
    np.arange(64, dtype=np.int32),
    np.ones(64, np.int32),
    sampling.required_features([_PLAIN]),
    300,
  )
  nth_B = jax.vmap(jax.random.fold_in)(keys_B, np.arange(64) + 2)
  np.testing.assert_array_equal(
    jax.jit(sampling.sample_tokens)(logits_BV, metadata, 2).token_B,
    jax.vmap(jax.random.categorical)(nth_B, logits_BV),
  )


def test_the_most_likely_tokens_are_told():
  sampled = _draw(np.log([0.1, 0.6, 0.3]), 3, top_logprobs=2)
  assert sampled.top_token_BO.tolist() == [[1, 2]] * 3
  np.testing.assert_allclose(
    sampled.top_logp_BO, [[np.log(0.6), np.log(0.3)]] * 3, atol=1e-6
  )


def test_rows_of_one_batch_are_drawn_in_their_own_way():
  params = [
    dataclasses.replace(_PLAIN, temperature=0.0),
    dataclasses.replace(_PLAIN, top_k=1),
    _PLAIN,
    None,
  ]
  metadata = sampling.build_metadata(
    params,
    np.zeros((4, 2), np.uint32),
    np.zeros(4, np.int32),
    np.array([1, 1, 1, 0], np.int32),
    sampling.required_features([h for h in params if h]),
    5,
  )
  processed = sampling.process_logits(
    jnp.tile(jnp.arange(5.0), (4, 1)), metadata
  )
  np.testing.assert_array_equal(processed[0], np.arange(5.0))
  assert np.isfinite(processed[1]).tolist() == [False] * 4 + [True]
  np.testing.assert_array_equal(processed[2], np.arange(5.0))
  assert metadata.stop_token_BO[:, 0].tolist() == [2, 2, 2, -1]


@pytest.mark.parametrize(
  'changes,message',
  [
    ({'max_new_tokens': 0}, 'max_new_tokens must be at least 1, got 0'),
    ({'temperature': -1.0}, 'temperature must not be below 0, got -1.0'),
    ({'top_p': 0.0}, r'top_p must lie within \(0, 1\], got 0.0'),
    ({'top_p': 1.5}, 'top_p'),
    ({'min_p': 1.5}, 'min_p'),
    ({'top_k': -1}, 'top_k'),
    ({'repetition_penalty': 0.0}, 'repetition'),
    ({'temperature': np.inf}, 'temperature must be a finite number'),
    ({'logit_bias': {3: np.nan}}, 'logit_bias must hold finite numbers'),
    ({'logit_bias': {3: np.inf}}, 'logit_bias'),
    ({'max_total_tokens': -1}, 'max_total_tokens'),
    ({'stop_strings': ('',)}, 'stop_strings'),
  ],
)
def test_a_wrong_setting_is_named(changes, message):
  with pytest.raises(UserError, match=message):
    dataclasses.replace(_PLAIN, **changes)


@pytest.mark.parametrize(
  'changes,message',
  [
    ({'stop_token_ids': (2, 40)}, 'stop_token_ids has 40, .* vocabulary of 32'),
    ({'suppress_tokens': (-1,)}, 'suppress_tokens has -1'),
    ({'logit_bias': {99: 1.0}}, 'logit_bias has 99'),
    ({'suppress_tokens': tuple(range(32))}, 'leave no token'),
    (
      {'suppress_tokens': tuple(range(1, 32)), 'logit_bias': {0: -np.inf}},
      'leave no token',
    ),
    (
      {'top_logprobs': 33},
      'top_logprobs = 33 is more than the vocabulary of 32',
    ),
  ],
)
def test_a_token_outside_the_vocabulary_is_named(changes, message):
  with pytest.raises(UserError, match=message):
    dataclasses.replace(_PLAIN, **changes).validate(32)


@pytest.mark.parametrize('temperature', [1.0, 0.5, 0.0])
def test_verified_drafts_have_the_distribution_of_plain_sampling(temperature):
  """Chains of none, one and two drafts; each token is the model's, and a draft
  is accepted as often as the two distributions overlap."""
  rows = 30000
  p_TV = np.log(
    [
      [0.5, 0.2, 0.2, 0.1, 1e-30],
      [0.1, 0.1, 0.6, 0.1, 0.1],
      [0.3, 0.1, 0.1, 0.2, 0.3],
    ]
  )
  q_KV = np.log([[0.1, 0.6, 0.1, 0.1, 0.1], [0.05, 0.25, 0.4, 0.1, 0.2]])
  params = SamplingParams(
    max_new_tokens=3, stop_token_ids=(), temperature=temperature
  )
  metadata = sampling.build_metadata(
    [params] * rows,
    np.asarray(jax.random.key_data(jax.random.split(jax.random.key(0), rows))),
    np.zeros(rows, np.int32),
    np.full(rows, 3, np.int32),
    sampling.SamplingFeatures(),
    5,
  )
  count_B = np.arange(rows) // (rows // 3)

  @jax.jit
  def run(metadata):
    of = lambda logits: jnp.broadcast_to(logits, (rows, *logits.shape))
    processed = [sampling.process_logits(of(q_V), metadata) for q_V in q_KV]
    drafts = speculative.Drafts(
      token_BK=jnp.stack(
        [
          speculative.sample_draft(x_BV, metadata, k)
          for k, x_BV in enumerate(processed)
        ],
        1,
      ),
      logits_BKV=jnp.stack(processed, 1),
      confidence_BK=jnp.zeros((rows, 2)),
      count_B=jnp.asarray(count_B),
    )
    return drafts, *speculative.verify_drafts(of(p_TV), metadata, 0, drafts)

  drafts, sampled, accepted_B = jax.tree.map(np.asarray, run(metadata))
  assert (accepted_B <= count_B).all()
  if not temperature:  # The first draft is wrong, the second would be right.
    assert (sampled.token_B[:, 0] == 0).all() and not accepted_B.any()
    assert (drafts.token_BK == [1, 2]).all()
    return
  softmax = lambda x: (
    np.exp(x / temperature) / np.exp(x / temperature).sum(-1, keepdims=True)
  )
  p_TV, q_KV = softmax(p_TV), softmax(q_KV)
  overlap = np.minimum(p_TV[:2], q_KV).sum(-1)
  for count in range(3):
    some = count_B == count
    token_BT, accepted = sampled.token_B[some], accepted_B[some]
    for t in range(count + 1):  # Column t counts after t accepted drafts.
      tokens = token_BT[accepted >= t, t]
      assert len(tokens) > 500
      share = np.bincount(tokens, minlength=5) / len(tokens)
      assert np.abs(share - p_TV[t]).max() < 4 * 0.5 / np.sqrt(len(tokens))
      np.testing.assert_allclose(
        sampled.logp_B[some][accepted >= t, t],
        np.log(p_TV[t])[tokens],
        atol=1e-5,
      )
    for k in range(count):
      rate = np.mean(accepted[accepted >= k] > k)
      assert rate == pytest.approx(overlap[k], abs=0.02)
    drafted = drafts.token_BK[some]
    kept = accepted[:, None] > np.arange(2)
    assert (token_BT[:, :2] == drafted)[kept].all()
