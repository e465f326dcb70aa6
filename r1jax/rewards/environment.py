"""Environments, which lie between a prompt and its reward.

An environment gives the conversation that an episode begins with, reads what
the policy wrote and either ends the episode with a reward or asks for another
turn. Verifying one answer is the simplest of them.

  @registry.environment('polite')
  class Polite(Environment):
    def respond(self, episodes):
      return [End.of(e, reward=float('please' in e.text)) for e in episodes]
"""

import abc
from collections.abc import Mapping, Sequence
import dataclasses
import math

import numpy as np

from r1jax import registry
from r1jax.episode import Episode
from r1jax.errors import UserError
from r1jax.message import Message
from r1jax.records import Prompt, ScoredRollout
from r1jax.rewards.plugin_reward import RewardError
from r1jax.rewards.reward_manager import RewardManager


@dataclasses.dataclass(frozen=True)
class NextTurn:
  """The response that goes on with an episode.

  Attributes:
    messages: Messages that the policy reads before its next turn, such as the
      output of a tool.
  """

  messages: Sequence[Message]


@dataclasses.dataclass(frozen=True)
class End:
  """The response that ends an episode.

  Attributes:
    scored: The reward of the episode: a record of one completion.
  """

  scored: ScoredRollout

  @classmethod
  def of(
    cls,
    episode: Episode,
    reward: float | None,
    parts: Mapping[str, float] | None = None,
    verdict: str = 'general',
  ) -> 'End':
    """Returns the end of an episode with a reward.

    Args:
      episode: The episode.
      reward: Its reward; None or no finite number for an episode without one,
        which is not trained on.
      parts: Numbers to log, by their names; 'accuracy' is the part that dynamic
        sampling compares.
      verdict: A name of graders/verdict.py.
    """
    scorable = reward is not None and math.isfinite(reward)
    named = {'accuracy': np.nan, 'format': np.nan} | dict(parts or {})
    array = lambda value, dtype: np.array([value], dtype)
    return cls(
      ScoredRollout(
        reward_B=array(reward if scorable else 0, np.float32),
        scorable_B=array(scorable, bool),
        parts={n: array(value, np.float32) for n, value in named.items()},
        verdicts=[verdict],
        texts=[episode.text],
      )
    )


Response = NextTurn | End


class Environment(abc.ABC):
  """The interface of all environments; they run in the process of the run.

  Attributes:
    reward: Scores completions as config.rl.reward says.
  """

  def __init__(self, reward: RewardManager):
    self.reward = reward

  def start(self, prompt: Prompt) -> Sequence[Message]:
    """Returns the conversation that an episode begins with.

    The default is the prompt's own. Another one is rendered by the template
    of config.data.template, which must be a chat template.
    """
    return conversation(prompt)

  @abc.abstractmethod
  def respond(self, episodes: Sequence[Episode]) -> Sequence[Response]:
    """Returns the response to each episode, which ends in the policy's turn."""


@registry.environment('answer')
class AnswerVerification(Environment):
  """Ends every episode after one turn with the reward of its completion."""

  def respond(self, episodes: Sequence[Episode]) -> list[Response]:
    """Scores the completions; see RewardManager.score."""
    scored = self.reward.score(
      [episode.text for episode in episodes],
      [episode.prompt for episode in episodes],
      [len(episode.turns[-1].tokens) for episode in episodes],
      [episode.finish_reason for episode in episodes],
    )
    return [End(one) for one in scored.split(1)]


def conversation(prompt: Prompt) -> tuple[Message, ...]:
  """Returns the messages of a prompt; its question is one of the user's."""
  return prompt.messages or (Message('user', prompt.question),)


def make(name: str, reward: RewardManager) -> Environment:
  """Returns the environment that config.rl.environment names.

  Raises:
    UserError: there is none of this name.
  """
  return registry.environment.get(name, 'rl.environment')(reward)


def score(
  name: str, environment: Environment, episodes: Sequence[Episode]
) -> ScoredRollout:
  """Returns the rewards of episodes of one turn.

  Args:
    name: The name of the environment, for errors.
    environment: The environment.
    episodes: B episodes.

  Raises:
    RewardError: an environment of a plugin raises, or returns something else
      than one response for each episode.
    UserError: it asks for another turn.
  """
  where = registry.environment.origin(name).plugin
  try:
    responses = list(environment.respond(episodes))
  except UserError:
    raise
  except Exception as error:
    if not where:
      raise
    text = ' '.join(str(error).split())[:300]
    raise RewardError(
      f'environment: {where}: {name}: {type(error).__name__}: {text}'
    ) from error
  if len(responses) != len(episodes):
    raise RewardError(
      f'environment: {where}: {name} returned {len(responses)} responses to '
      f'{len(episodes)} episodes'
    )
  ends: list[End] = []
  for response in responses:
    if isinstance(response, NextTurn):
      raise UserError(
        f'rl.environment: {name} asks for another turn, but multi-turn '
        'episodes are not sampled yet'
      )
    if not isinstance(response, End):
      raise RewardError(
        f'environment: {where}: {name} returned {type(response).__name__} '
        'instead of an End or a NextTurn'
      )
    ends.append(response)
  return ScoredRollout.concatenate([end.scored for end in ends])
