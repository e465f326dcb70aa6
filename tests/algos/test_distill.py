"""Soft targets against NumPy, in chunks and whole, online and stored."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.algos import distill
from r1jax.errors import UserError

_B, _T, _D, _V, _TEACHER_D = 2, 5, 3, 7, 4


def _arrays(seed=0):
  rng = np.random.default_rng(seed)
  draw = lambda *shape: rng.normal(size=shape).astype(np.float32)
  return (
    draw(_B, _T, _D),
    draw(_D, _V),
    draw(_B, _T, _TEACHER_D),
    draw(_TEACHER_D, _V),
    rng.integers(0, _V, (_B, _T)),
  )


def _log_softmax(x):
  x = x - x.max(-1, keepdims=True)
  return x - np.log(np.exp(x).sum(-1, keepdims=True))


def _kl(hidden, head, theirs, their_head, temperature):
  p = _log_softmax(np.float64(theirs @ their_head) / temperature)
  q = _log_softmax(np.float64(hidden @ head) / temperature)
  return (np.exp(p) * (p - q)).sum(-1)


@pytest.mark.parametrize('temperature', [1.0, 2.5])
@pytest.mark.parametrize('chunk', [None, 4])
def test_online_equals_numpy(temperature, chunk):
  hidden, head, theirs, their_head, target = _arrays()
  logp, entropy, kl = distill.full_kl(
    hidden, head, theirs, their_head, target, temperature, chunk
  )
  q = _log_softmax(np.float64(hidden @ head))
  np.testing.assert_allclose(
    logp, np.take_along_axis(q, target[..., None], -1)[..., 0], rtol=1e-5
  )
  np.testing.assert_allclose(entropy, -(np.exp(q) * q).sum(-1), rtol=1e-5)
  np.testing.assert_allclose(
    kl, _kl(hidden, head, theirs, their_head, temperature), rtol=1e-4, atol=1e-6
  )


def test_a_teacher_that_is_the_student_teaches_nothing():
  hidden, head, _, _, target = _arrays()

  def loss(hidden):
    return distill.full_kl(hidden, head, hidden, head, target, 1.0)[2].sum()

  value, grad = jax.value_and_grad(loss)(jnp.asarray(hidden))
  np.testing.assert_allclose(value, 0, atol=1e-5)
  np.testing.assert_allclose(grad, 0, atol=1e-5)


def test_the_gradient_is_the_difference_of_the_distributions():
  """d KL / d logits = (q − p) / τ, so with one-hot heads it is read off."""
  rng = np.random.default_rng(0)
  logits, theirs = rng.normal(size=(2, 1, 3, _V)).astype(np.float32)
  eye = np.eye(_V, dtype=np.float32)
  tau = 1.7
  grad = jax.grad(
    lambda x: distill.full_kl(x, eye, theirs, eye, np.zeros((1, 3), int), tau)[
      2
    ].sum()
  )(logits)
  q, p = (np.exp(_log_softmax(np.float64(x) / tau)) for x in (logits, theirs))
  np.testing.assert_allclose(grad, (q - p) / tau, atol=1e-6)


@pytest.mark.parametrize('shared', [[0, 1, 2, 3], [0, 2, 3, 6], [1, 5], [6]])
@pytest.mark.parametrize('chunk', [None, 4])
def test_the_kl_is_of_the_tokens_that_both_have(shared, chunk):
  hidden, head, theirs, their_head, target = _arrays()
  wider = np.pad(their_head, ((0, 0), (0, 3)), constant_values=5.0)
  logp, entropy, kl = distill.full_kl(
    hidden, head, theirs, wider, target, 1.5, chunk, shared_ids=np.array(shared)
  )
  want = _kl(hidden, head[:, shared], theirs, their_head[:, shared], 1.5)
  np.testing.assert_allclose(kl, want, rtol=1e-4, atol=1e-6)
  all_ids = distill.full_kl(hidden, head, theirs, their_head, target, 1.5)
  np.testing.assert_allclose(logp, all_ids[0], rtol=1e-6)
  np.testing.assert_allclose(entropy, all_ids[1], rtol=1e-6)


def test_stored_ids_beyond_the_students_vocabulary_belong_to_the_rest():
  hidden, head, _, _, target = _arrays()
  ids = np.broadcast_to(np.array([2, _V + 3]), (_B, _T, 2))
  logp = np.log(np.broadcast_to([0.5, 0.3], (_B, _T, 2))).astype(np.float32)
  without = np.where(ids < _V, logp, -np.inf).astype(np.float32)

  def kl(hidden, ids, logp):
    return distill.top_k_kl(hidden, head, ids, logp, target, 1.0)[2].sum()

  value, grad = jax.value_and_grad(kl)(hidden, ids, logp)
  same, same_grad = jax.value_and_grad(kl)(hidden, ids * (ids < _V), without)
  np.testing.assert_allclose(value, same, rtol=1e-6)
  np.testing.assert_allclose(grad, same_grad, rtol=1e-5)
  assert np.isfinite(grad).all()


def test_a_padded_vocabulary_is_left_out_of_the_teacher():
  hidden, head, theirs, their_head, target = _arrays()
  wider = np.concatenate([their_head, np.full((_TEACHER_D, 3), 5.0)], 1)
  np.testing.assert_allclose(
    distill.full_kl(hidden, head, theirs, wider, target, 1.0)[2],
    distill.full_kl(hidden, head, theirs, their_head, target, 1.0)[2],
    rtol=1e-5,
  )


def _top(theirs, their_head, kept):
  p = _log_softmax(np.float64(theirs @ their_head))
  ids = np.argsort(-p, -1)[..., :kept]
  return ids, np.take_along_axis(p, ids, -1).astype(np.float32)


def test_all_tokens_stored_equal_the_teacher_online():
  hidden, head, theirs, their_head, target = _arrays()
  ids, logp = _top(theirs, their_head, _V)
  stored = distill.top_k_kl(hidden, head, ids, logp, target, 1.0)
  online = distill.full_kl(hidden, head, theirs, their_head, target, 1.0)
  for got, want in zip(stored, online):
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize('chunk', [None, 4])
def test_fewer_tokens_stored_bound_the_divergence_from_below(chunk):
  hidden, head, theirs, their_head, target = _arrays()
  whole = _kl(hidden, head, theirs, their_head, 1.0)
  last = np.zeros_like(whole)
  for kept in (1, 2, 4, 6):
    ids, logp = _top(theirs, their_head, kept)
    kl = np.asarray(
      distill.top_k_kl(hidden, head, ids, logp, target, 1.0, chunk)[2]
    )
    p, q = (
      np.exp(logp),
      np.exp(
        np.take_along_axis(_log_softmax(np.float64(hidden @ head)), ids, -1)
      ),
    )
    want = (p * np.log(p / q)).sum(-1) + (1 - p.sum(-1)) * np.log(
      (1 - p.sum(-1)) / (1 - q.sum(-1))
    )
    np.testing.assert_allclose(kl, want, rtol=1e-3, atol=1e-5)
    assert (kl <= whole + 1e-5).all() and (kl >= last - 1e-5).all()
    last = kl


def test_a_token_without_a_teacher_has_no_divergence_and_no_gradient():
  hidden, head, theirs, their_head, target = _arrays()
  ids, logp = _top(theirs, their_head, 3)
  logp[:, 2] = -np.inf

  def loss(hidden):
    return distill.top_k_kl(hidden, head, ids, logp, target, 1.0)[2][:, 2].sum()

  value, grad = jax.value_and_grad(loss)(jnp.asarray(hidden))
  assert value == 0 and (np.asarray(grad) == 0).all()


def test_the_mixture():
  soft = distill.SoftTargets(alpha=0.75, temperature=2.0)
  assert soft.mix(4.0, 3.0) == 0.25 * 4 + 0.75 * 4 * 3
  for wrong in (dict(alpha=1.5), dict(alpha=0.5, temperature=0)):
    with pytest.raises(UserError, match='sft: distillation_'):
      distill.SoftTargets(**wrong)
