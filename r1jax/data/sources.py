"""Datasets by name: their files, fields, graders and origins.

None of them comes with the package; suites.py has those of benchmarks. The environment variable R1JAX_DATA names
the folder that holds them; paths are relative to it and may lack the suffix of
a JSONL or Parquet file, or name a folder of either; see readers.files.

A plugin registers a dataset of one's own, which `config.data.task` then names:

  registry.dataset('riddles')(
    Source(
      files={TRAIN: 'riddles.jsonl', HELD_OUT: 'riddles_test.jsonl'},
      fields={'id': str, 'question': str, 'answer': str},
      grader='math',
      origin='written by hand',
    )
  )
"""

from collections.abc import Callable, Mapping
import dataclasses
import hashlib
import json
import re
from typing import Any

from r1jax import registry
from r1jax.data.code import sources as code_sources
from r1jax.data.code.cases import CodeTests, StdioCase
from r1jax.data.splits import HELD_OUT, TRAIN
from r1jax.data.tasks.countdown import countdown_answer
from r1jax.data.text import conversation
from r1jax.errors import UserError
from r1jax.records import Message


def row_messages(row: dict) -> tuple[Message, ...]:
  """Returns the field `messages` of a row; empty if it has none.

  Raises:
    ValueError: it is no conversation.
  """
  return conversation.parse(row['messages']) if row.get('messages') else ()


@dataclasses.dataclass(frozen=True)
class Source:
  """One dataset, and how its rows are converted to prompts.

  Attributes:
    files: Path of each split.
    fields: Required fields of a row, with their types.
    grader: Name of the grader of its answers; becomes Prompt.source.
    origin: Repository of the dataset, and its licence.
    question: Name of the field that holds the question.
    answer: Function from a row to the gold answer, in the format that the
      grader reads; raises ValueError if the row has none.
    messages: Function from a row to the messages of its conversation; empty if
      the question is all. By default they are the row's field `messages`.
    split_names: For files that hold several splits, the value of the field
      'split' for each split.
    language: ISO 639 code of the rows without a field 'language'.
    adapt: Function from a row as it is shared to one with the fields above;
      raises ValueError for a row that it cannot read.
    hidden: Fields, with their answers, that rewards and logs do not see.
    keep: Function from a row as it is shared to whether it belongs to the
      dataset; raises ValueError for a row that does not say.
    hub: URL of the held-out rows on the Hugging Face hub; '' if they are not
      there.
  """

  files: Mapping[str, str]
  fields: Mapping[str, type]
  grader: str
  origin: str
  question: str = 'question'
  answer: Callable[[dict], str] = lambda row: row['answer']
  messages: Callable[[dict], tuple[Message, ...]] = row_messages
  split_names: Mapping[str, str] = dataclasses.field(default_factory=dict)
  language: str = 'en'
  adapt: Callable[[dict], dict] = lambda row: row
  hidden: tuple[str, ...] = ()
  keep: Callable[[dict], bool] = lambda row: True
  hub: str = ''

  def path(self, split: str) -> str:
    """Returns the path of a split.

    Raises:
      UserError: the dataset has no such split.
    """
    if not self.files:
      raise UserError(
        'data: name the files of your rows in --config.data.path and '
        '--config.data.eval_path'
      )
    if split not in self.files:
      raise UserError(
        f'data: {" and ".join(self.files.values())} is for evaluation only; '
        'train on another dataset'
        if split == TRAIN
        else f'data: {" and ".join(self.files.values())} has no held-out rows; '
        'set --config.data.eval_path'
      )
    return self.files[split]


def as_json(row: dict) -> str:
  """Returns the whole row as JSON, for graders that need more than an answer."""
  return json.dumps(row, sort_keys=True)


def _countdown(row: dict) -> str:
  if not all(type(n) is int for n in row['nums']):
    raise ValueError(f"needs integers in 'nums', got {row['nums']!r}")
  return countdown_answer(row['nums'], row['target'])


def _tests(convert: Callable[[dict], CodeTests]) -> Callable[[dict], str]:
  """Returns the function from a row to its tests, as the code grader reads them."""

  def answer(row: dict) -> str:
    try:
      return json.dumps(convert(row).to_json())
    except UserError as error:
      raise ValueError(str(error)) from error

  return answer


_ID_FIELDS = ('id', 'question_id', 'task_id', 'problem_id')
_QUESTION_FIELDS = (
  'question',
  'question_content',
  'problem',
  'prompt',
  'description',
  'text',
)


def adapt_program_row(row: dict) -> dict:
  """Returns a row of a task to write a program as {id, question, tests}.

  The id and the question may have any of the usual names; a row without an id
  gets one of its question. The question ends in the starter code, if any, or for
  a script in how it reads and writes. `tests` holds CodeTests.to_json().

  Raises:
    ValueError: the row has no question, or tests of no known form.
  """
  question = next(
    (row[x] for x in _QUESTION_FIELDS if isinstance(row.get(x), str)), ''
  )
  if not question.strip():
    raise ValueError(f'needs a text in one of {", ".join(_QUESTION_FIELDS)}')
  name = next((row[x] for x in _ID_FIELDS if row.get(x) is not None), None)
  if name is None:
    name = hashlib.sha256(question.encode(errors='replace')).hexdigest()[:16]
  try:
    tests = code_sources.any_form({**row, 'id': str(name)})
  except UserError as error:
    raise ValueError(str(error)) from error
  starter = row.get('starter_code') or ''
  if starter.strip():
    question += f'\n\nComplete this code:\n```python\n{starter.strip()}\n```'
  elif isinstance(tests.cases[0], StdioCase):
    question += (
      '\n\nThe program reads from standard input and writes to standard output.'
    )
  kept = {key: row[key] for key in ('split', 'language') if key in row}
  return kept | {
    'id': str(name),
    'question': question,
    'tests': tests.to_json(),
  }


def _humaneval_row(row: dict) -> dict:
  """Returns a row under the names of our copy; the hub has a task_id."""
  return {**row, 'id': row.get('id') or row.get('task_id')}


def _mbpp_row(row: dict) -> dict:
  """Returns a row under the names of our copy, with the tests in its question.

  Only the tests tell how the function is called.
  """
  name = row.get('id') or f'mbpp-{row.get("task_id")}'
  prompt, tests = row.get('prompt') or row.get('text'), row.get('test_list')
  question = prompt
  if prompt and isinstance(tests, list):
    question = '\n'.join(
      [f'{prompt}\n\nYour code should pass these tests:\n', *map(str, tests)]
    )
  return {
    'split': 'unknown',
    **row,
    'id': name,
    'prompt': prompt,
    'question': question,
  }


_TURN = re.compile(r'\n\n(Human|Assistant):')
_ROLES = {'Human': 'user', 'Assistant': 'assistant'}


def parse_dialogue(row: dict) -> tuple[Message, ...]:
  """Parses the field 'prompt' of hh-rlhf into messages.

  '\\n\\nHuman: a\\n\\nAssistant: b\\n\\nHuman: c\\n\\nAssistant:' → 3 messages

  Consecutive turns of one speaker are joined, since chat templates may require
  that the roles alternate.

  Raises:
    ValueError: the text is not a dialogue that ends in the assistant's turn.
  """
  _, *parts = _TURN.split(row['prompt'])
  if not parts or parts[-2] != 'Assistant' or parts[-1].strip():
    raise ValueError("needs a dialogue in 'prompt' that ends in 'Assistant:'")
  turns: list[Message] = []
  for speaker, text in zip(parts[:-2:2], parts[1:-2:2]):
    role, text = _ROLES[speaker], text.strip()
    if turns and turns[-1].role == role:
      text = f'{turns.pop().content}\n\n{text}'
    turns.append(Message(role, text))
  return tuple(turns)


_QA = {'id': str, 'question': str, 'answer': str}
_HH: dict[str, Any] = dict(
  fields={'id': str, 'prompt': str, 'chosen': str, 'rejected': str},
  grader='preference',
  question='prompt',
  answer=as_json,
  messages=parse_dialogue,
  origin='anthropics/hh-rlhf (MIT); its text may offend',
)

registry.dataset('rows')(
  Source(
    files={},
    fields=_QA,
    grader='math',
    origin='rows of your own; see config.data.columns',
  )
)
registry.dataset('math')(
  Source(
    files={TRAIN: 'math/math_train12k', HELD_OUT: 'math/math500'},
    fields=_QA,
    grader='math',
    origin='hendrycks/math, split as in openai/prm800k (MIT)',
  )
)
# Not the endless synthetic task countdown of data/tasks, which is smaller.
registry.dataset('countdown_file')(
  Source(
    files={
      TRAIN: 'countdown/countdown_train',
      HELD_OUT: 'countdown/countdown_test',
    },
    fields={'id': str, 'question': str, 'nums': list, 'target': int},
    grader='countdown',
    answer=_countdown,
    origin='liumy2010/UFT, of Countdown-Tasks-3to4 (Apache-2.0)',
  )
)
registry.dataset('humaneval')(
  Source(
    files={HELD_OUT: 'code/humaneval'},
    fields={'id': str, 'prompt': str, 'entry_point': str, 'test': str},
    grader='code',
    question='prompt',
    adapt=_humaneval_row,
    answer=_tests(code_sources.humaneval),
    hub='hf://datasets/openai/openai_humaneval/openai_humaneval/test-*.parquet',
    origin='openai/human-eval (MIT)',
  )
)
registry.dataset('mbpp')(
  Source(
    files={TRAIN: 'code/mbpp', HELD_OUT: 'code/mbpp'},
    fields={'id': str, 'prompt': str, 'test_list': list, 'split': str},
    split_names={TRAIN: 'train', HELD_OUT: 'test'},
    grader='code',
    adapt=_mbpp_row,
    answer=_tests(code_sources.mbpp),
    hub='hf://datasets/google-research-datasets/mbpp/full/test-*.parquet',
    origin='google-research/google-research, mbpp (CC BY 4.0)',
  )
)
_PROGRAMS: dict[str, Any] = dict(
  fields={'id': str, 'question': str, 'tests': dict},
  grader='code',
  answer=lambda row: json.dumps(row['tests']),
  adapt=adapt_program_row,
  hidden=('tests',),
)
for _name, _splits, _hub, _origin in (
  (
    'livecodebench',
    [HELD_OUT],
    'hf://datasets/livecodebench/code_generation_lite/test*.jsonl',
    'livecodebench/code_generation_lite (CC; problems © their contests)',
  ),
  ('apps', [TRAIN, HELD_OUT], '', 'hendrycks/apps (MIT)'),
  ('taco', [TRAIN, HELD_OUT], '', 'BAAI/TACO (Apache-2.0)'),
  (
    'code_contests',
    [TRAIN, HELD_OUT],
    '',
    'google-deepmind/code_contests (CC BY 4.0)',
  ),
  # Rows of any of these forms, or with a field `tests`.
  ('code', [TRAIN, HELD_OUT], '', 'rows of your own with a field tests'),
):
  registry.dataset(_name)(
    Source(
      files={
        split: f'code/{_name}_{"train" if split == TRAIN else "test"}'
        for split in _splits
      },
      hub=_hub,
      origin=_origin,
      **_PROGRAMS,
    )
  )
registry.dataset('hh_helpful')(
  Source(
    files={
      TRAIN: 'pref/hh_helpful_base_train',
      HELD_OUT: 'pref/hh_helpful_base_test',
    },
    **_HH,
  )
)
registry.dataset('hh_harmless')(
  Source(
    files={
      TRAIN: 'pref/hh_harmless_base_train',
      HELD_OUT: 'pref/hh_harmless_base_test',
    },
    **_HH,
  )
)
