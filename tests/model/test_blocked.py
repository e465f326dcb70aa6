"""The kernel 'blocked' equals the plain one, and skips what nobody sees."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.model import blocked
from r1jax.model.kernels import attend
from tests.conftest import one_device

_SCALE = 0.2


def _arrays(rng, B, T, heads=4, kv_heads=2, H=24, U=16, dtype=jnp.float32):
  """Draws queries, keys, values and the cotangent of the output."""
  shapes = (heads, H), (kv_heads, H), (kv_heads, U), (heads, U)
  return [
    jnp.asarray(rng.normal(size=(B, T, *shape)), dtype) for shape in shapes
  ]


def _run(function):
  """Jits function(q, k, v, *segments) together with its gradients."""

  @jax.jit
  def run(q, k, v, d_mix, *segments):
    mix, vjp = jax.vjp(lambda *qkv: function(*qkv, *segments), q, k, v)
    return mix, *vjp(d_mix)

  return run


def _kernel(name: str):
  return _run(
    lambda q, k, v, segment, prefix=None: attend(
      q, k, v, segment, _SCALE, one_device(), name, prefix
    )
  )


def _segments(rng, T: int, lengths) -> np.ndarray:
  """Numbers segments of these lengths from 1 on, with gaps; the rest is 0."""
  ids = np.cumsum(rng.integers(1, 3, len(lengths)))
  row = np.repeat(ids, lengths)[:T]
  return np.pad(row, (0, T - len(row))).astype(np.int32)


def _rows(rng, T: int, block: int) -> np.ndarray:
  """Draws rows of every kind, int32 [8, T]."""
  uneven = rng.integers(1, 100, T)
  left = _segments(rng, T, [T // 2])[::-1]
  return np.stack(
    [
      _segments(rng, T, [T]),
      _segments(rng, T, []),
      _segments(rng, T, [1] * T),
      _segments(rng, T, [block] * (T // block)),
      _segments(rng, T, [block, 1, block - 1, 2 * block]),
      left,
      _segments(rng, T, uneven),
      _segments(rng, T, rng.multinomial(T - 20, [0.2, 0.02, 0.5, 0.28])),
    ]
  )


def _prefixes(rng, segment_BT) -> np.ndarray:
  """Draws an earlier segment of the row, or none, for each segment."""
  prefix_BT = np.full_like(segment_BT, -1)
  for row, prefix in zip(segment_BT, prefix_BT):
    ids = np.unique(row[row > 0])
    for i, own in enumerate(ids):
      prefix[row == own] = rng.choice([-1, *ids[: i + 1]])
  return prefix_BT


def _assert_equal(got, want, segment_BT, atol=2e-5):
  """Compares outputs and gradients where they count: not on padding."""
  real = (segment_BT > 0)[:, :, None, None]
  for one, other in zip(got, want, strict=True):
    assert np.isfinite(one).all()
    np.testing.assert_allclose(
      np.where(real, one, 0), np.where(real, other, 0), atol=atol
    )
  for gradient in got[1:]:
    assert not np.any(np.where(real, 0, gradient))


@pytest.mark.parametrize(
  'T,shared', [(200, False), (256, True)], ids=['alone', 'prefix']
)
def test_it_equals_the_plain_kernel_for_any_segments(T, shared):
  """Padding has no cotangent, and its keys then have no gradient either."""
  rng = np.random.default_rng(T)
  plain, fused = _kernel('plain'), _kernel('blocked')
  for _ in range(10):
    segment_BT = _rows(rng, T, blocked.block_tokens(T))
    segments = (segment_BT,)
    if shared:
      segments += (_prefixes(rng, segment_BT),)
    q, k, v, d_mix = _arrays(rng, *segment_BT.shape)
    d_mix *= (segment_BT > 0)[:, :, None, None]
    args = q, k, v, d_mix, *segments
    _assert_equal(fused(*args), plain(*args), segment_BT)


@pytest.mark.parametrize(
  'heads,kv_heads,dtype,atol',
  [(4, 1, jnp.float32, 2e-5), (4, 4, jnp.bfloat16, 0.15)],
)
def test_it_equals_the_plain_kernel_for_heads_and_dtypes(
  heads, kv_heads, dtype, atol
):
  rng = np.random.default_rng(0)
  segment_BT = _rows(rng, 100, 56)
  *args, d_mix = _arrays(rng, 8, 100, heads, kv_heads, dtype=dtype)
  args += [d_mix * (segment_BT > 0)[:, :, None, None], segment_BT]
  got, want = _kernel('blocked')(*args), _kernel('plain')(*args)
  assert all(x.dtype == dtype for x in got)
  _assert_equal(
    *([np.asarray(x, np.float32) for x in out] for out in (got, want)),
    segment_BT,
    atol,
  )


def test_sequences_that_are_processed_together_equal_each_alone():
  rng = np.random.default_rng(1)
  segment_BT = _rows(rng, 150, 56)
  args = *_arrays(rng, 8, 150), segment_BT, _prefixes(rng, segment_BT)
  together, alone = (
    _run(lambda *args, n=n: blocked.attention(*args, _SCALE, n))(*args)
    for n in (4, 1)
  )
  for one, other in zip(together, alone):
    real = (segment_BT > 0)[:, :, None, None]
    np.testing.assert_allclose(one * real, other * real, atol=2e-5)


def _seen(segment_T, prefix_T) -> np.ndarray:
  """Decides token by token who attends to whom, bool [T, T]."""
  T = len(segment_T)
  return np.array(
    [
      [
        s <= t and segment_T[s] in (segment_T[t], max(prefix_T[t], -1))
        for s in range(T)
      ]
      for t in range(T)
    ]
  )


def test_a_block_visits_what_one_of_its_tokens_sees_and_no_more():
  """Padding is the exception: it needs no block but its own."""
  rng = np.random.default_rng(2)
  T, block = 48, 8
  for _ in range(5):
    segment_BT = _rows(rng, T, block)
    prefix_BT = _prefixes(rng, segment_BT)
    got_BWW = blocked.visible_blocks(segment_BT, prefix_BT, block)
    for segment_T, prefix_T, got_WW in zip(segment_BT, prefix_BT, got_BWW):
      see_TT = _seen(segment_T, prefix_T) & (segment_T > 0)
      see_TT |= np.eye(T, dtype=bool)
      want_WW = see_TT.reshape(T // block, block, -1, block).any((1, 3))
      np.testing.assert_array_equal(got_WW, want_WW)


def test_segments_in_any_order_are_seen_whole():
  """Ids that fall or come back may cost more, but no key is missed."""
  rng = np.random.default_rng(3)
  segment_BT = rng.integers(1, 6, (8, 130)).astype(np.int32)
  args = *_arrays(rng, 8, 130), segment_BT
  _assert_equal(_kernel('blocked')(*args), _kernel('plain')(*args), segment_BT)


@pytest.mark.parametrize(
  'lengths,visits',
  [
    ([2048], 32 * 33 // 2),
    ([], 32),
    ([64] * 32, 32),
    ([128] * 16, 16 * 3),
    ([512] * 4, 4 * (8 * 9 // 2)),
    ([1024], 16 * 17 // 2 + 16),
    ([32] + [64] * 31, 32 + 31),
  ],
  ids=['one', 'padding', '64', '128', '512', 'half padding', 'across'],
)
def test_visited_blocks_follow_the_segments(lengths, visits):
  """2,048 tokens in blocks of 64, whatever their segments: not 528 blocks."""
  segment = _segments(np.random.default_rng(0), 2048, lengths)[None]
  assert blocked.block_tokens(2048) == 64
  assert blocked.visible_blocks(segment, None, 64).sum() == visits


def test_completions_of_one_prompt_visit_it_and_themselves():
  """A prompt of two blocks, then four completions of three blocks."""
  segment = np.repeat(np.int32([1, 2, 3, 4, 5]), [128] + [192] * 4)[None]
  prefix = np.where(segment > 1, 1, -1).astype(np.int32)
  see_WW = blocked.visible_blocks(segment, prefix, 64)[0]
  assert see_WW.sum() == 3 + 4 * (3 * 2 + 6)
  assert np.flatnonzero(see_WW[8]).tolist() == [0, 1, 8]


@pytest.mark.parametrize('shared', [False, True], ids=['alone', 'prefix'])
def test_skipped_blocks_are_never_read(shared):
  """NaN in a segment stays there, forward and backward.

  A product with a probability of 0 would spread it, so no other block of
  queries has visited the segment's two blocks.
  """
  rng = np.random.default_rng(4)
  segment = np.repeat([1, 2, 3], [64, 128, 128])[None].astype(np.int32)
  prefix = (np.where(segment > 1, 1, -1),) if shared else ()
  q, k, v, d_mix = _arrays(rng, 1, 320)
  poison = jnp.where(segment == 2, jnp.nan, 1)[:, :, None, None]
  mix, *gradients = _kernel('blocked')(
    q, k * poison, v * poison, d_mix, segment, *prefix
  )
  clean = ~np.isin(segment, [2])[0]
  assert np.isfinite(mix[:, clean]).all() and np.isnan(mix[:, ~clean]).all()
  # The gradient of a shared prompt's keys sums over the poisoned queries.
  clean &= (segment[0] != 1) | (not shared)
  for gradient in gradients:
    assert np.isfinite(gradient[:, clean]).all()


def test_blocks_leave_little_padding():
  assert [blocked.block_tokens(n) for n in (1, 64, 65, 100, 150, 576)] == [
    8,
    64,
    40,
    56,
    56,
    64,
  ]


def test_the_program_does_not_grow_with_the_length():
  def size(T):
    args = *_arrays(np.random.default_rng(0), 1, T), np.ones((1, T), np.int32)
    return len(_kernel('blocked').lower(*args).as_text().splitlines())

  assert size(256) == size(4096)
