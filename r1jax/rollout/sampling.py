"""Samples one token per sequence from logits and reports its log-probability.

`SamplingParams` says on the host how one request is sampled. `build_metadata`
turns the parameters of a batch into arrays, and the other functions run on the
device.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from r1jax.errors import UserError
from r1jax.records import Array


@dataclasses.dataclass(frozen=True)
class SamplingParams:
  """Sampling parameters of one request.

  They are applied in this order: logit_bias and suppress_tokens, repetition
  penalty, temperature, top_k, top_p, min_p. RL should leave the last three
  off or correct for them: tokens that they remove bias the probability ratio.

  Attributes:
    max_new_tokens: Maximum number of completion tokens.
    stop_token_ids: Tokens that end the completion; the stop token is part of
      it.
    stop_strings: Strings that end the completion at the token that completes
      one of them.
    temperature: Divisor of the logits; 0 decodes greedily.
    top_k: Number of most likely tokens to sample from; 0 for all.
    top_p: Probability mass of the nucleus, within (0, 1]; 1 keeps every token.
    min_p: Least probability of a token relative to the most likely token,
      within [0, 1].
    repetition_penalty: Divisor of the positive logits, and factor of the
      negative ones, of tokens that the prompt or the completion already holds
      (CTRL, section 4.1); 1 for none.
    suppress_tokens: Tokens that are never sampled.
    logit_bias: Map from a token to the number that is added to its logit.
    top_logprobs: Number of most likely tokens whose log-probabilities are
      returned at each position; 0 for none.
    max_total_tokens: Maximum number of prompt and completion tokens together;
      0 for no such limit.
  """

  max_new_tokens: int
  stop_token_ids: tuple[int, ...]
  stop_strings: tuple[str, ...] = ()
  temperature: float = 1.0
  top_k: int = 0
  top_p: float = 1.0
  min_p: float = 0.0
  repetition_penalty: float = 1.0
  suppress_tokens: tuple[int, ...] = ()
  logit_bias: Mapping[int, float] = dataclasses.field(default_factory=dict)
  top_logprobs: int = 0
  max_total_tokens: int = 0

  def __post_init__(self):
    def need(ok, field, requirement):
      if not ok:
        raise UserError(
          f'sampling: {field} must {requirement}, got {getattr(self, field)}'
        )

    need(self.max_new_tokens >= 1, 'max_new_tokens', 'be at least 1')
    need(self.max_total_tokens >= 0, 'max_total_tokens', 'not be below 0')
    need(self.temperature >= 0, 'temperature', 'not be below 0')
    need(self.temperature < np.inf, 'temperature', 'be a finite number')
    need(self.top_k >= 0, 'top_k', 'not be below 0')
    need(0 < self.top_p <= 1, 'top_p', 'lie within (0, 1]')
    need(0 <= self.min_p <= 1, 'min_p', 'lie within [0, 1]')
    need(self.repetition_penalty > 0, 'repetition_penalty', 'be above 0')
    need(self.top_logprobs >= 0, 'top_logprobs', 'not be below 0')
    need(all(self.stop_strings), 'stop_strings', 'not hold an empty string')
    need(
      all(bias < np.inf for bias in self.logit_bias.values()),
      'logit_bias',
      'hold finite numbers, or −inf',
    )

  def validate(self, vocab_size: int):
    """Checks the parameters against the model's vocabulary.

    Raises:
      UserError: a token lies outside of the vocabulary, no token is left to
        sample, or top_logprobs exceeds the vocabulary.
    """
    for field in ('stop_token_ids', 'suppress_tokens', 'logit_bias'):
      for token in getattr(self, field):
        if not 0 <= token < vocab_size:
          raise UserError(
            f'sampling: {field} has {token}, which is not within '
            f'the vocabulary of {vocab_size}'
          )
    if sum(bias == -np.inf for bias in self.token_bias.values()) >= vocab_size:
      raise UserError(
        'sampling: suppress_tokens and logit_bias leave no token to sample'
      )
    if self.top_logprobs > vocab_size:
      raise UserError(
        f'sampling: top_logprobs = {self.top_logprobs} is more than the '
        f'vocabulary of {vocab_size}'
      )

  def max_completion_tokens(self, prompt_tokens: int) -> int:
    """Returns the completion budget that is left after such a prompt."""
    if not self.max_total_tokens:
      return self.max_new_tokens
    return min(self.max_new_tokens, self.max_total_tokens - prompt_tokens)

  @property
  def token_bias(self) -> dict[int, float]:
    """logit_bias, with −inf for every token of suppress_tokens."""
    return dict(self.logit_bias) | {t: -np.inf for t in self.suppress_tokens}


class SamplingFeatures(NamedTuple):
  """Static features and widths that a compiled decode program supports.

  Attributes:
    truncation: Whether some request uses top_k, top_p or min_p.
    penalty: Whether some request uses a repetition penalty.
    num_stop_tokens: Width of the padded list of stop tokens.
    num_biases: Width of the padded list of biased tokens.
    num_top_logprobs: Number of top log-probabilities that are returned.
  """

  truncation: bool = False
  penalty: bool = False
  num_stop_tokens: int = 4
  num_biases: int = 0
  num_top_logprobs: int = 0


def required_features(params: Sequence[SamplingParams]) -> SamplingFeatures:
  """Returns the features that all these parameters need together.

  Widths are rounded up to powers of two, so that few compiled programs serve
  all requests.
  """

  def width(count: Callable[[SamplingParams], int], least: int = 0) -> int:
    largest = max(least, *map(count, params))
    return 1 << (largest - 1).bit_length() if largest else 0

  return SamplingFeatures(
    truncation=any(p.top_k or p.top_p < 1 or p.min_p for p in params),
    penalty=any(p.repetition_penalty != 1 for p in params),
    num_stop_tokens=width(lambda p: len(p.stop_token_ids), least=4),
    num_biases=width(lambda p: len(p.token_bias)),
    num_top_logprobs=width(lambda p: p.top_logprobs),
  )


@chex.dataclass(frozen=True)
class SamplingMetadata:
  """Sampling parameters of B sequences as arrays.

  Optional arrays are None where no sequence of the batch needs them.

  Attributes:
    key_B2: uint32, the raw PRNG key of each sequence.
    num_generated_B: int32, tokens generated before this call. The n-th token
      of a sequence is sampled with its key folded by n.
    remaining_B: int32, tokens that the sequence may still generate; 0 for an
      empty row of the batch.
    temperature_B: float32; 0 decodes greedily.
    stop_token_BO: int32, padded with −1.
    top_k_B, top_p_B, min_p_B: See SamplingParams; int32, float32, float32.
    repetition_penalty_B: float32, see SamplingParams.
    bias_token_BO: int32 tokens that have a bias, padded with the vocabulary's
      size.
    bias_BO: float32, their biases, padded with 0.
    seen_BV: bool, tokens that the prompt or the completion holds.
  """

  key_B2: Array
  num_generated_B: Array
  remaining_B: Array
  temperature_B: Array
  stop_token_BO: Array
  top_k_B: Array | None = None
  top_p_B: Array | None = None
  min_p_B: Array | None = None
  repetition_penalty_B: Array | None = None
  bias_token_BO: Array | None = None
  bias_BO: Array | None = None
  seen_BV: Array | None = None


def build_metadata(
  params: Sequence[SamplingParams | None],
  key_B2,
  num_generated_B,
  remaining_B,
  features: SamplingFeatures,
  vocab_size: int,
  seen_tokens: Sequence[np.ndarray] | None = None,
) -> SamplingMetadata:
  """Stacks the sampling parameters of a batch into NumPy arrays.

  Args:
    params: Parameters of B sequences; None for an empty row of the batch.
    key_B2, num_generated_B, remaining_B: See SamplingMetadata.
    features: Features that the decode program supports.
    vocab_size: V.
    seen_tokens: Tokens of each sequence's prompt and completion; read only
      where `features.penalty` is set.
  """
  B = len(params)

  def column(field: str, dtype, default):
    return np.array(
      [default if p is None else getattr(p, field) for p in params], dtype
    )

  stop_tokens = [p.stop_token_ids if p else () for p in params]
  metadata = SamplingMetadata(
    key_B2=key_B2,
    num_generated_B=num_generated_B,
    remaining_B=remaining_B,
    temperature_B=column('temperature', np.float32, 1.0),
    stop_token_BO=_padded(features.num_stop_tokens, stop_tokens, np.int32, -1),
  )
  if features.truncation:
    metadata = dataclasses.replace(
      metadata,
      top_k_B=column('top_k', np.int32, 0),
      top_p_B=column('top_p', np.float32, 1),
      min_p_B=column('min_p', np.float32, 0),
    )
  if features.num_biases:
    biases = [p.token_bias if p else {} for p in params]
    width, values = features.num_biases, [b.values() for b in biases]
    metadata = dataclasses.replace(
      metadata,
      bias_token_BO=_padded(width, biases, np.int32, vocab_size),
      bias_BO=_padded(width, values, np.float32, 0),
    )
  if features.penalty:
    seen_BV = np.zeros((B, vocab_size), bool)
    for seen_V, tokens in zip(seen_BV, seen_tokens or ()):
      seen_V[tokens] = True
    metadata = dataclasses.replace(
      metadata,
      repetition_penalty_B=column('repetition_penalty', np.float32, 1),
      seen_BV=seen_BV,
    )
  return metadata


def _padded(width: int, lists, dtype, padding) -> np.ndarray:
  """Stacks lists of numbers into [B, O], each padded at its end."""
  array_BO = np.full((len(lists), width), padding, dtype)
  for row_O, values in zip(array_BO, lists):
    row_O[: len(values)] = list(values)
  return array_BO


class SampledTokens(NamedTuple):
  """One sampled token per sequence, with its log-probabilities.

  Attributes:
    token_B: int32.
    logp_B: float32 log-probability in the processed distribution that the
      token was sampled from; 0 for a greedy choice.
    model_logp_B: float32 log-probability under the model's own distribution:
      temperature 1, nothing truncated.
    top_token_BO, top_logp_BO: The O most likely tokens under the model's own
      distribution, int32, and their log-probabilities, float32; or None.
  """

  token_B: jax.Array
  logp_B: jax.Array
  model_logp_B: jax.Array
  top_token_BO: jax.Array | None
  top_logp_BO: jax.Array | None


def sample_tokens(
  logits_BV, metadata: SamplingMetadata, offset_B, num_top_logprobs: int = 0
) -> SampledTokens:
  """Samples the next token of each sequence with the sequence's own key.

  Args:
    logits_BV: The model's logits.
    metadata: Sampling parameters.
    offset_B: Tokens generated since `metadata.num_generated_B` was counted.
    num_top_logprobs: O.
  """
  processed_BV = process_logits(logits_BV, metadata)
  token_B = sample_categorical(token_keys(metadata, offset_B), processed_BV)
  token_B = jnp.where(
    metadata.temperature_B == 0, argmax(processed_BV), token_B
  )
  return with_logprobs(
    logits_BV, processed_BV, token_B, metadata, num_top_logprobs
  )


def token_keys(
  metadata: SamplingMetadata, offset_B, purpose: int | None = None
):
  """Returns the PRNG key of each sequence's next token.

  Args:
    metadata: Holds the sequences' keys.
    offset_B: Tokens generated since `metadata.num_generated_B` was counted.
    purpose: Distinguishes further uses of a token's key; None to sample it.
  """
  fold = jax.vmap(jax.random.fold_in)
  key_B = fold(
    jax.random.wrap_key_data(metadata.key_B2),
    metadata.num_generated_B + offset_B,
  )
  if purpose is None:
    return key_B
  return fold(key_B, jnp.full(metadata.num_generated_B.shape, purpose))


def is_stop(token_B, metadata: SamplingMetadata) -> jax.Array:
  """Returns which sequences a token ends, bool [B]."""
  return jnp.any(token_B[:, None] == metadata.stop_token_BO, -1)


def mark_seen(seen_BV, token_B, live_B) -> jax.Array | None:
  """Adds the token of each live sequence to SamplingMetadata.seen_BV."""
  if seen_BV is None:
    return None
  return seen_BV.at[jnp.arange(seen_BV.shape[0]), token_B].max(live_B)


def sample_categorical(key_B, logits_BV):
  """Samples by the Gumbel-max trick, as jax.random.categorical does."""
  noise_BV = jax.vmap(lambda key: jax.random.gumbel(key, logits_BV.shape[1:]))(
    key_B
  )
  return argmax(noise_BV + logits_BV)


def argmax(logits_BV):
  """Returns the first index of the largest logit, int32, as jnp.argmax does.

  XLA's argmax on CPU is not vectorised, nor is whatever is fused with it; this
  form is about 4 times faster.
  """
  V = logits_BV.shape[-1]
  is_top_BV = logits_BV == logits_BV.max(-1, keepdims=True)
  first_B = jnp.min(jnp.where(is_top_BV, jnp.arange(V), V), -1)
  return jnp.minimum(first_B, V - 1)  # A valid token even where all is NaN.


def with_logprobs(
  logits_BV,
  processed_BV,
  token_B,
  metadata: SamplingMetadata,
  num_top_logprobs: int,
) -> SampledTokens:
  """Returns the tokens with their log-probabilities.

  Args:
    logits_BV: The model's logits.
    processed_BV: Logits of the distribution that the tokens were sampled from.
    token_B: int32, the sampled tokens.
    metadata: Sampling parameters.
    num_top_logprobs: O.
  """
  model_logp_BV = jax.nn.log_softmax(logits_BV.astype(jnp.float32))
  logp_B = take_token(jax.nn.log_softmax(processed_BV), token_B)
  top_logp_BO, top_token_BO = None, None
  if num_top_logprobs:
    top_logp_BO, top_token_BO = jax.lax.top_k(model_logp_BV, num_top_logprobs)
  return SampledTokens(
    token_B=token_B,
    logp_B=jnp.where(metadata.temperature_B == 0, 0.0, logp_B),
    model_logp_B=take_token(model_logp_BV, token_B),
    top_token_BO=top_token_BO,
    top_logp_BO=top_logp_BO,
  )


def process_logits(logits_BV, metadata: SamplingMetadata):
  """Returns the logits of the distribution that tokens are sampled from.

  They are float32, with −inf for tokens that cannot be sampled. The logits of
  a greedy sequence are biased, penalised and truncated, but not divided by
  its temperature.
  """
  logits_BV = logits_BV.astype(jnp.float32)
  if metadata.bias_BO is not None:
    row_B1 = jnp.arange(logits_BV.shape[0])[:, None]
    logits_BV = logits_BV.at[row_B1, metadata.bias_token_BO].add(
      metadata.bias_BO, mode='drop'
    )
  penalty_B = metadata.repetition_penalty_B
  if metadata.seen_BV is not None and penalty_B is not None:
    penalty_B1 = penalty_B[:, None]
    logits_BV = jnp.where(
      metadata.seen_BV,
      jnp.where(logits_BV > 0, logits_BV / penalty_B1, logits_BV * penalty_B1),
      logits_BV,
    )
  temperature_B1 = metadata.temperature_B[:, None]
  logits_BV /= jnp.where(temperature_B1 > 0, temperature_B1, 1.0)
  if metadata.top_p_B is not None:
    logits_BV = truncate_logits(
      logits_BV, metadata.top_k_B, metadata.top_p_B, metadata.min_p_B
    )
  return logits_BV


def truncate_logits(logits_BV, top_k_B, top_p_B, min_p_B):
  """Sets logits to −inf that top_k, top_p or min_p exclude.

  The nucleus is the smallest set of most likely tokens with mass ≥ top_p,
  among those that top_k keeps. Tokens that tie with the last kept one stay.
  """
  V = logits_BV.shape[-1]
  sorted_BV = -jnp.sort(-logits_BV, -1)
  in_k_BV = (top_k_B[:, None] == 0) | (jnp.arange(V) < top_k_B[:, None])
  prob_BV = jax.nn.softmax(jnp.where(in_k_BV, sorted_BV, -jnp.inf), -1)
  mass_before_BV = jnp.cumsum(prob_BV, -1) - prob_BV
  keep_BV = (
    in_k_BV
    & ((mass_before_BV < top_p_B[:, None]) | (top_p_B[:, None] >= 1))
    & (prob_BV >= min_p_B[:, None] * prob_BV[:, :1])
  )
  least_B1 = jnp.min(jnp.where(keep_BV, sorted_BV, jnp.inf), -1, keepdims=True)
  return jnp.where(logits_BV < least_B1, -jnp.inf, logits_BV)


def take_token(x_BV, token_B):
  """Returns the entry of each sequence's token, [B]."""
  return jnp.take_along_axis(x_BV, token_B[:, None], -1)[:, 0]
