"""Samples in rows: none lost, none split, never more rows than there is room."""

import numpy as np
import pytest

from r1jax.data import sample_packing
from r1jax.data.sample_packing import RowShape, best_fit
from r1jax.records import Rollout


def _shape(**changes) -> RowShape:
  return RowShape(
    **dict(
      row_tokens=10,
      microbatch_rows=2,
      num_updates=2,
      num_samples=8,
      max_sample_tokens=10,
    )
    | changes
  )


def test_each_item_goes_where_it_fits_best():
  assert best_fit([2, 5, 3, 1], 6) == [[1, 3], [2, 0]]
  assert best_fit([3, 3, 4, 2], 6) == [[2, 3], [0, 1]]
  assert best_fit([], 6) == []
  with pytest.raises(ValueError, match='7 tokens is longer than a row of 6'):
    best_fit([1, 7], 6)


@pytest.mark.parametrize('whole', [1, 2, 5])
@pytest.mark.parametrize('seed', range(20))
def test_rows_hold_every_sample_once_and_fit_the_arrays(seed, whole):
  """For random, short, and long samples alike."""
  rng = np.random.default_rng(seed)
  longest = 30
  shape = _shape(
    row_tokens=whole * longest + int(rng.integers(0, longest)),
    microbatch_rows=int(rng.integers(1, 4)),
    num_samples=60,
    max_sample_tokens=longest,
  )
  lengths = rng.integers(1, [longest + 1, 4, longest + 1][seed % 3], 60)
  if seed % 3 == 2:
    lengths = np.full(60, longest)
  lengths[rng.random(60) < 0.1] = 0
  order = rng.permutation(60)
  rows, counts = sample_packing.plan(lengths, order, shape)
  assert (
    sorted(b for row in rows for b in row) == np.flatnonzero(lengths).tolist()
  )
  assert max(sum(lengths[row]) for row in rows) <= shape.row_tokens
  assert len(rows) == 2 * shape.max_microbatches * shape.microbatch_rows
  for part, of_update, count in zip(
    np.split(order, 2), np.array_split(np.arange(len(rows)), 2), counts
  ):
    used = [rows[i] for i in of_update]
    assert {b for row in used for b in row} <= set(part.tolist())
    filled = [i for i, row in enumerate(used) if row]
    assert count == -(-len(filled) // shape.microbatch_rows)
    assert filled == list(range(len(filled)))  # Padding stands behind.
    cost = [sum(int(lengths[b]) ** 2 for b in row) for row in used]
    assert cost == sorted(cost, reverse=True)


def test_large_arrays_are_cut_to_one_of_few_sizes(monkeypatch):
  shape = _shape(num_samples=400)
  assert shape.max_microbatches == 100
  assert shape.capacity(1) == 100
  monkeypatch.setattr(sample_packing, '_MAX_PADDED_TOKENS', 1000)
  sizes = {shape.capacity(count) for count in range(1, 101)}
  assert sizes == {25, 50, 100}
  assert all(shape.capacity(count) >= count for count in range(1, 101))


def test_a_rollout_is_packed_as_the_record_says():
  """The example of RLBatch: two samples in one row, one that is left out."""
  rollout = Rollout(
    tokens_BT=np.array([[7, 8, 4, 0], [0, 3, 3, 0], [0, 9, 5, 6]], np.int32),
    valid_BT=np.array([[1, 1, 1, 0], [0, 1, 1, 0], [0, 1, 1, 1]], bool),
    mask_BT=np.array([[0, 0, 1, 0], [0, 0, 1, 0], [0, 0, 1, 1]], bool),
    logp_BT=-np.arange(12, dtype=np.float32).reshape(3, 4),
    model_logp_BT=np.zeros((3, 4), np.float32),
    staleness_BT=np.arange(12, dtype=np.int32).reshape(3, 4),
    finish_B=np.ones(3, np.int32),
    length_B=np.array([1, 1, 2], np.int32),
    group_B=np.zeros(3, np.int32),
    experts_BTLA=np.arange(24, dtype=np.uint16).reshape(3, 4, 2, 1),
  )
  shape = _shape(
    row_tokens=6,
    microbatch_rows=1,
    num_updates=1,
    num_samples=3,
    max_sample_tokens=4,
  )
  included = np.array([True, False, True])
  batch = sample_packing.pack(rollout, included, np.array([0, 1, 2]), shape)
  first = {
    'tokens_BT': [7, 8, 4, 9, 5, 6],
    'position_BT': [0, 1, 2, 0, 1, 2],
    'segment_BT': [1, 1, 1, 2, 2, 2],
    'sample_BT': [0, 0, 0, 2, 2, 2],
    'mask_BT': [0, 0, 1, 0, 1, 1],
    'logp_BT': [0, -1, -2, -9, -10, -11],
    'staleness_BT': [0, 1, 2, 9, 10, 11],
  }
  for name, want in first.items():
    got = getattr(batch, name)
    assert got[0].tolist() == want, name
    assert not got[1:].any(), name
  assert batch.experts_BTLA[0, 3].tolist() == [[18], [19]]
  assert batch.num_microbatches_u.tolist() == [1]
  assert batch.prefix_BT is None
  assert sample_packing.metrics(batch, shape, np.array([3, 0, 3])) == {
    'packing/efficiency': 1.0,
    'packing/shared': 0.0,
  }
  nothing = sample_packing.pack(
    rollout, np.zeros(3, bool), np.array([0, 1, 2]), shape
  )
  assert nothing.num_microbatches_u.tolist() == [0]
  assert not nothing.segment_BT.any() and not nothing.mask_BT.any()
  assert sample_packing.metrics(nothing, shape, np.zeros(3, int)) == {
    'packing/efficiency': 0.0,
    'packing/shared': 0.0,
  }


def _groups(prompt_tokens, own_tokens, groups=3, size=4) -> Rollout:
  """Groups of one prompt, random tokens, completions of random lengths."""
  rng = np.random.default_rng(0)
  B, T = groups * size, prompt_tokens + own_tokens
  column, own = np.arange(T), rng.integers(1, own_tokens + 1, (B, 1))
  start = np.repeat(rng.integers(0, prompt_tokens // 2, (groups, 1)), size, 0)
  mask = (column >= prompt_tokens) & (column < prompt_tokens + own)
  tokens = rng.integers(1, 99, (B, T)).astype(np.int32)
  tokens[:, :prompt_tokens] = np.repeat(tokens[::size, :prompt_tokens], size, 0)
  zeros = np.zeros((B, T), np.float32)
  return Rollout(
    tokens_BT=tokens,
    valid_BT=(column >= start) & (column < prompt_tokens + own),
    mask_BT=mask,
    logp_BT=zeros,
    model_logp_BT=zeros,
    staleness_BT=zeros.astype(np.int32),
    finish_B=np.ones(B, np.int32),
    length_B=own[:, 0].astype(np.int32),
    group_B=np.repeat(np.arange(groups, dtype=np.int32), size),
  )


def _pack_groups(rollout: Rollout, **changes):
  B, T = rollout.tokens_BT.shape
  shape = RowShape(
    **dict(
      row_tokens=3 * T,
      microbatch_rows=1,
      num_updates=1,
      num_samples=B,
      max_sample_tokens=T,
      repeated_tokens=1,
    )
    | changes
  )
  everyone, order = np.ones(B, bool), np.random.default_rng(1).permutation(B)
  return sample_packing.pack(rollout, everyone, order, shape), shape


@pytest.mark.parametrize('repeated', [1, 2])
def test_completions_share_the_prompt_before_them(repeated):
  """Each sample is its prompt's segment and its own, in whatever row."""
  rollout = _groups(20, 6)
  batch, shape = _pack_groups(rollout, repeated_tokens=repeated)
  found = []
  for row in range(len(batch.tokens_BT)):
    segment, prefix = batch.segment_BT[row], batch.prefix_BT[row]
    for number in range(1, segment.max() + 1):
      own = segment == number
      before = prefix[own][0]
      assert (prefix[own] == before).all()
      if before < 0:  # A prompt, which some completions come after.
        assert (prefix == number).any() and not batch.mask_BT[row][own].any()
        continue
      if before:
        assert (batch.position_BT[row][own][:1] + repeated - 1) == (
          batch.position_BT[row][own & batch.mask_BT[row]][0] - 1
        )
        own |= segment == before
      sample = batch.sample_BT[row][segment == number][0]
      valid = rollout.valid_BT[sample]
      for name in ('tokens_BT', 'mask_BT'):
        want = getattr(rollout, name)[sample][valid]
        assert getattr(batch, name)[row][own].tolist() == want.tolist()
      assert batch.position_BT[row][own].tolist() == list(range(valid.sum()))
      found.append(sample)
  assert sorted(found) == list(range(12))
  lengths = rollout.valid_BT.sum(1)
  shared = sample_packing.metrics(batch, shape, lengths)['packing/shared']
  assert 0.4 < shared < 0.75


def test_prompts_are_shared_only_where_it_saves_microbatches():
  """Not if all fits one microbatch, nor where the prompt is a token or two."""
  rollout = _groups(20, 6)
  one, _ = _pack_groups(rollout, row_tokens=400)
  assert not one.prefix_BT.any()
  short, _ = _pack_groups(_groups(2, 20))
  assert not short.prefix_BT.any()
  never, _ = _pack_groups(rollout, repeated_tokens=0)
  assert never.prefix_BT is None
  shared, _ = _pack_groups(rollout)
  assert shared.num_microbatches_u.sum() < never.num_microbatches_u.sum()


def test_prompts_that_differ_are_not_shared():
  """An environment may have written something else into each."""
  rollout = _groups(20, 6)
  tokens = rollout.tokens_BT.copy()
  tokens[5, 19] += 1
  prompts = sample_packing.shared_prompts(rollout.replace(tokens_BT=tokens), 1)
  assert prompts.id_B.tolist() == [0, 0, 0, 0, 4, 5, 4, 4, 8, 8, 8, 8]
  assert prompts.tokens_B[5] == 0
  assert prompts.tokens_B[4] == rollout.valid_BT[4, :19].sum()
