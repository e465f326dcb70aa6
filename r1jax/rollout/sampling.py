"""Drawing one token from logits, with the probability that it had."""

import dataclasses

import jax
import jax.numpy as jnp

from r1jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
  """How completions are drawn.

  Attributes:
    group_size: G, samples a prompt.
    max_new_tokens: Budget of one completion.
    temperature: Divides the logits; 0 is greedy.
    top_p: Nucleus mass within (0, 1]; 1 keeps every token.
    stop_ids: Any of them ends a completion, and is part of it.
  """

  group_size: int
  max_new_tokens: int
  temperature: float
  top_p: float
  stop_ids: tuple[int, ...]

  def __post_init__(self):
    if self.group_size < 1:
      raise UserError(
          f'sampling: group_size must be at least 1, got {self.group_size}')
    if self.max_new_tokens < 1:
      raise UserError('sampling: max_new_tokens must be at least 1, got '
                      f'{self.max_new_tokens}')
    if self.temperature < 0:
      raise UserError(
          f'sampling: temperature must not be below 0, got {self.temperature}')
    if not 0 < self.top_p <= 1:
      raise UserError(
          f'sampling: top_p must lie within (0, 1], got {self.top_p}')


def draw(logits_BV, keys_B, config: SamplingConfig):
  """One token a row, each from its own key.

  Returns:
    token_B int32, and logp_B float32: its log-probability under the
    distribution it was drawn from (after temperature and top-p). Greedy gives
    the log-probability at temperature 1.
  """
  if config.temperature == 0:
    token_B = jnp.argmax(logits_BV, -1).astype(jnp.int32)
    return token_B, _chosen(jax.nn.log_softmax(logits_BV), token_B)
  logits_BV = logits_BV / config.temperature
  if config.top_p < 1:
    logits_BV = nucleus(logits_BV, config.top_p)
  token_B = jax.vmap(jax.random.categorical)(keys_B, logits_BV)
  return (token_B.astype(jnp.int32),
          _chosen(jax.nn.log_softmax(logits_BV), token_B))


def nucleus(logits_BV, top_p: float):
  """Keeps the smallest set of most likely tokens with mass ≥ top_p."""
  order_BV = jnp.argsort(-logits_BV, -1)
  sorted_BV = jnp.take_along_axis(logits_BV, order_BV, -1)
  prob_BV = jax.nn.softmax(sorted_BV, -1)
  before_BV = jnp.cumsum(prob_BV, -1) - prob_BV
  sorted_BV = jnp.where(before_BV < top_p, sorted_BV, -jnp.inf)
  rank_BV = jnp.argsort(order_BV, -1)
  return jnp.take_along_axis(sorted_BV, rank_BV, -1)


def _chosen(logp_BV, token_B):
  return jnp.take_along_axis(logp_BV, token_B[:, None], -1)[:, 0]
