"""Distillation losses: cross-entropy mixed with the KL to a teacher.

  L = (1 − α) · CE(text) + α · τ² · KL(teacher_τ ‖ student_τ)

(Hinton et al., arXiv 1503.02531, section 2): τ divides the logits of both
models, and τ² keeps the size of the gradient independent of it. α = 0 learns
from the text alone, as DeepSeek-R1's distillations do (section 2.4).
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from r1jax.algos import common
from r1jax.algos.token_chunks import map_token_chunks
from r1jax.errors import UserError
from r1jax.sharding import Layout


@dataclasses.dataclass(frozen=True)
class SoftTargets:
  """The weight and the temperature of the teacher's distribution.

  Attributes:
    alpha: α, the weight of the KL, in [0, 1].
    temperature: τ, above 0.
  """

  alpha: float
  temperature: float = 1.0

  def __post_init__(self):
    if not 0 <= self.alpha <= 1:
      raise UserError(
        f'sft: distillation_alpha must lie within [0, 1], got {self.alpha}'
      )
    if self.temperature <= 0:
      raise UserError(
        f'sft: distillation_temperature must be above 0, got {self.temperature}'
      )

  def mix(self, nll, kl):
    """Returns the loss from cross-entropy and KL, of any shape."""
    return (1 - self.alpha) * nll + self.alpha * self.temperature**2 * kl


def full_kl(
  hidden_BTD,
  head_DV,
  teacher_BTD,
  teacher_head_DV,
  target_BT,
  temperature: float,
  chunk_tokens: int | None = None,
  layout: Layout | None = None,
  shared_ids: np.ndarray | None = None,
  mask_BT=None,
):
  """Returns the student's log-probabilities and the KL from a teacher model.

  The logits of both models are computed in chunks; their widths may differ.

  Args:
    hidden_BTD, head_DV: Hidden states and output projection of the student.
    teacher_BTD, teacher_head_DV: The same of the teacher. Its vocabulary may be
      padded to another size.
    target_BT: int32 next tokens.
    temperature: τ; only the KL uses it.
    chunk_tokens, layout, mask_BT: See token_chunks.map_token_chunks.
    shared_ids: int32, the ids of the tokens that both models have, in order;
      the KL is that of the distributions over these. None for all ids below the
      smaller of both vocabularies.

  Returns:
    logp_BT of the targets at temperature 1, entropy_BT, and kl_BT, all
    float32, and 0 where mask_BT is False.
  """
  index = _shared(head_DV.shape[1], teacher_head_DV.shape[1], shared_ids)

  def chunk(logits, teacher_logits, target):
    p = jax.nn.log_softmax(teacher_logits[..., index] / temperature)
    q = jax.nn.log_softmax(logits[..., index] / temperature)
    kl = jnp.sum(jnp.exp(p) * (p - q), -1)
    return *common.target_logp(logits, target), kl

  teacher = jax.lax.stop_gradient((teacher_BTD, teacher_head_DV))
  return map_token_chunks(
    chunk,
    [(hidden_BTD, head_DV), teacher],
    [target_BT],
    chunk_tokens,
    layout,
    mask_BT,
  )


def _shared(ours: int, theirs: int, shared_ids: np.ndarray | None):
  """Returns the index of the logits that two vocabularies have in common."""
  smaller = min(ours, theirs)
  if shared_ids is None:
    return slice(smaller)
  inside = shared_ids[shared_ids < smaller]
  # Ids without a gap are a slice, which copies nothing.
  return slice(len(inside)) if inside[-1] == len(inside) - 1 else inside


def top_k_kl(
  hidden_BTD,
  head_DV,
  top_ids_BTO,
  top_logp_BTO,
  target_BT,
  temperature: float,
  chunk_tokens: int | None = None,
  layout: Layout | None = None,
  mask_BT=None,
):
  """Returns the same as full_kl, from stored top log-probabilities.

  The tokens outside a teacher's O most likely ones are merged into one event, and
  so are ids beyond the student's vocabulary.
  The KL between the merged distributions is a lower bound of the KL between the
  whole ones, and equal to it if O is the vocabulary size.

  Args:
    hidden_BTD, head_DV: Hidden states and output projection of the student.
    top_ids_BTO, top_logp_BTO: The teacher's most likely tokens and their
      log-probabilities at this temperature; −∞ where there is none.
    target_BT, temperature, chunk_tokens, layout, mask_BT: See full_kl.

  Returns:
    logp_BT, entropy_BT and kl_BT, as full_kl.
  """
  V = head_DV.shape[1]

  def chunk(logits, ids, p, target):
    known = jnp.isfinite(p) & (ids < V)
    q = jnp.take_along_axis(
      jax.nn.log_softmax(logits / temperature), jnp.minimum(ids, V - 1), -1
    )
    p_safe = jnp.where(known, p, 0.0)
    kl = jnp.sum(jnp.where(known, jnp.exp(p_safe) * (p_safe - q), 0.0), -1)
    p_rest = _rest(jnp.where(known, jnp.exp(p_safe), 0.0))
    q_rest = _rest(jnp.where(known, jnp.exp(q), 0.0))
    kl += jnp.where(
      p_rest > _MIN_PROB,
      p_rest
      * (
        jnp.log(jnp.maximum(p_rest, _MIN_PROB))
        - jnp.log(jnp.maximum(q_rest, _MIN_PROB))
      ),
      0.0,
    )
    kl = jnp.where(known.any(-1), kl, 0.0)
    return *common.target_logp(logits, target), kl

  return map_token_chunks(
    chunk,
    [(hidden_BTD, head_DV)],
    [top_ids_BTO, top_logp_BTO, target_BT],
    chunk_tokens,
    layout,
    mask_BT,
  )


_MIN_PROB = 1e-6  # 1 − Σ p in float32 is no more accurate than this.


def _rest(p):
  """Returns the probability of all tokens outside the top ones."""
  return jnp.maximum(1 - jnp.sum(p, -1), 0.0)
