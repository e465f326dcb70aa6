"""Model FLOPs against counts by hand, and against those of jaxprs."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.launch import flops
from r1jax.model import model_flops
from r1jax.model.model_flops import TokenCounts
from r1jax.model.transformer import Transformer, output_head
from r1jax.stages.build.abstract import params_of
from tests.configs import small
from tests.conftest import one_device, run_config

_GQA = dict(
  attention='gqa', num_key_value_heads=2, head_dim=8, num_attention_heads=4
)


def _model(**changes):
  config = dataclasses.replace(
    run_config(small.get_config()).model,
    attention_kernel='plain',
    remat='none',
    **changes,
  )
  return Transformer(config, one_device())


def test_rows_are_counted_without_their_padding():
  """Sequences of 3 and 2 tokens, of which the loss counts 2 and 1."""
  counts = model_flops.counts_of_rows(
    np.array([[1, 1, 1, 2, 2, 0]]),
    np.array([[0, 1, 2, 0, 1, 0]]),
    np.array([[1, 1, 0, 1, 0, 1]], bool),
  )
  assert counts == TokenCounts(5, (1 + 2 + 3) + (1 + 2), 3)


def test_a_completion_goes_on_behind_a_shared_prompt():
  """Two completions of 2 tokens behind a prompt of 3 that stands once."""
  counts = model_flops.counts_of_rows(
    np.array([[1, 1, 1, 2, 2, 3, 3]]),
    np.array([[0, 1, 2, 3, 4, 3, 4]]),
    np.array([[0, 0, 0, 1, 1, 1, 1]], bool),
  )
  assert counts == TokenCounts(7, (1 + 2 + 3) + 2 * (4 + 5), 4)


def test_sampling_reads_a_prompt_once_and_every_token_but_the_last():
  """The example of the docstring, and one that an earlier step began."""
  counts = model_flops.counts_of_samples(3, [(0, 2), (0, 2)])
  assert counts == TokenCounts(2 + 4, (1 + 2) + 2 * (3 + 4), 4)
  # The first three forward passes of the completion are made again.
  assert model_flops.counts_of_samples(3, [(3, 5), (4, 4)]) == TokenCounts(
    2 + 5, (1 + 2) + (3 + 4 + 5 + 6 + 7), 2
  )
  assert model_flops.counts_of_samples(3, [(0, 0)]) == (0, 0, 0)


def test_counts_add_up():
  counts = TokenCounts(1, 2, 3), TokenCounts(10, 20, 30)
  assert model_flops.total(counts) == (11, 22, 33)
  assert model_flops.total([]) == (0, 0, 0)


@pytest.mark.parametrize(
  'changes',
  [
    dict(first_k_dense_replace=2),  # MLA, dense.
    dict(first_k_dense_replace=2) | _GQA,
    dict(first_k_dense_replace=2, tie_word_embeddings=True) | _GQA,
    dict(first_k_dense_replace=1, moe_dispatch='ragged'),
  ],
  ids=['mla', 'gqa', 'tied', 'experts'],
)
def test_the_formula_is_what_a_program_multiplies(changes):
  """Forward and gradient of a row of one sequence, every token predicted.

  The kernel computes all pairs of tokens, the masked ones too, so the counts
  say that each token attends to all. The formula is 1 % higher at this width,
  since it counts the scales of norms as if they were matrices.
  """
  B, T = 2, 48
  model = _model(**changes)
  info = model_flops.count(model.config)
  counts = TokenCounts(B * T, B * T * T, B * T)
  ids_BT = jax.ShapeDtypeStruct((B, T), jnp.int32)

  def loss(params, *inputs):
    hidden_BTD = model.apply({'params': params}, *inputs).hidden_BTD
    head_DV = output_head(model, params).astype(hidden_BTD.dtype)
    return (hidden_BTD @ head_DV).astype(jnp.float32).sum()

  arguments = (params_of(model), ids_BT, ids_BT, ids_BT)
  forward = sum(flops.of(jax.jit(loss), *arguments).values())
  both = sum(flops.of(jax.jit(jax.grad(loss)), *arguments).values())
  assert forward == pytest.approx(info.forward(counts), rel=0.015)
  assert both == pytest.approx(info.training(counts), rel=0.015)


def test_the_head_counts_where_it_is_needed():
  info = model_flops.count(_model().config)
  most, none = TokenCounts(100, 500, 100), TokenCounts(100, 500, 0)
  c = _model().config
  assert info.forward(most) - info.forward(none) == (
    2 * 100 * c.vocab_size * c.hidden_size
  )
  assert info.forward(most) == 2 * info.active * 100 + (
    info.attention_flops * 500
  )
