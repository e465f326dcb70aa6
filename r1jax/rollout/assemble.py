"""Converts prompt batches to requests, and completions to a Rollout."""

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from itertools import zip_longest
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from r1jax.episode import Episode
from r1jax.records import FINISH_LENGTH, FINISH_STOP, PromptBatch, Rollout
from r1jax.rollout.sampling import SamplingParams
from r1jax.rollout.scheduler import Completion, Request


def build_requests(
  prompts: PromptBatch,
  group_size: int,
  sampling_params: SamplingParams,
  key: jax.Array,
) -> list[Request]:
  """Builds G requests for each prompt, side by side.

  A prompt that occurs again in the batch gets the next G of its samples.

  Args:
    prompts: P prompts.
    group_size: G.
    sampling_params: Sampling parameters of all requests.
    key: PRNG key; see `sample_keys`.
  """
  repeat_P = _count_earlier(np.asarray(prompts.id_P))
  keys_PG2 = sample_keys(key, prompts.id_P, group_size, repeat_P * group_size)
  rows = zip(np.asarray(prompts.tokens_PT), np.asarray(prompts.valid_PT))
  return [
    Request(
      name=(p, g),
      prompt=tokens_T[valid_T],
      key=keys_PG2[p, g],
      sampling_params=sampling_params,
      group=p,
    )
    for p, (tokens_T, valid_T) in enumerate(rows)
    for g in range(group_size)
  ]


@partial(jax.jit, static_argnums=3)
def _fold_keys(key, id_P, first_P, group_size: int):
  fold = jax.random.fold_in
  key_P = jax.vmap(fold, (None, 0))(key, id_P)
  key_PG = jax.vmap(jax.vmap(fold, (None, 0)))(
    key_P, first_P[:, None] + jnp.arange(group_size)
  )
  return jax.random.key_data(key_PG)


def sample_keys(key, id_P, group_size: int, first_P=None) -> np.ndarray:
  """Derives the key of each sample from the prompt's id and its number.

  Sample g of a prompt has the given key folded by the prompt's id, then by g.

  Args:
    key: PRNG key, of a step for example.
    id_P: Integers.
    group_size: G.
    first_P: Number of each prompt's first sample; 0 by default.

  Returns:
    Raw keys, uint32 [P, G, 2].
  """
  P = len(id_P)
  if first_P is None:
    first_P = np.zeros(P, np.int32)
  # Padding to a power of two, so that few programs are compiled.
  padding = (1 << (P - 1).bit_length()) - P
  return np.asarray(
    _fold_keys(
      key,
      np.pad(np.asarray(id_P), (0, padding)),
      np.pad(np.asarray(first_P), (0, padding)),
      group_size,
    )
  )[:P]


def _count_earlier(id_P: np.ndarray) -> np.ndarray:
  """Counts how often each id has occurred before: [7 3 7 7] → [0 0 1 2]."""
  seen: Counter[int] = Counter()
  count_P = np.zeros(len(id_P), np.int32)
  for p, number in enumerate(id_P.tolist()):
    count_P[p] = seen[number]
    seen[number] += 1
  return count_P


def build_rollout(
  prompts: PromptBatch,
  group_size: int,
  completions: Sequence[Completion | Episode],
  policy_version: int = 0,
  width: int | None = None,
) -> Rollout:
  """Assembles completions into arrays.

  Args:
    prompts: P prompts.
    group_size: G.
    completions: B = P · G finished completions, or episodes of several turns;
      number b is of prompt b // G.
    policy_version: Current version of the policy, from which the age of each
      token is counted.
    width: Completion columns; None for those of the longest completion.
  """
  B = len(completions)
  columns_of = list(map(_columns, completions))
  length_B = np.array([len(c.tokens) for c in columns_of], np.int32)
  if width is None:
    width = int(length_B.max(initial=0))
  live_BT = np.arange(width) < length_B[:, None]
  prompt_BT = np.repeat(np.asarray(prompts.tokens_PT), group_size, axis=0)
  valid_BT = np.repeat(np.asarray(prompts.valid_PT), group_size, axis=0)
  prompt_width = prompt_BT.shape[1]

  def columns(rows: Sequence, dtype):
    """Completion columns, right-padded, after zeros for the prompt's."""
    array_BT = np.zeros((B, prompt_width + width), dtype)
    for row_T, values in zip(array_BT, rows):
      row_T[prompt_width : prompt_width + len(values)] = values
    return array_BT

  tokens_BT = columns([c.tokens for c in columns_of], np.int32)
  tokens_BT[:, :prompt_width] = prompt_BT
  return Rollout(
    tokens_BT=tokens_BT,
    valid_BT=np.concatenate([valid_BT, live_BT], 1),
    mask_BT=columns([c.sampled for c in columns_of], bool),
    logp_BT=columns([c.logp for c in columns_of], np.float32),
    model_logp_BT=columns([c.model_logp for c in columns_of], np.float32),
    staleness_BT=columns(
      [
        np.where(c.sampled, policy_version - np.array(c.policy_version), 0)
        for c in columns_of
      ],
      np.int32,
    ),
    finish_B=np.where(
      [c.finish_reason == 'stop' for c in completions],
      np.int32(FINISH_STOP),
      np.int32(FINISH_LENGTH),
    ),
    length_B=length_B,
    group_B=np.arange(B, dtype=np.int32) // group_size,
    experts_BTLA=_stack_experts(completions, prompt_width, width),
  )


class _Columns(NamedTuple):
  """The tokens after a prompt: what each is, and whether the policy chose it."""

  tokens: list[int]
  sampled: np.ndarray
  logp: list[float]
  model_logp: list[float]
  policy_version: list[int]


def _columns(c: Completion | Episode) -> _Columns:
  """Joins the turns of an episode; a completion is one turn of the policy."""
  if not isinstance(c, Episode):
    sampled = np.ones(len(c.tokens), bool)
    return _Columns(c.tokens, sampled, c.logp, c.model_logp, c.policy_version)
  joined = _Columns([], np.zeros(0, bool), [], [], [])
  for turn in c.turns:
    n = len(turn.tokens)
    none = [0] * n  # An environment's tokens have no log-probabilities.
    joined = _Columns(
      [*joined.tokens, *turn.tokens],
      np.append(joined.sampled, np.full(n, turn.sampled)),
      [*joined.logp, *(turn.logp if turn.sampled else none)],
      [*joined.model_logp, *(turn.model_logp if turn.sampled else none)],
      [
        *joined.policy_version,
        *(turn.policy_version if turn.sampled else none),
      ],
    )
  return joined


def _stack_experts(
  completions: Sequence[Completion | Episode], prompt_width: int, width: int
) -> np.ndarray | None:
  """Returns the experts of all tokens, [B, T, L, A], or None."""
  recorded = [c for c in completions if isinstance(c, Completion)]
  if not recorded or recorded[0].prompt_experts is None:
    return None
  shape_LA = recorded[0].prompt_experts.shape[1:]
  experts_BTLA = np.zeros(
    (len(completions), prompt_width + width, *shape_LA), np.uint16
  )
  for experts_TLA, c in zip(experts_BTLA, recorded, strict=True):
    known = np.concatenate([c.prompt_experts, np.stack(c.experts)])
    start = prompt_width - len(c.request.prompt)
    experts_TLA[start : start + len(known)] = known
  return experts_BTLA


def speculative_metrics(completions: Sequence[Completion]) -> dict[str, float]:
  """Returns metrics of speculative decoding; none if nothing was drafted.

  Returns:
    draft_acceptance_rate: accepted draft tokens over proposed ones;
    tokens_per_decode_step: completion tokens per forward pass of a sequence,
    1 without speculative decoding and at most K + 1;
    drafted_per_step/position_i and accepted_per_step/position_i: share of the
    forward passes that had an i-th draft, and that accepted it.
  """
  drafted_K = _sum_columns([c.draft_tokens for c in completions])
  if not sum(drafted_K):
    return {}
  accepted_K = _sum_columns([c.accepted_tokens for c in completions])
  steps = sum(c.decode_steps for c in completions)
  by_position = {
    f'{name}_per_step/position_{k}': count / steps
    for name, counts_K in (('drafted', drafted_K), ('accepted', accepted_K))
    for k, count in enumerate(counts_K, 1)
  }
  return by_position | {
    'draft_acceptance_rate': sum(accepted_K) / sum(drafted_K),
    'tokens_per_decode_step': sum(len(c.tokens) for c in completions) / steps,
  }


def _sum_columns(rows: Sequence[Sequence[int]]) -> list[int]:
  """Adds lists of counts: [[3, 1], [2]] → [5, 1]."""
  return [sum(column) for column in zip_longest(*rows, fillvalue=0)]


def completion_texts(
  completions: Sequence[Completion], decode_batch: Callable[[list], list[str]]
) -> list[str]:
  """Decodes completions to text, without the stop token that ended them."""

  def without_stop(c: Completion) -> list[int]:
    stops = c.tokens[-1] in c.request.sampling_params.stop_token_ids
    return c.tokens[:-1] if stops else c.tokens

  return decode_batch([without_stop(c) for c in completions])
