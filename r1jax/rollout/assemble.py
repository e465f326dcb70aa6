"""Between batches of prompts and requests: keys, and the Rollout that RL
reads."""

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from r1jax.records import FINISH_LENGTH, FINISH_STOP, PromptBatch, Rollout
from r1jax.rollout.sampling import Sampling
from r1jax.rollout.scheduler import Completion, Request


def requests(
  prompts: PromptBatch, group_size: int, how: Sampling, key: jax.Array
) -> list[Request]:
  """G of each prompt, side by side; see sample_keys. A prompt that comes
  again in the batch has the next G of its samples."""
  times_P = _times_before(np.asarray(prompts.id_P))
  keys_PG2 = sample_keys(key, prompts.id_P, group_size, times_P * group_size)
  rows = zip(np.asarray(prompts.tokens_PT), np.asarray(prompts.valid_PT))
  return [
    Request(
      name=(p, g),
      prompt=tokens_T[valid_T],
      key=keys_PG2[p, g],
      sampling=how,
      group=p,
    )
    for p, (tokens_T, valid_T) in enumerate(rows)
    for g in range(group_size)
  ]


@partial(jax.jit, static_argnums=3)
def _folded(key, id_P, first_P, group_size: int):
  fold = jax.random.fold_in
  key_P = jax.vmap(fold, (None, 0))(key, id_P)
  key_PG = jax.vmap(jax.vmap(fold, (None, 0)))(
    key_P, first_P[:, None] + jnp.arange(group_size)
  )
  return jax.random.key_data(key_PG)


def sample_keys(key, id_P, group_size: int, first_P=None) -> np.ndarray:
  """Raw keys, uint32 [P, G, 2]: sample g of a prompt with this id draws from
  the key folded by the id, then by g.

  Args:
    key: Of a step.
    id_P: Integers.
    group_size: G.
    first_P: The first g of each; without it, 0.
  """
  P = len(id_P)
  if first_P is None:
    first_P = np.zeros(P, np.int32)
  spare = (1 << (P - 1).bit_length()) - P  # Few programs for all numbers.
  return np.asarray(
    _folded(
      key,
      np.pad(np.asarray(id_P), (0, spare)),
      np.pad(np.asarray(first_P), (0, spare)),
      group_size,
    )
  )[:P]


def _times_before(id_P: np.ndarray) -> np.ndarray:
  """How often each has come before: [7 3 7 7] → [0 0 1 2]."""
  seen: Counter[int] = Counter()
  times_P = np.zeros(len(id_P), np.int32)
  for p, number in enumerate(id_P.tolist()):
    times_P[p] = seen[number]
    seen[number] += 1
  return times_P


def as_rollout(
  prompts: PromptBatch,
  group_size: int,
  max_new_tokens: int,
  made: Sequence[Completion],
  version: int = 0,
) -> Rollout:
  """Row b of the rollout is the b-th completion, of prompt b // G; `version`
  is the policy's that ages are counted from."""
  B, T = len(made), max_new_tokens
  tokens_BT = np.zeros((B, T), np.int32)
  logp_BT, model_logp_BT = np.zeros((2, B, T), np.float32)
  staleness_BT = np.zeros((B, T), np.int32)
  length_B = np.array([len(c.tokens) for c in made], np.int32)
  for b, c in enumerate(made):
    tokens_BT[b, : length_B[b]] = c.tokens
    logp_BT[b, : length_B[b]] = c.logp
    model_logp_BT[b, : length_B[b]] = c.model_logp
    staleness_BT[b, : length_B[b]] = version - np.array(c.version)
  prompt_BT = np.repeat(np.asarray(prompts.tokens_PT), group_size, axis=0)
  prompt_valid_BT = np.repeat(np.asarray(prompts.valid_PT), group_size, axis=0)
  live_BT = np.arange(T) < length_B[:, None]
  beside = lambda left, right: np.concatenate([left, right], 1)
  nothing = np.zeros(prompt_valid_BT.shape, np.float32)
  prompt_tokens = prompt_BT.shape[1]
  experts_BTLA = None
  if made[0].prompt_experts is not None:
    experts_BTLA = np.zeros(
      (B, prompt_tokens + T, *made[0].prompt_experts.shape[1:]), np.uint16
    )
    for b, c in enumerate(made):
      known = np.concatenate([c.prompt_experts, np.stack(c.experts)])
      start = prompt_tokens - len(c.request.prompt)
      experts_BTLA[b, start : start + len(known)] = known
  return Rollout(
    tokens_BT=beside(prompt_BT, tokens_BT),
    valid_BT=beside(prompt_valid_BT, live_BT),
    mask_BT=beside(np.zeros_like(prompt_valid_BT), live_BT),
    logp_BT=beside(nothing, logp_BT),
    model_logp_BT=beside(nothing, model_logp_BT),
    staleness_BT=beside(nothing.astype(np.int32), staleness_BT),
    finish_B=np.array(
      [FINISH_STOP if c.finish == 'stop' else FINISH_LENGTH for c in made],
      np.int32,
    ),
    length_B=length_B,
    group_B=np.arange(B, dtype=np.int32) // group_size,
    experts_BTLA=experts_BTLA,
  )


def speculation(made: Sequence[Completion]) -> dict[str, float]:
  """How often guesses stayed, and what that gave; nothing without guesses."""
  drafts = sum(c.drafts for c in made)
  if not drafts:
    return {}
  return {
    'draft_acceptance': sum(c.kept_drafts for c in made) / drafts,
    'tokens_per_pass': (
      sum(len(c.tokens) for c in made) / sum(c.passes for c in made)
    ),
  }


def texts(
  made: Sequence[Completion], decode_batch: Callable[[list], list[str]]
) -> list[str]:
  """Of each completion, without the stop token that ended it."""
  return decode_batch(
    [
      c.tokens[:-1] if c.tokens[-1] in c.request.sampling.stop_ids else c.tokens
      for c in made
    ]
  )
