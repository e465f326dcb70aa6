"""Scores of complete groups, computed while other groups are sampled.

Each group is scored by one process, one of those that hold its samples as soon
as it is complete; all processes are told the scores when a step takes the group.
"""

from collections.abc import Callable, Sequence
from concurrent import futures
import dataclasses
import time

from r1jax.episode import Episode, Turn
from r1jax.records import ScoredRollout
from r1jax.rewards import multihost
from r1jax.rollout.groups import Group
from r1jax.rollout.replicas import Replicas


@dataclasses.dataclass(frozen=True)
class _Scoring:
  """A complete group's texts; and its scores, if this process computes them."""

  texts: futures.Future
  scored: futures.Future | None


class GroupScores:
  """The scores of complete groups that no step has taken yet."""

  def __init__(
    self,
    replicas: Replicas,
    texts: Callable[[Group], list[str]],
    score: Callable[[Group, list[str]], ScoredRollout],
  ):
    """Stores the arguments.

    Args:
      replicas: The copies of the policy that share the work.
      texts: Function from a group to the texts of its completions.
      score: Function from a group and these texts to its scores.
    """
    self._replicas, self._texts, self._score = replicas, texts, score
    self._thread = futures.ThreadPoolExecutor(1, 'scorer')
    self._of: dict[int, _Scoring] = {}
    self._turn = 0

  def clear(self):
    """Forgets all scores."""
    self._of, self._turn = {}, 0

  def begin(self, group: Group):
    """Takes a group that this process's replica has completed."""
    mine = self._replicas.is_mine(self._turn)
    self._turn += 1
    self._add(group, mine)

  def know(self, groups: Sequence[Group]):
    """Takes groups that are complete, whichever replica has completed them.

    Every process calls it with the same groups, at the same point.
    """
    for group in groups:
      if id(group) not in self._of:
        self._add(group, False)

  def begin_others(self, groups: Sequence[Group]):
    """Shares out complete groups that nobody scores yet, as after a resume.

    Every process calls it with the same groups, after `know`.
    """
    count, own = len(self._replicas.layouts), self._replicas.own
    new = [group for group in groups if id(group) not in self._of]
    for i, group in enumerate(new):
      if i % count == own:
        self.begin(group)
    self.know(new)

  def take(self, groups: Sequence[Group]) -> tuple[list[ScoredRollout], float]:
    """Waits for the scores of groups, and forgets them.

    A collective operation.

    Returns:
      The scores of each group; and the seconds that this process waited for
      its own.
    """
    began = time.monotonic()
    found = [self._of.pop(id(group)) for group in groups]
    own = [i for i, each in enumerate(found) if each.scored is not None]
    texts = [each.texts.result() for each in found]
    own_secs = time.monotonic() - began

    def own_scores() -> ScoredRollout:
      nonlocal own_secs
      scored = [each.scored.result() for each in found if each.scored]
      own_secs = time.monotonic() - began
      return ScoredRollout.concatenate(scored)

    scored = multihost.gather_scores(texts, own, own_scores)
    return scored.split(len(texts[0])), own_secs

  def _add(self, group: Group, mine: bool):
    texts = self._thread.submit(self._texts, group)
    scored = None
    if mine:
      scored = self._thread.submit(lambda: self._score(group, texts.result()))
    self._of[id(group)] = _Scoring(texts, scored)


def episodes_of(group: Group, texts: list[str]) -> list[Episode]:
  """Returns the episodes of a group's completions, of one turn each."""
  return [
    Episode(
      prompt=group.prompt,
      turns=(
        Turn(
          tokens=c.tokens,
          sampled=True,
          text=text,
          logp=c.logp,
          model_logp=c.model_logp,
          policy_version=c.policy_version,
        ),
      ),
      finish_reason=c.finish_reason or '',
    )
    for c, text in zip(group.completions, texts)
  ]
