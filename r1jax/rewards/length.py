"""Rewards of length and of repetition, pure functions of counts and ids."""

from collections.abc import Hashable, Sequence
import math

from r1jax.errors import UserError


def overlong(tokens: int, max_tokens: int, buffer_tokens: int) -> float:
  """DAPO's soft overlong punishment (arXiv 2503.14476, eq. 13), in [−1, 0].

  0 up to max − buffer, then down in a line to −1 at max, −1 beyond. With
  max = 100 and buffer = 20: 80 → 0, 90 → −0.5, 100 → −1.
  """
  if not 0 < buffer_tokens <= max_tokens:
    raise UserError(
      f'overlong: buffer_tokens = {buffer_tokens} must lie '
      f'within 1 and max_tokens = {max_tokens}'
    )
  over = tokens - (max_tokens - buffer_tokens)
  return -min(max(over / buffer_tokens, 0.0), 1.0)


def cosine(
  right: bool,
  tokens: int,
  max_tokens: int,
  *,
  right_short: float = 1.0,
  right_long: float = 0.5,
  wrong_short: float = -1.0,
  wrong_long: float = -0.5,
  exceeded: float = -1.0,
) -> float:
  """The cosine reward (arXiv 2502.03373, section 4.2).

  From the value of a short answer to that of a long one along half a cosine;
  `exceeded` where the completion reached max_tokens without an end. A right
  answer is worth more when it is short, a wrong one when it is long: thinking
  on is encouraged where it may still help.
  """
  if tokens >= max_tokens:
    return exceeded
  short, long = (
    (right_short, right_long) if right else (wrong_short, wrong_long)
  )
  return (
    long + (short - long) * (1 + math.cos(math.pi * tokens / max_tokens)) / 2
  )


def repetition(ids: Sequence[Hashable], n: int) -> float:
  """Share of a completion's n-grams that are not new, negated: in (−1, 0].

  a b a b a b with n = 2: ab ba ab ba ab has two new ones of five: −0.6.
  """
  if n < 1:
    raise UserError(f'repetition: n must be at least 1, got {n}')
  total = len(ids) - n + 1
  if total <= 0:
    return 0.0
  distinct = len({tuple(ids[i : i + n]) for i in range(total)})
  return distinct / total - 1
