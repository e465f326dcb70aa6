"""Groups are shared out between hosts, which tell each other their samples.

If several replicas of the policy sample (replicas.py), groups are shared out by
the lengths that are expected of them, each replica completes its own, and at the
end all processes tell each other what was sampled. A sample is the same
wherever it is drawn: it depends on the weights, its prompt and its key alone.
"""

from collections.abc import Sequence
import json
from typing import Any

from r1jax import processes

_MAX_KNOWN = 65_536  # Prompts whose lengths are remembered.


def share_out(expected: Sequence[float], hosts: int) -> list[int]:
  """Returns the host of each group, so that all hosts end at the same time.

  The longest group goes first, each to the host that has least to do; hosts of
  equal load take the group whose turn it is, by their number.

  Args:
    expected: Tokens that are expected of each group.
    hosts: Number of hosts.
  """
  load, count = [0.0] * hosts, [0] * hosts
  host_of = [0] * len(expected)
  limit = -(-len(expected) // hosts)
  for i in sorted(range(len(expected)), key=lambda i: (-expected[i], i)):
    free = [host for host in range(hosts) if count[host] < limit]
    host_of[i] = host = min(free, key=lambda host: (load[host], host))
    load[host] += expected[i]
    count[host] += 1
  return host_of


def quotas(host_of: Sequence[int], hosts: int, wanted: int) -> list[int]:
  """Returns how many of its groups each host completes, `wanted` in all."""
  has = [sum(host == h for host in host_of) for h in range(hosts)]
  parts = [count * wanted // max(len(host_of), 1) for count in has]
  while sum(parts) < wanted:
    parts[max(range(hosts), key=lambda h: (has[h] - parts[h], -h))] += 1
  return parts


class LengthHistory:
  """Remembers how long the samples of each prompt were."""

  def __init__(self):
    self._mean_of: dict[str, float] = {}

  def expected(self, prompt_id: str) -> float:
    """Returns the mean tokens of a prompt's samples, or of all prompts."""
    if prompt_id in self._mean_of:
      return self._mean_of[prompt_id]
    known = self._mean_of.values()
    return sum(known) / len(known) if known else 1.0

  def see(self, prompt_id: str, mean_tokens: float):
    """Remembers the latest samples of a prompt."""
    self._mean_of.pop(prompt_id, None)
    self._mean_of[prompt_id] = mean_tokens
    if len(self._mean_of) > _MAX_KNOWN:
      del self._mean_of[next(iter(self._mean_of))]

  def get_state(self) -> list[tuple[str, float]]:
    """Returns what it remembers as JSON."""
    return list(self._mean_of.items())

  def set_state(self, state: Sequence[tuple[str, float]]):
    """Remembers what another one did."""
    self._mean_of = {key: mean for key, mean in state}


def tell_all(own: dict[int, Any]) -> dict[int, Any]:
  """Returns the values of all processes by number; each is JSON.

  Args:
    own: The values of this process, by numbers that no other process has.
  """
  message = json.dumps({str(key): value for key, value in own.items()})
  return {
    int(key): value
    for text in processes.all_gather(message.encode())
    for key, value in json.loads(text).items()
  }
