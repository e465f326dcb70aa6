"""Drawing one token from logits, with the probability that it had."""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from r1jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Sampling:
  """How one completion is drawn.

  In this order: logit_bias and banned tokens, repetition penalty, temperature,
  top_k, top_p, min_p. RL needs the last three off, or a correction: what they
  cut away biases the ratio.

  Attributes:
    max_new_tokens: Budget.
    stop_ids: Any of them ends the completion, and is part of it.
    stop_strings: Any of them ends it too, at the token that completes it.
    temperature: Divides the logits; 0 is greedy.
    top_k: Only so many of the most likely tokens; 0 for all.
    top_p: Nucleus mass within (0, 1]; 1 keeps every token.
    min_p: A token's least probability, over that of the most likely.
    repetition_penalty: Divides positive logits of tokens that prompt or
      completion hold already, and multiplies negative ones (CTRL, section
      4.1); 1 for none.
    banned_ids: Never drawn.
    logit_bias: Token to what is added to its logit.
    best: The most likely tokens to report with each one drawn; 0 for none.
    max_total_tokens: Budget of prompt and completion together; 0 for none.
  """

  max_new_tokens: int
  stop_ids: tuple[int, ...]
  stop_strings: tuple[str, ...] = ()
  temperature: float = 1.0
  top_k: int = 0
  top_p: float = 1.0
  min_p: float = 0.0
  repetition_penalty: float = 1.0
  banned_ids: tuple[int, ...] = ()
  logit_bias: Mapping[int, float] = dataclasses.field(default_factory=dict)
  best: int = 0
  max_total_tokens: int = 0

  def __post_init__(self):
    def need(ok, field, wanted):
      if not ok:
        raise UserError(
          f'sampling: {field} must {wanted}, got {getattr(self, field)}'
        )

    need(self.max_new_tokens >= 1, 'max_new_tokens', 'be at least 1')
    need(self.max_total_tokens >= 0, 'max_total_tokens', 'not be below 0')
    need(self.temperature >= 0, 'temperature', 'not be below 0')
    need(self.temperature < np.inf, 'temperature', 'be a finite number')
    need(self.top_k >= 0, 'top_k', 'not be below 0')
    need(0 < self.top_p <= 1, 'top_p', 'lie within (0, 1]')
    need(0 <= self.min_p <= 1, 'min_p', 'lie within [0, 1]')
    need(self.repetition_penalty > 0, 'repetition_penalty', 'be above 0')
    need(self.best >= 0, 'best', 'not be below 0')
    need(all(self.stop_strings), 'stop_strings', 'not hold an empty one')
    need(
      all(bias < np.inf for bias in self.logit_bias.values()),
      'logit_bias',
      'hold finite numbers, or −inf',
    )

  def check(self, vocab_size: int):
    """Raises UserError if it names a token that the model does not have."""
    for field in ('stop_ids', 'banned_ids', 'logit_bias'):
      for token in getattr(self, field):
        if not 0 <= token < vocab_size:
          raise UserError(
            f'sampling: {field} has {token}, which is not within '
            f'the vocabulary of {vocab_size}'
          )
    if sum(bias == -np.inf for bias in self.bias.values()) >= vocab_size:
      raise UserError(
        'sampling: banned_ids and logit_bias leave no token to draw'
      )
    if self.best > vocab_size:
      raise UserError(
        f'sampling: best = {self.best} is more than the '
        f'vocabulary of {vocab_size}'
      )

  def budget(self, prompt_tokens: int) -> int:
    """The most that a completion of such a prompt may have."""
    if not self.max_total_tokens:
      return self.max_new_tokens
    return min(self.max_new_tokens, self.max_total_tokens - prompt_tokens)

  @property
  def bias(self) -> dict[int, float]:
    return dict(self.logit_bias) | {t: -np.inf for t in self.banned_ids}


class Features(NamedTuple):
  """What a program that draws must be able to do. Static."""

  cuts: bool = False
  penalty: bool = False
  stops: int = 4
  biases: int = 0
  best: int = 0


def features(requests: Sequence[Sampling]) -> Features:
  """What all of these need together; widths are powers of two, so that few
  programs serve all."""

  def width(count: int) -> int:
    return 1 << (count - 1).bit_length() if count else 0

  of = lambda f: max(map(f, requests))
  return Features(
    cuts=any(r.top_k or r.top_p < 1 or r.min_p for r in requests),
    penalty=any(r.repetition_penalty != 1 for r in requests),
    stops=width(max(of(lambda r: len(r.stop_ids)), 4)),
    biases=width(of(lambda r: len(r.bias))),
    best=width(of(lambda r: r.best)),
  )


@chex.dataclass(frozen=True)
class Draws:
  """Sampling for the B rows of one call; None where no row needs it.

  Attributes:
    key_B2: uint32, the raw key of each sample.
    made_B: int32, tokens drawn so far: the n-th draw uses the key folded by n.
    left_B: int32, how many more the row may draw; 0 for an empty row.
    temperature_B: float32.
    stop_BO: int32, padded with −1.
    top_k_B, top_p_B, min_p_B, penalty_B: See Sampling.
    bias_id_BO, bias_BO: int32 and float32, padded with the vocabulary's size.
    seen_BV: bool, tokens of prompt and completion.
  """

  key_B2: chex.Array
  made_B: chex.Array
  left_B: chex.Array
  temperature_B: chex.Array
  stop_BO: chex.Array
  top_k_B: chex.Array | None = None
  top_p_B: chex.Array | None = None
  min_p_B: chex.Array | None = None
  penalty_B: chex.Array | None = None
  bias_id_BO: chex.Array | None = None
  bias_BO: chex.Array | None = None
  seen_BV: chex.Array | None = None


class Drawn(NamedTuple):
  """One token a row.

  Attributes:
    token_B: int32.
    logp_B: float32, its log-probability in the distribution that it was drawn
      from, after all that Sampling asks for. A greedy choice has 0.
    model_logp_B: float32, its log-probability at temperature 1, nothing cut.
    best_id_BO, best_logp_BO: The most likely tokens at temperature 1.
  """

  token_B: jax.Array
  logp_B: jax.Array
  model_logp_B: jax.Array
  best_id_BO: jax.Array | None
  best_logp_BO: jax.Array | None


def draw(logits_BV, draws: Draws, nth_B, best: int = 0) -> Drawn:
  """The made_B + nth_B-th token of each row, each from its own key."""
  shaped_BV = shaped(logits_BV, draws)
  token_B = _categorical(_keys(draws, nth_B), shaped_BV)
  token_B = jnp.where(
    draws.temperature_B == 0, _most_likely(shaped_BV), token_B
  )
  return _told(logits_BV, shaped_BV, token_B, draws, best)


class Draft(NamedTuple):
  """A guess at the next token, and the logits that it was drawn from.

  Attributes:
    token_B: int32.
    logits_BV: float32, shaped.
    live_B: bool, rows that have one.
  """

  token_B: jax.Array
  logits_BV: jax.Array
  live_B: jax.Array


def guess(logits_BV, draws: Draws, nth_B, live_B) -> Draft:
  """A draft of the token that `verify` with the same arguments judges."""
  shaped_BV = shaped(logits_BV, draws)
  token_B = _categorical(_keys(draws, nth_B, _GUESS), shaped_BV)
  token_B = jnp.where(
    draws.temperature_B == 0, _most_likely(shaped_BV), token_B
  )
  return Draft(token_B, shaped_BV, live_B)


def verify(
  logits_BV, draws: Draws, nth_B, draft: Draft, best: int = 0
) -> tuple[Drawn, jax.Array]:
  """As `draw`, and in the same distribution p: the draft, drawn from q, stays
  with probability min(1, p / q), or else a token of max(p − q, 0) takes its
  place (Leviathan et al. 2023, section 2.3). A greedy row keeps a draft that
  is the most likely token.

  Returns:
    What was drawn, and bool [B], whether it is the draft.
  """
  shaped_BV = shaped(logits_BV, draws)
  p_BV = jax.nn.softmax(shaped_BV)
  q_BV = jax.nn.softmax(draft.logits_BV) * draft.live_B[:, None]
  p_B, q_B = (_chosen(x_BV, draft.token_B) for x_BV in (p_BV, q_BV))
  chance_B = jax.vmap(jax.random.uniform)(_keys(draws, nth_B, _JUDGE))
  keeps_B = draft.live_B & (chance_B * q_B < p_B)
  rest_BV = jnp.maximum(p_BV - q_BV, 0)
  # Nothing is left where p = q to the last bit; then every draft stays.
  rest_BV = jnp.where(rest_BV.sum(-1, keepdims=True) > 0, rest_BV, p_BV)
  other_B = _categorical(_keys(draws, nth_B), jnp.log(rest_BV))
  greedy_B, top_B = draws.temperature_B == 0, _most_likely(shaped_BV)
  keeps_B = jnp.where(
    greedy_B, draft.live_B & (draft.token_B == top_B), keeps_B
  )
  token_B = jnp.where(
    keeps_B, draft.token_B, jnp.where(greedy_B, top_B, other_B)
  )
  return _told(logits_BV, shaped_BV, token_B, draws, best), keeps_B


_GUESS, _JUDGE = 1, 2  # What else a token's key is used for.


def _keys(draws: Draws, nth_B, purpose: int | None = None):
  fold = jax.vmap(jax.random.fold_in)
  key_B = fold(jax.random.wrap_key_data(draws.key_B2), draws.made_B + nth_B)
  if purpose is None:
    return key_B
  return fold(key_B, jnp.full(draws.made_B.shape, purpose))


def _categorical(key_B, logits_BV):
  """A token of each row, by Gumbel's trick, as jax.random.categorical."""
  noise_BV = jax.vmap(lambda key: jax.random.gumbel(key, logits_BV.shape[1:]))(
    key_B
  )
  return _most_likely(noise_BV + logits_BV)


def _most_likely(logits_BV):
  """As jnp.argmax: the first of the largest, int32. XLA's argmax on CPU is
  not vectorised, nor is whatever it fuses with it: about 4 times slower."""
  V = logits_BV.shape[-1]
  is_top_BV = logits_BV == logits_BV.max(-1, keepdims=True)
  first_B = jnp.min(jnp.where(is_top_BV, jnp.arange(V), V), -1)
  return jnp.minimum(first_B, V - 1)  # Where all is NaN, a token still.


def _told(logits_BV, shaped_BV, token_B, draws: Draws, best: int) -> Drawn:
  plain_BV = jax.nn.log_softmax(logits_BV.astype(jnp.float32))
  logp_B = _chosen(jax.nn.log_softmax(shaped_BV), token_B)
  found = jax.lax.top_k(plain_BV, best) if best else (None, None)
  return Drawn(
    token_B=token_B,
    logp_B=jnp.where(draws.temperature_B == 0, 0.0, logp_B),
    model_logp_B=_chosen(plain_BV, token_B),
    best_id_BO=found[1],
    best_logp_BO=found[0],
  )


def shaped(logits_BV, draws: Draws):
  """Logits of the distribution that is drawn from; −inf for what is cut.

  A greedy row is biased and penalised, and otherwise as it was.
  """
  logits_BV = logits_BV.astype(jnp.float32)
  if draws.bias_BO is not None:
    rows_B1 = jnp.arange(logits_BV.shape[0])[:, None]
    logits_BV = logits_BV.at[rows_B1, draws.bias_id_BO].add(
      draws.bias_BO, mode='drop'
    )
  if draws.seen_BV is not None:
    penalty_B1 = draws.penalty_B[:, None]
    logits_BV = jnp.where(
      draws.seen_BV,
      jnp.where(logits_BV > 0, logits_BV / penalty_B1, logits_BV * penalty_B1),
      logits_BV,
    )
  temperature_B1 = draws.temperature_B[:, None]
  logits_BV /= jnp.where(temperature_B1 > 0, temperature_B1, 1.0)
  if draws.top_p_B is not None:
    logits_BV = cut(logits_BV, draws.top_k_B, draws.top_p_B, draws.min_p_B)
  return logits_BV


def cut(logits_BV, top_k_B, top_p_B, min_p_B):
  """−inf for every token below the least that top_k, top_p and min_p keep.

  The nucleus is the smallest set of most likely tokens with mass ≥ top_p,
  among those that top_k left. Tokens as likely as the last one kept stay.
  """
  V = logits_BV.shape[-1]
  sorted_BV = -jnp.sort(-logits_BV, -1)
  in_k_BV = (top_k_B[:, None] == 0) | (jnp.arange(V) < top_k_B[:, None])
  prob_BV = jax.nn.softmax(jnp.where(in_k_BV, sorted_BV, -jnp.inf), -1)
  before_BV = jnp.cumsum(prob_BV, -1) - prob_BV
  keep_BV = (
    in_k_BV
    & ((before_BV < top_p_B[:, None]) | (top_p_B[:, None] >= 1))
    & (prob_BV >= min_p_B[:, None] * prob_BV[:, :1])
  )
  least_B1 = jnp.min(jnp.where(keep_BV, sorted_BV, jnp.inf), -1, keepdims=True)
  return jnp.where(logits_BV < least_B1, -jnp.inf, logits_BV)


def stack(
  requests: Sequence[Sampling | None],
  key_B2,
  made_B,
  left_B,
  wanted: Features,
  vocab_size: int,
  seen=None,
) -> Draws:
  """NumPy rows for these requests; None for an empty row.

  Args:
    requests: B of them.
    key_B2, made_B, left_B: See Draws.
    wanted: What the program can do.
    vocab_size: V.
    seen: For each row the tokens that it holds, where there is a penalty.
  """
  B = len(requests)

  def of(field: str, dtype, empty):
    return np.array(
      [empty if r is None else getattr(r, field) for r in requests], dtype
    )

  def padded(width: int, rows, dtype, empty):
    found = np.full((B, width), empty, dtype)
    for row, values in zip(found, rows):
      row[: len(values)] = list(values)
    return found

  some = [r.stop_ids if r else () for r in requests]
  draws = Draws(
    key_B2=key_B2,
    made_B=made_B,
    left_B=left_B,
    temperature_B=of('temperature', np.float32, 1.0),
    stop_BO=padded(wanted.stops, some, np.int32, -1),
  )
  if wanted.cuts:
    draws = draws.replace(
      top_k_B=of('top_k', np.int32, 0),
      top_p_B=of('top_p', np.float32, 1),
      min_p_B=of('min_p', np.float32, 0),
    )
  if wanted.biases:
    bias = [r.bias if r else {} for r in requests]
    draws = draws.replace(
      bias_id_BO=padded(wanted.biases, bias, np.int32, vocab_size),
      bias_BO=padded(wanted.biases, [b.values() for b in bias], np.float32, 0),
    )
  if wanted.penalty:
    seen_BV = np.zeros((B, vocab_size), bool)
    for row, tokens in zip(seen_BV, seen):
      row[tokens] = True
    draws = draws.replace(
      penalty_B=of('repetition_penalty', np.float32, 1), seen_BV=seen_BV
    )
  return draws


def _chosen(logp_BV, token_B):
  return jnp.take_along_axis(logp_BV, token_B[:, None], -1)[:, 0]
