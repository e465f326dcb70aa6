"""Goodput: the share of a run's time that went into steps that count.

Google's definition (github.com/AI-Hypercomputer/ml-goodput-measurement): the
time of steps whose result is kept, over all of the time; the rest, badput, is
divided by its cause. Time in which no process runs is not counted here.

A run that goes on from the checkpoint of step s takes over the account of that
step. What was spent after it was lost, since those steps are made again.
"""

from collections.abc import Mapping
import json
from pathlib import Path

from r1jax import files
from r1jax.stages.performance import UPDATE
from r1jax.train.metrics import COMPILE, Stopwatch

FILE = 'goodput.json'
# The parts of a step that move the run on, and those of all other time.
PRODUCTIVE = ('rollout', 'reward', 'reference', UPDATE, 'host')
BADPUT = ('setup', COMPILE, 'evaluation', 'save', 'waiting', 'lost', 'other')
_KEPT_STEPS = 64  # Accounts of so many checkpoints are kept.


class Goodput:
  """The account of a stage's time, in all runs that have worked on it."""

  def __init__(self, folder: Path):
    """Reads the account of earlier runs, and begins to measure.

    Args:
      folder: The stage's folder, or the part of it of one process.
    """
    self._path = folder / FILE
    self._watch = Stopwatch()
    self._earlier: dict[str, float] = {}
    self._secs: dict[str, float] = {}
    self._saved: dict[int, dict[str, float]] = {}
    if self._path.exists():
      account = json.loads(self._path.read_text())
      self._earlier = account['secs']
      self._saved = {int(k): secs for k, secs in account['saved'].items()}

  def resume(self, step: int):
    """Goes on from the checkpoint of a step; 0 begins anew."""
    kept = [each for each in self._saved if each <= step]
    self._saved = {each: self._saved[each] for each in kept}
    self._secs = dict(self._saved[max(kept)]) if kept else {}
    self._add('lost', sum(self._earlier.values()) - sum(self._secs.values()))

  def lap(self, part: str):
    """Adds the time since the last lap to a part."""
    self._watch.lap(part)
    self._take()

  def step(self, secs: Mapping[str, float]) -> float:
    """Divides the time since the last lap between the parts of a step.

    Args:
      secs: Seconds by part. What they leave is the update, which a device may
        make while the host goes on, unless that is among them.

    Returns:
      The seconds since the last lap.
    """
    rest = 'other' if UPDATE in secs else UPDATE
    spent = left = self._watch.lap(rest)
    for name, part in secs.items():
      if name == COMPILE:  # The watch of this account has measured it too.
        continue
      part = min(part, left)
      left -= part
      self._add('waiting' if name == 'data' else name, part)
    self._watch.secs[rest] = left
    self._take()
    return spent

  def saved(self, step: int):
    """Keeps the account with the checkpoint of a step."""
    self._saved[step] = dict(self._secs)
    while len(self._saved) > _KEPT_STEPS:
      del self._saved[min(self._saved)]

  def write(self):
    """Writes the account for a run that goes on."""
    account = {'secs': self._secs, 'saved': self._saved}
    files.write_text(self._path, json.dumps(account))

  def shares(self) -> dict[str, float]:
    """Returns the share of each part, whose sum is 1, and the goodput."""
    total = sum(self._secs.values())
    if not total:
      return {}
    secs = {part: self._secs.get(part, 0.0) for part in PRODUCTIVE + BADPUT}
    found = {f'goodput/{part}': each / total for part, each in secs.items()}
    productive = sum(secs[part] for part in PRODUCTIVE)
    return found | {'goodput': productive / total}

  def summary(self) -> str:
    """Returns one line: 'goodput 81% of 2:14:05: update 50%, rollout 31%, …'."""
    shares = self.shares()
    if not shares:
      return ''
    goodput = shares.pop('goodput')
    secs = round(sum(self._secs.values()))
    parts = ', '.join(
      f'{name.removeprefix("goodput/")} {share:.0%}'
      for name, share in sorted(shares.items(), key=lambda each: -each[1])
      if share >= 0.005
    )
    time = f'{secs // 3600}:{secs // 60 % 60:02d}:{secs % 60:02d}'
    return f'goodput {goodput:.0%} of {time}: {parts}'

  def _take(self):
    """Moves what the watch has measured to the account."""
    for part, secs in self._watch.secs.items():
      self._add(part, secs)
    self._watch.secs.clear()

  def _add(self, part: str, secs: float):
    self._secs[part] = self._secs.get(part, 0.0) + secs
