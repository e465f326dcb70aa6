"""Demonstrations: prompts with the responses to fine-tune on.

A row of a file has an `id`, a `question` or `messages`, and a `response`; it
may say `general: true`. The stage rejection_sampling writes such rows.
"""

import base64

import numpy as np

from r1jax import registry
from r1jax.config.schema.data import CorpusConfig
from r1jax.data import readers
from r1jax.data.quarantine import Quarantine
from r1jax.data.tasks.corpus import sample_document
from r1jax.data.text.template import PromptTemplate
from r1jax.errors import UserError
from r1jax.records import Demonstration, Message, TopLogprobs


def read(
  path: str,
  template: PromptTemplate,
  general: bool | None = None,
  quarantine: Quarantine | None = None,
) -> list[Demonstration]:
  """Reads and validates the rows of an SFT dataset.

  Args:
    path: See readers.files.
    template: Makes the prompts; see also strip_response_prefix.
    general: Whether the rows are general data (no rule verifies the answers);
      None to read it from each row.
    quarantine: Takes malformed rows; without one, a malformed row is an error.

  Raises:
    UserError: a file is missing or has no rows, or a row is malformed; the
      message names its file and line.
  """
  quarantine = quarantine or Quarantine()
  files, demonstrations = readers.files(path), []
  seen: dict[str, str] = {}
  for row in readers.rows(files):
    try:
      demonstration = _demonstration(row, template, general)
      id_ = demonstration.id
      if id_ in seen:
        raise ValueError(f'repeats the id {id_!r} of {seen[id_]}')
      seen[id_] = row.where
    except (ValueError, UserError) as error:
      quarantine.drop(row.where, str(error))
    else:
      demonstrations.append(demonstration)
  if not demonstrations:
    raise UserError(f'data: {files[0]} has no demonstrations')
  return demonstrations


def synthetic(
  task: str,
  corpus: CorpusConfig,
  template: PromptTemplate,
  seed: int,
  count: int,
) -> list[Demonstration]:
  """Samples demonstrations from a synthetic task.

  Args:
    task: Name of a registered task.
    corpus: How noisy they are.
    template: Makes the prompts.
    seed: Seed of the samples.
    count: Number of demonstrations.
  """
  demonstrations = []
  for index in range(count):
    rng = np.random.default_rng([seed, _STREAM, index])
    question, response = sample_document(rng, task, corpus)
    demonstrations.append(
      Demonstration(
        id=f'{task}-{seed}-{index}',
        question=question,
        prompt=template.render(question),
        response=strip_response_prefix(response, template),
        general=registry.task.get(task).general,
      )
    )
  return demonstrations


_STREAM = 4  # Separates these random numbers from those of other data.


def _demonstration(
  row: readers.Row, template: PromptTemplate, general: bool | None
) -> Demonstration:
  if row.fields is None:
    raise ValueError(row.problem)
  fields = row.fields
  for name, kind in (('id', str), ('response', str)):
    if not isinstance(fields.get(name), kind) or not fields[name].strip():
      raise ValueError(
        f'needs a non-empty {kind.__name__} {name!r}, got '
        f'{fields.get(name)!r:.200}'
      )
  messages = fields.get('messages') or ()
  question = fields.get('question') or ''
  if not messages and not (isinstance(question, str) and question.strip()):
    raise ValueError("needs a 'question' or 'messages'")
  try:
    turns = tuple(Message(turn['role'], turn['content']) for turn in messages)
  except (TypeError, KeyError) as error:
    raise ValueError(
      f"needs 'messages' of 'role' and 'content', got {messages!r:.200}"
    ) from error
  if general is None:
    general = bool(fields.get('general', False))
  return Demonstration(
    id=fields['id'],
    question=question,
    messages=turns,
    prompt=template.render(question, turns),
    response=strip_response_prefix(fields['response'], template),
    general=general,
    where=row.where,
    teacher=_decode_teacher(fields.get('teacher')),
  )


def strip_response_prefix(response: str, template: PromptTemplate) -> str:
  """Removes from a response what the template's prompts already end with."""
  prefix = template.response_prefix or (
    '<think>' if template.prompt_opens_think else ''
  )
  return response.removeprefix(prefix)


def encode_teacher(top: TopLogprobs) -> dict:
  """Returns top log-probabilities as JSON, without loss of precision."""
  return {
    'temperature': top.temperature,
    'kept': top.ids_TO.shape[1],
    'ids': _to_base64(top.ids_TO, '<i4'),
    'logp': _to_base64(top.logp_TO, '<f4'),
  }


def _decode_teacher(fields: dict | None) -> TopLogprobs | None:
  """Inverts encode_teacher; raises ValueError if the row is malformed."""
  if fields is None:
    return None
  try:
    shape = -1, int(fields['kept'])
    return TopLogprobs(
      ids_TO=np.frombuffer(base64.b64decode(fields['ids']), '<i4').reshape(
        shape
      ),
      logp_TO=np.frombuffer(base64.b64decode(fields['logp']), '<f4').reshape(
        shape
      ),
      temperature=float(fields['temperature']),
    )
  except (TypeError, KeyError, ValueError) as error:
    raise ValueError(f"has a broken 'teacher': {error!r}") from error


def _to_base64(array: np.ndarray, dtype: str) -> str:
  return base64.b64encode(array.astype(dtype).tobytes()).decode()
