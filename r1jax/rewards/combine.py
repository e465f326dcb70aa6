"""Rewards of a batch of completions: named parts and their weighted sum."""

from collections.abc import Mapping, Sequence

import numpy as np

from r1jax.data import template
from r1jax.errors import UserError
from r1jax.records import Prompt, Scored
from r1jax.rewards import answers

PARTS = ('accuracy', 'format')


class RuleReward:
  """R1-Zero's reward (section 2.2.2): accuracy + format, both 0 or 1.

  An answer that its grader could not grade has no accuracy, and its completion
  no reward: it is not scorable.

  Args:
    weights: Part to weight.
    opens_think: The template itself opened the thought.
  """

  def __init__(self, weights: Mapping[str, float], opens_think: bool):
    for name in weights:
      if name not in PARTS:
        raise UserError(f'reward: unknown part {name!r}; there are {PARTS}')
    self._weights = dict(weights)
    self._opens_think = opens_think

  def score(self, texts: Sequence[str], prompts: Sequence[Prompt]) -> Scored:
    """Scores B completions of P prompts; text b belongs to prompt b // G."""
    group_size = len(texts) // len(prompts)
    asked = [prompts[b // group_size] for b in range(len(texts))]
    parsed = [template.parse(text, self._opens_think) for text in texts]
    verdicts = answers.grade([
        (each.answer, prompt.answer, prompt.source)
        for each, prompt in zip(parsed, asked)])
    parts = {
        'accuracy': np.array([
            np.nan if verdict.score is None else verdict.score
            for verdict in verdicts], np.float32),
        'format': np.array([each.well_formed for each in parsed], np.float32)}
    scorable_B = ~np.isnan(parts['accuracy'])
    reward_B = np.zeros(len(texts), np.float32)
    for name, weight in self._weights.items():
      reward_B += np.float32(weight) * parts[name]
    return Scored(
        reward_B=np.where(scorable_B, reward_B, np.float32(0)),
        scorable_B=scorable_B, parts=parts, verdicts=verdicts,
        texts=list(texts))


def completion_texts(tokens_BT: np.ndarray, mask_BT: np.ndarray,
                     finish_B: np.ndarray, decode_batch) -> list[str]:
  """Decodes the completions, without the stop token that ended them."""
  rows = []
  for tokens_T, mask_T, finish in zip(tokens_BT, mask_BT, finish_B):
    ids = tokens_T[mask_T]
    rows.append(ids[:-1] if finish else ids)
  return decode_batch(rows)
