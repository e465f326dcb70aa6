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
    parts = {name: np.zeros(len(texts), np.float32) for name in PARTS}
    for b, text in enumerate(texts):
      prompt = prompts[b // group_size]
      parsed = template.parse(text, self._opens_think)
      parts['format'][b] = parsed.well_formed
      parts['accuracy'][b] = answers.is_right(
          parsed.answer, prompt.answer, prompt.source)
    reward_B = sum(
        np.float32(weight) * parts[name]
        for name, weight in self._weights.items())
    return Scored(reward_B=reward_B, parts=parts, texts=list(texts))


def completion_texts(tokens_BT: np.ndarray, mask_BT: np.ndarray,
                     finish_B: np.ndarray, decode_batch) -> list[str]:
  """Decodes the completions, without the stop token that ended them."""
  rows = []
  for tokens_T, mask_T, finish in zip(tokens_BT, mask_BT, finish_B):
    ids = tokens_T[mask_T]
    rows.append(ids[:-1] if finish else ids)
  return decode_batch(rows)
