"""A prompt shared by completions in one row equals one row per completion."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.conftest import dense_config, make, small_config

_LENGTHS = 70, 40, 75  # A prompt and two completions, over three blocks.
_P = _LENGTHS[0]


def _shared():
  """Builds the row [prompt, c1, c2]: tokens, positions, segments, prefixes."""
  rng = np.random.default_rng(0)
  prompt, one, two = (rng.integers(0, 32, n) for n in _LENGTHS)
  position = [np.arange(_P)] + [_P + np.arange(n) for n in _LENGTHS[1:]]
  segment = np.repeat([1, 2, 3], _LENGTHS)
  return [
    np.asarray(x, np.int32)[None]
    for x in (
      np.concatenate([prompt, one, two]),
      np.concatenate(position),
      segment,
      np.where(segment > 1, 1, -1),
    )
  ]


def _separate(tokens_BT):
  """Builds the rows [prompt, c1] and [prompt, c2], padded on the right."""
  prompt, *completions = np.split(tokens_BT[0], np.cumsum(_LENGTHS[:-1]))
  T = _P + max(_LENGTHS[1:])
  tokens, position, segment = np.zeros((3, 2, T), np.int32)
  for b, completion in enumerate(completions):
    row = np.concatenate([prompt, completion])
    tokens[b, : len(row)] = row
    position[b, : len(row)] = np.arange(len(row))
    segment[b, : len(row)] = 1
  return tokens, position, segment


def _parts_of_shared(hidden_BTD):
  """Returns the hidden states of the prompt, of c1 and of c2."""
  return jnp.split(hidden_BTD[0], np.cumsum(_LENGTHS[:-1]))


def _parts_of_separate(hidden_BTD):
  return [hidden_BTD[0, :_P]] + [
    hidden_BTD[b, _P : _P + n] for b, n in enumerate(_LENGTHS[1:])
  ]


@pytest.mark.parametrize('kernel', ['plain', 'blocked'])
@pytest.mark.parametrize(
  'config',
  [partial(small_config, first_k_dense_replace=3), dense_config],
  ids=['mla', 'gqa'],
)
def test_a_shared_prompt_equals_a_prompt_per_completion(config, kernel):
  """Compares hidden states, and the gradients of a loss on the completions.

  They are only equal if a completion sees the prompt and not the other one.
  """
  model, params = make(config(attention_kernel=kernel))
  tokens, position, segment, prefix = _shared()

  @partial(jax.jit, static_argnums=2)
  def run(params, inputs, parts, **prefix):
    def loss(params):
      hidden = model.apply({'params': params}, *inputs, **prefix).hidden_BTD
      prompt, *completions = parts(hidden)
      return sum(jnp.sin(x).sum() for x in completions), (prompt, *completions)

    (_, hidden), gradients = jax.value_and_grad(loss, has_aux=True)(params)
    return hidden, gradients

  inputs = tokens, position, segment
  got = run(params, inputs, _parts_of_shared, prefix_BT=prefix)
  want = run(params, _separate(tokens), _parts_of_separate)
  for one, other in zip(jax.tree.leaves(got[0]), jax.tree.leaves(want[0])):
    np.testing.assert_allclose(one, other, atol=1e-5)
  largest = max(np.abs(x).max() for x in jax.tree.leaves(want[1]))
  for one, other in zip(jax.tree.leaves(got[1]), jax.tree.leaves(want[1])):
    np.testing.assert_allclose(one, other, atol=1e-5 * largest)
  alone, _ = run(params, inputs, _parts_of_shared)
  assert np.abs(alone[2] - got[0][2]).max() > 0.1


@pytest.mark.slow
def test_mtp_sees_the_shared_prompt():
  """Compares the first completion, whose first token is next to the prompt.

  Its last token has no target.
  """
  model, params = make(small_config(num_nextn_predict_layers=1))

  @jax.jit
  def run(inputs, prefix_BT=None):
    hidden = model.apply({'params': params}, *inputs, prefix_BT=prefix_BT)
    ahead_ZBTD, _ = model.apply(
      {'params': params},
      hidden.hidden_BTD,
      *inputs,
      prefix_BT=prefix_BT,
      method='predict_ahead',
    )
    return ahead_ZBTD[0]

  tokens, position, segment, prefix = _shared()
  _, got, _ = _parts_of_shared(run((tokens, position, segment), prefix))
  _, want, _ = _parts_of_separate(run(_separate(tokens)))
  np.testing.assert_allclose(got[:-1], want[:-1], atol=1e-5)
