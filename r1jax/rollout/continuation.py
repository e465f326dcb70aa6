"""Completions that go on from where others stand: for labels of steps, and for
search. The sampler reads what they share once."""

from collections.abc import Sequence
from typing import NamedTuple
import zlib

import jax
import numpy as np

from r1jax.rollout import assemble
from r1jax.rollout.sampling import Sampling
from r1jax.rollout.scheduler import Completion, Request
from r1jax.rollout.session import Session


class Context(NamedTuple):
  """A prompt, and what has been said after it.

  Attributes:
    id: uint32 hash of the prompt's name, as PromptBatch has it.
    prompt: int32, its tokens.
    tokens: Drawn so far.
  """

  id: int
  prompt: np.ndarray
  tokens: tuple[int, ...] = ()

  @property
  def ids(self) -> np.ndarray:
    """int32, all of it."""
    return np.concatenate([self.prompt, np.array(self.tokens, np.int32)])

  @property
  def seed(self) -> int:
    """uint32, of what is drawn from here, whatever else is drawn."""
    return zlib.crc32(np.array(self.tokens, np.int32).tobytes(), self.id)


def requests(
  contexts: Sequence[Context],
  hows: Sequence[Sampling],
  count: int,
  key: jax.Array,
  turns: Sequence[int] = (),
) -> list[Request]:
  """`count` continuations of each, side by side; named (context, sample).

  Args:
    contexts: To go on from.
    hows: For each of them.
    count: Of each.
    key: Of all.
    turns: For each the number of times that it was asked for before: what is
      drawn again is not the same again.
  """
  if not contexts:
    return []
  seeds = [
    zlib.crc32(bytes([1] * turn), context.seed)
    for context, turn in zip(
      contexts, turns or [0] * len(contexts), strict=True
    )
  ]
  keys = assemble.sample_keys(key, np.array(seeds, np.uint32), count)
  return [
    Request(
      name=(c, n), prompt=context.ids, key=keys[c, n], sampling=how, group=c
    )
    for c, (context, how) in enumerate(zip(contexts, hows, strict=True))
    for n in range(count)
  ]


def draw(session: Session, asked: Sequence[Request]) -> list[Completion]:
  """Completes all of them, in their order. What the session has read before
  for others it does not read again."""
  made = [session.submit(request) for request in asked]
  for _ in session:
    pass
  return made
