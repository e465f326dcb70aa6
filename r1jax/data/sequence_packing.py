"""Packs examples of whole sequences into rows, for stages that learn from them.

An example is a preference pair, a labelled response or a thought with labelled
steps. Its sequences stand in one row, so that they are in one microbatch: the
loss of a pair needs both responses. See sample_packing.py for the rows.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from r1jax.data import sample_packing
from r1jax.data.sample_packing import RowShape
from r1jax.records import PackedRows


class ReadSequence(NamedTuple):
  """A sequence of tokens, of which the outputs of some are read.

  Attributes:
    ids: Token ids.
    read: Indices of the tokens whose output is read.
    labels: A label in [0, 1] of each token that is read; None without labels.
  """

  ids: Sequence[int]
  read: Sequence[int]
  labels: Sequence[float] | np.ndarray | None = None


def order(
  num_examples: int, seed: int, epochs: int, shuffle: bool
) -> np.ndarray:
  """Returns the indices of the examples of several passes over them.

  Args:
    num_examples: Examples of one pass.
    seed: Seed of the shuffling.
    epochs: Number of passes.
    shuffle: Whether to shuffle each pass.
  """
  return np.concatenate(
    [
      np.random.default_rng([seed, epoch]).permutation(num_examples)
      if shuffle
      else np.arange(num_examples)
      for epoch in range(epochs)
    ]
  )


def pack(
  examples: Sequence[Sequence[ReadSequence]], shape: RowShape
) -> PackedRows:
  """Packs the examples of a batch; sequences are numbered in their order.

  Args:
    examples: The sequences of each example, as many in all of them.
    shape: Shape of the rows, of one update; its samples are the examples.
  """
  lengths = np.array(
    [sum(len(sequence.ids) for sequence in example) for example in examples]
  )
  shape = shape.fitting(int(lengths.max()))
  packing = sample_packing.plan(lengths, np.arange(len(examples)), shape)
  size = len(packing.rows), shape.row_tokens
  tokens_BT, position_BT, segment_BT, sample_BT = np.zeros((4, *size), np.int32)
  mask_BT, label_BT = np.zeros(size, bool), np.zeros(size, np.float32)
  for row, members in enumerate(packing.rows):
    sequences = [
      (example * len(examples[example]) + i, sequence)
      for example in members
      for i, sequence in enumerate(examples[example])
    ]
    start = 0
    for segment, (sample, sequence) in enumerate(sequences, 1):
      end = start + len(sequence.ids)
      tokens_BT[row, start:end] = sequence.ids
      position_BT[row, start:end] = np.arange(end - start)
      segment_BT[row, start:end] = segment
      sample_BT[row, start:end] = sample
      read = start + np.asarray(sequence.read, int)
      mask_BT[row, read] = True
      if sequence.labels is not None:
        label_BT[row, read] = sequence.labels
      start = end
  labelled = any(
    sequence.labels is not None for example in examples for sequence in example
  )
  return PackedRows(
    tokens_BT=tokens_BT,
    position_BT=position_BT,
    segment_BT=segment_BT,
    sample_BT=sample_BT,
    mask_BT=mask_BT,
    num_microbatches_u=packing.num_microbatches_u,
    label_BT=label_BT if labelled else None,
  )
