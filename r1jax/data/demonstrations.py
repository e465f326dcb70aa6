"""Demonstrations: prompts with the responses to fine-tune on.

A row of a file has a `question` or `messages`, and a `response`, which may also
be the last of the messages; it may have an `id` (by default its file and number)
and `tools`, and say `general: true`. The stage rejection_sampling writes such
rows. config.sft.columns names other columns.
"""

import base64
from collections.abc import Mapping

import numpy as np

from r1jax import registry
from r1jax.config.schema.data import CorpusConfig
from r1jax.data import columns, readers
from r1jax.data.quarantine import Quarantine
from r1jax.data.tasks.corpus import sample_document
from r1jax.data.text import conversation, openings, responses
from r1jax.data.text.openings import Opening
from r1jax.data.text.template import PromptTemplate
from r1jax.errors import UserError
from r1jax.records import Demonstration, Message, TopLogprobs


def read(
  path: str,
  template: PromptTemplate,
  general: bool | None = None,
  quarantine: Quarantine | None = None,
  named: Mapping[str, str] | None = None,
) -> list[Demonstration]:
  """Reads and validates the rows of an SFT dataset.

  Args:
    path: See readers.files.
    template: Makes the prompts. What they hold of a response already is left
      out of it; see text/openings.py.
    general: Whether the rows are general data (no rule verifies the answers);
      None to read it from each row.
    quarantine: Takes malformed rows; without one, a malformed row is an error.
    named: The columns of fields that have other names; see columns.renamed.

  Raises:
    UserError: a file is missing or has no rows, or a row is malformed; the
      message names its file and line.
  """
  quarantine = quarantine or Quarantine()
  files, demonstrations = readers.files(path), []
  opening = openings.of_template(template)
  seen: dict[str, str] = {}
  for row in readers.rows(files):
    try:
      if row.fields is not None and named:
        row = row._replace(fields=columns.taken(row.fields, named))
      demonstration = _demonstration(row, template, opening, general)
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
  opening = openings.of_template(template)
  for index in range(count):
    rng = np.random.default_rng([seed, _STREAM, index])
    question, response = sample_document(rng, task, corpus)
    prompt = template.render(question)
    demonstrations.append(
      Demonstration(
        id=f'{task}-{seed}-{index}',
        question=question,
        prompt=prompt,
        response=responses.as_written(
          template, prompt, _noisy(opening, response), question
        ),
        general=registry.task.get(task).general,
      )
    )
  return demonstrations


_STREAM = 4  # Separates these random numbers from those of other data.


def _noisy(opening: Opening, response: str) -> str:
  """Returns a synthetic response after a prompt; some lack tags on purpose."""
  try:
    return opening.rest_of(response)
  except ValueError:
    return response


def _demonstration(
  row: readers.Row,
  template: PromptTemplate,
  opening: Opening,
  general: bool | None,
) -> Demonstration:
  if row.fields is None:
    raise ValueError(row.problem)
  fields = _with_id(row.fields, row.where)
  turns: tuple[Message, ...] = ()
  if fields.get('messages'):
    turns = conversation.parse(fields['messages'])
    if 'response' not in fields and turns[-1].role == 'assistant':
      fields = fields | {'response': _last_answer(turns[-1])}
      turns = turns[:-1]
    conversation.check_ends_open(turns)
  for name, kind in (('id', str), ('response', str)):
    if not isinstance(fields.get(name), kind) or not fields[name].strip():
      raise ValueError(
        f'needs a non-empty {kind.__name__} {name!r}, got '
        f'{fields.get(name)!r:.200}'
      )
  question = fields.get('question') or ''
  if not turns and not (isinstance(question, str) and question.strip()):
    raise ValueError("needs a 'question' or 'messages'")
  if general is None:
    general = bool(fields.get('general', False))
  tools = conversation.parse_tools(fields.get('tools'))
  prompt = conversation.render(template, question, turns, tools)
  conversation.check_question(question, turns)
  response = opening.rest_of(
    without_prefix(fields['response'], template, opening)
  )
  return Demonstration(
    id=fields['id'],
    question=question,
    messages=turns,
    tools=tools,
    prompt=prompt,
    response=responses.as_written(
      template, prompt, response, question, turns, tools
    ),
    general=general,
    where=row.where,
    teacher=_decode_teacher(fields.get('teacher')),
  )


def _with_id(fields: dict, where: str) -> dict:
  """Returns fields with an id: a text, and by default the file and row."""
  name = fields.get('id')
  if name is None:
    name = '/'.join(where.split('/')[-2:])
  return fields | {'id': str(name) if type(name) is int else name}


def _last_answer(turn: Message) -> str:
  """Returns the text of the assistant's last message, to learn from."""
  if turn.extra:
    raise ValueError(
      f'has {", ".join(turn.extra)} in the last of its messages, which is '
      "learnt as text alone; write the text of the whole turn into 'response'"
    )
  return turn.text


def without_prefix(
  response: str, template: PromptTemplate, opening: Opening
) -> str:
  """Returns a response without a response_prefix that opens no reasoning."""
  if opening.text:
    return response
  return response.removeprefix(template.response_prefix)


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
