"""Partial rollouts: groups of completions that may outlive a training step.

A step ends when enough of its groups are complete; the others continue in the
next step with the tokens that they have generated (Kimi k1.5, section 2.6.2).
"""

import base64
from collections.abc import Callable, Sequence
import dataclasses
from typing import Any

import numpy as np

from r1jax.records import Message, Prompt
from r1jax.rollout.sampling import SamplingParams
from r1jax.rollout.scheduler import Completion, Request
from r1jax.rollout.session import Session


@dataclasses.dataclass(eq=False)
class Group:
  """A prompt and its G completions, finished or in progress."""

  prompt: Prompt
  completions: list[Completion]

  @property
  def complete(self) -> bool:
    """Whether all of its completions are finished."""
    return all(c.finish_reason for c in self.completions)


def start_groups(
  prompts: Sequence[Prompt], requests: Sequence[Request], group_size: int
) -> list[Group]:
  """Returns a group for each prompt, of completions without tokens.

  Args:
    prompts: P prompts.
    requests: P · G requests, as assemble.build_requests orders them.
    group_size: G.
  """
  completions = [Completion(request) for request in requests]
  return [
    Group(prompt, completions[p * group_size : (p + 1) * group_size])
    for p, prompt in enumerate(prompts)
  ]


def drop_stale(
  groups: Sequence[Group], step: int, max_staleness: int
) -> tuple[list[Group], int]:
  """Drops groups that too old a policy began.

  Args:
    groups: Groups that earlier steps began.
    step: The current step.
    max_staleness: Maximum age in steps of a completion's first token; 0 for
      any.

  Returns:
    The groups that are kept, and how many were dropped.
  """
  kept = [
    group
    for group in groups
    if not max_staleness
    or all(
      step - version <= max_staleness
      for c in group.completions
      for version in c.policy_version[:1]
    )
  ]
  return kept, len(groups) - len(kept)


def complete_groups(
  session: Session,
  groups: Sequence[Group],
  num_complete: int,
  on_complete: Callable[[Group], None] = lambda _: None,
) -> tuple[list[Group], list[Group]]:
  """Generates until so many of the groups are complete.

  Args:
    session: An empty session of the rollout engine.
    groups: Groups, oldest first.
    num_complete: Number of groups to complete.
    on_complete: Called with each group as soon as it is complete, while others
      are still generated.

  Returns:
    The first `num_complete` groups that are complete, and all others as they
    stand.
  """
  group_of = {}
  for group in groups:
    for completion in group.completions:
      if not completion.finish_reason:
        group_of[session.submit(completion.request, completion)] = group
  newly_complete = [group for group in groups if group.complete]
  steps, count = iter(session), 0
  while True:
    for group in newly_complete:
      on_complete(group)
    count += len(newly_complete)
    if count >= num_complete:
      break
    touched = {
      id(group): group
      for completion in next(steps)
      for group in [group_of[completion]]
    }
    newly_complete = [group for group in touched.values() if group.complete]
  complete = [group for group in groups if group.complete][:num_complete]
  taken = set(map(id, complete))
  return complete, [group for group in groups if id(group) not in taken]


_COUNTS = ('decode_steps', 'draft_tokens', 'accepted_tokens', 'draft_control')
_LISTS = (
  ('tokens', np.int32),
  ('logp', np.float32),
  ('model_logp', np.float32),
  ('policy_version', np.int32),
)


def serialize_groups(groups: Sequence[Group]) -> list[dict[str, Any]]:
  """Converts groups to JSON for a checkpoint, exact to the last bit."""
  return [
    {
      'prompt': dataclasses.asdict(group.prompt),
      'completions': [_serialize(c) for c in group.completions],
    }
    for group in groups
  ]


def deserialize_groups(
  saved: Sequence[dict[str, Any]],
  sampling_params: SamplingParams,
  prompt_ids: Callable[[Prompt], Sequence[int]],
) -> list[Group]:
  """Restores groups from a checkpoint.

  Args:
    saved: The value of `serialize_groups`.
    sampling_params: Sampling parameters of their completions.
    prompt_ids: Function from a Prompt to its tokens.
  """
  groups = []
  for item in saved:
    messages = tuple(Message(*turn) for turn in item['prompt']['messages'])
    prompt = Prompt(**item['prompt'] | {'messages': messages})
    ids = np.asarray(prompt_ids(prompt), np.int32)
    groups.append(
      Group(
        prompt,
        [_deserialize(c, ids, sampling_params) for c in item['completions']],
      )
    )
  return groups


def _serialize(c: Completion) -> dict[str, Any]:
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
  return saved | {
    'key': c.request.key.tolist(),
    'finish_reason': c.finish_reason,
    'name': list(c.request.name),
  }


def _deserialize(
  saved: dict[str, Any], prompt: np.ndarray, sampling_params: SamplingParams
) -> Completion:
  c = Completion(
    Request(
      name=tuple(saved['name']),
      prompt=prompt,
      sampling_params=sampling_params,
      key=np.array(saved['key'], np.uint32),
    )
  )
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
  return c


def _to_base64(array: np.ndarray) -> str:
  return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()


def _from_base64(text: str, dtype) -> np.ndarray:
  return np.frombuffer(base64.b64decode(text), dtype)
