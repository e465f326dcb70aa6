"""Partial rollouts: groups of completions that may outlive a training step.

A step ends when enough of its groups are complete; the others continue in the
next step with the tokens that they have generated (Kimi k1.5, section 2.6.2).
"""

from collections.abc import Callable, Sequence
import dataclasses
import time
from typing import Any

import numpy as np

from r1jax.records import Message, Prompt
from r1jax.rollout import hosts, saved_completions
from r1jax.rollout.replicas import Replicas
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


@dataclasses.dataclass(frozen=True)
class Renewal:
  """New weights for groups that are being generated.

  Attributes:
    share: The share of a process's groups that are complete before the others
      go on with the new weights, in [0, 1].
    session: Opens the session with these weights; called once in every process.
  """

  share: float
  session: Callable[[], Session]


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
  expected: Callable[[Group], float] = lambda _: 1.0,
  renewal: Renewal | None = None,
) -> tuple[list[Group], list[Group]]:
  """Generates until so many of the groups are complete.

  If replicas share the work, each completes its share of the groups, and all
  processes are told the others at the end. Which groups are complete then
  depends on the number of replicas, unless all are to be completed; their
  samples do not.

  Args:
    session: An empty session of the rollout engine.
    groups: Groups, oldest first.
    num_complete: Number of groups to complete.
    on_complete: Called with each group as soon as it becomes complete, while
      others are still generated; with replicas only those of this process's.
    expected: Tokens that are expected of a group; the same in all processes.
    renewal: The new weights that groups in progress go on with; None for none.

  Returns:
    The first `num_complete` groups that are complete, and all others as they
    stand.
  """
  if session.shares_work:
    division = session.replicas
    own, quota = list[Group](), 0
    if division.own is not None:
      own, quota = _own_share(groups, num_complete, expected, division)
    _run(session, own, quota, on_complete, renewal)
    began = time.monotonic()
    _tell_all(groups, own if division.leads else [])
    # To wait for other processes is no work of this one.
    session.device_secs += time.monotonic() - began
  else:
    _run(session, groups, num_complete, on_complete, renewal)
  complete = [group for group in groups if group.complete][:num_complete]
  taken = set(map(id, complete))
  return complete, [group for group in groups if id(group) not in taken]


def _run(
  session: Session,
  groups: Sequence[Group],
  num_complete: int,
  on_complete: Callable[[Group], None],
  renewal: Renewal | None,
):
  """Generates in this process until so many of the groups are complete."""
  group_of = {c: group for group in groups for c in group.completions}
  _submit(session, groups)
  count = sum(group.complete for group in groups)
  steps, newer = iter(session), session
  while True:
    if renewal and count >= renewal.share * num_complete:
      session.close()
      began = time.monotonic()
      newer, renewal = renewal.session(), None
      newer.device_secs = session.device_secs + time.monotonic() - began
      _submit(newer, groups)
      steps = iter(newer)
    if count >= num_complete:
      break
    touched = {
      id(group): group
      for completion in next(steps)
      for group in [group_of[completion]]
    }
    for group in touched.values():
      if group.complete:
        count += 1
        on_complete(group)
  session.device_secs = newer.device_secs


def _submit(session: Session, groups: Sequence[Group]):
  """Hands all completions that are not finished to a session."""
  for group in groups:
    for completion in group.completions:
      if not completion.finish_reason:
        session.submit(completion.request, completion)


def _own_share(
  groups: Sequence[Group],
  num_complete: int,
  expected: Callable[[Group], float],
  division: Replicas,
) -> tuple[list[Group], int]:
  """Returns the groups of this replica, and how many of them it completes.

  Groups that are complete already need no work.
  """
  open_groups = [group for group in groups if not group.complete]
  wanted = num_complete - (len(groups) - len(open_groups))
  count, here = len(division.layouts), division.own
  host_of = hosts.share_out([expected(group) for group in open_groups], count)
  quota = hosts.quotas(host_of, count, max(wanted, 0))[here or 0]
  return [g for g, host in zip(open_groups, host_of) if host == here], quota


def _tell_all(groups: Sequence[Group], own: Sequence[Group]):
  """Exchanges what the processes have sampled of their groups."""
  mine = set(map(id, own))  # This process tells the others of these.
  told = hosts.tell_all(
    {
      i: [saved_completions.to_json(c) for c in group.completions]
      for i, group in enumerate(groups)
      if id(group) in mine
    }
  )
  for i, saved in told.items():
    if id(groups[i]) not in mine:
      for completion, each in zip(groups[i].completions, saved):
        saved_completions.restore(completion, each)


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
  return saved_completions.to_json(c) | {
    'key': c.request.key.tolist(),
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
  saved_completions.restore(c, saved)
  return c
