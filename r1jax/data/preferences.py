"""Preference datasets: pairs of responses, and responses with safety labels.

A row of a file has an `id`; a `question`, `messages`, or a `prompt` as in
hh-rlhf; and either `chosen` and `rejected`, or a `response` and whether it is
`safe`. It may name its `group`. Where safety labels are needed, a pair's chosen
response counts as safe and its rejected one as unsafe.
"""

from collections.abc import Sequence
import zlib

import numpy as np

from r1jax import registry
from r1jax.config.schema.preferences import SyntheticPreferencesConfig
from r1jax.data import datasets, demonstrations, readers, sources, splits
from r1jax.data.quarantine import Quarantine
from r1jax.data.tasks import manners
from r1jax.data.tasks.task import sample_problem
from r1jax.data.text import conversation, openings, responses
from r1jax.data.text.template import PromptTemplate
from r1jax.errors import UserError
from r1jax.records import LabelledResponse, PreferencePair, Prompt

Preference = PreferencePair | LabelledResponse


def read(
  path: str,
  template: PromptTemplate,
  group: str = '',
  quarantine: Quarantine | None = None,
) -> list[Preference]:
  """Reads and validates the rows of a preference dataset.

  Args:
    path: See readers.files.
    template: Makes the prompts.
    group: Group of the rows that name none.
    quarantine: Takes malformed rows; without one, a malformed row is an error.

  Raises:
    UserError: a file is missing or has no rows, or a row is malformed; the
      message names its file and line.
  """
  quarantine = quarantine or Quarantine()
  files, preferences = readers.files(path), []
  opening = openings.of_template(template)
  seen: dict[str, str] = {}
  for row in readers.rows(files):
    try:
      preference = _preference(row, template, opening, group)
      id_ = preference.prompt.id
      if id_ in seen:
        raise ValueError(f'repeats the id {id_!r} of {seen[id_]}')
      seen[id_] = row.where
    except (ValueError, UserError) as error:
      quarantine.drop(row.where, str(error))
    else:
      preferences.append(preference)
  if not preferences and not quarantine.dropped:
    raise UserError(f'data: {files[0]} has no preferences')
  return preferences


def dataset_path(name: str, split: str) -> str:
  """Returns the path of a named dataset's split; see readers.files.

  Raises:
    UserError: the file is missing, or the dataset has no preferences.
  """
  source = registry.dataset.get(name)
  if source.grader != 'preference':
    raise UserError(f'data: {name} has answers, not preferences')
  path = source.path(split)
  try:
    readers.files(path)
  except UserError as error:
    other = source.path(splits.HELD_OUT)
    raise UserError(
      f'{error}; get it from {source.origin}; or name a file that you have, '
      f'such as {other!r}, and evaluate on a share of its rows'
    ) from error
  return path


def is_eval_row(id_: str, share: float) -> bool:
  """Returns whether the hash of a row's id puts it into the evaluation share."""
  return zlib.crc32(f'held out: {id_}'.encode()) < share * (1 << 32)


def to_labelled_responses(
  preferences: Sequence[Preference],
) -> list[LabelledResponse]:
  """Returns labelled responses; a pair becomes a safe and an unsafe one."""
  responses = []
  for row in preferences:
    if isinstance(row, LabelledResponse):
      responses.append(row)
      continue
    responses += [
      LabelledResponse(
        prompt=row.prompt, response=text, safe=safe, group=row.group
      )
      for text, safe in ((row.chosen, True), (row.rejected, False))
    ]
  return responses


def preference_probability(
  config: SyntheticPreferencesConfig, question: str, one: str, other: str
) -> float:
  """Returns the probability that the answer `one` is preferred to `other`."""
  gap = manners.quality(question, one) - manners.quality(question, other)
  return float(1 / (1 + np.exp(-config.sharpness * gap)))


def synthetic_pairs(
  params: SyntheticPreferencesConfig,
  template: PromptTemplate,
  split: str,
  seed: int,
  count: int,
) -> list[PreferencePair]:
  """Samples preference pairs of the task 'manners'.

  The two answers of a pair differ. A pair's group is the verb of its question.

  Args:
    params: Error rate and annotator.
    template: Makes the prompts.
    split: splits.TRAIN or splits.HELD_OUT.
    seed: Seed of the samples.
    count: Number of pairs.
  """
  pairs = []
  for index in range(count):
    rng, prompt = _sample_prompt(template, split, seed, index)
    one = other = manners.sample_answer(rng, prompt.question, params.error_rate)
    while other == one:
      other = manners.sample_answer(rng, prompt.question, params.error_rate)
    if rng.random() >= preference_probability(
      params, prompt.question, one, other
    ):
      one, other = other, one
    pairs.append(
      PreferencePair(
        prompt=prompt,
        chosen=_response(prompt.question, one, template),
        rejected=_response(prompt.question, other, template),
        group=_verb(prompt.question),
      )
    )
  return pairs


def synthetic_responses(
  params: SyntheticPreferencesConfig,
  template: PromptTemplate,
  split: str,
  seed: int,
  count: int,
) -> list[LabelledResponse]:
  """Samples labelled responses of the task 'manners'; insults are unsafe.

  Args: see synthetic_pairs.
  """
  responses = []
  for index in range(count):
    rng, prompt = _sample_prompt(template, split, seed, index)
    answer = manners.sample_answer(rng, prompt.question, params.error_rate)
    responses.append(
      LabelledResponse(
        prompt=prompt,
        response=_response(prompt.question, answer, template),
        safe=manners.is_safe(answer),
        group=_verb(prompt.question),
      )
    )
  return responses


_STREAM = {
  splits.TRAIN: 5,
  splits.HELD_OUT: 6,
}  # Separates these random numbers from others.
TASK = 'manners'  # The synthetic task that has preferences.


def _sample_prompt(template: PromptTemplate, split: str, seed: int, index: int):
  """Returns the generator of random numbers of row `index`, and its prompt."""
  rng = np.random.default_rng([seed, _STREAM[split], index])
  question = sample_problem(rng, TASK, split).question
  return rng, Prompt(
    id=f'{TASK}-{split}-{seed}-{index}',
    text=template.render(question),
    question=question,
    answer='',
    source=datasets.GENERAL,
  )


def _response(question: str, answer: str, template: PromptTemplate) -> str:
  """Returns a whole response, formatted as the task's documents are."""
  return openings.of_template(template).rest_of(
    f'<think>{question}</think><answer>{answer}</answer>'
  )


def _verb(question: str) -> str:
  return question.split(' ', 1)[0]


def _preference(
  row: readers.Row,
  template: PromptTemplate,
  opening: openings.Opening,
  group: str,
) -> Preference:
  """Converts a row; raises ValueError or UserError if it is malformed."""

  def response(name: str) -> str:
    text = _text(fields, name)
    rest = opening.rest_of(
      demonstrations.without_prefix(text, template, opening)
    )
    tools = conversation.parse_tools(fields.get('tools'))
    return responses.as_written(
      template, prompt.text, rest, prompt.question, prompt.messages, tools
    )

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
      response=response('response'),
      safe=fields['safe'],
      group=group,
    )
  chosen, rejected = (_text(fields, name) for name in ('chosen', 'rejected'))
  if chosen.strip() == rejected.strip():
    raise ValueError("has the same text in 'chosen' and 'rejected'")
  return PreferencePair(
    prompt=prompt,
    chosen=response('chosen'),
    rejected=response('rejected'),
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
    question, turns = '', conversation.parse(fields['messages'])
    conversation.check_ends_open(turns)
    question = turns[-1].text
  else:
    question, turns = _text(fields, 'question'), ()
  tools = conversation.parse_tools(fields.get('tools'))
  return Prompt(
    id=id_,
    text=conversation.render(template, question, turns, tools),
    question=question,
    answer='',
    source=datasets.GENERAL,
    where=where,
    messages=turns,
  )
