"""Grades mathematics: extracts the answer, guards, asks worker processes.

  text → extract_answer → is_too_expensive → math_worker, in a process that may be killed

math-verify limits its own time by signals, which work in the main thread alone,
and some inputs ("bombs") keep it busy for ever: 9^9^9, 10000000!, ten thousand
parentheses. So a guard refuses what looks too expensive, and what passes is
graded in worker processes with limits.
"""

from collections.abc import Iterable, Sequence
import re
import threading

from r1jax.graders import magnitude
from r1jax.graders.verdict import Verdict
from r1jax.records import Prompt
from r1jax.workers import job_queue
from r1jax.workers import pool as workers

MAX_CHARS = 300  # A longer text is refused; gold answers have up to 159.
MAX_DEPTH = 12  # Nested brackets; gold answers have up to 3.
# Products of such numbers take a fraction of a millisecond. The longest number
# in the gold answers of MATH is 2004!, of 5,736 digits.
MAX_DIGITS = 10_000
MAX_TERMS = 100  # Terms when expanded; gold answers have up to 64.
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


def extract_answer(text: str, last_number: bool = False) -> str:
  """Returns the content of the last complete \\boxed{}, or else the whole text.

  The time is linear in len(text), however boxes are nested or left open.

  Args:
    text: A completion, or what stands between its answer tags.
    last_number: Whether to return the last number of a text without a box.
  """
  # Start of the content of each open brace; −1 if the brace is not a box's.
  opened: list[int] = []
  start = end = -1
  for mark in _BRACE.finditer(text):
    if mark['open']:
      opened.append(mark.end() if mark['box'] else -1)
    elif mark['close'] and opened:
      content = opened.pop()
      if content > start:
        start, end = content, mark.start()
  if start >= 0:
    return text[start:end].strip()
  if last_number and (numbers := _NUMBER.findall(text)):
    return numbers[-1]
  return text.strip()


_BRACE = re.compile(
  r'(?P<open>(?P<box>\\(?:boxed|fbox)\s*)?\{)|\\.|(?P<close>\})', re.DOTALL
)
_NUMBER = re.compile(r'-?\d[\d,]*(?:\.\d+)?')
# Expressions that are expensive for other reasons than their size: numbers and
# operators that the engine evaluates, and long chains of sets.
_BOMB = re.compile(
  r'binom|choose|\d{40,}|-{4}|\\(?:i*int|oint|sum|prod|lim)(?![a-zA-Z])'
  r'|matrix\}\s*(?:\^|\*\*)'
  r'|(?:\\(?:cup|cap|setminus)(?![a-zA-Z]).*){9}',
  re.DOTALL,
)


def is_too_expensive(answer: str) -> bool:
  """Whether a symbolic engine might take too long or too much memory for it."""
  if (
    len(answer) > MAX_CHARS
    or _BOMB.search(answer)
    or _depth(answer) > MAX_DEPTH
  ):
    return True
  size = magnitude.bound(answer)
  return (
    size.digits > MAX_DIGITS
    or max(size.terms, size.denominator_terms) > MAX_TERMS
  )


def _depth(text: str) -> int:
  depth = deepest = 0
  for char in text:
    depth += (char in '([{') - (char in ')]}')
    deepest = max(deepest, depth)
  return deepest


def grade(pairs: Sequence[tuple[str | None, str]]) -> list[Verdict]:
  """Grades each answer against its gold answer; callable from any thread.

  Equal texts are correct without parsing; equal pairs are graded once.
  """
  verdicts: dict[tuple, Verdict] = {}
  pairs_to_verify: dict[tuple[str, str], list] = {}
  for pair in pairs:
    answer, gold = extract_answer(pair[0] or ''), pair[1].strip()
    if not answer:
      verdicts[pair] = Verdict.UNPARSABLE
    elif answer == gold:
      verdicts[pair] = Verdict.CORRECT
    elif is_too_expensive(answer):
      verdicts[pair] = Verdict.REFUSED
    else:
      pairs_to_verify.setdefault((answer, gold), []).append(pair)
  for verdict, same in zip(verify(pairs_to_verify), pairs_to_verify.values()):
    verdicts |= dict.fromkeys(same, verdict)
  return [verdicts[pair] for pair in pairs]


def unparsable_golds(prompts: Iterable[Prompt]) -> list[Prompt]:
  """Returns the prompts whose gold answer the grader cannot parse.

  For them no answer but the same text could ever be correct. Of gold answers
  that differ in their digits alone, one is parsed, which halves the time:
  12,000 rows of MATH take about ten CPU-seconds, GSM8K none.
  """
  alike: dict[str, list[Prompt]] = {}
  bad: list[Prompt] = []
  for prompt in prompts:
    gold = prompt.answer.strip()
    if is_too_expensive(gold):
      bad.append(prompt)
    elif not _PLAIN.fullmatch(gold):
      alike.setdefault(_DIGIT.sub('1', gold), []).append(prompt)
  verdicts = verify([(None, same[0].answer.strip()) for same in alike.values()])
  for same, verdict in zip(alike.values(), verdicts):
    if verdict is not Verdict.CORRECT:
      bad.extend(same)
  return bad


_PLAIN = re.compile(r'-?\d{1,30}(\.\d{1,30})?')  # Plain numbers always parse.
_DIGIT = re.compile(r'\d')


def verify(pairs: Iterable[tuple[str | None, str]]) -> list[Verdict]:
  """Grades pairs that passed the guard in the worker processes.

  Args:
    pairs: Answers and gold answers; with None for an answer, the verdict is
      CORRECT if the gold answer can be parsed.
  """
  jobs = [{'answer': answer, 'gold': gold} for answer, gold in pairs]
  if not jobs:
    return []
  results = _worker_pool().map(jobs, _BATCH_SECS + _ANSWER_SECS * len(jobs))
  return [
    Verdict(result.kind if isinstance(result, job_queue.JobFailure) else result)
    for result in results
  ]


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
