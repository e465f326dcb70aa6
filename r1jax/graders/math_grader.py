"""Grading mathematics: find the answer, refuse bombs, ask worker processes.

  text → extract → is_too_expensive → math_worker, in a process that may be killed

math-verify stops itself by signals, which exist in the main thread alone, and
some inputs keep it busy for ever: 9^9^9, 10000000!, ten thousand parentheses.
"""

from collections.abc import Iterable, Sequence
import re
import threading

from r1jax.graders import magnitude
from r1jax.graders.verdict import Verdict
from r1jax.records import Prompt
from r1jax.workers import job_queue
from r1jax.workers import pool as workers

MAX_CHARS = 300  # Longer than this is no answer; gold ones have up to 159.
MAX_DEPTH = 12  # Gold answers: 3.
# Products of such numbers take a fraction of a millisecond; those of the MATH
# data are shorter, the longest gold of which is 1/2004!, of 5,736 digits.
MAX_DIGITS = 10_000
MAX_TERMS = 100  # Gold answers: 64.
# Of the gold answers of MATH and GSM8K, on a busy core, the slowest takes 0.11
# CPU-seconds, and one in 200 of those that differ more than 0.05. A first try
# has 0.045 and an eighth of the account's 0.3; the deadline is 0.3, and all
# grow with what answers take. A deadline of seconds would let few bombs fill
# the time of all others.
_LIMITS = job_queue.WorkerLimits(
  first_attempt=15,
  deadline=100,
  budget_capacity=100,
  budget_refill=0.2,
  typical_job_secs=0.003,
)
# A batch ends: what is not graded by then has no score.
_BATCH_SECS, _ANSWER_SECS = 60.0, 0.25


def extract_answer(text: str, last_number: bool = False) -> str:
  """The answer in an answer's text: its last complete \\boxed{}, else all.

  Linear in len(text), however boxes are nested or left open.

  Args:
    text: Of a completion, or from between its answer tags.
    last_number: Without a box, take the last number that there is.
  """
  opened: list[int] = []  # Where each open brace's content starts; < 0 if
  start = end = -1  # it is no box's.
  for mark in _BRACE.finditer(text):
    if mark['open']:
      opened.append(mark.end() if mark['box'] else -1)
    elif mark['close'] and opened:
      inside = opened.pop()
      if inside > start:
        start, end = inside, mark.start()
  if start >= 0:
    return text[start:end].strip()
  if last_number and (numbers := _NUMBER.findall(text)):
    return numbers[-1]
  return text.strip()


_BRACE = re.compile(
  r'(?P<open>(?P<box>\\(?:boxed|fbox)\s*)?\{)|\\.|(?P<close>\})', re.DOTALL
)
_NUMBER = re.compile(r'-?\d[\d,]*(?:\.\d+)?')
# What would keep a symbolic engine busy in other ways: numbers and operators
# that are left to be worked out, and long chains of sets.
_BOMB = re.compile(
  r'binom|choose|\d{40,}|-{4}|\\(?:i*int|oint|sum|prod|lim)(?![a-zA-Z])'
  r'|matrix\}\s*(?:\^|\*\*)'
  r'|(?:\\(?:cup|cap|setminus)(?![a-zA-Z]).*){9}',
  re.DOTALL,
)


def is_too_expensive(answer: str) -> bool:
  """Whether a symbolic engine might choke on it: better never asked."""
  if (
    len(answer) > MAX_CHARS
    or _BOMB.search(answer)
    or _depth(answer) > MAX_DEPTH
  ):
    return True
  size = magnitude.bound(answer)
  return size.digits > MAX_DIGITS or max(size.terms, size.below) > MAX_TERMS


def _depth(text: str) -> int:
  depth = deepest = 0
  for char in text:
    depth += (char in '([{') - (char in ')]}')
    deepest = max(deepest, depth)
  return deepest


def grade(pairs: Sequence[tuple[str | None, str]]) -> list[Verdict]:
  """A verdict for each answer and its gold answer, from any thread.

  Equal texts are correct without a question; equal pairs are asked once.
  """
  verdicts: dict[tuple, Verdict] = {}
  asked: dict[tuple[str, str], list] = {}
  for pair in pairs:
    answer, gold = extract_answer(pair[0] or ''), pair[1].strip()
    if not answer:
      verdicts[pair] = Verdict.UNPARSABLE
    elif answer == gold:
      verdicts[pair] = Verdict.CORRECT
    elif is_too_expensive(answer):
      verdicts[pair] = Verdict.REFUSED
    else:
      asked.setdefault((answer, gold), []).append(pair)
  for found, same in zip(verify(asked), asked.values()):
    verdicts |= dict.fromkeys(same, found)
  return [verdicts[pair] for pair in pairs]


def unparsable_golds(prompts: Iterable[Prompt]) -> list[Prompt]:
  """Those whose gold answer cannot be read, as it will be read when answers
  come: nothing but the same text could ever be right.

  Of those that differ in their digits alone one is read: that halves the time;
  12,000 rows of MATH take some ten CPU-seconds, GSM8K none.
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


_PLAIN = re.compile(r'-?\d{1,30}(\.\d{1,30})?')  # Of these none can fail.
_DIGIT = re.compile(r'\d')


def verify(pairs: Iterable[tuple[str | None, str]]) -> list[Verdict]:
  """What the workers say of answers and gold answers that the guard let pass;
  without an answer, CORRECT if the gold answer can be read."""
  jobs = [{'answer': answer, 'gold': gold} for answer, gold in pairs]
  if not jobs:
    return []
  found = _worker_pool().map(jobs, _BATCH_SECS + _ANSWER_SECS * len(jobs))
  return [
    Verdict(each.kind if isinstance(each, workers.JobFailure) else each)
    for each in found
  ]


_MODULE = 'r1jax.graders.math_worker'
_lock = threading.Lock()
_pool: workers.WorkerPool | None = None


def _worker_pool() -> workers.WorkerPool:
  """One pool serves all threads; made at the first question."""
  global _pool
  with _lock:
    if _pool is None:
      _pool = workers.WorkerPool(_MODULE, _LIMITS)
    return _pool


def shutdown():
  """Ends the worker processes; the next question starts others."""
  global _pool
  with _lock:
    if _pool is not None:
      _pool.close()
    _pool = None
