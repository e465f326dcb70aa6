"""Grades mathematics: finds the answer in a text, asks worker processes.

  text → final_answer → answer_text → math_worker, in a process that may be killed

The size of an answer is bounded here and the cost of its evaluation in
evaluation.py, so that 9^9^9, 10000000! and ten thousand parentheses are refused
in no time. The worker processes have limits of CPU time and memory for what
nobody thought of.

`grade` is the entry for everyone who asks whether two answers are equal: votes,
rewards and evaluations.
"""

from collections.abc import Iterable, Sequence
import functools
import re
import threading

from r1jax.data.text import final_answer
from r1jax.data.text.prose import is_prose
from r1jax.graders import answer_text, text_graders
from r1jax.graders.answer_text import extract_answer
from r1jax.graders.verdict import Verdict
from r1jax.records import Prompt
from r1jax.workers import job_queue
from r1jax.workers import pool as workers

# In units of a typical answer, 0.003 CPU-seconds: a first attempt may use 0.045 s
# and an eighth of the budget's 0.3 s, the deadline is 0.3 s, and all grow with
# the measured time of answers. On a busy core, the slowest gold answer of MATH
# and GSM8K takes 0.11 CPU-seconds, and one in 200 of the distinct ones takes
# more than 0.05. With a deadline of seconds, a few bombs would use up the time of
# all other answers.
_LIMITS = job_queue.WorkerLimits(
  first_attempt=15,
  deadline=100,
  budget_capacity=100,
  budget_refill=0.2,
  typical_job_secs=0.003,
)
# Time limit of a batch, fixed and per answer. Whatever is not graded by then has
# no score.
_BATCH_SECS, _ANSWER_SECS = 60.0, 0.25
__all__ = [
  'extract_answer',
  'grade',
  'is_too_expensive',
  'shutdown',
  'unparsable_golds',
  'verify',
]


def is_too_expensive(answer: str) -> bool:
  """Whether an answer is too long to be read, without reading it.

  One that is too large to evaluate, such as 9^9^9, is refused by `grade`, which
  finds that out step by step while it evaluates it.
  """
  return answer_text.candidates(answer) is None


def grade(pairs: Sequence[tuple[str | None, str]]) -> list[Verdict]:
  """Grades each answer against its gold answer; callable from any thread.

  An answer may be a whole completion: the content of its last box counts, or
  what it says is the answer, or its last formula; see final_answer.py. Equal
  texts are correct without parsing; equal pairs are graded once.
  """
  verdicts: dict[tuple, Verdict] = {}
  to_verify: dict[tuple[tuple[str, ...], str], list] = {}
  for pair in pairs:
    text, gold = (pair[0] or '').strip(), pair[1].strip()
    texts = answer_text.candidates(text)
    if texts is None:
      verdicts[pair] = Verdict.REFUSED
    elif not texts:
      verdicts[pair] = Verdict.UNPARSABLE
    elif texts[0] == gold:
      verdicts[pair] = Verdict.CORRECT
    else:
      to_verify.setdefault((tuple(texts), gold), []).append(pair)
  jobs = [_job(texts, gold) for texts, gold in to_verify]
  for verdict, same in zip(_run(jobs), to_verify.values()):
    verdicts |= dict.fromkeys(same, verdict)
  for text, gold in verdicts:
    # A letter may stand in a sentence, where it is no formula, as in A + B.
    answer = extract_answer(text or '') if _is_choice(gold) else ''
    if _LETTER.fullmatch(answer) or is_prose(answer):
      verdict = text_graders.choice(answer, gold)
      if verdict is Verdict.CORRECT:
        verdicts[text, gold] = verdict
  return [verdicts[pair] for pair in pairs]


def _is_choice(gold: str) -> bool:
  """Whether a gold answer is a letter of multiple choice: '(C)' or 'C. Paris'."""
  letter = (final_answer.statement(gold) or gold).strip()
  return bool(
    _LETTER.fullmatch(letter)
    or (_OPTION.match(letter) and len(_OPTION.findall(letter)) == 1)
  )


def unparsable_golds(prompts: Iterable[Prompt]) -> list[Prompt]:
  """Returns the prompts whose gold answer the grader cannot read.

  For them no answer but the same text could ever be correct. Of gold answers
  that differ in their digits alone, one is parsed, which halves the time:
  12,000 rows of MATH take about ten CPU-seconds, GSM8K none.
  """
  alike: dict[str, list[Prompt]] = {}
  for prompt in prompts:
    gold = prompt.answer.strip()
    if not _PLAIN.fullmatch(gold):
      alike.setdefault(_DIGIT.sub('1', gold), []).append(prompt)
  verdicts = verify([(None, same[0].answer.strip()) for same in alike.values()])
  return [
    prompt
    for same, verdict in zip(alike.values(), verdicts)
    if verdict is not Verdict.CORRECT
    for prompt in same
  ]


_LETTER = re.compile(r'(?:\\text\w*\{)?\(?[A-J]\)?\}?\.?')
_OPTION = re.compile(
  r'(?:\([A-J]\)|\b[A-J][).])\s+(?=\S)|\b[A-J]\s+(?=[A-Z][a-z])'
)
_PLAIN = re.compile(r'-?\d{1,30}(\.\d{1,30})?')  # Plain numbers always parse.
_DIGIT = re.compile(r'\d')


def verify(pairs: Iterable[tuple[str | None, str]]) -> list[Verdict]:
  """Grades pairs in the worker processes.

  Args:
    pairs: Answers and gold answers; with None for an answer, the verdict is
      CORRECT if the gold answer can be read.
  """
  return _run(
    [
      _job(answer and answer_text.candidates(answer), gold)
      if answer is not None
      else {'golds': _gold_texts(gold)}
      for answer, gold in pairs
    ]
  )


def _run(jobs: list[dict]) -> list[Verdict]:
  if not jobs:
    return []
  results = _worker_pool().map(jobs, _BATCH_SECS + _ANSWER_SECS * len(jobs))
  return [
    Verdict(result.kind if isinstance(result, job_queue.JobFailure) else result)
    for result in results
  ]


def _job(texts: Iterable[str] | None, gold: str) -> dict:
  return {'answers': list(texts or ()), 'golds': _gold_texts(gold)}


@functools.lru_cache(1024)  # Samples of a prompt share its gold answer.
def _gold_texts(gold: str) -> list[str]:
  return answer_text.candidates(gold, is_gold=True) or []


_MODULE = 'r1jax.graders.math_worker'
_lock = threading.Lock()
_pool: workers.WorkerPool | None = None


def _worker_pool() -> workers.WorkerPool:
  """Returns the worker pool of all threads, which the first call creates."""
  global _pool
  with _lock:
    if _pool is None:
      _pool = workers.WorkerPool(_MODULE, _LIMITS)
    return _pool


def shutdown():
  """Stops the worker processes; the next call of `grade` starts others."""
  global _pool
  with _lock:
    if _pool is not None:
      _pool.close()
    _pool = None
