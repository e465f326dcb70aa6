"""Weights in 8 bits: rounding, what is rounded, and sampling with them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.model import int8_weights
from r1jax.model.int8_weights import Int8Weight
from r1jax.model.parameters import parameter_shapes
from r1jax.model.transformer import Transformer
from r1jax.rollout import sizes
from r1jax.rollout.engine import Engine
from r1jax.rollout.sampling import SamplingParams
from r1jax.rollout.scheduler import Request
from r1jax.sharding import Layout, make_mesh
from r1jax.stages.build.abstract import params_of
from tests.conftest import make, one_device, small_config
from tests.rollout.conftest import SIZES

_INT8 = dataclasses.replace(SIZES, weights_int8=True)


@pytest.mark.parametrize('shape', [(256, 8), (3, 128, 4), (2, 5, 64, 7)])
def test_rounding_errs_by_half_a_step_of_its_block(shape):
  rng = np.random.default_rng(0)
  weight = rng.normal(size=shape) * np.exp(rng.normal(size=shape))
  block = min(64, shape[-2])
  found = int8_weights.quantize(jnp.asarray(weight, jnp.float32), block)
  assert found.rounded.dtype == jnp.int8 and found.rounded.shape == shape
  blocks = weight.reshape(*shape[:-2], -1, block, shape[-1])
  step = np.abs(blocks).max(-2, keepdims=True) / 127
  error = np.asarray(found.astype(jnp.float32)).reshape(blocks.shape) - blocks
  assert (np.abs(error) <= step * 0.5 * (1 + 1e-5)).all()
  assert np.abs(found.rounded).max() == 127


def test_zeros_stay_zeros_and_nan_stays_nan():
  weight = jnp.zeros((4, 2)).at[0, 1].set(jnp.nan)
  found = int8_weights.quantize(weight, 4).astype(jnp.float32)
  assert (found[:, 0] == 0).all() and jnp.isnan(found[:, 1]).any()


def test_matrices_are_rounded_and_nothing_else():
  config = small_config(num_nextn_predict_layers=1)
  model = Transformer(config, one_device())
  boxes = parameter_shapes(model)
  rounded = jax.eval_shape(
    lambda params: int8_weights.quantized(params, boxes, model.layout),
    params_of(model),
  )
  for path, leaf in jax.tree_util.tree_leaves_with_path(
    rounded, is_leaf=lambda x: isinstance(x, Int8Weight)
  ):
    name = path[-1].key
    plain = name in ('embedding', 'head', 'scale', 'router', 'bias')
    assert isinstance(leaf, Int8Weight) != plain, path


def test_a_block_lies_on_one_device():
  layout = Layout(make_mesh(dict(tensor=8)))
  assert int8_weights.block_size((3, 512, 64), 'LFD', layout) == 64
  assert int8_weights.block_size((3, 512, 64), 'LDF', layout) == 128
  assert int8_weights.block_size((3, 96, 64), 'LDF', layout) == 32


def _requests(count: int = 5) -> list[Request]:
  keys = jax.random.key_data(jax.random.split(jax.random.key(3), count))
  return [
    Request(
      name=(i, 0),
      prompt=np.arange(1, 3 + i),
      sampling_params=SamplingParams(max_new_tokens=8, stop_token_ids=(0,)),
      key=np.asarray(key),
    )
    for i, key in enumerate(keys)
  ]


@pytest.mark.parametrize(
  'attention, shape',
  [
    ('mla', {}),
    *(
      pytest.param(attention, shape, marks=pytest.mark.slow)
      for attention, shape in (
        ('gqa', {}),
        ('mla', dict(fsdp=2, tensor=2, expert=2)),
        ('gqa', dict(fsdp=2, tensor=2, expert=2)),
      )
    ),
  ],
  ids=str,
)
def test_sampling_is_that_of_the_restored_weights(shape, attention):
  """Tokens and log-probabilities equal those of a model with these numbers."""
  changes = (
    dict(num_key_value_heads=2, head_dim=8) if attention == 'gqa' else {}
  )
  config = small_config(attention=attention, **changes)
  layout = Layout(make_mesh(shape)) if shape else one_device()
  model, params = make(config, layout)
  rounded = int8_weights.quantized(
    params, parameter_shapes(model), layout.decoding()
  )
  restored = jax.tree.map(
    lambda x: x.astype(jnp.float32),
    rounded,
    is_leaf=lambda x: isinstance(x, Int8Weight),
  )
  ours = Engine(model, _INT8).run(params, _requests())
  theirs = Engine(model, SIZES).run(restored, _requests())
  plain = Engine(model, SIZES).run(params, _requests())
  for a, b, c in zip(ours, theirs, plain):
    assert a.tokens == b.tokens
    np.testing.assert_allclose(a.logp, b.logp, atol=1e-5)
    assert a.logp != c.logp  # It is another policy, which a correction is for.


def test_prepared_weights_are_taken_as_they_are():
  model, params = make(small_config())
  engine = Engine(model, _INT8)
  once = engine.prepare_params(params)
  twice = engine.prepare_params(once)
  assert all(
    a is b for a, b in zip(jax.tree.leaves(once), jax.tree.leaves(twice))
  )


def test_memory_counts_a_byte_and_a_share_of_a_scale():
  config = small_config()
  model, params = make(config)
  layout = model.layout
  counted = sizes.memory_per_device(model, layout, _INT8)
  held = Engine(model, _INT8).prepare_params(params)
  want = sum(x.nbytes for x in jax.tree.leaves(held))
  assert counted['weights as sampled, int8'] == pytest.approx(want, rel=0.01)
