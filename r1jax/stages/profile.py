"""Profiles steps of a training loop, for TensorBoard's XProf."""

import logging
from pathlib import Path
import re
from typing import Any, NamedTuple

import jax

from r1jax.errors import UserError

_log = logging.getLogger(__name__)


class Steps(NamedTuple):
  """The steps to profile, counted from 1, the last one included."""

  first: int
  last: int


def parse(text: str) -> Steps | None:
  """Returns the steps of '10:12', or None for ''.

  Raises:
    UserError: the text is no range of steps.
  """
  if not text:
    return None
  match = re.fullmatch(r'(\d+):(\d+)', text)
  steps = Steps(*map(int, match.groups())) if match else Steps(0, 0)
  if not 1 <= steps.first <= steps.last:
    raise UserError(
      f'--profile_steps = {text!r} must be FIRST:LAST, steps from 1, such as '
      '10:12'
    )
  return steps


class Profiler:
  """Traces host and devices while the steps run.

  The trace is in a folder of TensorBoard's event files, where XProf looks.
  """

  def __init__(self, steps: Steps | None, folder: Path):
    self._steps, self._folder = steps, folder
    self._running = False

  def check(self, stage: str, start: int, num_steps: int):
    """Refuses steps that this run will not make.

    Args:
      stage: The stage, for the error.
      start: Steps that an earlier run has made.
      num_steps: Steps of the whole run.

    Raises:
      UserError: the first is done already, or the last comes after the end.
    """
    if self._steps is None:
      return
    first, last = self._steps
    if not start < first <= last <= num_steps:
      raise UserError(
        f'--profile_steps: {stage} makes the steps {start + 1} to {num_steps}, '
        f'and not all of {first} to {last}'
      )

  def before(self, step: int):
    """Starts the trace before its first step."""
    if self._steps and step == self._steps.first:
      jax.profiler.start_trace(str(self._folder))
      self._running = True

  def after(self, step: int, state: Any):
    """Ends the trace after its last step, once the devices are done."""
    if self._running and self._steps and step >= self._steps.last:
      jax.block_until_ready(state)
      self.close()

  def close(self):
    """Ends the trace, if it runs."""
    if self._running:
      self._running = False
      jax.profiler.stop_trace()
      _log.info('the profile is in %s/plugins/profile', self._folder)
