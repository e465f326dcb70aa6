"""Completions that continue partial completions.

The labelling of reasoning steps and tree search sample from the middle of a
completion. The tokens that such requests share are prefilled once.
"""

from collections.abc import Sequence
from typing import NamedTuple
import zlib

import jax
import numpy as np

from r1jax.rollout import assemble
from r1jax.rollout.sampling import SamplingParams
from r1jax.rollout.scheduler import Completion, Request
from r1jax.rollout.session import Session


class Prefix(NamedTuple):
  """A prompt and the beginning of a completion, from which sampling goes on.

  Attributes:
    prompt_id: uint32 hash of the prompt's name, as in PromptBatch.
    prompt: int32 [p], the prompt's tokens.
    tokens: Completion tokens so far.
  """

  prompt_id: int
  prompt: np.ndarray
  tokens: tuple[int, ...] = ()

  @property
  def all_tokens(self) -> np.ndarray:
    """int32, the prompt's tokens and the completion's."""
    return np.concatenate([self.prompt, np.array(self.tokens, np.int32)])

  @property
  def seed(self) -> int:
    """uint32 seed of the continuations, a function of the prefix alone."""
    return zlib.crc32(np.array(self.tokens, np.int32).tobytes(), self.prompt_id)


def build_requests(
  prefixes: Sequence[Prefix],
  sampling_params: Sequence[SamplingParams],
  count: int,
  key: jax.Array,
  repeats: Sequence[int] = (),
) -> list[Request]:
  """Builds `count` requests for each prefix, side by side.

  A request is named (index of the prefix, index of the sample).

  Args:
    prefixes: Prefixes to continue.
    sampling_params: Sampling parameters for each of them.
    count: Number of continuations of each prefix.
    key: PRNG key of all of them.
    repeats: How often each prefix was continued before with this key: a
      repeated request samples anew. Without it, 0 for each.
  """
  if not prefixes:
    return []
  seeds = [
    zlib.crc32(bytes([1] * repeat), prefix.seed)
    for prefix, repeat in zip(
      prefixes, repeats or [0] * len(prefixes), strict=True
    )
  ]
  keys = assemble.sample_keys(key, np.array(seeds, np.uint32), count)
  return [
    Request(
      name=(c, n),
      prompt=prefix.all_tokens,
      key=keys[c, n],
      sampling_params=params,
      group=c,
    )
    for c, (prefix, params) in enumerate(
      zip(prefixes, sampling_params, strict=True)
    )
    for n in range(count)
  ]


def generate(session: Session, requests: Sequence[Request]) -> list[Completion]:
  """Completes all requests in an open session; returns them in order.

  Blocks that earlier requests of the session left in the cache are reused.
  """
  completions = [session.submit(request) for request in requests]
  for _ in session:
    pass
  return completions
