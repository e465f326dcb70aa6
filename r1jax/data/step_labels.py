"""Thoughts whose steps are labelled: rows that the stage label_steps writes.

A row has an `id`, a `question`, the templated `prompt`, the `completion` and
its `tokens`, where its steps end among them (see steps.py), and how many of
each step's `continuations` were `right`.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from r1jax.algos import prm as process
from r1jax.data import readers
from r1jax.data.quarantine import Quarantine
from r1jax.data.text.tokenizer import Tokenizer
from r1jax.errors import UserError
from r1jax.records import StepLabelBatch


class StepLabelledResponse(NamedTuple):
  """One row, tokenised.

  Attributes:
    id: Of its row.
    question: Thoughts on one question are held out together.
    ids: Tokens of prompt and completion, without a stop token.
    last: The index in `ids` of each step's last token.
    labels: y of each step, see algos/prm.py.
    delimiter: Ends its steps.
  """

  id: str
  question: str
  ids: list[int]
  last: list[int]
  labels: np.ndarray
  delimiter: str


def read(
  path: str,
  tokenizer: Tokenizer,
  labels: str,
  max_tokens: int,
  quarantine: Quarantine,
) -> list[StepLabelledResponse]:
  """Reads and checks every row.

  Args:
    path: See readers.files.
    tokenizer: Whose tokens the rows have.
    labels: Of process.LABELS.
    max_tokens: Of prompt and completion.
    quarantine: Where bad rows go.

  Raises:
    UserError: a missing file; or a row, by file and line.
  """
  files, found, seen = readers.files(path), [], {}
  for row in readers.rows(files):
    try:
      made = _thought(row, tokenizer, labels, max_tokens)
      if made.id in seen:
        raise ValueError(f'repeats the id {made.id!r} of {seen[made.id]}')
      seen[made.id] = row.where
    except (ValueError, UserError) as error:
      quarantine.drop(row.where, str(error))
    else:
      found.append(made)
  return found


def _thought(
  row: readers.Row, tokenizer: Tokenizer, labels: str, max_tokens: int
) -> StepLabelledResponse:
  if row.fields is None:
    raise ValueError(row.problem)
  fields = row.fields
  for name, kind in (
    ('id', str),
    ('question', str),
    ('prompt', str),
    ('completion', str),
    ('tokens', list),
    ('ends', list),
    ('right', list),
    ('continuations', int),
  ):
    if not isinstance(fields.get(name), kind):
      raise ValueError(
        f'needs {name!r}, a {kind.__name__}, got {fields.get(name)!r:.200}'
      )
  n, ends, right = (fields[name] for name in ('continuations', 'ends', 'right'))
  if not ends:
    raise ValueError('has no steps')
  if n < 1 or len(ends) != len(right) or not all(0 <= r <= n for r in right):
    raise ValueError(
      f'needs a count within 0 and continuations = {n} for each '
      f'of its {len(ends)} steps, got {right!r:.200}'
    )
  if list(ends) != sorted(set(ends)) or not (
    1 <= ends[0] and ends[-1] <= len(fields['tokens'])
  ):
    raise ValueError(
      f"needs 'ends' that rise within 1 and its "
      f'{len(fields["tokens"])} tokens, got {ends!r:.200}'
    )
  if tokenizer.decode(fields['tokens']) != fields['completion']:
    raise ValueError(
      "has 'tokens' that do not read as its 'completion': they "
      'are of another tokenizer'
    )
  prompt = tokenizer.encode_prompt(fields['prompt'])
  ids = [*prompt, *fields['tokens']]
  if len(ids) > max_tokens:
    raise ValueError(
      f'has {len(ids)} tokens, more than {max_tokens}; raise length_buckets'
    )
  return StepLabelledResponse(
    fields['id'],
    fields['question'],
    ids,
    [len(prompt) + end - 1 for end in ends],
    process.labels(np.array(right), n, labels),
    (fields.get('provenance') or {}).get('delimiter', ''),
  )


class StepLabelBatches(Sequence):
  """Batch i of `epochs` passes over the thoughts, a function of (seed, i).

  A batch is padded to the least of the declared widths that holds it, and the
  last batch with empty rows.
  """

  def __init__(
    self,
    thoughts: Sequence[StepLabelledResponse],
    batch_size: int,
    widths: Sequence[int],
    pad_id: int,
    seed: int = 0,
    epochs: int = 1,
    shuffle: bool = True,
  ):
    self._thoughts, self._widths, self._pad_id = thoughts, widths, pad_id
    self._batch_size = batch_size
    self._order = np.concatenate(
      [
        np.random.default_rng([seed, epoch]).permutation(len(thoughts))
        if shuffle
        else np.arange(len(thoughts))
        for epoch in range(epochs)
      ]
    )

  def __len__(self) -> int:
    return -(-len(self._order) // self._batch_size)

  def __getitem__(self, index: int) -> StepLabelBatch:
    size = self._batch_size
    some = [
      self._thoughts[i] for i in self._order[index * size : (index + 1) * size]
    ]
    longest = max(len(thought.ids) for thought in some)
    width = next(w for w in self._widths if w >= longest)
    tokens_BT = np.full((size, width), self._pad_id, np.int32)
    valid_BT = np.zeros((size, width), bool)
    label_BT, weight_BT = np.zeros((2, size, width), np.float32)
    for b, thought in enumerate(some):
      tokens_BT[b, : len(thought.ids)] = thought.ids
      valid_BT[b, : len(thought.ids)] = True
      label_BT[b, thought.last], weight_BT[b, thought.last] = thought.labels, 1
    return StepLabelBatch(
      tokens_BT=tokens_BT,
      valid_BT=valid_BT,
      label_BT=label_BT,
      weight_BT=weight_BT,
    )
