"""Preferences: pairs of responses, and responses that are safe or not.

A row of a file has an `id`; a `question`, `messages`, or a `prompt` in the form
of hh-rlhf; and `chosen` and `rejected`, or a `response` and whether it is
`safe`. It may name its `group`. A pair's chosen response counts as safe, its
rejected one as unsafe.
"""

from collections.abc import Sequence
import dataclasses
import zlib

import numpy as np

from r1jax.data import datasets, manners, readers, sources, tasks
from r1jax.data.demonstrations import strip_response_prefix
from r1jax.data.quarantine import Quarantine
from r1jax.data.text import template as templates
from r1jax.data.text.template import PromptTemplate
from r1jax.errors import UserError
from r1jax.records import LabelledResponse, Message, PreferencePair, Prompt

Preference = PreferencePair | LabelledResponse


def read(
  path: str,
  template: PromptTemplate,
  group: str = '',
  quarantine: Quarantine | None = None,
) -> list[Preference]:
  """Reads and checks every row.

  Args:
    path: See readers.files.
    template: Makes the prompts.
    group: Of rows that name none.
    quarantine: Where bad rows go; without one, a bad row is an error.

  Raises:
    UserError: a missing file; or a row, by file and line.
  """
  quarantine = quarantine or Quarantine()
  files, found, seen = readers.files(path), [], {}
  for row in readers.rows(files):
    try:
      made = _preference(row, template, group)
      name = made.prompt.id
      if name in seen:
        raise ValueError(f'repeats the id {name!r} of {seen[name]}')
      seen[name] = row.where
    except (ValueError, UserError) as error:
      quarantine.drop(row.where, str(error))
    else:
      found.append(made)
  if not found and not quarantine.dropped:
    raise UserError(f'data: {files[0]} has no preferences')
  return found


def dataset_path(name: str, split: str) -> str:
  """Where the rows of a named dataset are; see readers.files.

  Raises:
    UserError: it is not there, or has no preferences.
  """
  source = sources.get(name)
  if source.grader != 'preference':
    raise UserError(f'data: {name} has answers, not preferences')
  path = source.path(split)
  try:
    readers.files(path)
  except UserError as error:
    other = source.path(tasks.HELD_OUT)
    raise UserError(
      f'{error}; get it from {source.origin}; or name the file that is '
      f'there, such as {other!r}, and hold a share of its rows out'
    ) from error
  return path


def is_eval_row(id_: str, share: float) -> bool:
  """Whether a row belongs to the share that is evaluated on, by its hash."""
  return zlib.crc32(f'held out: {id_}'.encode()) < share * (1 << 32)


def to_labelled_responses(
  found: Sequence[Preference],
) -> list[LabelledResponse]:
  """Single responses, two of a pair."""
  each = []
  for row in found:
    if isinstance(row, LabelledResponse):
      each.append(row)
      continue
    each += [
      LabelledResponse(
        prompt=row.prompt, response=text, safe=safe, group=row.group
      )
      for text, safe in ((row.chosen, True), (row.rejected, False))
    ]
  return each


@dataclasses.dataclass(frozen=True)
class SyntheticPreferences:
  """How preferences of the task `manners` come about.

  Attributes:
    error_rate: The chance that a part of a response goes wrong.
    sharpness: s: a judge prefers a to b with the chance σ(s · (qₐ − q_b)), for
      their qualities within [0, 1] (Bradley and Terry).
  """

  error_rate: float
  sharpness: float

  def __post_init__(self):
    if not 0 < self.error_rate <= 1:
      raise UserError(
        'synthetic_preferences: error_rate must lie within (0, 1], got '
        f'{self.error_rate}: two responses must differ'
      )
    if self.sharpness <= 0:
      raise UserError(
        f'synthetic_preferences: sharpness must be above 0, got {self.sharpness}'
      )

  def chance(self, question: str, one: str, other: str) -> float:
    """That the answer `one` is preferred to `other`."""
    gap = manners.quality(question, one) - manners.quality(question, other)
    return float(1 / (1 + np.exp(-self.sharpness * gap)))


def synthetic_pairs(
  how: SyntheticPreferences,
  template: PromptTemplate,
  split: str,
  seed: int,
  count: int,
) -> list[PreferencePair]:
  """Two different answers each; what a question asks for is its group."""
  found = []
  for index in range(count):
    rng, prompt = _asked(template, split, seed, index)
    one = other = manners.sample_answer(rng, prompt.question, how.error_rate)
    while other == one:
      other = manners.sample_answer(rng, prompt.question, how.error_rate)
    if rng.random() >= how.chance(prompt.question, one, other):
      one, other = other, one
    found.append(
      PreferencePair(
        prompt=prompt,
        chosen=_said(prompt.question, one, template),
        rejected=_said(prompt.question, other, template),
        group=_intent(prompt.question),
      )
    )
  return found


def synthetic_responses(
  how: SyntheticPreferences,
  template: PromptTemplate,
  split: str,
  seed: int,
  count: int,
) -> list[LabelledResponse]:
  """One answer each, and whether it insults."""
  found = []
  for index in range(count):
    rng, prompt = _asked(template, split, seed, index)
    answer = manners.sample_answer(rng, prompt.question, how.error_rate)
    found.append(
      LabelledResponse(
        prompt=prompt,
        response=_said(prompt.question, answer, template),
        safe=manners.is_safe(answer),
        group=_intent(prompt.question),
      )
    )
  return found


_STREAM = {tasks.TRAIN: 5, tasks.HELD_OUT: 6}  # Not those of other randomness.
TASK = 'manners'  # The one that has preferences.


def _asked(template: PromptTemplate, split: str, seed: int, index: int):
  """Randomness of row `index`, and its prompt."""
  rng = np.random.default_rng([seed, _STREAM[split], index])
  question = tasks.sample_problem(rng, TASK, split).question
  return rng, Prompt(
    id=f'{TASK}-{split}-{seed}-{index}',
    text=template.render(question),
    question=question,
    answer='',
    source=datasets.GENERAL,
  )


def _said(question: str, answer: str, template: PromptTemplate) -> str:
  """A whole response, as the task's documents have it."""
  return strip_response_prefix(
    f'<think>{question}</think><answer>{answer}</answer>', template
  )


def _intent(question: str) -> str:
  return question.split(' ', 1)[0]


def _preference(
  row: readers.Row, template: PromptTemplate, group: str
) -> Preference:
  """Raises ValueError or UserError: what is wrong with the row."""
  if row.fields is None:
    raise ValueError(row.problem)
  fields = row.fields
  prompt = _prompt(fields, template, row.where)
  group = fields.get('group') or group
  if not isinstance(group, str):
    raise ValueError(f"needs a str 'group', got {group!r:.200}")
  if 'response' in fields:
    if type(fields.get('safe')) is not bool:
      raise ValueError(
        f"needs true or false in 'safe', got {fields.get('safe')!r:.200}"
      )
    return LabelledResponse(
      prompt=prompt,
      response=strip_response_prefix(_text(fields, 'response'), template),
      safe=fields['safe'],
      group=group,
    )
  chosen, rejected = (_text(fields, name) for name in ('chosen', 'rejected'))
  if chosen.strip() == rejected.strip():
    raise ValueError("has the same text in 'chosen' and 'rejected'")
  return PreferencePair(
    prompt=prompt,
    chosen=strip_response_prefix(chosen, template),
    rejected=strip_response_prefix(rejected, template),
    group=group,
  )


def _text(fields: dict, name: str) -> str:
  value = fields.get(name)
  if not isinstance(value, str) or not value.strip():
    raise ValueError(f'needs a non-empty str {name!r}, got {value!r:.200}')
  return value


def _prompt(fields: dict, template: PromptTemplate, where: str) -> Prompt:
  id_ = _text(fields, 'id')
  if 'prompt' in fields:
    question, turns = _text(fields, 'prompt'), sources.parse_dialogue(fields)
  elif fields.get('messages'):
    question, turns = '', _turns(fields['messages'])
  else:
    question, turns = _text(fields, 'question'), ()
  if not question:
    if len(turns) > 1 and isinstance(template, templates.SingleTurnTemplate):
      raise ValueError(
        'has several turns, which only a chat template can '
        'hold; set config.data.template'
      )
    question = turns[-1].content
  return Prompt(
    id=id_,
    text=template.render(question, turns),
    question=question,
    answer='',
    source=datasets.GENERAL,
    where=where,
    messages=turns,
  )


def _turns(messages) -> tuple[Message, ...]:
  try:
    turns = tuple(Message(turn['role'], turn['content']) for turn in messages)
  except (TypeError, KeyError) as error:
    raise ValueError(
      f"needs 'messages' of 'role' and 'content', got {messages!r:.200}"
    ) from error
  if turns[-1].role != 'user':
    raise ValueError("needs 'messages' that end with the user's")
  return turns
