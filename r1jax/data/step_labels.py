"""Responses with step labels, to train process reward models (PRM) on.

The stage label_steps writes these rows. A row has an `id`, a `question`, the
templated `prompt`, the `completion` and its `tokens`; `ends`, the index after
each step's last token (see text/steps.py); and `right`, how many of each
step's `continuations` were right.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from r1jax.algos import prm
from r1jax.data import readers
from r1jax.data.quarantine import Quarantine
from r1jax.data.text.tokenizer import Tokenizer
from r1jax.errors import UserError
from r1jax.records import StepLabelBatch


class StepLabelledResponse(NamedTuple):
  """A tokenized response with a label per reasoning step.

  Attributes:
    id: Id of its row.
    question: The question; all responses to it go to the same split.
    ids: Token ids of prompt and completion, without a stop token.
    last: Index in `ids` of each step's last token.
    labels: float, the label y of each step; see algos/prm.py.
    delimiter: The delimiter that ended the steps; '' if the row does not say.
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
  """Reads and validates rows with step labels.

  Args:
    path: See readers.files.
    tokenizer: The tokenizer that made the rows' tokens.
    labels: Kind of label, one of prm.LABELS.
    max_tokens: Maximum number of tokens of prompt and completion together.
    quarantine: Takes malformed and overlong rows.

  Raises:
    UserError: a file is missing, or a row is malformed and may not be dropped;
      the message names its file and line.
  """
  files, responses = readers.files(path), []
  seen: dict[str, str] = {}
  for row in readers.rows(files):
    try:
      response = _response(row, tokenizer, labels, max_tokens)
      id_ = response.id
      if id_ in seen:
        raise ValueError(f'repeats the id {id_!r} of {seen[id_]}')
      seen[id_] = row.where
    except (ValueError, UserError) as error:
      quarantine.drop(row.where, str(error))
    else:
      responses.append(response)
  return responses


def _response(
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
    prm.labels(np.array(right), n, labels),
    (fields.get('provenance') or {}).get('delimiter', ''),
  )


class StepLabelBatches(Sequence):
  """Batches of responses with step labels, for several passes over them.

  Batch i is a pure function of (seed, i). It is padded to the smallest length
  bucket that fits it; the last batch is filled up with empty rows.
  """

  def __init__(
    self,
    responses: Sequence[StepLabelledResponse],
    batch_size: int,
    length_buckets: Sequence[int],
    pad_id: int,
    seed: int = 0,
    epochs: int = 1,
    shuffle: bool = True,
  ):
    """Makes the batches.

    Args:
      responses: The responses of one pass.
      batch_size: B, responses of a batch.
      length_buckets: Padded lengths in tokens, in rising order.
      pad_id: Token id of padding.
      seed: Seed of the shuffling.
      epochs: Number of passes.
      shuffle: Whether to shuffle each pass.
    """
    self._responses, self._pad_id = responses, pad_id
    self._length_buckets = length_buckets
    self._batch_size = batch_size
    self._order = np.concatenate(
      [
        np.random.default_rng([seed, epoch]).permutation(len(responses))
        if shuffle
        else np.arange(len(responses))
        for epoch in range(epochs)
      ]
    )

  def __len__(self) -> int:
    return -(-len(self._order) // self._batch_size)

  def __getitem__(self, index: int) -> StepLabelBatch:
    size = self._batch_size
    responses = [
      self._responses[i] for i in self._order[index * size : (index + 1) * size]
    ]
    longest = max(len(response.ids) for response in responses)
    width = next(w for w in self._length_buckets if w >= longest)
    tokens_BT = np.full((size, width), self._pad_id, np.int32)
    valid_BT = np.zeros((size, width), bool)
    label_BT, weight_BT = np.zeros((2, size, width), np.float32)
    for b, response in enumerate(responses):
      tokens_BT[b, : len(response.ids)] = response.ids
      valid_BT[b, : len(response.ids)] = True
      label_BT[b, response.last], weight_BT[b, response.last] = (
        response.labels,
        1,
      )
    return StepLabelBatch(
      tokens_BT=tokens_BT,
      valid_BT=valid_BT,
      label_BT=label_BT,
      weight_BT=weight_BT,
    )
