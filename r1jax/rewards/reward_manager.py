"""Rewards of a batch of completions: the weighted sum of named parts.

A part is one number per sample, NaN for a sample that has none. A sample without
a part that has a weight is not scorable: it is masked, which differs from a
reward of 0. Rows that rules can verify and general rows have separate weights,
as in DeepSeek-R1's second RL stage (section 2.3.4 of the first version).
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import math
from typing import NamedTuple

import numpy as np

from r1jax.data.datasets import GENERAL
from r1jax.data.text.response_formats import MAX_ERRORS, Parsed, ResponseParser
from r1jax.errors import UserError, unknown
from r1jax.graders import dispatch
from r1jax.graders.verdict import Grade, Verdict
from r1jax.records import Prompt, ScoredRollout
from r1jax.rewards import language, length


class Sample(NamedTuple):
  """One completion and what the parts read of it.

  Attributes:
    text: The completion.
    parsed: The completion, parsed into thought and answer.
    prompt: Its prompt.
    tokens: Its length in tokens.
    grade: The grade of its answer; None for a general row.
  """

  text: str
  parsed: Parsed
  prompt: Prompt
  tokens: int
  grade: Grade | None


@dataclasses.dataclass(frozen=True)
class RewardOptions:
  """Options of the parts.

  Attributes:
    max_tokens: Maximum number of tokens of a completion.
    overlong_buffer_tokens: Length of the buffer of `length.overlong`, in tokens.
    repetition_n: n of the n-grams of words of `length.repetition`.
    max_unscorable_share: The largest share of a batch's samples that may lack a part;
      beyond it the run stops, for its grader is broken.
    code_partial_credit: Whether a program that fails some of its tests scores
      the share of them that it passes, instead of 0.
  """

  max_tokens: int
  overlong_buffer_tokens: int
  repetition_n: int
  max_unscorable_share: float
  code_partial_credit: bool = False

  def __post_init__(self):
    if not 0 <= self.max_unscorable_share <= 1:
      raise UserError(
        'reward: max_unscorable_share is a share within [0, 1], got '
        f'{self.max_unscorable_share}'
      )


class RewardError(UserError):
  """Too many samples have no score, or scoring failed; the run stops."""


# Scores one response per prompt: (prompts, texts) → float32 [B]; see
# reward_model.RewardModel.score and prm.ProcessRewardModel.scorer.
RewardModelFn = Callable[[Sequence[Prompt], Sequence[str]], np.ndarray]
LEARNED = ('helpful', 'safe', 'prm')


class RewardManager:
  """Scores batches of completions; callable from any thread."""

  def __init__(
    self,
    weights: Mapping[str, float],
    general_weights: Mapping[str, float],
    parser: ResponseParser,
    options: RewardOptions,
    reward_models: Mapping[str, RewardModelFn] | None = None,
  ):
    """Checks the weights and stores the arguments.

    Args:
      weights: Weight of each part, for rows that a rule can verify.
      general_weights: Weight of each part, for general rows.
      parser: Parses completions into thought and answer.
      options: Options of the parts.
      reward_models: The function that scores each part in LEARNED that has a
        weight.

    Raises:
      UserError: A part is unknown, not defined for these rows, or lacks its
        reward model.
    """
    self._weights = {False: _nonzero(weights), True: _nonzero(general_weights)}
    self._parser, self._options = parser, options
    self._reward_models = dict(reward_models or {})
    for name, weight in (*weights.items(), *general_weights.items()):
      if not math.isfinite(weight):
        raise UserError(f'reward: the weight of {name} is {weight}')
      if name not in PARTS and name not in LEARNED:
        raise unknown('reward', name, [*PARTS, *LEARNED])
    for name in _NEEDS_RULE & self._weights[True].keys():
      raise UserError(
        f'reward: {name} needs a rule, which general rows have '
        'not; leave it out of general_reward'
      )
    for name in {*self._weights[False], *self._weights[True]}:
      if name in LEARNED and name not in self._reward_models:
        raise UserError(
          f'reward: {name} has a weight, but no model was given '
          'to score it; leave it out'
        )
    if 'overlong' in {*self._weights[False], *self._weights[True]}:
      length.overlong(0, options.max_tokens, options.overlong_buffer_tokens)

  def score(
    self,
    texts: Sequence[str],
    prompts: Sequence[Prompt],
    tokens_B: Sequence[int],
  ) -> ScoredRollout:
    """Scores B = P·G completions of P prompts.

    Args:
      texts: Completions; text b belongs to prompt b // G.
      prompts: The P prompts.
      tokens_B: Length of each completion in tokens.
    """
    samples = self._samples(texts, prompts, tokens_B)
    general_B = np.array([s.prompt.source == GENERAL for s in samples])
    reward_B = np.zeros(len(samples), np.float32)
    parts: dict[str, np.ndarray] = {}
    weighted = {**self._weights[False], **self._weights[True]}
    for name in dict.fromkeys((*_ALWAYS_LOGGED, *weighted)):
      part_B = self._part(name, samples)
      weight_B = np.where(
        general_B,
        self._weights[True].get(name, 0.0),
        self._weights[False].get(name, 0.0),
      )
      parts[name] = part_B
      counts_B = weight_B != 0
      reward_B[counts_B] += (weight_B * part_B).astype(np.float32)[counts_B]
    scorable_B = ~np.isnan(reward_B)
    return ScoredRollout(
      reward_B=np.where(scorable_B, reward_B, np.float32(0)),
      scorable_B=scorable_B,
      parts=parts,
      verdicts=[s.grade.verdict if s.grade else GENERAL for s in samples],
      texts=list(texts),
    )

  def _samples(self, texts, prompts, tokens_B) -> list[Sample]:
    group_size = len(texts) // len(prompts)
    prompt_of = [prompts[b // group_size] for b in range(len(texts))]
    parsed = [self._parser.parse(text) for text in texts]
    verified = [b for b, p in enumerate(prompt_of) if p.source != GENERAL]
    grades = dict(
      zip(
        verified,
        dispatch.grade(
          [
            (parsed[b].answer, prompt_of[b].answer, prompt_of[b].source)
            for b in verified
          ],
          self._options.code_partial_credit,
        ),
      )
    )
    return [
      Sample(text, parsed_text, prompt, int(tokens), grades.get(b))
      for b, (text, parsed_text, prompt, tokens) in enumerate(
        zip(texts, parsed, prompt_of, tokens_B, strict=True)
      )
    ]

  def _part(self, name: str, samples: Sequence[Sample]) -> np.ndarray:
    """Computes one part of all samples, float32 [B]."""
    if name in LEARNED:
      values = self._reward_models[name](
        [s.prompt for s in samples], [s.text for s in samples]
      )
    else:
      part = PARTS[name]
      values = [part(sample, self._options) for sample in samples]
    values = np.array(
      [np.nan if value is None else value for value in values], np.float32
    )
    if values.shape != (len(samples),):
      raise RewardError(
        f'reward: {name} returned {values.shape} numbers for '
        f'{len(samples)} samples'
      )
    return np.where(np.isfinite(values), values, np.float32(np.nan))

  def check(self, scored: ScoredRollout):
    """Stops a run whose grader is broken.

    Args:
      scored: All samples of a step.

    Raises:
      RewardError: More than max_unscorable_share of the samples have no score.
    """
    missing_B = ~np.asarray(scored.scorable_B)
    share = missing_B.mean()
    if share > self._options.max_unscorable_share:
      broken = [
        name
        for name in {*self._weights[False], *self._weights[True]}
        if np.isnan(scored.parts[name][missing_B]).any()
      ]
      raise RewardError(
        f'reward: {share:.0%} of the samples have no {" or ".join(broken)}, '
        f'more than rl.max_unscorable_share = {self._options.max_unscorable_share:.0%}: the '
        'grader is broken; the run stops, and its checkpoints stand'
      )


def _nonzero(weights: Mapping[str, float]) -> dict[str, float]:
  return {name: weight for name, weight in weights.items() if weight}


def _accuracy(s: Sample, _) -> float | None:
  return s.grade and s.grade.score


def _cosine(s: Sample, o: RewardOptions) -> float | None:
  if _accuracy(s, o) is None:
    return None
  return length.cosine(
    s.grade.verdict is Verdict.CORRECT, s.tokens, o.max_tokens
  )


PARTS: dict[str, Callable[[Sample, RewardOptions], float | None]] = {
  'accuracy': _accuracy,
  'format': lambda s, o: float(s.parsed.well_formed),
  # Errors of the form, negated, as a share of the most that are counted.
  'format_errors': lambda s, o: -s.parsed.errors / MAX_ERRORS,
  'language': lambda s, o: language.consistency(
    s.parsed.reasoning or s.text, s.prompt.language
  ),
  'overlong': lambda s, o: length.overlong(
    s.tokens, o.max_tokens, o.overlong_buffer_tokens
  ),
  'cosine': _cosine,
  'repetition': lambda s, o: length.repetition(s.text.split(), o.repetition_n),
}
_ALWAYS_LOGGED = ('accuracy', 'format')  # Also with weight 0.
_NEEDS_RULE = {'accuracy', 'cosine'}
