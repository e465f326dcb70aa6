"""The rows of updates: whole samples, whole rows on every device."""

import dataclasses

import pytest

from r1jax.errors import UserError
from r1jax.sharding import Layout, make_mesh
from r1jax.stages.build import packing
from tests.configs import small
from tests.conftest import one_device, run_config


def _config(**rl):
  config = small.get_config()
  config.data.max_prompt_tokens = 24
  config.rl.update(max_new_tokens=16, **rl)
  return run_config(config)


def test_short_samples_share_rows_and_few_rows_are_in_memory_at_once():
  """Samples of at most 40 tokens; two updates of eight samples."""
  shape = packing.row_shape(_config(), one_device())
  assert (shape.num_samples, shape.num_updates) == (16, 2)
  assert (shape.row_tokens, shape.narrower) == (1024, ())
  assert shape.microbatch_rows == 1  # All samples of an update have 320.
  assert shape.max_microbatches == 2  # Best fit may begin another row.


def test_a_long_sample_has_a_row_of_its_own():
  long = packing.row_shape(_config(), one_device()).max_sample_tokens
  config = _config(row_tokens=long, microbatch_tokens=3 * long)
  shape = packing.row_shape(config, one_device())
  assert (shape.row_tokens, shape.microbatch_rows) == (long, 3)
  assert shape.max_microbatches == 3  # Eight rows, three at a time.


def test_long_samples_have_wider_rows_only_in_steps_where_they_come():
  """Every width has rows on every device, and at least 1,536 tokens."""
  config = _config()
  config = dataclasses.replace(
    config,
    rl=dataclasses.replace(config.rl, max_new_tokens=9000),
    model=dataclasses.replace(config.model, max_position_embeddings=10_000),
  )
  shape = packing.row_shape(config, one_device())
  assert shape.row_tokens == shape.max_sample_tokens == 9024
  assert shape.narrower == ((1024, 2), (4096, 1))
  found = [shape.fitting(n) for n in (7, 1024, 1025, 4097, 9024)]
  assert [s.row_tokens for s in found] == [1024, 1024, 4096, 9024, 9024]
  assert [s.microbatch_rows for s in found] == [2, 2, 1, 1, 1]
  for each in found:
    assert shape.rows_of(each.row_tokens) == each.microbatch_rows
    assert each.max_sample_tokens <= each.row_tokens
  two = Layout(make_mesh(dict(data=4, fsdp=2)))
  assert packing.row_shape(config, two).narrower == ((1024, 8), (4096, 8))
  fixed = dataclasses.replace(config.rl, row_tokens=9024)
  config = dataclasses.replace(config, rl=fixed)
  assert packing.row_shape(config, one_device()).narrower == ()


def test_every_device_has_rows():
  layout = Layout(make_mesh(dict(data=4, fsdp=2)))
  shape = packing.row_shape(_config(), layout)
  assert shape.microbatch_rows == 8


def test_rows_divide_over_the_devices_that_share_them():
  """Four devices a row here: two for its tokens, two for heads within."""
  config = _config()
  config = dataclasses.replace(
    config,
    rl=dataclasses.replace(config.rl, max_new_tokens=9001),
    model=dataclasses.replace(config.model, max_position_embeddings=10_000),
  )
  layout = Layout(make_mesh(dict(data=2, sequence=2, tensor=2)))
  shape = packing.row_shape(config, layout)
  assert (shape.max_sample_tokens, shape.row_tokens) == (9025, 9028)
  # Two devices compute 1,536 tokens each.
  assert shape.narrower == ((1024, 6), (4096, 2))
  fixed = dataclasses.replace(config.rl, row_tokens=9026)
  with pytest.raises(UserError, match='rl.row_tokens = 9026 tokens do not div'):
    packing.row_shape(dataclasses.replace(config, rl=fixed), layout)
  whole = Layout(make_mesh(dict(data=2, tensor=4)))
  assert packing.row_shape(config, whole).row_tokens == 9025


def test_long_prompts_that_samples_share_make_longer_rows():
  """Prompts of at most 600 tokens: a row has room for four of them."""
  config = _config()
  shared = dataclasses.replace(
    config, data=dataclasses.replace(config.data, max_prompt_tokens=600)
  )
  shape = packing.row_shape(shared, one_device())
  assert (shape.row_tokens, shape.repeated_tokens) == (2400, 1)
  alone = dataclasses.replace(
    shared, rl=dataclasses.replace(shared.rl, share_prompts='never')
  )
  shape = packing.row_shape(alone, one_device())
  assert (shape.row_tokens, shape.repeated_tokens) == (1024, 0)


@pytest.mark.parametrize('kernel', ['flash', 'splash'])
def test_prompts_are_not_shared_with_a_kernel_that_cannot(kernel):
  config = _config()
  model = dataclasses.replace(config.model, attention_kernel=kernel)
  config = dataclasses.replace(config, model=model)
  assert packing.row_shape(config, one_device()).repeated_tokens == 0


@pytest.mark.parametrize(
  'keys, message',
  [
    (dict(row_tokens=39), 'rl.row_tokens = 39 is less than the longest sample'),
    (
      dict(row_tokens=40, microbatch_tokens=100),
      'rl.microbatch_tokens = 100 is no multiple of 40 tokens',
    ),
    (dict(num_minibatches=3), 'does not divide into rl.num_minibatches = 3'),
  ],
)
def test_rows_that_do_not_fit_are_refused_by_name(keys, message):
  with pytest.raises(UserError, match=message):
    packing.row_shape(_config(**keys), one_device())


def _preferences(name: str, **keys):
  config = small.get_config()
  config[name].update(max_tokens=96, batch_size=10, **keys)
  return run_config(config)


@pytest.mark.parametrize(
  'name, keys, longest',
  [
    ('dpo', {}, 192),
    ('reward_model', {}, 192),
    ('reward_model', dict(kind='safe'), 96),
    ('prm', {}, 96),
  ],
)
def test_a_pair_is_one_sample(name, keys, longest):
  config = _preferences(name, **keys)
  shape = packing.example_row_shape(config, name, one_device())
  assert shape.max_sample_tokens == longest
  assert shape.row_tokens == 1024
  assert (shape.num_samples, shape.num_updates) == (10, 1)
  config = _preferences(name, row_tokens=200, microbatch_tokens=600, **keys)
  shape = packing.example_row_shape(config, name, one_device())
  assert (shape.row_tokens, shape.microbatch_rows) == (200, 3)
  config = _preferences(name, row_tokens=longest - 1, **keys)
  with pytest.raises(UserError, match=f'{name}.row_tokens = .* is less than'):
    packing.example_row_shape(config, name, one_device())
