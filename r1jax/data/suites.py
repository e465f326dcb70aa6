"""Benchmarks by name, read from the files of their repositories on the hub.

A benchmark is a line of a table here: where its rows are, and the function that
turns one of them into a question and a gold answer. What such rows look like is
said at each function; docs/data.md says how that was checked. Rows of our own
copies ({id, question, answer}) are read by the same functions.

Ids are those of the benchmark; a row without one gets the hash of its question,
so that an id never depends on the file that holds the row.
"""

from collections.abc import Callable
import dataclasses
import hashlib
import json
import re
from typing import Any

from r1jax import registry
from r1jax.data.choices import LETTERS, multiple_choice
from r1jax.data.sources import Source
from r1jax.data.splits import HELD_OUT, TRAIN
from r1jax.data.text import final_answer

_QA = {'id': str, 'question': str, 'answer': str}
_HUB = 'hf://datasets/'
_NUMPY = re.compile(r'\bnp\.(?=\w+\()')  # Minerva has np.arcsin(10/13).


def first(row: dict, *names: str) -> Any:
  """Returns the first of the named values that a row has; None for none."""
  return next((row[x] for x in names if row.get(x) is not None), None)


def text_id(question: object) -> str | None:
  """Returns the id of a row that has none, of its question; None without one."""
  if not isinstance(question, str) or not question.strip():
    return None
  digest = hashlib.sha256(question.strip().encode(errors='replace'))
  return digest.hexdigest()[:16]


def exam_row(row: dict) -> dict:
  """Converts a row of a mathematics exam, whatever its columns are called.

  openai/gsm8k             question, answer, which ends in '#### 18'
  HuggingFaceH4/MATH-500   unique_id, problem, answer
  HuggingFaceH4/aime_2024  id, problem, answer
  Maxwell-Jia/AIME_2024    ID, Problem, Answer
  math-ai/aime25           id, problem, answer
  opencompass/AIME2025     question, answer
  math-ai/amc23            id, question, answer
  math-ai/minervamath      question, answer
  Qwen2.5-Math, minerva    problem, solution, which boxes the answer
  OlympiadBench            id, question, context, final_answer, a list
  """
  question = first(row, 'question', 'problem', 'Problem')
  if isinstance(row.get('context'), str) and row['context'].strip():
    question = f'{row["context"].strip()}\n\n{question}'
  answer = first(row, 'answer', 'final_answer', 'Answer')
  if isinstance(answer, list):
    answer = ', '.join(map(str, answer))
  if isinstance(answer, str):
    answer = _NUMPY.sub('', answer.rpartition('####')[2].strip())
  elif answer is None and isinstance(row.get('solution'), str):
    boxed = final_answer.boxed(row['solution'])
    answer = boxed and _NUMPY.sub('', final_answer.unboxed(boxed))
  name = first(row, 'id', 'unique_id', 'ID')
  return {
    **row,
    'id': text_id(question) if name is None else str(name),
    'question': question,
    'answer': answer,
  }


def gpqa_row(row: dict) -> dict:
  """Converts a row of Idavidrein/gpqa, whose first option is the right one.

  Question, Correct Answer, Incorrect Answer 1 to 3, Record ID, Subdomain, and
  columns about how the question was written, which are left out.
  """
  names = ('Correct Answer', *(f'Incorrect Answer {i}' for i in (1, 2, 3)))
  name = row.get('Record ID') or text_id(row.get('Question'))
  return {
    **multiple_choice(
      str(name), row.get('Question', ''), [row.get(x, '') for x in names], 0
    ),
    'category': first(row, 'High-level domain', 'Subdomain') or '',
  }


def mmlu_pro_row(row: dict) -> dict:
  """Converts a row of TIGER-Lab/MMLU-Pro.

  question_id, question, options (up to ten), answer (a letter), answer_index,
  category. Options 'N/A' only fill a list up.
  """
  options = row.get('options')
  if not isinstance(options, list):
    raise ValueError(f'needs a list of options, got {options!r:.100}')
  right = row.get('answer_index')
  if right is None and str(row.get('answer')) in LETTERS:
    right = LETTERS.index(str(row.get('answer')))
  kept = [i for i, each in enumerate(options) if each != 'N/A' or i == right]
  question, name = row.get('question', ''), row.get('question_id')
  return {
    **multiple_choice(
      f'mmlu_pro-{text_id(question) if name is None else name}',
      question,
      [options[i] for i in kept],
      kept.index(right) if right in kept else -1,
    ),
    'category': row.get('category') or '',
  }


def ifeval_row(row: dict) -> dict:
  """Converts a row of google/IFEval.

  key, prompt, instruction_id_list, and kwargs: one object for each instruction,
  with null for what the instruction does not take.
  """
  names, kwargs = row.get('instruction_id_list'), row.get('kwargs')
  if not isinstance(names, list) or not isinstance(kwargs, list):
    raise ValueError("needs the lists 'instruction_id_list' and 'kwargs'")
  given = [
    {key: value for key, value in (each or {}).items() if value is not None}
    for each in kwargs
  ]
  prompt, key = row.get('prompt'), row.get('key')
  gold = {'instruction_id_list': names, 'kwargs': given}
  return {
    'id': f'ifeval-{text_id(prompt) if key is None else key}',
    'question': prompt,
    'answer': json.dumps(gold, sort_keys=True),
  }


def released(begin: str, end: str) -> Callable[[dict], bool]:
  """Returns whether a problem of LiveCodeBench was released in a window of days.

  Args:
    begin: First day, as in '2024-08-01'.
    end: Last day.
  """

  def keep(row: dict) -> bool:
    day = str(row.get('contest_date') or '')[:10]
    if not day:
      raise ValueError("needs a date in 'contest_date'")
    return begin <= day <= end

  return keep


# Name, files of the splits, rows on the hub, origin and licence.
for _name, _files, _hub, _origin in (
  (
    'gsm8k',
    {TRAIN: 'math/gsm8k_train', HELD_OUT: 'math/gsm8k_test'},
    'openai/gsm8k/main/test-*.parquet',
    'openai/grade-school-math (MIT)',
  ),
  (
    'math500',
    {HELD_OUT: 'math/math500'},
    'HuggingFaceH4/MATH-500/test.jsonl',
    'openai/prm800k, prm800k/math_splits (MIT)',
  ),
  (
    'aime24',
    {HELD_OUT: 'math/aime24'},
    'HuggingFaceH4/aime_2024/data/train-*.parquet',
    'QwenLM/Qwen2.5-Math, evaluation/data (problems © MAA)',
  ),
  (
    'aime25',
    {HELD_OUT: 'math/aime25'},
    'math-ai/aime25/test.jsonl',
    'math-ai/aime25 (Apache-2.0; problems © MAA)',
  ),
  (
    'amc23',
    {HELD_OUT: 'math/amc23'},
    'math-ai/amc23',
    'QwenLM/Qwen2.5-Math, evaluation/data (problems © MAA)',
  ),
  (
    'minerva',
    {HELD_OUT: 'math/minerva'},
    'math-ai/minervamath',
    'math-ai/minervamath (no licence stated; courses of MIT, CC BY-NC-SA)',
  ),
  (
    'olympiad',
    {HELD_OUT: 'math/olympiad'},
    'math-ai/olympiadbench',
    'OpenBMB/OlympiadBench, OE_TO_maths_en_COMP (Apache-2.0)',
  ),
):
  registry.dataset(_name)(
    Source(
      files=_files,
      fields=_QA,
      grader='math',
      adapt=exam_row,
      hub=_HUB + _hub,
      origin=_origin,
    )
  )
# Name, file, rows on the hub, grader, converter, origin and licence.
for _name, _file, _hub, _grader, _adapt, _origin in (
  (
    'gpqa_diamond',
    'science/gpqa_diamond',
    'Idavidrein/gpqa/gpqa_diamond.csv',
    'choice',
    gpqa_row,
    'Idavidrein/gpqa (CC BY 4.0; gated: its terms forbid to show its rows)',
  ),
  (
    'mmlu_pro',
    'science/mmlu_pro',
    'TIGER-Lab/MMLU-Pro/data/test-*.parquet',
    'choice',
    mmlu_pro_row,
    'TIGER-Lab/MMLU-Pro (MIT)',
  ),
  (
    'ifeval',
    'instructions/ifeval',
    'google/IFEval/ifeval_input_data.jsonl',
    'ifeval',
    ifeval_row,
    'google/IFEval (Apache-2.0)',
  ),
):
  registry.dataset(_name)(
    Source(
      files={HELD_OUT: _file},
      fields=_QA,
      grader=_grader,
      adapt=_adapt,
      hub=_HUB + _hub,
      origin=_origin,
    )
  )
# The window in which DeepSeek-R1 was evaluated.
registry.dataset('livecodebench_2408_2501')(
  dataclasses.replace(
    registry.dataset.get('livecodebench'),
    keep=released('2024-08-01', '2025-01-31'),
  )
)
