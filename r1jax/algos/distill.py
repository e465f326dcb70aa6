"""Soft targets: what a student learns of a teacher's whole distribution.

  L = β · CE(text) + (1 − β) · τ² · KL(teacher_τ ‖ student_τ)

(Hinton et al., arXiv 1503.02531, section 2): τ divides both logits, and τ²
keeps the gradient's size when it does. β = 1 is learning from the text alone,
as DeepSeek-R1's distillations do (section 2.4).
"""

import dataclasses

import jax
import jax.numpy as jnp

from r1jax.algos import common
from r1jax.errors import UserError
from r1jax.sharding import Layout


@dataclasses.dataclass(frozen=True)
class SoftTargets:
  """β and τ."""

  text_weight: float
  temperature: float = 1.0

  def __post_init__(self):
    if not 0 <= self.text_weight <= 1:
      raise UserError(
        f'distill: text_weight must lie within [0, 1], got {self.text_weight}'
      )
    if self.temperature <= 0:
      raise UserError(
        f'distill: temperature must be above 0, got {self.temperature}'
      )

  def mix(self, nll, kl):
    """The loss of a token, or of many."""
    return (
      self.text_weight * nll + (1 - self.text_weight) * self.temperature**2 * kl
    )


def online(
  hidden_BTD,
  head_DV,
  teacher_BTD,
  teacher_head_DV,
  target_BT,
  temperature: float,
  chunk_tokens: int | None = None,
  layout: Layout | None = None,
):
  """Both models' logits, in chunks; their widths may differ.

  Args:
    hidden_BTD, head_DV: The student's.
    teacher_BTD, teacher_head_DV: The teacher's, whose vocabulary may be padded
      to another size: ids beyond the smaller of both are left out of the KL.
    target_BT: int32.
    temperature: τ, of the KL alone.
    chunk_tokens, layout: See common.token_logp.

  Returns:
    logp_BT of the targets at temperature 1, entropy_BT, and kl_BT, all
    float32.
  """
  V = min(head_DV.shape[1], teacher_head_DV.shape[1])

  def chunk(hidden, teacher, target):
    logits = jnp.matmul(hidden, head_DV, preferred_element_type=jnp.float32)
    theirs = jax.lax.stop_gradient(
      jnp.matmul(teacher, teacher_head_DV, preferred_element_type=jnp.float32)
    )
    p = jax.nn.log_softmax(theirs[..., :V] / temperature)
    q = jax.nn.log_softmax(logits[..., :V] / temperature)
    chosen, entropy = _chosen(jax.nn.log_softmax(logits), target)
    return chosen, entropy, jnp.sum(jnp.exp(p) * (p - q), -1)

  return common.over_tokens(
    chunk,
    (hidden_BTD, teacher_BTD, target_BT),
    head_DV.shape[1] + teacher_head_DV.shape[1],
    chunk_tokens,
    layout,
  )


def stored(
  hidden_BTD,
  head_DV,
  top_ids_BTO,
  top_logp_BTO,
  target_BT,
  temperature: float,
  chunk_tokens: int | None = None,
  layout: Layout | None = None,
):
  """From a teacher's O likeliest tokens; all others are one event.

  The KL between the two coarser distributions is a lower bound of the KL
  between the whole ones, and equal to it where O is the vocabulary.

  Args:
    hidden_BTD, head_DV: The student's.
    top_ids_BTO, top_logp_BTO: The teacher's, at this temperature; −∞ where
      there is none.
    target_BT, temperature, chunk_tokens, layout: See `online`.

  Returns:
    As `online`.
  """

  def chunk(hidden, ids, p, target):
    logits = jnp.matmul(hidden, head_DV, preferred_element_type=jnp.float32)
    q = jnp.take_along_axis(jax.nn.log_softmax(logits / temperature), ids, -1)
    known = jnp.isfinite(p)
    p_safe = jnp.where(known, p, 0.0)
    kl = jnp.sum(jnp.where(known, jnp.exp(p_safe) * (p_safe - q), 0.0), -1)
    p_rest = _rest(jnp.where(known, jnp.exp(p_safe), 0.0))
    q_rest = _rest(jnp.where(known, jnp.exp(q), 0.0))
    kl += jnp.where(
      p_rest > _LEAST,
      p_rest
      * (
        jnp.log(jnp.maximum(p_rest, _LEAST))
        - jnp.log(jnp.maximum(q_rest, _LEAST))
      ),
      0.0,
    )
    kl = jnp.where(known.any(-1), kl, 0.0)
    return *_chosen(jax.nn.log_softmax(logits), target), kl

  return common.over_tokens(
    chunk,
    (hidden_BTD, top_ids_BTO, top_logp_BTO, target_BT),
    head_DV.shape[1],
    chunk_tokens,
    layout,
  )


_LEAST = 1e-6  # Of a probability: what is left of 1 in float32 is no better.


def _rest(p):
  return jnp.maximum(1 - jnp.sum(p, -1), 0.0)


def _chosen(logp, target):
  entropy = -jnp.sum(jnp.exp(logp) * logp, -1)
  chosen = jnp.take_along_axis(logp, target[..., None], -1)[..., 0]
  return chosen, jax.lax.stop_gradient(entropy)
