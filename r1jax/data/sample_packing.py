"""Packs samples into rows of a token budget, so that no update computes padding.

A sample is a prompt with its completion. Completions of reasoning are uneven,
often a fifth of the longest one that is allowed: one row a sample would be
mostly padding. Each row holds several whole samples instead, and attention
stays within a sample. Losses and metrics are those of one row a sample.

Samples of one prompt may share it: it stands once before their completions,
each of which attends to it and to itself. The last tokens of the prompt are
repeated before each completion, so that a token is always predicted at the slot
before it. A step shares prompts if that leaves it fewer microbatches.

The number of rows follows from the tokens that came, and their width, one of a
few, from the longest sample. Rows are handed to the device in microbatches of one
shape, and a loop runs as many of them as hold tokens, so that all steps of a run
share a few programs, and cost what their tokens cost however long a sample may
be.
"""

import bisect
from collections.abc import Iterator, Sequence
import dataclasses
import itertools
from typing import NamedTuple

import numpy as np

from r1jax.records import PackedRows, RLBatch, Rollout

_MAX_PADDED_TOKENS = 1 << 24  # Arrays of more tokens are cut to what is needed.


@dataclasses.dataclass(frozen=True)
class RowShape:
  """The shape of the rows of a step's updates.

  Attributes:
    row_tokens: T, tokens of a row: at least those of the longest sample that may
      come.
    microbatch_rows: Rows of a microbatch, over all devices.
    num_updates: Updates of a step, each of an equal share of the samples.
    num_samples: Samples of a step.
    max_sample_tokens: Tokens of the longest sample that may come.
    repeated_tokens: The last tokens of a shared prompt that stand before each
      completion: one for the model's prediction, and one for each MTP module's.
      0 if samples do not share prompts.
    narrower: Pairs of row_tokens and microbatch_rows for steps whose longest
      sample fits, in rising order; few, since each is a program.
  """

  row_tokens: int
  microbatch_rows: int
  num_updates: int
  num_samples: int
  max_sample_tokens: int
  repeated_tokens: int = 0
  narrower: tuple[tuple[int, int], ...] = ()

  def fitting(self, longest: int) -> 'RowShape':
    """Returns the shape of the narrowest rows that hold so many tokens."""
    for row_tokens, rows in self.narrower:
      if longest <= row_tokens:
        return dataclasses.replace(
          self,
          row_tokens=row_tokens,
          microbatch_rows=rows,
          max_sample_tokens=min(row_tokens, self.max_sample_tokens),
        )
    return self

  def rows_of(self, row_tokens: int) -> int:
    """Returns the rows of a microbatch whose rows have this width."""
    return dict(self.narrower).get(row_tokens, self.microbatch_rows)

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


class SharedPrompts(NamedTuple):
  """The prompts that samples share where they are neighbours in a row.

  Attributes:
    id_B: int, equal for samples of one prompt.
    tokens_B: int, the tokens that samples of one prompt have once; 0 for none.
  """

  id_B: np.ndarray
  tokens_B: np.ndarray

  def runs(self, row: list[int]) -> Iterator[tuple[list[int], int]]:
    """Yields neighbours of one prompt, and the tokens that they share."""
    for _, run in itertools.groupby(row, lambda b: int(self.id_B[b])):
      samples = list(run)
      shared = int(self.tokens_B[samples[0]]) if len(samples) > 1 else 0
      yield samples, shared


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
  lengths_B: np.ndarray,
  order_B: np.ndarray,
  shape: RowShape,
  prompts: SharedPrompts | None = None,
) -> Packing:
  """Plans the rows of a step.

  Rows of similar attention cost share a microbatch, so that no device waits
  long for another.

  Args:
    lengths_B: Tokens of each sample, with its prompt; 0 leaves a sample out.
    order_B: The order of the samples: consecutive equal parts of it are the
      samples of consecutive updates.
    shape: Shape of the rows.
    prompts: The prompts that samples share; None if they share none.
  """
  prompts = prompts or unshared(len(lengths_B))

  def tokens(samples: list[int], shared: int) -> int:
    return int(lengths_B[samples].sum()) - shared * (len(samples) - 1)

  def cost(row: list[int]) -> int:  # The pairs of tokens that attention sees.
    return sum(
      int((lengths_B[samples] ** 2).sum()) - shared**2 * (len(samples) - 1)
      for samples, shared in prompts.runs(row)
    )

  of_update = []
  for samples in np.split(order_B, shape.num_updates):
    samples = samples[lengths_B[samples] > 0]
    items = _items(samples, lengths_B, shape.row_tokens, prompts)
    sizes = [tokens(*run) for item in items for run in prompts.runs(item)]
    rows = [
      # Items of one prompt become neighbours, which makes them one run.
      [
        b
        for i in sorted(row, key=lambda i: prompts.id_B[items[i][0]])
        for b in items[i]
      ]
      for row in best_fit(sizes, shape.row_tokens)
    ]
    rows.sort(key=cost, reverse=True)
    of_update.append(rows)
  counts = [-(-len(rows) // shape.microbatch_rows) for rows in of_update]
  room = shape.capacity(max(counts)) * shape.microbatch_rows
  padded = [rows + [[]] * (room - len(rows)) for rows in of_update]
  return Packing(
    [row for rows in padded for row in rows], np.array(counts, np.int32)
  )


def _items(
  samples: np.ndarray,
  lengths_B: np.ndarray,
  row_tokens: int,
  prompts: SharedPrompts,
) -> list[list[int]]:
  """Returns samples that stay together: as many of a prompt as fit in a row."""
  of_prompt: dict[int, list[int]] = {}
  for b in samples.tolist():
    of_prompt.setdefault(int(prompts.id_B[b]), []).append(b)
  items = []
  for members in of_prompt.values():
    shared = int(prompts.tokens_B[members[0]])
    if not shared:
      items += [[b] for b in members]
      continue
    own = (lengths_B[members] - shared).tolist()
    bins = best_fit(own, row_tokens - shared)
    items += [[members[i] for i in item] for item in bins]
  return items


def unshared(num_samples: int) -> SharedPrompts:
  """Returns the prompts of samples that share none."""
  return SharedPrompts(np.arange(num_samples), np.zeros(num_samples, np.int64))


def shared_prompts(rollout: Rollout, repeated_tokens: int) -> SharedPrompts:
  """Finds the prompts that samples share.

  A prompt is all that precedes the first sampled token. Samples of a group
  whose prompts differ, as where an environment wrote first, share none.

  Args:
    rollout: The samples.
    repeated_tokens: See RowShape.
  """
  B, T = rollout.mask_BT.shape
  before_BT = np.arange(T) < rollout.mask_BT.argmax(1)[:, None]
  before_BT &= rollout.valid_BT  # Nothing, where nothing was sampled.
  tokens_BT = np.where(before_BT, rollout.tokens_BT, -1)
  _, first_P, place_B = np.unique(
    rollout.group_B, return_index=True, return_inverse=True
  )
  first_B = first_P[place_B]
  same_B = (tokens_BT == tokens_BT[first_B]).all(1)
  tokens_B = np.maximum(before_BT.sum(1) - repeated_tokens, 0)
  return SharedPrompts(
    np.where(same_B, first_B, np.arange(B)), np.where(same_B, tokens_B, 0)
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
  shape = shape.fitting(int(lengths_B.max()))
  prompts = unshared(len(lengths_B))
  packing = plan(lengths_B, order_B, shape, prompts)
  if shape.repeated_tokens:
    shared = shared_prompts(rollout, shape.repeated_tokens)
    sharing = plan(lengths_B, order_B, shape, shared)
    if sharing.num_microbatches_u.sum() < packing.num_microbatches_u.sum():
      packing, prompts = sharing, shared
  slots = _slots(rollout.valid_BT, packing.rows, shape.row_tokens, prompts)
  used_BT = slots.of_BT >= 0

  def packed(x_BT: np.ndarray) -> np.ndarray:
    flat = x_BT.reshape(-1, *x_BT.shape[2:])
    taken = flat[np.maximum(slots.of_BT, 0)]
    return np.where(
      used_BT.reshape(*used_BT.shape, *(1,) * (x_BT.ndim - 2)),
      taken,
      np.zeros((), x_BT.dtype),
    )

  return RLBatch(
    tokens_BT=packed(rollout.tokens_BT),
    position_BT=slots.position_BT,
    segment_BT=slots.segment_BT,
    sample_BT=slots.sample_BT,
    mask_BT=packed(rollout.mask_BT),
    logp_BT=packed(rollout.logp_BT),
    staleness_BT=packed(rollout.staleness_BT),
    num_microbatches_u=packing.num_microbatches_u,
    experts_BTLA=(
      None if rollout.experts_BTLA is None else packed(rollout.experts_BTLA)
    ),
    prefix_BT=slots.prefix_BT if shape.repeated_tokens else None,
  )


class _Slots(NamedTuple):
  """The slots of all rows.

  Attributes:
    of_BT: int, the token's place in the flattened rollout; −1 for padding.
    position_BT, segment_BT, sample_BT, prefix_BT: See RLBatch.
  """

  of_BT: np.ndarray
  position_BT: np.ndarray
  segment_BT: np.ndarray
  sample_BT: np.ndarray
  prefix_BT: np.ndarray


def _slots(
  valid_BT: np.ndarray,
  rows: list[list[int]],
  row_tokens: int,
  prompts: SharedPrompts,
) -> _Slots:
  """Lays samples out in rows, a shared prompt before its completions."""
  shape, width = (len(rows), row_tokens), valid_BT.shape[1]
  slots = _Slots(np.full(shape, -1), *np.zeros((4, *shape), np.int32))
  for row, samples in enumerate(rows):
    at = segment = 0
    for run, shared in prompts.runs(samples):
      parts = [(run[0], slice(shared), -1)] if shared else []
      prefix = segment + 1 if shared else 0
      parts += [(b, slice(shared, None), prefix) for b in run]
      for sample, part, prefix in parts:
        columns = np.flatnonzero(valid_BT[sample])
        position = np.arange(len(columns))[part]
        end, segment = at + len(position), segment + 1
        slots.of_BT[row, at:end] = sample * width + columns[part]
        slots.position_BT[row, at:end] = position
        slots.segment_BT[row, at:end] = segment
        slots.sample_BT[row, at:end] = sample
        slots.prefix_BT[row, at:end] = prefix
        at = end
  return slots


def efficiency(batch: RLBatch | PackedRows, shape: RowShape) -> float:
  """Returns the share of the computed slots that hold tokens, in [0, 1]."""
  tokens = int(np.sum(np.asarray(batch.segment_BT) > 0))
  T = batch.segment_BT.shape[1]
  computed = int(np.sum(batch.num_microbatches_u)) * shape.rows_of(T) * T
  return tokens / max(computed, 1)


def metrics(
  batch: RLBatch, shape: RowShape, lengths_B: np.ndarray
) -> dict[str, float]:
  """Returns how much of what is computed are tokens.

  Args:
    batch: The packed samples.
    shape: Shape of the rows.
    lengths_B: Tokens of each sample, with its prompt; 0 for one left out.

  Returns:
    packing/efficiency: The share of the computed slots that hold tokens.
    packing/shared: The share of the samples' tokens that are not computed,
      since samples share prompts.
  """
  tokens = int(np.sum(np.asarray(batch.segment_BT) > 0))
  of_samples = int(lengths_B.sum())
  return {
    'packing/efficiency': efficiency(batch, shape),
    'packing/shared': (of_samples - tokens) / max(of_samples, 1),
  }
