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
from r1jax.data import readers, sequence_packing
from r1jax.data.quarantine import Quarantine
from r1jax.data.sample_packing import RowShape
from r1jax.data.sequence_packing import ReadSequence
from r1jax.data.text.tokenizer import Tokenizer
from r1jax.errors import UserError
from r1jax.records import PackedRows


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
      f'has {len(ids)} tokens, more than {max_tokens}; raise max_tokens'
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

  Batch i is a pure function of (seed, i). The last batch may have fewer
  responses.
  """

  def __init__(
    self,
    responses: Sequence[StepLabelledResponse],
    shape: RowShape,
    seed: int = 0,
    epochs: int = 1,
    shuffle: bool = True,
  ):
    """Makes the batches.

    Args:
      responses: The responses of one pass.
      shape: Shape of the rows; its samples are the responses of a batch.
      seed: Seed of the shuffling.
      epochs: Number of passes.
      shuffle: Whether to shuffle each pass.
    """
    self._responses, self._shape = responses, shape
    self._order = sequence_packing.order(len(responses), seed, epochs, shuffle)

  def __len__(self) -> int:
    return -(-len(self._order) // self._shape.num_samples)

  def __getitem__(self, index: int) -> PackedRows:
    size = self._shape.num_samples
    responses = [
      self._responses[i] for i in self._order[index * size : (index + 1) * size]
    ]
    return sequence_packing.pack(
      [[ReadSequence(r.ids, r.last, r.labels)] for r in responses], self._shape
    )
