"""Speculative decoding: the same distribution for fewer forward passes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.errors import UserError
from r1jax.model.parameters import parameter_shardings
from r1jax.model.transformer import Transformer
from r1jax.rollout import assemble, sampling, speculative
from r1jax.rollout.engine import Engine
from r1jax.rollout.sampling import SamplingParams
from r1jax.rollout.scheduler import Request
from r1jax.rollout.sizes import EngineConfig
from r1jax.sharding import Layout, make_mesh
from tests.conftest import forward, make, small_config

# A pool that is short for two rows: now and then one is preempted.
_SIZES = EngineConfig(
  max_num_seqs=2,
  max_model_len=32,
  block_size=4,
  decode_steps=3,
  kv_cache_tokens=44,
  speculative=True,
  num_speculative_tokens=3,
  draft_confidence_threshold=0.1,
  speculative_max_num_seqs=2,
)


def _request(n: int, **changes) -> Request:
  """Prompts of one to eleven tokens."""
  rng = np.random.default_rng(n)
  params = SamplingParams(
    **dict(max_new_tokens=20, stop_token_ids=(), temperature=0.0) | changes
  )
  return Request(
    name=n,
    prompt=rng.integers(0, 32, 1 + n % 11).astype('i4'),
    key=np.asarray(jax.random.key_data(jax.random.key(n))),
    sampling_params=params,
  )


def _agreeing(params):
  """Returns parameters whose MTP module often predicts what the model does.

  Layers add little to the embedding of the last token, so that both the model
  and the module mostly see this token; a larger head makes both sure of it.
  """

  def scaled(path, x):
    return x * {'out': 0.03, 'down': 0.03, 'head': 4}.get(path[-1].key, 1)

  params = jax.tree_util.tree_map_with_path(scaled, params)
  eye_DD = jnp.eye(params['embedding'].shape[1])
  merge_LdD = jnp.concatenate([0.3 * eye_DD, 0.1 * eye_DD])[None]
  assert merge_LdD.shape == params['mtp']['merge'].shape
  return params | {'mtp': params['mtp'] | {'merge': merge_LdD}}


@pytest.fixture(scope='module')
def small():
  """A model, its parameters, an engine that speculates and one that does not."""
  model, params = make(small_config(num_nextn_predict_layers=1))
  engine = Engine(model, _SIZES, record_routing=True)
  plain = Engine(
    model, dataclasses.replace(_SIZES, speculative=False), record_routing=True
  )
  return model, _agreeing(params), engine, plain


class _PlainDrafts:
  """Drafts greedily without a cache, by the module's pass over whole texts."""

  def __init__(self, model, params):
    self._width = _SIZES.max_model_len + _SIZES.num_speculative_tokens
    shape = 1, self._width
    position_BT = np.broadcast_to(np.arange(self._width), shape)
    segment_BT = np.ones(shape, np.int32)

    @jax.jit
    def hidden(tokens_BT):
      return model.apply(
        {'params': params}, tokens_BT, position_BT, segment_BT
      ).hidden_BTD

    @jax.jit
    def ahead(hidden_BTD, tokens_BT):
      hidden_ZBTD, _ = model.apply(
        {'params': params},
        hidden_BTD,
        tokens_BT,
        position_BT,
        segment_BT,
        method='predict_ahead',
      )
      return hidden_ZBTD[0], model.apply(
        {'params': params}, hidden_ZBTD[0], method='logits'
      )

    self._hidden, self._ahead = hidden, ahead

  def passes(self, completion):
    """Returns the passes of a completion, and drafted and accepted tokens."""
    K, tokens = _SIZES.num_speculative_tokens, completion.all_tokens
    hidden_BTD = np.asarray(self._hidden(self._padded(tokens)))
    last, passes = len(completion.request.prompt) - 1, 0
    horizon, rejected, doubt = K, 0.0, 0.0
    counts = np.zeros((2, K), int)
    while last < len(tokens) - 1:
      passes += 1
      most = min(horizon, len(tokens) - 1 - last)
      ratio = (1 + rejected) / (1 + doubt)
      drafts, doubts = self._chain(hidden_BTD, tokens, last, most, ratio)
      right = [
        draft == token for draft, token in zip(drafts, tokens[last + 1 :])
      ]
      kept = right.index(False) if False in right else len(right)
      counts[0, : len(drafts)] += 1
      counts[1, :kept] += 1
      rejected *= 0.9
      doubt = 0.9 * doubt + sum(doubts[: kept + 1])
      if kept < len(drafts):
        rejected += 1
        horizon = max(horizon - 1, kept, 1)
      elif kept == horizon:
        horizon = min(horizon + 2, K)
      last += 1 + kept
    return passes, counts[0].tolist(), counts[1].tolist()

  def _chain(self, hidden_BTD, tokens, last: int, most: int, ratio: float):
    """Drafts after the token at `last`; the module reads its own output."""
    drafts, doubts, survival = [], [], 1.0
    hidden_BTD, text = hidden_BTD.copy(), tokens[: last + 1].tolist()
    while last > 0 and len(drafts) < most:  # The first token has no state.
      read_BTD, logits_BTV = self._ahead(hidden_BTD, self._padded(text))
      at = last - 1 + len(drafts)
      probs = np.asarray(jax.nn.softmax(logits_BTV[0, at]))
      doubt = 1.02 - probs.max()
      survival *= max(1 - ratio * doubt, 0)
      if survival < _SIZES.draft_confidence_threshold:
        break
      drafts.append(int(probs.argmax()))
      doubts.append(doubt)
      text.append(drafts[-1])
      hidden_BTD[0, at + 1] = read_BTD[0, at]
    return drafts, doubts

  def _padded(self, tokens):
    return np.pad(tokens, (0, self._width - len(tokens)))[None].astype(np.int32)


@pytest.mark.slow
def test_greedy_equals_plain_decoding_and_drafts_are_the_full_forward_s(small):
  """Token for token, and each chain of drafts is what the module says without a
  cache, over prompts that share blocks, across calls and in a short pool."""
  model, params, engine, plain = small
  requests = [_request(n) for n in range(16)]
  requests += [
    dataclasses.replace(
      requests[10],
      prompt=np.concatenate([requests[10].prompt, [n]]).astype(np.int32),
    )
    for n in range(3)
  ]
  want = [c.tokens for c in plain.run(params, requests)]
  session = engine.session(params)
  found = [session.submit(request) for request in requests]
  for _ in session:
    pass
  assert session.num_preemptions
  assert [c.tokens for c in found] == want
  oracle = _PlainDrafts(model, params)
  wanted = [oracle.passes(made) for made in found]
  assert [
    (made.decode_steps, made.draft_tokens, made.accepted_tokens)
    for made in found
  ] == wanted
  passes = sum(p for p, _, _ in wanted)
  drafted, accepted = (np.sum([w[i] for w in wanted], 0) for i in (1, 2))
  metrics = assemble.speculative_metrics(found)
  assert metrics['draft_acceptance_rate'] == accepted.sum() / drafted.sum()
  assert metrics['tokens_per_decode_step'] == 19 * 20 / passes
  for k in range(3):
    assert metrics[f'drafted_per_step/position_{k + 1}'] == drafted[k] / passes
    assert metrics[f'accepted_per_step/position_{k + 1}'] == (
      accepted[k] / passes
    )
  # Chains of all lengths are drafted, and some of each are accepted.
  assert passes > drafted[0] > drafted[1] > drafted[2] > accepted[2] > 5


@pytest.mark.slow
@pytest.mark.parametrize(
  'changes',
  [
    dict(temperature=1.0),
    dict(temperature=0.8, top_k=4, repetition_penalty=1.5),
  ],
  ids=['plain', 'processed'],
)
def test_samples_have_the_model_s_distribution(changes):
  """All triples of a vocabulary of five, against the full forward's."""
  V, rows = 5, 8192
  model, params = make(small_config(vocab_size=V, num_nextn_predict_layers=1))
  prompt = np.array([1, 3], np.int32)
  engine = Engine(
    model,
    EngineConfig(
      max_num_seqs=512,
      max_model_len=8,
      block_size=8,
      decode_steps=3,
      speculative=True,
      num_speculative_tokens=3,
      draft_confidence_threshold=0.2,
      speculative_max_num_seqs=512,
    ),
  )
  keys = np.asarray(
    jax.random.key_data(jax.random.split(jax.random.key(3), rows))
  )
  sampling_params = SamplingParams(
    max_new_tokens=3, stop_token_ids=(), **changes
  )
  made = engine.run(
    params,
    [
      Request(name=n, prompt=prompt, key=key, sampling_params=sampling_params)
      for n, key in enumerate(keys)
    ],
  )
  logp = _logp_of_triples(model, params, prompt, sampling_params)
  want = np.exp(logp)
  index = np.array([np.dot(c.tokens, [V * V, V, 1]) for c in made])
  got = np.bincount(index, minlength=V**3)
  assert want.sum() == pytest.approx(1, abs=1e-5)
  assert not got[want == 0].any()
  often = want * rows >= 5
  few = got[~often].sum(), want[~often].sum() * rows
  excess = ((got - want * rows) ** 2 / (want * rows + 1e-9))[often].sum()
  freedom = often.sum() - 1
  if few[1] >= 5:
    excess, freedom = excess + (few[0] - few[1]) ** 2 / few[1], freedom + 1
  # χ² has mean f and deviation √2f; it exceeds four of them by a chance of 5e-4
  # for 41 degrees of freedom, and a smaller one for more.
  assert excess < freedom + 4 * np.sqrt(2 * freedom)
  np.testing.assert_allclose(
    [sum(c.logp) for c in made], logp[index], atol=1e-4
  )
  # Chains end at every position, by the threshold and by rejection.
  drafted, accepted = (
    np.sum([getattr(c, name) for c in made], 0)
    for name in ('draft_tokens', 'accepted_tokens')
  )
  assert drafted[0] > drafted[1] > drafted[2] > rows / 20
  assert accepted[0] > accepted[1] > accepted[2] > 20


def _logp_of_triples(model, params, prompt, sampling_params):
  """Log-probability of every triple of tokens, by the full forward pass."""
  V = model.config.vocab_size
  triples = np.stack(np.meshgrid(*[np.arange(V)] * 3, indexing='ij'), -1)
  triples = triples.reshape(-1, 3)
  contexts = np.concatenate(
    [np.broadcast_to(prompt, (len(triples), 2)), triples], 1
  )
  logits = forward(model, params, contexts)
  logp = np.zeros(len(triples))
  for t in range(3):
    metadata = sampling.build_metadata(
      [sampling_params] * len(triples),
      np.zeros((len(triples), 2), np.uint32),
      0,
      0,
      sampling.required_features([sampling_params]),
      V,
      [c[: 2 + t] for c in contexts],
    )
    processed = jax.nn.log_softmax(
      sampling.process_logits(logits[:, 1 + t], metadata)
    )
    logp += np.take_along_axis(np.asarray(processed), triples[:, t : t + 1], 1)[
      :, 0
    ]
  return logp


@pytest.mark.slow
def test_a_sample_does_not_depend_on_its_neighbours_or_the_mesh(small):
  model, params, engine, _ = small
  requests = [_request(n, temperature=1.0) for n in range(10)]
  want = engine.run(params, requests)
  for n in (3, 7):
    (alone,) = engine.run(params, [requests[n]])
    assert alone.tokens == want[n].tokens
    assert alone.draft_tokens == want[n].draft_tokens
  layout = Layout(make_mesh(dict(data=-1, tensor=2, expert=2)))
  wide = Transformer(model.config, layout)
  spread = jax.device_put(
    jax.device_get(params), parameter_shardings(wide, layout)
  )
  roomy = dataclasses.replace(_SIZES, kv_cache_tokens=0, decode_steps=5)
  got = Engine(wide, roomy).run(spread, requests)
  assert [c.tokens for c in got] == [c.tokens for c in want]
  assert [c.draft_tokens for c in got] == [c.draft_tokens for c in want]
  np.testing.assert_allclose(
    [c.logp for c in got], [c.logp for c in want], atol=1e-5
  )
  assert sum(sum(c.accepted_tokens) for c in want) > 20


@pytest.mark.slow
def test_a_completion_that_another_session_ends_is_the_same(small):
  """The state of its drafts goes with it."""
  _, params, engine, _ = small
  requests = [_request(n, temperature=1.0) for n in range(6)]
  want = engine.run(params, requests)
  found = []
  for request in requests:
    session = engine.session(params)
    completion = session.submit(request)
    session.step()
    assert 0 < len(completion.tokens) < 20 and not completion.finish_reason
    second = engine.session(params)
    found.append(second.submit(request, completion))
    for _ in second:
      pass
  for got, expected in zip(found, want):
    assert got.tokens == expected.tokens
    assert got.draft_tokens == expected.draft_tokens
    np.testing.assert_allclose(
      got.draft_control, expected.draft_control, rtol=1e-5
    )


@pytest.mark.slow
def test_stops_budgets_and_experts_are_those_of_plain_decoding(small):
  _, params, engine, plain = small
  requests = [
    _request(n, stop_token_ids=(3, 5, 9, 20), max_new_tokens=1 + n)
    for n in range(12)
  ]
  for got, want in zip(
    engine.run(params, requests), plain.run(params, requests)
  ):
    assert (got.tokens, got.finish_reason) == (want.tokens, want.finish_reason)
    np.testing.assert_array_equal(
      np.sort(got.experts, -1), np.sort(want.experts, -1)
    )


@pytest.mark.slow
def test_blocks_hold_accepted_tokens_alone(small):
  """A prompt that reuses decoded blocks is continued as the full forward is."""
  model, params, engine, _ = small
  session = engine.session(params)
  # Its 16 fed tokens fill four blocks; a block with one would be dropped.
  first = session.submit(_request(6, max_new_tokens=16))
  for _ in session:
    pass
  assert sum(first.draft_tokens) > sum(first.accepted_tokens) > 0
  before = session.prefilled_tokens
  prompt = np.append(first.all_tokens, [4, 9]).astype(np.int32)
  second = session.submit(
    dataclasses.replace(_request(6, max_new_tokens=6), prompt=prompt)
  )
  for _ in session:
    pass
  # The last token of the first completion was never fed, and the 4 is new.
  assert session.prefilled_tokens - before == 2
  logits = forward(model, params, second.all_tokens[None])[0, len(prompt) - 1 :]
  logp = jax.nn.log_softmax(logits)
  assert second.tokens == logp[:-1].argmax(-1).tolist()
  np.testing.assert_allclose(
    second.model_logp, logp[:-1].max(-1), rtol=1e-4, atol=1e-5
  )


@pytest.mark.slow
def test_an_unsure_module_drafts_nothing_and_leaves_the_samples(small):
  """With a threshold that no draft reaches the engine samples as without."""
  model, params, engine, plain = small
  unsure = Engine(
    model, dataclasses.replace(_SIZES, draft_confidence_threshold=1.0)
  )
  requests = [_request(n, temperature=1.0) for n in range(6)]
  got, want = unsure.run(params, requests), plain.run(params, requests)
  assert [c.tokens for c in got] == [c.tokens for c in want]
  assert not any(sum(c.draft_tokens) for c in got)
  assert [c.decode_steps for c in got] == [20] * 6
  # Passes of all widths are branches of the programs of plain decoding.
  engine.run(params, requests)
  assert (
    unsure.num_compiled_programs()
    == engine.num_compiled_programs()
    == plain.num_compiled_programs()
  )


@pytest.mark.slow
def test_greedy_tokens_are_the_full_forward_s():
  """With one draft, the smallest program that drafts."""
  model, params = make(small_config(num_nextn_predict_layers=1))
  params = _agreeing(params)
  sizes = dataclasses.replace(_SIZES, max_num_seqs=1, num_speculative_tokens=1)
  (completion,) = Engine(model, sizes).run(params, [_request(6)])
  logits_TV = forward(model, params, completion.all_tokens[None])[0]
  num_prompt = len(completion.request.prompt)
  assert completion.tokens == logits_TV[num_prompt - 1 : -1].argmax(-1).tolist()
  (drafted,), (accepted,) = completion.draft_tokens, completion.accepted_tokens
  assert drafted > accepted > 5
  # A draft that is the last token allowed has no token after it.
  assert completion.decode_steps - (20 - accepted) in (0, 1)


def test_widths_of_a_pass():
  assert [speculative.pass_widths(k) for k in (1, 2, 3, 4, 5, 7, 8)] == [
    (1, 2),
    (1, 2, 3),
    (1, 2, 4),
    (1, 2, 4, 5),
    (1, 2, 4, 6),
    (1, 2, 4, 8),
    (1, 2, 4, 8, 9),
  ]


def test_a_horizon_follows_the_acceptance_of_its_request():
  """Three requests; a rejection hides the drafts behind it."""
  control = speculative.build_control([(), (2, 0.5, 1.0), (1, 0.0, 0.0)], 4)
  drafts = speculative.Drafts(
    token_BK=jnp.zeros((3, 4), jnp.int32),
    logits_BKV=jnp.zeros((3, 4, 5)),
    confidence_BK=jnp.array(
      [[0.9, 0.8, 0.1, 0.1], [1.0, 0.7, 0.1, 0.1], [0.6, 0.1, 0.1, 0.1]]
    ),
    count_B=jnp.array([4, 2, 0]),
  )
  after = control.update(drafts, jnp.array([1, 2, 0]), 4)
  # One of four accepted; both of two; no draft.
  assert after.horizon_B.tolist() == [3, 4, 1]
  np.testing.assert_allclose(after.rejected_B, [1.0, 0.45, 0.0], rtol=1e-6)
  np.testing.assert_allclose(
    after.doubt_B, [0.12 + 0.22, 0.9 + 0.02 + 0.32, 0.0], rtol=1e-5
  )
  # After a rejection that was not foretold a request trusts the module less.
  np.testing.assert_allclose(
    after.acceptance(jnp.full(3, 0.9)),
    1 - 0.12 * np.array([2 / 1.34, 1.45 / 2.24, 1.0]),
    rtol=1e-5,
  )
  kept = speculative.control_of(jax.tree.map(np.asarray, after), 1)
  again = speculative.build_control([kept], 4)
  assert (again.horizon_B[0], again.rejected_B[0], again.doubt_B[0]) == (
    after.horizon_B[1],
    after.rejected_B[1],
    after.doubt_B[1],
  )
  assert speculative.build_control([()], 0) is None


@pytest.mark.slow
def test_drafts_that_do_not_pay_are_off():
  """The sizes and the platform alone decide, and the metrics say so."""
  by_default = dataclasses.replace(_SIZES, speculative_max_num_seqs=0)
  drafts = lambda config, platform, **changes: speculative.max_drafts(
    dataclasses.replace(config, **changes), platform
  )
  assert drafts(by_default, 'gpu') == drafts(by_default, 'tpu') == 3
  assert drafts(by_default, 'cpu') == 0
  assert drafts(by_default, 'gpu', max_num_seqs=65) == 0
  assert drafts(by_default, 'gpu', speculative=False) == 0
  assert drafts(_SIZES, 'cpu') == 3
  assert drafts(_SIZES, 'cpu', max_num_seqs=3) == 0

  model, params = make(small_config(num_nextn_predict_layers=1))
  off = Engine(model, by_default)
  plain = Engine(model, dataclasses.replace(_SIZES, speculative=False))
  # The MTP module has no cache.
  assert set(off.new_kv_cache()) == set(plain.new_kv_cache())
  requests = [_request(0, temperature=1.0, max_new_tokens=4)]
  got, want = (engine.run(params, requests) for engine in (off, plain))
  assert got[0].tokens == want[0].tokens
  assert off.speculative_metrics(got) == {'speculative_enabled': 0.0}
  assert plain.speculative_metrics(want) == {}


def test_a_model_without_an_mtp_module_is_refused():
  model, _ = make(small_config())
  with pytest.raises(UserError, match='speculative needs an MTP module'):
    Engine(model, _SIZES)
