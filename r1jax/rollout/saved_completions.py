"""Completions as JSON, exact to the last bit, for checkpoints and other hosts."""

import base64
from typing import Any

import numpy as np

from r1jax.rollout.scheduler import Completion

_COUNTS = ('decode_steps', 'draft_tokens', 'accepted_tokens', 'draft_control')
_LISTS = (
  ('tokens', np.int32),
  ('logp', np.float32),
  ('model_logp', np.float32),
  ('policy_version', np.int32),
)


def to_json(completion: Completion) -> dict[str, Any]:
  """Returns all that was sampled; its request is not among it.

  Raises:
    ValueError: it has top log-probabilities, which are not kept.
  """
  c = completion
  if c.top_logprobs:
    raise ValueError('top log-probabilities of a completion are not kept')
  saved: dict[str, Any] = {
    name: _to_base64(np.asarray(getattr(c, name), dtype))
    for name, dtype in _LISTS
  }
  saved |= {name: getattr(c, name) for name in _COUNTS}
  if c.prompt_experts is not None:
    experts = np.asarray(c.experts, np.uint16)
    saved |= {
      'prompt_experts': _to_base64(c.prompt_experts),
      'experts': _to_base64(experts),
      'layers': list(experts.shape[1:]),
    }
  return saved | {'finish_reason': c.finish_reason}


def restore(completion: Completion, saved: dict[str, Any]):
  """Gives a completion what another one had sampled; see to_json."""
  c = completion
  for name, dtype in _LISTS:
    setattr(c, name, _from_base64(saved[name], dtype).tolist())
  for name in (*_COUNTS, 'finish_reason'):
    setattr(c, name, saved[name])
  c.draft_control = tuple(c.draft_control)  # JSON has lists alone.
  if 'layers' in saved:
    shape = -1, *saved['layers']
    c.prompt_experts = _from_base64(saved['prompt_experts'], np.uint16).reshape(
      shape
    )
    c.experts = list(_from_base64(saved['experts'], np.uint16).reshape(shape))


def _to_base64(array: np.ndarray) -> str:
  return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()


def _from_base64(text: str, dtype) -> np.ndarray:
  return np.frombuffer(base64.b64decode(text), dtype)
