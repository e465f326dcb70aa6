"""Speculation: the same distribution for fewer forward passes."""

import dataclasses

import jax
import numpy as np
import pytest

from r1jax.errors import UserError
from r1jax.model.parameters import parameter_shardings
from r1jax.model.transformer import Transformer
from r1jax.rollout import assemble, sampling
from r1jax.rollout.engine import Engine, EngineConfig
from r1jax.rollout.sampling import SamplingParams
from r1jax.rollout.scheduler import Request
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


@pytest.fixture(scope='module')
def small():
  """A model, its parameters, an engine that speculates and one that does not."""
  model, params = make(small_config(num_nextn_predict_layers=1))
  engine = Engine(model, _SIZES, record_routing=True)
  plain = Engine(
    model, dataclasses.replace(_SIZES, speculative=False), record_routing=True
  )
  return model, params, engine, plain


def _guesses(model, params, contexts):
  """Computes the MTP module's greedy tokens without a cache."""
  tokens_BT = np.zeros((len(contexts), _SIZES.max_model_len), np.int32)
  for row, context in zip(tokens_BT, contexts):
    row[: len(context)] = context
  inputs = (
    tokens_BT,
    np.broadcast_to(np.arange(tokens_BT.shape[1]), tokens_BT.shape),
    tokens_BT * 0 + 1,
  )

  @jax.jit
  def run(params):
    out = model.apply({'params': params}, *inputs)
    hidden_ZBTD, _ = model.apply(
      {'params': params}, out.hidden_BTD, *inputs, method='predict_ahead'
    )
    return model.apply({'params': params}, hidden_ZBTD[0], method='logits')

  return np.asarray(run(params).argmax(-1))


def _passes(guesses, tokens, start: int):
  """Passes, guesses and kept guesses that the tokens from `start` on take."""
  passes = drafts = kept = 0
  last = start - 1
  while last < len(tokens) - 1:
    passes += 1
    guessed = last > 0  # Before its second token a row has no state to join.
    right = guessed and guesses[last - 1] == tokens[last + 1]
    drafts, kept = drafts + guessed, kept + right
    last += 1 + (right and last + 2 < len(tokens))
  return passes, drafts, kept


@pytest.mark.slow
def test_greedy_equals_plain_decoding_and_guesses_are_the_full_forward_s(small):
  """Token for token; and each guess is what the module says without a cache,
  over prompts that share pages, across chunks and in a pool that is short."""
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
  guesses_BT = _guesses(model, params, [made.all_tokens for made in found])
  wanted = [
    _passes(guesses_T, made.all_tokens, len(made.request.prompt))
    for made, guesses_T in zip(found, guesses_BT)
  ]
  assert [
    (made.decode_steps, made.draft_tokens, made.accepted_tokens)
    for made in found
  ] == wanted
  passes, drafts, kept = np.sum(wanted, 0)
  assert assemble.speculative_metrics(found) == {
    'draft_acceptance_rate': kept / drafts,
    'tokens_per_decode_step': 19 * 20 / passes,
  }
  # The random module is right now and then.
  assert sum(made.accepted_tokens for made in found) > 20


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
  V, rows = 5, 4096
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
  # χ² has mean f and deviation √2f; four deviations are a chance of 1e-4.
  assert excess < freedom + 4 * np.sqrt(2 * freedom)
  np.testing.assert_allclose(
    [sum(c.logp) for c in made], logp[index], atol=1e-4
  )
  assert 0.2 < sum(c.accepted_tokens for c in made) / rows < 1.9


@pytest.mark.slow
def test_a_sample_does_not_depend_on_its_neighbours_or_the_mesh(small):
  model, params, engine, _ = small
  requests = [_request(n, temperature=1.0) for n in range(10)]
  want = engine.run(params, requests)
  alone = engine.run(params, [requests[3]])[0]
  assert alone.tokens == want[3].tokens
  layout = Layout(make_mesh(dict(data=-1, tensor=2, expert=2)))
  wide = Transformer(model.config, layout)
  spread = jax.device_put(
    jax.device_get(params), parameter_shardings(wide, layout)
  )
  roomy = dataclasses.replace(_SIZES, kv_cache_tokens=0)
  got = Engine(wide, roomy).run(spread, requests)
  assert [c.tokens for c in got] == [c.tokens for c in want]
  np.testing.assert_allclose(
    [c.logp for c in got], [c.logp for c in want], atol=1e-5
  )


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


def test_a_model_without_an_mtp_module_is_refused():
  model, _ = make(small_config())
  with pytest.raises(UserError, match='speculative needs an MTP module'):
    Engine(model, _SIZES)
