"""Demonstrations: prompts with the responses to learn from.

A row of a file has an `id`, a `question` or `messages`, and a `response`; it
may say `general: true`. `r1jax` writes such rows in its stage rejection_sampling.
"""

import base64

import numpy as np

from r1jax.data import readers, tasks
from r1jax.data.quarantine import Quarantine
from r1jax.data.text.template import PromptTemplate
from r1jax.errors import UserError
from r1jax.records import Demonstration, Message, TopLogprobs


def read(
  path: str,
  template: PromptTemplate,
  general: bool | None = None,
  quarantine: Quarantine | None = None,
) -> list[Demonstration]:
  """Reads and checks every row.

  Args:
    path: See readers.files.
    template: Makes the prompts. Where it opens the response itself, a
      response that begins in the same way is not told twice.
    general: Whether the rows are; None: as each of them says.
    quarantine: Where bad rows go; without one, a bad row is an error.

  Raises:
    UserError: a missing file; or a row, by file and line.
  """
  quarantine = quarantine or Quarantine()
  files, found, seen = readers.files(path), [], {}
  for row in readers.rows(files):
    try:
      made = _demonstration(row, template, general)
      if made.id in seen:
        raise ValueError(f'repeats the id {made.id!r} of {seen[made.id]}')
      seen[made.id] = row.where
    except (ValueError, UserError) as error:
      quarantine.drop(row.where, str(error))
    else:
      found.append(made)
  if not found:
    raise UserError(f'data: {files[0]} has no demonstrations')
  return found


def synthetic(
  task: str,
  web: tasks.CorpusConfig,
  template: PromptTemplate,
  seed: int,
  count: int,
) -> list[Demonstration]:
  """`count` of a task's documents, as noisy as `web` says."""
  found = []
  for index in range(count):
    rng = np.random.default_rng([seed, _STREAM, index])
    question, response = tasks.sample_document(rng, task, web)
    found.append(
      Demonstration(
        id=f'{task}-{seed}-{index}',
        question=question,
        prompt=template.render(question),
        response=strip_response_prefix(response, template),
        general=tasks.get(task).general,
      )
    )
  return found


_STREAM = 4  # Of randomness: not that of prompts, nor of the web.


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
    teacher=_teacher(fields.get('teacher')),
  )


def strip_response_prefix(response: str, template: PromptTemplate) -> str:
  """What is left to say after what the template has said of it already."""
  said = template.response_prefix or (
    '<think>' if template.prompt_opens_think else ''
  )
  return response.removeprefix(said)


def encode_teacher(known: TopLogprobs) -> dict:
  """For a row of JSON, every number as it is to the last bit."""
  return {
    'temperature': known.temperature,
    'kept': known.ids_TO.shape[1],
    'ids': _text(known.ids_TO, '<i4'),
    'logp': _text(known.logp_TO, '<f4'),
  }


def _teacher(fields: dict | None) -> TopLogprobs | None:
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


def _text(array: np.ndarray, dtype: str) -> str:
  return base64.b64encode(array.astype(dtype).tobytes()).decode()
