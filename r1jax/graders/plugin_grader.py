"""Grades answers by the graders of plugins, in killable worker processes.

  @registry.grader('mine')
  def mine(answer, gold):
    return answer.casefold() == gold.casefold()

The function returns a bool, a score within [0, 1], or None for an answer that
it cannot read.
"""

from collections.abc import Sequence
import logging

from r1jax import registry
from r1jax.errors import UserError, unknown
from r1jax.graders.verdict import Grade, Verdict
from r1jax.workers import plugin_pool
from r1jax.workers.job_queue import JobFailure
from r1jax.workers.pool import WorkerStartError

_MODULE = 'r1jax.graders.grader_worker'
_DEADLINE_SECS = 5.0  # Wall-clock limit of one answer.
# Time limit of a batch, fixed and per answer. Whatever is not graded by then has
# no score.
_BATCH_SECS, _ANSWER_SECS = 60.0, 0.25
_log = logging.getLogger(__name__)
_first_errors: dict[
  tuple[str, str], str
] = {}  # Keyed by the plugin and the name.


def grade(name: str, pairs: Sequence[tuple[str | None, str]]) -> list[Grade]:
  """Grades each answer against its gold answer by one grader.

  A missing or blank answer is unparsable before the grader sees it. A grader
  that raises, dies or returns something else gives the verdict CRASH, and one
  that hangs TIMEOUT; neither has a score.

  Args:
    name: The name of the grader.
    pairs: Answers and their gold answers.

  Raises:
    UserError: the grader has unknown options, or does not start in a worker.
  """
  origin = registry.grader.origin(name)
  for option in origin.options:
    raise unknown(f'{origin.file}: grader {name}: option', option, ())
  distinct = list(dict.fromkeys(p for p in pairs if (p[0] or '').strip()))
  jobs = [
    {'name': name, 'answer': (answer or '').strip(), 'gold': gold}
    for answer, gold in distinct
  ]
  results = []
  if jobs:
    try:
      results = plugin_pool.call(
        _MODULE,
        origin.plugin,
        jobs,
        _DEADLINE_SECS,
        _BATCH_SECS + _ANSWER_SECS * len(jobs),
      )
    except WorkerStartError as error:
      raise UserError(f'grader: {origin.file}: {name}: {error}') from error
  grades = {
    pair: _grade(name, origin.file, result)
    for pair, result in zip(distinct, results)
  }
  unparsable = Grade(Verdict.UNPARSABLE, Verdict.UNPARSABLE.score)
  return [grades.get(pair, unparsable) for pair in pairs]


def _grade(name: str, file: str, result) -> Grade:
  if isinstance(result, JobFailure):
    verdict = Verdict(result.kind)
    error = plugin_pool.failure_text(result, _DEADLINE_SECS)
  elif 'error' in result:
    verdict, error = Verdict.CRASH, result['error']
  else:
    return _scored(result['value'])
  if (file, name) not in _first_errors:
    _first_errors[file, name] = error
    _log.warning(
      'grader: %s: %s %s; such samples have no score', file, name, error
    )
  return Grade(verdict, verdict.score)


def _scored(score: float | None) -> Grade:
  if score is None:
    return Grade(Verdict.UNPARSABLE, Verdict.UNPARSABLE.score)
  return Grade(Verdict.CORRECT if score == 1 else Verdict.WRONG, score)


def first_errors() -> list[str]:
  """Returns the first failure of each registered grader that had one."""
  return [
    f'grader {name} of {file}: {error}'
    for (file, name), error in _first_errors.items()
    if name in registry.grader and registry.grader.origin(name).file == file
  ]
