"""Groups of completions that may outlive a step (partial rollouts, Kimi k1.5
section 2.6.2): a step ends when enough of its groups are complete, and the
others go on in the next one, with what they have drawn."""

import base64
from collections.abc import Callable, Sequence
import dataclasses
from typing import Any

import numpy as np

from r1jax.records import Message, Prompt
from r1jax.rollout.engine import Engine
from r1jax.rollout.sampling import Sampling
from r1jax.rollout.scheduler import Completion, Request


@dataclasses.dataclass(eq=False)
class Group:
  """A prompt and its G completions."""

  prompt: Prompt
  completions: list[Completion]

  @property
  def complete(self) -> bool:
    return all(c.finish for c in self.completions)


def open_groups(
  prompts: Sequence[Prompt], asked: Sequence[Request], group_size: int
) -> list[Group]:
  """Nothing drawn yet; see assemble.requests for the order of `asked`."""
  made = [Completion(request) for request in asked]
  return [
    Group(prompt, made[p * group_size : (p + 1) * group_size])
    for p, prompt in enumerate(prompts)
  ]


def fresh(
  groups: Sequence[Group], step: int, most: int
) -> tuple[list[Group], int]:
  """Those that no policy older than `most` steps began; and how many were.

  Args:
    groups: Begun by earlier steps.
    step: This one.
    most: Steps; 0 for any.
  """
  kept = [
    group
    for group in groups
    if not most
    or all(
      step - version <= most
      for c in group.completions
      for version in c.version[:1]
    )
  ]
  return kept, len(groups) - len(kept)


def advance(
  engine: Engine,
  params,
  version: int,
  groups: Sequence[Group],
  wanted: int,
  on_complete: Callable[[Group], None] = lambda _: None,
) -> tuple[list[Group], list[Group]]:
  """Draws until so many of the groups are complete.

  Args:
    engine: Draws.
    params: The policy.
    version: Of the policy.
    groups: Oldest first.
    wanted: Of them.
    on_complete: Told of each group as soon as it is complete, while others
      are drawn.

  Returns:
    The first `wanted` of those that are; and all others, as they stand.
  """
  session = engine.session(params, version)
  owner = {}
  for group in groups:
    for completion in group.completions:
      if not completion.finish:
        owner[session.submit(completion.request, completion)] = group
  done = [group for group in groups if group.complete]
  turns, count = iter(session), 0
  while True:
    for group in done:
      on_complete(group)
    count += len(done)
    if count >= wanted:
      break
    touched = {
      id(group): group
      for completion in next(turns)
      for group in [owner[completion]]
    }
    done = [group for group in touched.values() if group.complete]
  complete = [group for group in groups if group.complete][:wanted]
  taken = set(map(id, complete))
  return complete, [group for group in groups if id(group) not in taken]


_COUNTS = ('passes', 'drafts', 'kept_drafts')
_LISTS = (
  ('tokens', np.int32),
  ('logp', np.float32),
  ('model_logp', np.float32),
  ('version', np.int32),
)


def packed(groups: Sequence[Group]) -> list[dict[str, Any]]:
  """For a checkpoint: JSON, with every number as it is to the last bit."""
  return [
    {
      'prompt': dataclasses.asdict(group.prompt),
      'completions': [_packed(c) for c in group.completions],
    }
    for group in groups
  ]


def unpacked(
  saved: Sequence[dict[str, Any]], how: Sampling, prompt_ids
) -> list[Group]:
  """The groups again.

  Args:
    saved: From `packed`.
    how: Their completions are drawn.
    prompt_ids: From a Prompt to its tokens.
  """
  groups = []
  for item in saved:
    turns = tuple(Message(*turn) for turn in item['prompt']['messages'])
    prompt = Prompt(**item['prompt'] | {'messages': turns})
    ids = np.asarray(prompt_ids(prompt), np.int32)
    groups.append(
      Group(
        prompt, [_unpacked(c, prompt, ids, how) for c in item['completions']]
      )
    )
  return groups


def _packed(c: Completion) -> dict[str, Any]:
  found = {
    name: _bytes(np.asarray(getattr(c, name), dtype)) for name, dtype in _LISTS
  }
  found |= {name: getattr(c, name) for name in _COUNTS}
  if c.prompt_experts is not None:
    experts = np.asarray(c.experts, np.uint16)
    found |= {
      'prompt_experts': _bytes(c.prompt_experts),
      'experts': _bytes(experts),
      'layers': list(experts.shape[1:]),
    }
  return found | {
    'key': c.request.key.tolist(),
    'finish': c.finish,
    'name': list(c.request.name),
  }


def _unpacked(
  saved: dict[str, Any], prompt: Prompt, ids: np.ndarray, how: Sampling
) -> Completion:
  c = Completion(
    Request(
      name=tuple(saved['name']),
      prompt=ids,
      sampling=how,
      key=np.array(saved['key'], np.uint32),
    )
  )
  for name, dtype in _LISTS:
    setattr(c, name, _array(saved[name], dtype).tolist())
  for name in (*_COUNTS, 'finish'):
    setattr(c, name, saved[name])
  if 'layers' in saved:
    shape = -1, *saved['layers']
    c.prompt_experts = _array(saved['prompt_experts'], np.uint16).reshape(shape)
    c.experts = list(_array(saved['experts'], np.uint16).reshape(shape))
  return c


def _bytes(array: np.ndarray) -> str:
  return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()


def _array(text: str, dtype) -> np.ndarray:
  return np.frombuffer(base64.b64decode(text), dtype)
