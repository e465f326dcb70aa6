"""Rewards of a batch of completions: the weighted sum of named parts.

A part is one number per sample, NaN for a sample that has none. A sample without
a part that has a weight is not scorable: it is masked, which differs from a
reward of 0. Rows that rules can verify and general rows have separate weights,
as in DeepSeek-R1's second RL stage (section 2.3.4 of the first version). Parts
are registered by name: those of parts.py, and those of plugins.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import math
from typing import Any

import numpy as np

from r1jax import registry
from r1jax.data.datasets import GENERAL
from r1jax.data.text.response_formats import ResponseParser
from r1jax.errors import UserError
from r1jax.graders import dispatch, plugin_grader
from r1jax.records import Prompt, ScoredRollout
from r1jax.rewards import length
from r1jax.rewards.parts import LearnedPart, RewardOptions
from r1jax.rewards.plugin_reward import PluginReward, RewardError
from r1jax.rewards.sample import Sample, SamplePrompt

# Scores one response per prompt: (prompts, texts) → float32 [B]; see
# reward_model.RewardModel.score and prm.ProcessRewardModel.scorer.
RewardModelFn = Callable[[Sequence[Prompt], Sequence[str]], np.ndarray]


class RewardManager:
  """Scores batches of completions; callable from any thread."""

  def __init__(
    self,
    weights: Mapping[str, float],
    general_weights: Mapping[str, float],
    parser: ResponseParser,
    options: RewardOptions,
    reward_models: Mapping[str, RewardModelFn | None] | None = None,
  ):
    """Checks the weights and stores the arguments; runs nothing yet.

    Args:
      weights: Weight of each part, for rows that a rule can verify.
      general_weights: Weight of each part, for general rows.
      parser: Parses completions into thought and answer.
      options: Options of the parts.
      reward_models: The function that scores each learned part that has a
        weight: helpful, safe, prm.

    Raises:
      UserError: A part is unknown, not defined for these rows, or lacks its
        reward model.
    """
    self._weights = {False: _nonzero(weights), True: _nonzero(general_weights)}
    self._parser, self._options = parser, options
    self._reward_models = dict(reward_models or {})
    self._plugins: dict[str, PluginReward] = {}
    for name, weight in (*weights.items(), *general_weights.items()):
      if not math.isfinite(weight):
        raise UserError(f'reward: the weight of {name} is {weight}')
      registry.reward.get(name)
    for name in self._weights[True]:
      if registry.reward.origin(name).options.get('needs_rule'):
        raise UserError(
          f'reward: {name} needs a rule, which general rows have '
          'not; leave it out of general_reward'
        )
    for name in self._weighted():
      if registry.reward.origin(name).plugin:
        self._plugins[name] = PluginReward(
          name, options.timeout_secs, options.max_unscorable_share == 1
        )
      elif _is_learned(name) and name not in self._reward_models:
        raise UserError(
          f'reward: {name} has a weight, but no model was given '
          'to score it; leave it out'
        )
    if 'overlong' in self._weighted():
      length.overlong(0, options.max_tokens, options.overlong_buffer_tokens)

  def score(
    self,
    texts: Sequence[str],
    prompts: Sequence[Prompt],
    tokens_B: Sequence[int],
    finish_reasons: Sequence[str] | None = None,
  ) -> ScoredRollout:
    """Scores B = P·G completions of P prompts.

    Args:
      texts: Completions; text b belongs to prompt b // G.
      prompts: The P prompts.
      tokens_B: Length of each completion in tokens.
      finish_reasons: Why each completion ended: 'stop' or 'length'; None for
        unknown.

    Raises:
      RewardError: a part returns another number of values than there are
        samples, or a plugin hangs on one sample after another.
    """
    group_size = len(texts) // len(prompts)
    prompt_of = [prompts[b // group_size] for b in range(len(texts))]
    samples = self._samples(texts, prompt_of, tokens_B, finish_reasons)
    general_B = np.array([p.source == GENERAL for p in prompt_of])
    reward_B = np.zeros(len(samples), np.float32)
    parts: dict[str, np.ndarray] = {}
    for name in dict.fromkeys((*_ALWAYS_LOGGED, *self._weighted())):
      weight_B = np.where(
        general_B,
        self._weights[True].get(name, 0.0),
        self._weights[False].get(name, 0.0),
      )
      counts_B = weight_B != 0
      values = self._part(name, samples, prompt_of, counts_B)
      parts |= values
      weighted_B = (weight_B * values[name]).astype(np.float32)
      reward_B[counts_B] += weighted_B[counts_B]
    scorable_B = ~np.isnan(reward_B)
    return ScoredRollout(
      reward_B=np.where(scorable_B, reward_B, np.float32(0)),
      scorable_B=scorable_B,
      parts=parts,
      verdicts=[sample.verdict for sample in samples],
      texts=list(texts),
    )

  def _weighted(self) -> list[str]:
    """Returns the names of all parts that have a weight."""
    return list({**self._weights[False], **self._weights[True]})

  def _samples(
    self, texts, prompt_of, tokens_B, finish_reasons
  ) -> list[Sample]:
    parsed = [self._parser.parse(text) for text in texts]
    verified = [b for b, p in enumerate(prompt_of) if p.source != GENERAL]
    items = [
      (
        dispatch.graded_text(parsed[b], prompt_of[b].source),
        prompt_of[b].answer,
        prompt_of[b].source,
      )
      for b in verified
    ]
    grades = dict(
      zip(verified, dispatch.grade(items, self._options.code_partial_credit))
    )
    reasons = finish_reasons or [''] * len(texts)
    return [
      Sample(
        completion=text,
        reasoning=parsed[b].reasoning,
        answer=parsed[b].response
        if prompt.source == GENERAL
        else parsed[b].answer,
        gold=prompt.answer,
        prompt=_sample_prompt(prompt),
        num_tokens=int(tokens),
        finish_reason=reason,
        format_errors=parsed[b].errors,
        accuracy=grades[b].score if b in grades else None,
        verdict=grades[b].verdict if b in grades else GENERAL,
      )
      for b, (text, prompt, tokens, reason) in enumerate(
        zip(texts, prompt_of, tokens_B, reasons, strict=True)
      )
    ]

  def _part(
    self,
    name: str,
    samples: Sequence[Sample],
    prompt_of: Sequence[Prompt],
    counts_B: np.ndarray,
  ) -> dict[str, np.ndarray]:
    """Computes one part, float32 [B], and the parts that it is the sum of."""
    if name in self._plugins:
      return self._plugin_part(name, samples, counts_B)
    if _is_learned(name):
      model: Any = self._reward_models[name]  # None while checking alone.
      values = model(prompt_of, [s.completion for s in samples])
    else:
      part = registry.reward.get(name)
      values = [part(sample, self._options) for sample in samples]
    value_B = np.array(
      [np.nan if value is None else value for value in values], np.float32
    )
    if value_B.shape != (len(samples),):
      raise RewardError(
        f'reward: {name} returned {value_B.shape} numbers for '
        f'{len(samples)} samples'
      )
    return {name: np.where(np.isfinite(value_B), value_B, np.float32(np.nan))}

  def _plugin_part(
    self, name: str, samples: Sequence[Sample], counts_B: np.ndarray
  ) -> dict[str, np.ndarray]:
    """Calls a plugin for the samples that count; the others have NaN."""
    rows = np.flatnonzero(counts_B).tolist()
    scores = self._plugins[name].score([samples[b] for b in rows])
    inner = dict.fromkeys(part for score in scores for part in score.parts)
    found = {
      each: np.full(len(samples), np.nan, np.float32)
      for each in (name, *(f'{name}/{part}' for part in inner))
    }
    for b, score in zip(rows, scores):
      if score.value is not None and np.isfinite(np.float32(score.value)):
        found[name][b] = score.value
      for part, value in score.parts.items():
        found[f'{name}/{part}'][b] = value
    return found

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
      nan_B = np.full(len(missing_B), np.nan)
      broken = [
        self._described(name)
        for name in self._weighted()
        if np.isnan(scored.parts.get(name, nan_B)[missing_B]).any()
      ]
      raise RewardError(
        f'reward: {share:.0%} of the samples have no '
        f'{" or ".join(broken) or "reward"}, more than '
        f'rl.max_unscorable_share = {self._options.max_unscorable_share:.0%}: '
        'the run stops, and its checkpoints stand'
      )

  def _described(self, name: str) -> str:
    """Returns a part's name, with the file and first failure of a plugin."""
    if name in self._plugins:
      plugin = self._plugins[name]
      reason = plugin.first_error or 'returned None'
      return f'{name} ({plugin.file}: {reason})'
    errors = plugin_grader.first_errors()
    if registry.reward.origin(name).options.get('needs_rule') and errors:
      return f'{name} ({"; ".join(errors)})'
    return name


def _is_learned(name: str) -> bool:
  return isinstance(registry.reward.get(name), LearnedPart)


def _sample_prompt(prompt: Prompt) -> SamplePrompt:
  return SamplePrompt(
    **{
      f.name: getattr(prompt, f.name) for f in dataclasses.fields(SamplePrompt)
    }
  )


def _nonzero(weights: Mapping[str, float]) -> dict[str, float]:
  return {name: weight for name, weight in weights.items() if weight}


_ALWAYS_LOGGED = ('accuracy', 'format')  # Also with weight 0.
