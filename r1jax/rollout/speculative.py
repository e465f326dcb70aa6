"""Speculative decoding: drafts, their verification, and how many to draft.

A draft model, here the first MTP module, proposes up to K tokens one after the
other; one pass of the model verifies them all, so that samples keep the model's
distribution (Leviathan et al. 2023).

A chain of drafts ends before a token that is unlikely to be accepted. This
keeps the distribution exact only if the decision whether to draft a position
uses nothing that the verification of that position uses too. It reads

  - the draft model's distribution q at the position, never the token that was
    sampled from it: a draft that is dropped because its own token was unlikely
    would leave too many likely tokens behind;
  - the outcome of earlier drafts up to the first rejection of each pass. Later
    ones are sampled, and judged, with keys that the next pass uses again.

All of it belongs to one request, so a sample does not depend on the others in
its batch. In this file K counts the drafts of a pass, and T = K + 1 the tokens
that it feeds.
"""

from collections.abc import Sequence
import dataclasses
import logging
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from r1jax.config.schema.rollout import RolloutConfig
from r1jax.records import Array
from r1jax.rollout import sampling
from r1jax.rollout.sampling import SampledTokens, SamplingMetadata

# Most sequences of which drafts pay, where speculative_max_num_seqs is 0. On a
# CPU they cost more than they save even for few (experiments/speculative). An
# accelerator reads the weights once for all tokens of a pass, and does so longer
# than it computes up to some 300 tokens: 64 sequences of four. This is an
# estimate; it has not been measured.
_MAX_DRAFTING_SEQS, _ON_CPU = 64, 0

_log = logging.getLogger(__name__)

_PROPOSE, _ACCEPT = 1, 2  # Further uses of a token's key, beside sampling it.

_MEMORY = 0.9  # Weight of the passes before, at each pass.
_FLOOR = 0.02  # Least doubt of a draft, however sure the draft model is.
_RAISE = 2  # Growth of the horizon after a pass without a rejection.


def max_drafts(config: RolloutConfig, platform: str) -> int:
  """Returns K, the maximum number of drafts of a pass; 0 where none pays.

  It depends on the sizes and the devices alone, not on the load, so that a
  sample does not depend on the others that run.

  Args:
    config: Sizes of the engine.
    platform: The devices' platform, Layout.platform.
  """
  if not config.speculative:
    return 0
  most = _ON_CPU if platform == 'cpu' else _MAX_DRAFTING_SEQS
  most = config.speculative_max_num_seqs or most
  if config.max_num_seqs > most:
    _log.warning(
      'rollout.speculative: nothing is drafted, since drafts do not pay for '
      '%d sequences at once on this %s; --config.rollout.'
      'speculative_max_num_seqs=%d drafts all the same',
      config.max_num_seqs,
      platform,
      config.max_num_seqs,
    )
    return 0
  return config.num_speculative_tokens


@chex.dataclass(frozen=True)
class DraftControl:
  """What a request's past drafts say about its next ones.

  Attributes:
    horizon_B: int32, the maximum number of drafts of the next pass.
    rejected_B: float32, number of rejected drafts; older ones count less.
    doubt_B: float32, the number that the draft model's confidence foretold.
  """

  horizon_B: Array
  rejected_B: Array
  doubt_B: Array

  def acceptance(self, confidence_B) -> jax.Array:
    """Returns the estimated probability that a draft is accepted, float32 [B].

    It is 1 − β · (1 − confidence), where β is the ratio of rejected drafts to
    foretold ones, with one of each added for a request that has none. A draft
    model that is surer than it should be, or less sure, is corrected by β.

    Args:
      confidence_B: Probability of the draft model's most likely token.
    """
    ratio_B = (1 + self.rejected_B) / (1 + self.doubt_B)
    return jnp.maximum(1 - ratio_B * _doubt(confidence_B), 0)

  def update(
    self, drafts: 'Drafts', num_accepted_B, max_drafts: int
  ) -> 'DraftControl':
    """Returns the control after a pass.

    The horizon grows by two if a pass that reached it had no rejection, and
    shrinks by one, though not below the drafts that were accepted, after a
    rejection. Example, max_drafts = 4: horizon 2 and both accepted → 4; then
    one of four accepted → 3; then the first rejected → 2.

    Args:
      drafts: The drafts of the pass.
      num_accepted_B: int32, how many of them were accepted.
      max_drafts: K.
    """
    rejected_B = num_accepted_B < drafts.count_B
    # A rejection ends a chain: drafts behind it are not looked at.
    judged_BK = jnp.arange(max_drafts) < (num_accepted_B + rejected_B)[:, None]
    doubt_B = jnp.sum(_doubt(drafts.confidence_BK) * judged_BK, -1)
    reached_B = ~rejected_B & (num_accepted_B >= self.horizon_B)
    horizon_B = jnp.where(
      rejected_B,
      jnp.maximum(self.horizon_B - 1, jnp.maximum(num_accepted_B, 1)),
      self.horizon_B + _RAISE * reached_B,
    )
    return DraftControl(
      horizon_B=jnp.minimum(horizon_B, max_drafts),
      rejected_B=_MEMORY * self.rejected_B + rejected_B,
      doubt_B=_MEMORY * self.doubt_B + doubt_B,
    )


def build_control(
  controls: Sequence[tuple[float, ...]], max_drafts: int
) -> DraftControl | None:
  """Stacks the controls of a batch into NumPy arrays.

  Args:
    controls: What `control_of` returned for each sequence after an earlier
      call; () for a sequence that has not drafted.
    max_drafts: K; without any there is no control.
  """
  if not max_drafts:
    return None
  columns = zip(*(control or (max_drafts, 0, 0) for control in controls))
  horizon, rejected, doubt = columns
  return DraftControl(
    horizon_B=np.minimum(np.array(horizon, np.int32), max_drafts),
    rejected_B=np.array(rejected, np.float32),
    doubt_B=np.array(doubt, np.float32),
  )


def control_of(control: DraftControl, row: int) -> tuple[float, ...]:
  """Returns the control of one sequence as numbers, which lose no digit."""
  return (
    int(control.horizon_B[row]),
    float(control.rejected_B[row]),
    float(control.doubt_B[row]),
  )


def _doubt(confidence):
  return 1 - confidence + _FLOOR


class Drafts(NamedTuple):
  """The drafts of one pass for each sequence.

  Attributes:
    token_BK: int32.
    logits_BKV: float32 processed logits that each draft was sampled from.
    confidence_BK: float32, see DraftControl.acceptance.
    count_B: int32, number of leading drafts that count.
  """

  token_BK: jax.Array
  logits_BKV: jax.Array
  confidence_BK: jax.Array
  count_B: jax.Array


def pass_widths(max_drafts: int) -> tuple[int, ...]:
  """Returns the numbers of tokens that a compiled pass may feed a sequence.

  They are the powers of two below K + 1, and K + 1: for K = 5 these are
  1, 2, 4 and 6.
  """
  powers = (1 << n for n in range(max_drafts.bit_length()))
  return (*(T for T in powers if T <= max_drafts), max_drafts + 1)


def no_drafts(num_rows: int, max_drafts: int, vocab_size: int) -> Drafts:
  """Returns room for K drafts per sequence, of which none counts."""
  shape = num_rows, max_drafts
  return Drafts(
    token_BK=jnp.zeros(shape, jnp.int32),
    logits_BKV=jnp.zeros((*shape, vocab_size), jnp.float32),
    confidence_BK=jnp.zeros(shape, jnp.float32),
    count_B=jnp.zeros(num_rows, jnp.int32),
  )


def confidence(processed_BV) -> jax.Array:
  """Returns the probability of each row's most likely token, float32 [B]."""
  top_B = processed_BV.max(-1)
  return jnp.exp(top_B - jax.nn.logsumexp(processed_BV, -1))


def sample_draft(processed_BV, metadata: SamplingMetadata, offset_B):
  """Samples the draft token of a position from the draft model's logits.

  Args:
    processed_BV: Processed logits, see sampling.process_logits.
    metadata: Sampling parameters.
    offset_B: Tokens of each sequence before the position, counted since
      `metadata.num_generated_B` was.

  Returns:
    int32 [B].
  """
  token_B = sampling.sample_categorical(
    sampling.token_keys(metadata, offset_B, _PROPOSE), processed_BV
  )
  return jnp.where(
    metadata.temperature_B == 0, sampling.argmax(processed_BV), token_B
  )


def verify_drafts(
  logits_BTV,
  metadata: SamplingMetadata,
  offset_B,
  drafts: Drafts,
  num_top_logprobs: int = 0,
) -> tuple[SampledTokens, jax.Array]:
  """Accepts leading drafts and samples the token after them.

  The tokens have the distribution p of `sample_tokens`: a draft that was
  sampled from q is accepted with probability min(1, p / q). The first one that
  is not is replaced by a token of max(p − q, 0); if all are accepted, a token
  of p follows them (Leviathan et al. 2023, section 2.3). A greedy sequence
  accepts a draft that is the most likely token.

  Example, T = 4: of three drafts the second is rejected. Column 0 has the first
  draft, column 1 the replacement of the second; columns 2 and 3 do not count.

  Args:
    logits_BTV: The model's logits after the last token and after each of T − 1
      drafts, of which T ≤ K + 1.
    metadata: Sampling parameters.
    offset_B: Tokens generated since `metadata.num_generated_B` was counted.
    drafts: The drafts; no sequence has more than T − 1 that count.
    num_top_logprobs: O, see sampling.sample_tokens.

  Returns:
    The tokens of all T columns, with arrays [B, T] in place of [B]; and the
    number of accepted drafts, int32 [B].
  """
  B, T = logits_BTV.shape[:2]
  if T == 1:  # Plain sampling, without the cost of judging drafts.
    sampled = sampling.sample_tokens(
      logits_BTV[:, 0], metadata, offset_B, num_top_logprobs
    )
    return jax.tree.map(lambda x_B: x_B[:, None], sampled), jnp.zeros(
      B, jnp.int32
    )
  processed_BTV = _process_columns(
    logits_BTV, metadata, drafts.token_BK[:, : T - 1]
  )
  token_BT, num_accepted_B = _verified_tokens(
    processed_BTV, metadata, offset_B, drafts
  )
  with_logprobs = lambda logits_BV, processed_BV, token_B: (
    sampling.with_logprobs(
      logits_BV, processed_BV, token_B, metadata, num_top_logprobs
    )
  )
  sampled = jax.vmap(with_logprobs, 1, 1)(logits_BTV, processed_BTV, token_BT)
  return sampled, num_accepted_B


def _verified_tokens(
  processed_BTV, metadata: SamplingMetadata, offset_B, drafts: Drafts
) -> tuple[jax.Array, jax.Array]:
  """Returns the tokens of all T columns, and the number of accepted drafts."""
  T = processed_BTV.shape[1]
  draft_Bt, q_BtV = drafts.token_BK[:, : T - 1], drafts.logits_BKV[:, : T - 1]
  p_BTV, q_BtV = jax.nn.softmax(processed_BTV), jax.nn.softmax(q_BtV)
  num_accepted_B = jnp.sum(
    jnp.cumprod(
      _accepted(p_BTV, q_BtV, processed_BTV, metadata, offset_B, drafts), 1
    ),
    1,
    dtype=jnp.int32,
  )
  at_end = lambda x_BTV: take_column(x_BTV, num_accepted_B)
  rejected_B = num_accepted_B < drafts.count_B
  q_BTV = jnp.pad(q_BtV, ((0, 0), (0, 1), (0, 0)))
  last_B = _sample_last(
    at_end(p_BTV),
    at_end(q_BTV),
    rejected_B,
    at_end(processed_BTV),
    metadata,
    offset_B + num_accepted_B,
  )
  token_BT = jnp.where(
    jnp.arange(T) < num_accepted_B[:, None],
    jnp.pad(draft_Bt, ((0, 0), (0, 1))),
    last_B[:, None],
  )
  return token_BT, num_accepted_B


def take_column(x_BT_, column_B) -> jax.Array:
  """Returns one column of each row: [B, T, _] → [B, _].

  A sum over few columns is much faster on a CPU than a gather.
  """
  is_it_BT1 = (jnp.arange(x_BT_.shape[1]) == column_B[:, None])[..., None]
  return jnp.sum(jnp.where(is_it_BT1, x_BT_, 0), 1)


def _process_columns(logits_BTV, metadata: SamplingMetadata, draft_Bt):
  """Processes the logits of T columns; column t has seen t drafts."""
  if metadata.seen_BV is None:
    return jax.vmap(lambda x_BV: sampling.process_logits(x_BV, metadata), 1, 1)(
      logits_BTV
    )
  V = logits_BTV.shape[-1]
  seen_BtV = jnp.cumsum(jax.nn.one_hot(draft_Bt, V, dtype=jnp.int32), 1) > 0
  seen_BTV = jnp.pad(seen_BtV, ((0, 0), (1, 0), (0, 0)))
  return jax.vmap(
    lambda x_BV, seen_BV: sampling.process_logits(
      x_BV, dataclasses.replace(metadata, seen_BV=metadata.seen_BV | seen_BV)
    ),
    1,
    1,
  )(logits_BTV, seen_BTV)


def _accepted(
  p_BTV,
  q_BtV,
  processed_BTV,
  metadata: SamplingMetadata,
  offset_B,
  drafts: Drafts,
):
  """Judges each of T − 1 drafts as if those before it were accepted."""
  t = q_BtV.shape[1]

  def judge(p_BV, q_BV, logits_BV, token_B, number):
    uniform_B = jax.vmap(jax.random.uniform)(
      sampling.token_keys(metadata, offset_B + number, _ACCEPT)
    )
    p_B, q_B = (sampling.take_token(x_BV, token_B) for x_BV in (p_BV, q_BV))
    return (number < drafts.count_B) & jnp.where(
      metadata.temperature_B == 0,
      token_B == sampling.argmax(logits_BV),
      uniform_B * q_B < p_B,
    )

  return jax.vmap(judge, (1, 1, 1, 1, 0), 1)(
    p_BTV[:, :-1],
    q_BtV,
    processed_BTV[:, :-1],
    drafts.token_BK[:, :t],
    jnp.arange(t),
  )


def _sample_last(
  p_BV, q_BV, rejected_B, processed_BV, metadata: SamplingMetadata, offset_B
):
  """Samples the token after the accepted drafts, as verify_drafts says."""
  residual_BV = jnp.maximum(p_BV - q_BV, 0)
  # The residual is zero if p = q to the last bit; every draft is accepted then.
  replaces_B = rejected_B & (residual_BV.sum(-1) > 0)
  token_B = sampling.sample_categorical(
    sampling.token_keys(metadata, offset_B),
    jnp.where(replaces_B[:, None], jnp.log(residual_BV), processed_BV),
  )
  return jnp.where(
    metadata.temperature_B == 0, sampling.argmax(processed_BV), token_B
  )
