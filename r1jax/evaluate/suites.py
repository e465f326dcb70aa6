"""The evaluation suites, and DeepSeek-R1's protocol for each.

A suite is a dataset with a number k of completions of each problem, at
temperature 0.6, top-p 0.95 and at most 32,768 tokens (DeepSeek-R1 section 3). k
is 64 for AIME and GPQA, 16 for MATH-500 and 8 for LiveCodeBench, as there; the
others have a k by their size, so that a suite has some thousands of completions.

Any other dataset or synthetic task of r1jax is a suite too, under its name.
"""

from collections.abc import Sequence
import dataclasses

from r1jax import registry
from r1jax.errors import UserError, unknown

MAX_NEW_TOKENS = 32768
# DeepSeek-R1's advice for mathematical problems, on the page of its weights.
BOXED = (
  'Please reason step by step, and put your final answer within \\boxed{}.'
)
_SYNTHETIC_PROBLEMS = 500  # Problems of a task, which has no end.


@dataclasses.dataclass(frozen=True)
class Suite:
  """One suite of problems, and how each is answered.

  Attributes:
    name: Its name on the command line.
    dataset: The registered dataset or task whose held-out problems it has.
    num_samples: k, completions of each problem.
    instruction: Text after each question, for prompts whose template does not
      ask for a form of the answer; '' for none.
    num_problems: How many problems a synthetic task has; 0 for all of a dataset.
  """

  name: str
  dataset: str
  num_samples: int
  instruction: str = ''
  num_problems: int = 0


SUITES = {
  suite.name: suite
  for suite in (
    Suite('math500', 'math500', 16, BOXED),
    Suite('aime24', 'aime24', 64, BOXED),
    Suite('aime25', 'aime25', 64, BOXED),
    Suite('amc23', 'amc23', 64, BOXED),
    Suite('minerva', 'minerva', 16, BOXED),
    Suite('olympiad', 'olympiad', 8, BOXED),
    Suite('gsm8k', 'gsm8k', 4, BOXED),
    Suite('gpqa_diamond', 'gpqa_diamond', 64),
    Suite('mmlu_pro', 'mmlu_pro', 1),
    Suite('ifeval', 'ifeval', 4),
    Suite('livecodebench', 'livecodebench', 8),
    Suite('humaneval', 'humaneval', 16),
    Suite('mbpp', 'mbpp', 8),
    Suite('countdown', 'countdown_file', 4),
    Suite('zebra', 'zebra', 8, num_problems=_SYNTHETIC_PROBLEMS),
  )
}


def named(text: str) -> list[Suite]:
  """Returns the suites that a list such as 'math500,aime24' names.

  Raises:
    UserError: one is unknown, or named twice.
  """
  names = [name.strip() for name in text.split(',')]
  for name in names:
    if names.count(name) > 1:
      raise UserError(f'--suite: {name} is named twice')
  return [_named(name) for name in names]


def _named(name: str) -> Suite:
  if name in SUITES:
    return SUITES[name]
  if name in registry.task:
    return Suite(name, name, 8, num_problems=_SYNTHETIC_PROBLEMS)
  if name not in registry.dataset:
    raise unknown('--suite', name, _names())
  grader = registry.dataset.get(name).grader
  return Suite(name, name, 8, BOXED if grader == 'math' else '')


def _names() -> Sequence[str]:
  return list(dict.fromkeys([*SUITES, *registry.task, *registry.dataset]))
