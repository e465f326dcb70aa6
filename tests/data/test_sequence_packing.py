"""Examples in rows: whole, each once, with what is read of them."""

import numpy as np
import pytest

from r1jax.data import sample_packing, sequence_packing
from r1jax.data.sample_packing import RowShape
from r1jax.data.sequence_packing import ReadSequence


def _shape(**changes) -> RowShape:
  return RowShape(
    **dict(
      row_tokens=8,
      microbatch_rows=1,
      num_updates=1,
      num_samples=3,
      max_sample_tokens=8,
    )
    | changes
  )


def test_a_pair_in_a_row():
  """The example of PackedRows, for DPO and for a reward model."""
  for read, mask in (
    ((1, 2), [0, 1, 1, 0, 1, 1, 0, 0]),
    ((2,), [0, 0, 1, 0, 0, 1, 0, 0]),
  ):
    pair = [ReadSequence([7, 4, 2], read), ReadSequence([7, 5, 2], read)]
    rows = sequence_packing.pack([pair], _shape(num_samples=1))
    assert rows.tokens_BT.tolist() == [[7, 4, 2, 7, 5, 2, 0, 0]]
    assert rows.position_BT.tolist() == [[0, 1, 2, 0, 1, 2, 0, 0]]
    assert rows.segment_BT.tolist() == [[1, 1, 1, 2, 2, 2, 0, 0]]
    assert rows.sample_BT.tolist() == [[0, 0, 0, 1, 1, 1, 0, 0]]
    assert rows.mask_BT.astype(int).tolist() == [mask]
    assert rows.num_microbatches_u.tolist() == [1]
    assert rows.label_BT is None


@pytest.mark.parametrize('width', [1, 2])
@pytest.mark.parametrize('seed', range(10))
def test_every_sequence_is_whole_in_the_row_of_its_example(seed, width):
  rng = np.random.default_rng(seed)

  def sequence():
    length = int(rng.integers(1, 9))
    read = np.flatnonzero(rng.random(length) < 0.5)
    return ReadSequence(
      rng.integers(0, 99, length), read, rng.random(len(read))
    )

  examples = [[sequence() for _ in range(width)] for _ in range(9)]
  shape = _shape(
    row_tokens=int(rng.integers(16, 40)),
    microbatch_rows=int(rng.integers(1, 4)),
    num_samples=12,  # The last batch of a pass has fewer.
    max_sample_tokens=16,
  )
  rows = sequence_packing.pack(examples, shape)
  used = rows.segment_BT > 0
  for number, (row, each) in enumerate(
    (example, each) for example in examples for each in example
  ):
    where = used & (rows.sample_BT == number)
    np.testing.assert_array_equal(rows.tokens_BT[where], each.ids)
    np.testing.assert_array_equal(rows.position_BT[where], range(len(each.ids)))
    read = where & rows.mask_BT
    np.testing.assert_array_equal(rows.position_BT[read], each.read)
    np.testing.assert_array_equal(
      rows.label_BT[read], each.labels.astype(np.float32)
    )
    (place,) = np.unique(np.nonzero(where)[0])
    assert len(np.unique(rows.segment_BT[where])) == 1
    first = number // width * width  # Of the same example.
    assert used[place][rows.sample_BT[place] == first].any()
  assert used.sum() == sum(len(s.ids) for example in examples for s in example)
  (count,) = rows.num_microbatches_u
  assert not used[count * shape.microbatch_rows :].any()
  assert used[(count - 1) * shape.microbatch_rows :].any()
  slots = count * shape.microbatch_rows * shape.row_tokens
  assert sample_packing.efficiency(rows, shape) == used.sum() / slots


def test_passes_are_shuffled_each_in_its_own_way():
  order = sequence_packing.order(20, seed=1, epochs=2, shuffle=True)
  first, second = order[:20].tolist(), order[20:].tolist()
  assert sorted(first) == sorted(second) == list(range(20))
  assert first != second
  plain = sequence_packing.order(3, seed=1, epochs=2, shuffle=False)
  assert plain.tolist() == [0, 1, 2, 0, 1, 2]
