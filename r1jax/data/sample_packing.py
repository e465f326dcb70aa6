"""Packs samples into rows of a token budget, so that no update computes padding.

A sample is a prompt with its completion. Completions of reasoning are uneven,
often a fifth of the longest one that is allowed: one row a sample would be
mostly padding. Each row holds several whole samples instead, and attention
stays within a sample. Losses and metrics are those of one row a sample.

The number of rows follows from the tokens that came. Rows are handed to the
device in microbatches of one shape, and a loop runs as many of them as hold
tokens, so that all steps of a run share a few programs.
"""

import bisect
from collections.abc import Sequence
import dataclasses
from typing import NamedTuple

import numpy as np

from r1jax.records import RLBatch, Rollout

_MAX_PADDED_TOKENS = 1 << 24  # Arrays of more tokens are cut to what is needed.


@dataclasses.dataclass(frozen=True)
class RowShape:
  """The shape of the rows of a step's updates.

  Attributes:
    row_tokens: T, tokens of a row: at least those of the longest sample.
    microbatch_rows: Rows of a microbatch, over all devices.
    num_updates: Updates of a step, each of an equal share of the samples.
    num_samples: Samples of a step.
    max_sample_tokens: Tokens of the longest sample that may come.
  """

  row_tokens: int
  microbatch_rows: int
  num_updates: int
  num_samples: int
  max_sample_tokens: int

  @property
  def max_microbatches(self) -> int:
    """Microbatches of an update whose samples are all as long as they may be."""
    whole = max(1, self.row_tokens // self.max_sample_tokens)
    # Best fit fills every row but one with at least as many samples.
    rows = -(-self.num_samples // self.num_updates // whole) + (whole > 1)
    return -(-rows // self.microbatch_rows)

  def capacity(self, num_microbatches: int) -> int:
    """Returns the microbatches of an update that arrays have room for.

    It is the same in all steps, unless arrays would be very large: then one of
    few sizes, each half of the one above it.

    Args:
      num_microbatches: The largest number that hold tokens.
    """
    room = self.max_microbatches
    tokens = self.num_updates * self.microbatch_rows * self.row_tokens
    while room * tokens > _MAX_PADDED_TOKENS and room // 2 >= num_microbatches:
      room //= 2
    return max(room, num_microbatches, 1)


class Packing(NamedTuple):
  """The place of each sample.

  Attributes:
    rows: For each row the samples that it holds, in order; empty for padding.
    num_microbatches_u: int32, microbatches that hold tokens, by update.
  """

  rows: list[list[int]]
  num_microbatches_u: np.ndarray


def best_fit(lengths: Sequence[int], row_tokens: int) -> list[list[int]]:
  """Packs items into rows, the longest first, each where it fits best.

  Example, row_tokens = 6: the lengths [2, 5, 3, 1] give the rows [[1, 3],
  [2, 0]], which hold 6 and 5 tokens.

  Args:
    lengths: Length of each item, at most row_tokens.
    row_tokens: Room of a row.

  Returns:
    The items of each row, the fullest rows of long items first.
  """
  rows: list[list[int]] = []
  room: list[tuple[int, int]] = []  # Free tokens and index of rows, sorted.
  for item in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
    at = bisect.bisect_left(room, (lengths[item], -1))
    if at == len(room):
      free, row = row_tokens, len(rows)
      rows.append([])
    else:
      free, row = room.pop(at)
    if lengths[item] > free:
      raise ValueError(
        f'an item of {lengths[item]} tokens is longer than a row of {row_tokens}'
      )
    rows[row].append(item)
    bisect.insort(room, (free - lengths[item], row))
  return rows


def plan(
  lengths_B: np.ndarray, order_B: np.ndarray, shape: RowShape
) -> Packing:
  """Plans the rows of a step.

  Rows of similar attention cost share a microbatch, so that no device waits
  long for another.

  Args:
    lengths_B: Tokens of each sample, with its prompt; 0 leaves a sample out.
    order_B: The order of the samples: consecutive equal parts of it are the
      samples of consecutive updates.
    shape: Shape of the rows.
  """
  of_update = []
  for samples in np.split(order_B, shape.num_updates):
    samples = samples[lengths_B[samples] > 0]
    rows = [
      [int(samples[i]) for i in row]
      for row in best_fit(lengths_B[samples].tolist(), shape.row_tokens)
    ]
    rows.sort(key=lambda row: -sum(int(lengths_B[b]) ** 2 for b in row))
    of_update.append(rows)
  counts = [-(-len(rows) // shape.microbatch_rows) for rows in of_update]
  room = shape.capacity(max(counts)) * shape.microbatch_rows
  padded = [rows + [[]] * (room - len(rows)) for rows in of_update]
  return Packing(
    [row for rows in padded for row in rows], np.array(counts, np.int32)
  )


def pack(
  rollout: Rollout, included_B: np.ndarray, order_B: np.ndarray, shape: RowShape
) -> RLBatch:
  """Packs the samples of a rollout; the loss counts all that were sampled.

  Args:
    rollout: The samples.
    included_B: bool, False for samples to leave out.
    order_B: See `plan`.
    shape: Shape of the rows.
  """
  lengths_B = rollout.valid_BT.sum(1) * included_B
  packing = plan(lengths_B, order_B, shape)
  T = shape.row_tokens
  of_slot = np.full((len(packing.rows), T), -1, np.int64)  # In the rollout.
  segment_BT, position_BT, sample_BT = np.zeros((3, *of_slot.shape), np.int32)
  width = rollout.tokens_BT.shape[1]
  for row, samples in enumerate(packing.rows):
    start = 0
    for number, sample in enumerate(samples, 1):
      columns = np.flatnonzero(rollout.valid_BT[sample])
      end = start + len(columns)
      of_slot[row, start:end] = sample * width + columns
      segment_BT[row, start:end] = number
      position_BT[row, start:end] = np.arange(len(columns))
      sample_BT[row, start:end] = sample
      start = end
  used_BT = of_slot >= 0

  def packed(x_BT: np.ndarray) -> np.ndarray:
    flat = x_BT.reshape(-1, *x_BT.shape[2:])
    taken = flat[np.maximum(of_slot, 0)]
    return np.where(
      used_BT.reshape(*used_BT.shape, *(1,) * (x_BT.ndim - 2)),
      taken,
      np.zeros((), x_BT.dtype),
    )

  return RLBatch(
    tokens_BT=packed(rollout.tokens_BT),
    position_BT=position_BT,
    segment_BT=segment_BT,
    sample_BT=sample_BT,
    mask_BT=packed(rollout.mask_BT),
    logp_BT=packed(rollout.logp_BT),
    staleness_BT=packed(rollout.staleness_BT),
    num_microbatches_u=packing.num_microbatches_u,
    experts_BTLA=(
      None if rollout.experts_BTLA is None else packed(rollout.experts_BTLA)
    ),
  )


def efficiency(batch: RLBatch, shape: RowShape) -> float:
  """Returns the share of the computed slots that hold tokens, in [0, 1]."""
  computed = int(np.sum(batch.num_microbatches_u)) * (
    shape.microbatch_rows * shape.row_tokens
  )
  return float(np.sum(np.asarray(batch.segment_BT) > 0)) / max(computed, 1)
