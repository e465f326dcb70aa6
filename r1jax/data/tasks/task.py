"""Synthetic verifiable tasks: endless, seeded, split by content.

A problem is a pure function of (task, split, seed, index). Training and
held-out problems never overlap, whatever the seed, since a hash of the question,
or of the solution, assigns it to one split. Tasks are registered by name:

  registry.task('largest')(Task(sample_problem, grader='arithmetic'))
"""

from collections.abc import Callable
import dataclasses
from typing import Any

import numpy as np

from r1jax import registry
from r1jax.config.schema.data import CorpusConfig
from r1jax.data.splits import HELD_OUT, TRAIN, split_of

_SPLIT_SALT = {TRAIN: 0, HELD_OUT: 1}


@dataclasses.dataclass(frozen=True)
class Problem:
  """One problem of a synthetic task.

  Attributes:
    question: The question, without a prompt template.
    answer: The right answer; in 'countdown' the target.
    numbers: The operands, for tasks that have some.
    ops: The operators of a solution, from left to right.
  """

  question: str
  answer: str
  numbers: tuple[int, ...] = ()
  ops: tuple[str, ...] = ()


def _answer_alone(
  rng: np.random.Generator, problem: Problem, corpus: CorpusConfig
) -> tuple[str, str]:
  """Writes a solution without steps: the answer is its own reasoning."""
  del rng, corpus
  return problem.answer, problem.answer


def _gold_answer(problem: Problem) -> str:
  return problem.answer


@dataclasses.dataclass(frozen=True)
class Task:
  """The functions that define a synthetic task; the first one is required.

  Attributes:
    sample_problem: Samples a problem.
    write_solution: Writes reasoning, step by step with slips and corrections;
      returns it with the answer that it arrives at. By default the answer is
      its own reasoning.
    wrong_answer: Samples a wrong but plausible answer; None for the right
      answer of another problem.
    gold_answer: Returns the gold answer in the format that the grader reads;
      by default problem.answer.
    grader: Name of the grader of its answers; '' for the task's own name.
    general: Whether the task is general data, in DeepSeek's sense: no rule
      verifies its answers.
    sample_solution: Samples the solution of a problem, for tasks whose problems
      are dear to make: its text then decides the split, and only problems of
      the wanted split are made. None if the question decides.
    pose: Makes the problem of a solution; goes with sample_solution.
  """

  sample_problem: Callable[[np.random.Generator], Problem]
  write_solution: Callable[
    [np.random.Generator, Problem, CorpusConfig], tuple[str, str]
  ] = _answer_alone
  wrong_answer: Callable[[np.random.Generator, Problem], str] | None = None
  gold_answer: Callable[[Problem], str] = _gold_answer
  grader: str = ''
  general: bool = False
  sample_solution: Callable[[np.random.Generator], Any] | None = None
  pose: Callable[[np.random.Generator, Any], Problem] | None = None

  def sample_wrong_answer(
    self, rng: np.random.Generator, problem: Problem
  ) -> str:
    """Samples an answer that is wrong for a problem."""
    if self.wrong_answer:
      return self.wrong_answer(rng, problem)
    answer = problem.answer
    while answer == problem.answer:
      answer = self.sample_problem(rng).answer
    return answer


def problem_at(task: str, split: str, seed: int, index: int) -> Problem:
  """Returns problem `index` of an endless stream.

  Args:
    task: Name of a registered task.
    split: splits.TRAIN or splits.HELD_OUT.
    seed: Seed of the stream.
    index: Index of the problem, from 0.
  """
  rng = np.random.default_rng([seed, _SPLIT_SALT[split], index])
  return sample_problem(rng, task, split)


def sample_problem(rng: np.random.Generator, task: str, split: str) -> Problem:
  """Samples a problem of one split of a registered task."""
  definition = registry.task.get(task)
  if definition.sample_solution:
    solution = definition.sample_solution(rng)
    while split_of(str(solution)) != split:
      solution = definition.sample_solution(rng)
    return definition.pose(rng, solution)
  problem = definition.sample_problem(rng)
  while split_of(problem.question) != split:
    problem = definition.sample_problem(rng)
  return problem
