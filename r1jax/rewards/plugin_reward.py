"""A reward that a plugin registers, called in killable worker processes."""

from collections.abc import Mapping, Sequence
import logging
from typing import NamedTuple

from r1jax import registry
from r1jax.errors import UserError, unknown
from r1jax.rewards.sample import Sample
from r1jax.workers import plugin_pool
from r1jax.workers.job_queue import JobFailure
from r1jax.workers.pool import WorkerStartError

_MODULE = 'r1jax.rewards.reward_worker'
# So many calls in a row that hang stop a run before the end of its step, which
# would otherwise wait for every sample in turn.
_MAX_TIMEOUTS_IN_A_ROW, _MAX_BATCH_TIMEOUTS_IN_A_ROW = 64, 4
_CALLS_AT_ONCE = 64  # Calls between two looks at the timeouts in a row.
_OPTIONS = 'batch', 'needs_rule'
_log = logging.getLogger(__name__)


class RewardError(UserError):
  """Too many samples have no score, or scoring failed; the run stops."""


class PluginScore(NamedTuple):
  """The score of one sample.

  Attributes:
    value: The reward; None if the sample has none.
    parts: Named parts whose sum is the reward, if the function returns a dict.
  """

  value: float | None
  parts: Mapping[str, float]


_NO_SCORE = PluginScore(None, {})


class PluginReward:
  """Calls one reward of a plugin; a call that fails costs its samples.

  Attributes:
    first_error: The first failure, '' before there is one.
    file: The file that registered the reward.
  """

  def __init__(self, name: str, timeout_secs: float, tolerant: bool = False):
    """Looks the reward up.

    Args:
      name: The name of the reward.
      timeout_secs: Wall-clock limit for each sample; that of a batch is as many
        times as long as it has samples.
      tolerant: Whether a run goes on however many samples have no score.

    Raises:
      UserError: its options are unknown, or no file holds it.
    """
    origin = registry.reward.origin(name)
    self._name, self._plugin = name, origin.plugin
    self._timeout_secs, self._tolerant = timeout_secs, tolerant
    self._batch = bool(origin.options.get('batch'))
    for option in origin.options:
      if option not in _OPTIONS:
        raise unknown(f'{origin.file}: reward {name}: option', option, _OPTIONS)
    self.first_error, self.file = '', origin.file
    self._timeouts = 0  # In a row.
    self._max_timeouts = (
      _MAX_BATCH_TIMEOUTS_IN_A_ROW if self._batch else _MAX_TIMEOUTS_IN_A_ROW
    )
    registry.plugin_file(origin.plugin)  # A notebook's cell is in no file.

  def score(self, samples: Sequence[Sample]) -> list[PluginScore]:
    """Returns the score of each sample.

    Raises:
      RewardError: the plugin does not start in a worker, or calls hang one
        after another.
    """
    if not samples:
      return []
    calls = [list(samples)] if self._batch else [[s] for s in samples]
    limit_secs = self._timeout_secs * len(calls[0])
    jobs = [
      {
        'name': self._name,
        'batch': self._batch,
        'samples': [sample.to_json() for sample in call],
      }
      for call in calls
    ]
    scores: list[PluginScore] = []
    for start in range(0, len(jobs), _CALLS_AT_ONCE):
      stop = start + _CALLS_AT_ONCE
      results = self._call(jobs[start:stop], limit_secs)
      for call, result in zip(calls[start:stop], results):
        scores += self._scores(result, len(call), limit_secs)
    return scores

  def _call(self, jobs: list[dict], limit_secs: float) -> list:
    try:
      return plugin_pool.call(_MODULE, self._plugin, jobs, limit_secs)
    except WorkerStartError as error:
      raise RewardError(
        f'reward: {self.file}: {self._name}: {error}'
      ) from error

  def _scores(
    self, result, num_samples: int, limit_secs: float
  ) -> list[PluginScore]:
    failed = isinstance(result, JobFailure)
    self._timeouts = (
      self._timeouts + 1 if failed and result.kind == 'timeout' else 0
    )
    if failed:
      self._note(plugin_pool.failure_text(result, limit_secs))
    elif 'error' in result:
      self._note(result['error'])
    else:
      return [_plugin_score(value) for value in result['value']]
    if self._timeouts >= self._max_timeouts and not self._tolerant:
      raise RewardError(
        f'reward: {self.file}: {self._name} took more than {limit_secs:g} s '
        f'{self._timeouts} times in a row; mend it or raise '
        'rl.reward_timeout_secs. The run stops, and its checkpoints stand'
      )
    return [_NO_SCORE] * num_samples

  def _note(self, error: str):
    """Warns of the first failure; later ones are only counted."""
    if not self.first_error:
      self.first_error = error
      _log.warning(
        'reward: %s: %s %s; such samples have no score',
        self.file,
        self._name,
        error,
      )


def _plugin_score(value: float | dict[str, float] | None) -> PluginScore:
  if isinstance(value, dict):
    return PluginScore(sum(value.values()), value)
  return PluginScore(value, {})
