"""Chunks of tokens that count: values, gradients, and what they cost."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.algos import common, token_chunks
from r1jax.launch import flops
from r1jax.sharding import Layout, make_mesh

_B, _T, _D, _V = 8, 6, 5, 11
_RNG = np.random.default_rng(0)
_MASKS = {
  'none': np.zeros((_B, _T), bool),
  'one': np.arange(_B * _T).reshape(_B, _T) == 17,
  'some': _RNG.random((_B, _T)) < 0.4,
  'uneven rows': np.arange(_T) < np.array([0, 6, 1, 0, 5, 0, 0, 2])[:, None],
  'all': np.ones((_B, _T), bool),
}
_MESHES = {
  'data': dict(data=8),
  'mixed': dict(data=2, fsdp=2, tensor=2),
  'tensor': dict(tensor=8),
  'sequence': dict(data=2, sequence=2, tensor=2),
}


def _inputs(dtype=jnp.float32):
  rng = np.random.default_rng(1)
  return (
    jnp.asarray(rng.normal(size=(_B, _T, _D)), dtype),
    jnp.asarray(rng.normal(size=(_D, _V)), dtype),
    jnp.asarray(rng.integers(0, _V, (_B, _T))),
  )


def _whole(hidden, head, target, mask):
  """The oracle: all logits at once, multiplied by the mask."""
  logp = jax.nn.log_softmax(hidden @ head / 0.7)
  chosen = jnp.take_along_axis(logp, target[..., None], -1)[..., 0]
  return chosen * mask, -(jnp.exp(logp) * logp).sum(-1) * mask


def _with_gradients(function, hidden, head, *rest):
  """Returns the outputs and both gradients of a weighted sum of the first."""
  weight = jnp.asarray(np.random.default_rng(2).normal(size=(_B, _T)))

  def loss(hidden, head):
    outputs = function(hidden, head, *rest)
    return jnp.sum(outputs[0] * weight), outputs

  (_, outputs), grads = jax.value_and_grad(loss, (0, 1), has_aux=True)(
    hidden, head
  )
  return *outputs, *grads


def _assert_close(got, want):
  for one, other in zip(got, want, strict=True):
    np.testing.assert_allclose(one, other, atol=2e-5)


@pytest.fixture(scope='module', params=[None, 7], ids=['kept', 'chunks'])
def masked(request):
  """Value and gradient for any mask; with chunks of 7 logits are made twice."""

  def run(hidden, head, target, mask):
    return _with_gradients(
      lambda *inputs: common.token_logp(
        *inputs, 0.7, request.param, mask_BT=mask
      ),
      hidden,
      head,
      target,
    )

  return jax.jit(run)


@pytest.mark.parametrize('mask', _MASKS.values(), ids=_MASKS)
def test_masked_logp_is_the_whole_times_the_mask(masked, mask):
  got = masked(*_inputs(), mask)
  _assert_close(got, _with_gradients(partial(_whole, mask=mask), *_inputs()))
  assert (np.asarray(got[2])[~mask] == 0).all()
  assert masked._cache_size() == 1  # One program serves all masks.


@pytest.mark.parametrize('mesh', _MESHES.values(), ids=_MESHES)
@pytest.mark.parametrize('chunk', [None, 16])
def test_eight_devices_compute_what_one_does(mesh, chunk):
  layout, inputs = Layout(make_mesh(mesh)), _inputs()
  mask = _MASKS['uneven rows']

  @jax.jit
  def masked(hidden, head, target, mask):
    return _with_gradients(
      partial(
        common.token_logp,
        temperature=0.7,
        chunk_tokens=chunk,
        layout=layout,
        mask_BT=mask,
      ),
      layout.constrain(hidden, 'BTD'),
      head,
      target,
    )

  _assert_close(
    masked(*inputs, mask), _with_gradients(partial(_whole, mask=mask), *inputs)
  )


def test_a_batch_that_does_not_divide_is_on_every_device():
  layout = Layout(make_mesh(dict(data=8)))
  hidden, head, target = _inputs()
  hidden, target, mask = hidden[:3], target[:3], _MASKS['some'][:3]
  got = common.token_logp(hidden, head, target, 0.7, 4, layout, mask)
  _assert_close(got, _whole(hidden, head, target, mask))


def test_tokens_do_not_leave_their_devices():
  """Devices exchange a number of chunks and the sum of the head's gradients.

  Where weights are split they gather the head too, once and not in the loop.
  """

  def collectives(mesh):
    layout = Layout(make_mesh(mesh))

    def loss(hidden, head, target, mask):
      logp, _ = common.token_logp(hidden, head, target, 1.0, 16, layout, mask)
      return logp.sum()

    hidden = jax.ShapeDtypeStruct((_B, _T, _D * 8), jnp.float32)
    head = jax.ShapeDtypeStruct((_D * 8, _V), jnp.float32)
    token = jax.ShapeDtypeStruct((_B, _T), jnp.int32)
    mask = jax.ShapeDtypeStruct((_B, _T), bool)
    rows = layout.sharding('BT')
    program = (
      jax.jit(
        jax.grad(loss, (0, 1)),
        in_shardings=(
          layout.sharding('BT_'),
          jax.NamedSharding(layout.mesh, layout.weight_spec('DV')),
          rows,
          rows,
        ),
      )
      .lower(hidden, head, token, mask)
      .compile()
      .as_text()
    )
    return {
      name: program.count(f' {name}(')
      for name in ('all-gather', 'all-to-all', 'collective-permute')
    }

  nothing = {'all-gather': 0, 'all-to-all': 0, 'collective-permute': 0}
  assert collectives(dict(data=8)) == nothing
  assert collectives(dict(data=4, sequence=2)) == nothing | {'all-gather': 1}
  assert collectives(dict(fsdp=8)) == nothing | {'all-gather': 1}


def test_what_does_not_count_is_never_read(masked):
  """NaN hidden states, and targets beyond the vocabulary."""
  (hidden, head, target), mask = _inputs(), _MASKS['some']
  spoilt = jnp.where(mask[..., None], hidden, jnp.nan)
  wrong = jnp.where(mask, target, 10**6)
  got, want = masked(spoilt, head, wrong, mask), masked(*_inputs(), mask)
  for one, other in zip(got, want, strict=True):
    np.testing.assert_array_equal(one, other)


def test_a_gradient_where_nothing_counts_is_never_read():
  (hidden, head, target), mask = _inputs(), _MASKS['some']

  def grad(scale):
    return jax.grad(
      lambda head: jnp.sum(
        common.token_logp(hidden, head, target, mask_BT=mask)[0] * scale
      )
    )(head)

  np.testing.assert_array_equal(
    grad(jnp.where(mask, 1.0, jnp.inf)), grad(jnp.ones_like(mask, float))
  )


def test_a_scan_over_microbatches_adds_up():
  (hidden, head, target), mask = _inputs(), _MASKS['some']

  def loss(head, hidden, target, mask):
    return common.token_logp(
      hidden, head, target, chunk_tokens=4, mask_BT=mask
    )[0].sum()

  @jax.jit
  def scanned(*arrays):
    parts = [x.reshape(4, 2, *x.shape[1:]) for x in arrays]
    add = lambda total, part: (total + jax.grad(loss)(head, *part), None)
    return jax.lax.scan(add, jnp.zeros_like(head), parts)[0]

  np.testing.assert_allclose(
    scanned(hidden, target, mask),
    jax.grad(loss)(head, hidden, target, mask),
    atol=1e-5,
  )


def test_a_bfloat16_heads_gradient_is_summed_in_float32():
  """4096 equal terms: a sum in bfloat16 stops growing at 256 of them."""
  tokens = 4096
  hidden = jnp.ones((1, tokens, 1), jnp.bfloat16)
  head = jnp.zeros((1, 2), jnp.bfloat16)

  def loss(head):
    target = jnp.zeros((1, tokens), jnp.int32)
    return common.token_logp(hidden, head, target, chunk_tokens=1)[0].sum()

  grad = jax.jit(jax.grad(loss))(head)
  assert grad.dtype == jnp.bfloat16
  np.testing.assert_array_equal(np.float32(grad), [[tokens / 2, -tokens / 2]])


def _runs(chunk):
  """Returns a jitted gradient, and a list that grows as chunks are computed."""
  hidden, head, _ = _inputs()
  runs = []

  def function(logits):
    jax.debug.callback(lambda: runs.append(1))
    return (logits.sum(-1),)

  @jax.jit
  def grad(mask):
    return jax.grad(
      lambda hidden: token_chunks.map_token_chunks(
        function, [(hidden, head)], [], chunk, mask_BT=mask
      )[0].sum()
    )(hidden)

  return grad, runs


@pytest.mark.parametrize('count', [0, 1, 7, 8, 20, _B * _T])
def test_chunks_are_as_many_as_the_tokens_that_count(count):
  """Both passes run one chunk for each seven tokens, in the same program."""
  grad, runs = _runs(7)
  mask = np.zeros(_B * _T, bool)
  mask[_RNG.permutation(mask.size)[:count]] = True
  grad(mask.reshape(_B, _T)).block_until_ready()
  jax.effects_barrier()
  chunks = -(-count // 7)
  assert len(runs) == 2 * chunks
  assert token_chunks.num_chunks(jnp.array([count, 0]), 7) == chunks


def test_chunks_are_small_beside_the_batch_and_within_memory():
  assert token_chunks.chunk_size(tokens=100, limit=10**6) == 100
  assert token_chunks.chunk_size(tokens=4096, limit=10**6) == 256
  assert token_chunks.chunk_size(tokens=32768, limit=10**6) == 2048
  assert token_chunks.chunk_size(tokens=10**6, limit=10**6) <= 2048
  assert token_chunks.chunk_size(tokens=32768, limit=441) <= 441
  # Equal chunks: 1000 are 4 · 250, and not 3 · 256 and 232.
  assert token_chunks.chunk_size(tokens=1000, limit=10**6) == 250


@pytest.mark.parametrize('chunk, again', [(None, 0), (8, 1)])
def test_products_are_those_of_the_gradients_that_are_used(chunk, again):
  """A product for the logits, one for each gradient; one more in chunks."""
  hidden, head, target = _inputs()
  product = 2 * _B * _T * _D * _V

  def loss(hidden, head):
    return common.token_logp(hidden, head, target, 1.0, chunk)[0].sum()

  found = lambda *args: flops.of(jax.jit(jax.grad(loss, *args)), hidden, head)
  assert flops.of(jax.jit(loss), hidden, head)['dense'] == product
  assert found(0)['dense'] == found(1)['dense'] == (2 + again) * product
  assert found((0, 1))['dense'] == (3 + again) * product


def test_memory_is_that_of_a_chunk_with_a_mask_too():
  """Compiled and not run; all logits in one chunk are seen by the measure."""
  B, T, D, V = 8, 1024, 64, 151936
  shapes = (
    jax.ShapeDtypeStruct((B, T, D), jnp.bfloat16),
    jax.ShapeDtypeStruct((D, V), jnp.bfloat16),
    jax.ShapeDtypeStruct((B, T), jnp.int32),
    jax.ShapeDtypeStruct((B, T), bool),
  )

  def loss(hidden, head, target, mask):
    return common.token_logp(hidden, head, target, mask_BT=mask)[0].sum()

  compiled = jax.jit(jax.grad(loss, (0, 1))).lower(*shapes).compile()
  used = compiled.memory_analysis().temp_size_in_bytes
  assert used < B * T * V * 4 / 4
