"""Rewards that depend on a completion's length in tokens, whatever its language."""

import math

from r1jax.errors import UserError


def overlong(tokens: int, max_tokens: int, buffer_tokens: int) -> float:
  """Returns DAPO's soft overlong punishment (arXiv 2503.14476, eq. 13).

  It is 0 up to max_tokens − buffer_tokens, falls linearly to −1 at max_tokens and
  stays there. With max_tokens = 100 and buffer_tokens = 20: 80 → 0, 90 → −0.5,
  100 → −1.

  Args:
    tokens: Length of the completion.
    max_tokens: Maximum length of a completion.
    buffer_tokens: Length of the interval in which the punishment grows.
  """
  if not 0 < buffer_tokens <= max_tokens:
    raise UserError(
      f'overlong: buffer_tokens = {buffer_tokens} must lie '
      f'within 1 and max_tokens = {max_tokens}'
    )
  over = tokens - (max_tokens - buffer_tokens)
  return -min(max(over / buffer_tokens, 0.0), 1.0)


def cosine(
  correct: bool,
  tokens: int,
  max_tokens: int,
  *,
  correct_short: float = 1.0,
  correct_long: float = 0.5,
  wrong_short: float = -1.0,
  wrong_long: float = -0.5,
  exceeded: float = -1.0,
) -> float:
  """Returns the cosine length reward (arXiv 2502.03373, section 4.2).

  The reward follows half a cosine from the value of a short completion to that of
  a long one. A correct answer is worth more when it is short, a wrong one when it
  is long: this encourages more thinking where it may still help.

  Args:
    correct: Whether the answer is correct.
    tokens: Length of the completion.
    max_tokens: Maximum length of a completion.
    correct_short, correct_long: Rewards of a correct answer at 0 and max_tokens.
    wrong_short, wrong_long: Rewards of a wrong answer at 0 and max_tokens.
    exceeded: Reward of a completion that reached max_tokens.
  """
  if tokens >= max_tokens:
    return exceeded
  short, long = (
    (correct_short, correct_long) if correct else (wrong_short, wrong_long)
  )
  return (
    long + (short - long) * (1 + math.cos(math.pi * tokens / max_tokens)) / 2
  )
