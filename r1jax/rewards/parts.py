"""The parts of a reward that come with the package.

They are registered like those of plugins, and run in the process of the run.
Each takes a Sample and the RewardOptions and returns a number, or None for a
sample that has none.
"""

import dataclasses

from r1jax import registry
from r1jax.data.text.response_formats import MAX_ERRORS
from r1jax.errors import UserError
from r1jax.graders.verdict import Verdict
from r1jax.rewards import language as languages
from r1jax.rewards import length
from r1jax.rewards import repetition as repetitions
from r1jax.rewards.sample import Sample


@dataclasses.dataclass(frozen=True)
class RewardOptions:
  """Options of the parts.

  Attributes:
    max_tokens: Maximum number of tokens of a completion.
    overlong_buffer_tokens: Length of the buffer of `length.overlong`, in tokens.
    repetition_n: n of the n-grams of words of `repetition`.
    max_unscorable_share: The largest share of a batch's samples that may lack a part;
      beyond it the run stops, for its grader is broken.
    code_partial_credit: Whether a program that fails some of its tests scores
      the share of them that it passes, instead of 0.
    timeout_secs: Wall-clock limit of a plugin's reward, for each sample.
  """

  max_tokens: int
  overlong_buffer_tokens: int
  repetition_n: int
  max_unscorable_share: float
  code_partial_credit: bool = False
  timeout_secs: float = 60.0

  def __post_init__(self):
    if not 0 <= self.max_unscorable_share <= 1:
      raise UserError(
        'reward: max_unscorable_share is a share within [0, 1], got '
        f'{self.max_unscorable_share}'
      )


class LearnedPart:
  """A part that a reward model scores; see RewardManager.reward_models."""


for _name in ('helpful', 'safe', 'prm'):
  registry.reward.add(_name, LearnedPart())


@registry.reward('accuracy', needs_rule=True)
def accuracy(s: Sample, _) -> float | None:
  """Returns the score of the answer by its grader."""
  return s.accuracy


@registry.reward('format')
def response_format(s: Sample, _) -> float:
  """Returns 1 for a completion in the response format, else 0."""
  return float(not s.format_errors)


@registry.reward('format_errors')
def format_errors(s: Sample, _) -> float:
  """Returns minus the errors of the format, as a share of the most counted."""
  return -s.format_errors / MAX_ERRORS


@registry.reward('language')
def language(s: Sample, _) -> float:
  """Returns the share of the reasoning's words in the prompt's language."""
  return languages.consistency(s.reasoning or s.completion, s.prompt.language)


@registry.reward('overlong')
def overlong(s: Sample, o: RewardOptions) -> float:
  """Returns DAPO's soft overlong punishment."""
  return length.overlong(s.num_tokens, o.max_tokens, o.overlong_buffer_tokens)


@registry.reward('cosine', needs_rule=True)
def cosine(s: Sample, o: RewardOptions) -> float | None:
  """Returns the cosine length reward; None for an answer without a score."""
  if s.accuracy is None:
    return None
  return length.cosine(s.verdict == Verdict.CORRECT, s.num_tokens, o.max_tokens)


@registry.reward('repetition')
def repetition(s: Sample, o: RewardOptions) -> float:
  """Returns the negated share of repeated n-grams of words, in any script."""
  return repetitions.repetition(s.completion, o.repetition_n)
