"""Batches for tests: packed rows, and the oracle of one row a sequence."""

from collections.abc import Sequence

import numpy as np

from r1jax.data import sample_packing
from r1jax.data.sample_packing import RowShape
from r1jax.data.sequence_packing import ReadSequence
from r1jax.records import PackedRows, RLBatch, Rollout


def one_a_row(rollout: Rollout) -> RLBatch:
  """The oracle: each sample a row of its own, in order."""
  zeros = np.zeros_like(rollout.staleness_BT)
  return RLBatch(
    tokens_BT=rollout.tokens_BT,
    position_BT=np.maximum(rollout.valid_BT.cumsum(1) - 1, 0),
    segment_BT=rollout.valid_BT.astype(np.int32),
    sample_BT=zeros + np.arange(len(zeros), dtype=np.int32)[:, None],
    mask_BT=rollout.mask_BT,
    logp_BT=rollout.logp_BT,
    staleness_BT=rollout.staleness_BT,
    num_microbatches_u=np.array([1]),
    experts_BTLA=rollout.experts_BTLA,
  )


def packed(rollout: Rollout, shape: RowShape, **values) -> RLBatch:
  """The rollout's rows, with arrays [B, T] of its samples packed likewise."""
  included_B = np.ones(len(rollout.tokens_BT), bool)
  order_B = np.arange(len(rollout.tokens_BT))
  pack = lambda **fields: sample_packing.pack(
    rollout.replace(**fields), included_B, order_B, shape
  )
  return pack().replace(
    **{name: pack(logp_BT=np.asarray(x)).logp_BT for name, x in values.items()}
  )


def unpacked(batch: RLBatch, rollout: Rollout, x_BT) -> np.ndarray:
  """Returns packed numbers as rows of the rollout, 0 outside the loss mask."""
  found = np.zeros(rollout.mask_BT.shape, np.float32)
  mask = np.asarray(batch.mask_BT)
  sample = batch.sample_BT[mask]
  column = batch.position_BT[mask] + rollout.valid_BT.argmax(1)[sample]
  found[sample, column] = np.asarray(x_BT)[mask]
  return found


def examples_of(lengths: Sequence[Sequence[int]], read) -> list:
  """Examples of random tokens, one or two sequences each.

  Args:
    lengths: Lengths of the sequences of each example.
    read: (rng, length) → indices of the tokens that are read, and labels or
      None.
  """
  rng = np.random.default_rng(0)
  return [
    [
      ReadSequence(rng.integers(3, 32, n).astype(np.int32), *read(rng, n))
      for n in example
    ]
    for example in lengths
  ]


def one_sequence_a_row(examples) -> PackedRows:
  """The oracle: each sequence a row of its own, in order, in one microbatch."""
  sequences = [sequence for example in examples for sequence in example]
  longest = max(len(sequence.ids) for sequence in sequences)
  size = len(sequences), longest
  valid = np.zeros(size, bool)
  tokens, mask, label = np.zeros(size, np.int32), valid.copy(), np.zeros(size)
  for b, sequence in enumerate(sequences):
    valid[b, : len(sequence.ids)] = True
    tokens[b, valid[b]] = sequence.ids
    mask[b, list(sequence.read)] = True
    if sequence.labels is not None:
      label[b, list(sequence.read)] = sequence.labels
  return PackedRows(
    tokens_BT=tokens,
    position_BT=np.where(valid, np.arange(longest), 0).astype(np.int32),
    segment_BT=valid.astype(np.int32),
    sample_BT=np.where(valid, np.arange(len(valid))[:, None], 0).astype(
      'int32'
    ),
    mask_BT=mask,
    num_microbatches_u=np.array([1], np.int32),
    label_BT=(
      None if sequences[0].labels is None else label.astype(np.float32)
    ),
  )


def row_shape(
  num_examples: int, longest: int, microbatch_rows: int, row_tokens: int
) -> RowShape:
  """The shape of rows of one update."""
  return RowShape(
    row_tokens=row_tokens,
    microbatch_rows=microbatch_rows,
    num_updates=1,
    num_samples=num_examples,
    max_sample_tokens=longest,
  )
