"""Metrics of a run: two files of lines, trackers, and a live progress line.

metrics.jsonl holds only numbers that a rerun repeats bit for bit. Times, speed
and memory differ between runs and are in performance.jsonl. TensorBoard and
other trackers (r1jax/tracking) have both.
"""

from collections.abc import Callable, Mapping, Sequence
import contextlib
import json
import math
from pathlib import Path
import resource
import sys
import time
from typing import Any

import jax
from rich.console import Console
from rich.live import Live
from rich.text import Text

from r1jax import compile_time
from r1jax.tracking.trackers import Trackers

PERFORMANCE = 'performance.jsonl'
COMPILE = 'compile'  # The part of a step in which programs are built.


def read(path: Path) -> list[dict]:
  """Returns the complete lines of a file of metrics; [] if there is none."""
  if not path.exists():
    return []
  lines = path.read_text().split('\n')[:-1]  # A torn last line has no '\n'.
  return [json.loads(line) for line in lines]


class MetricsWriter:
  """Writes one JSON line per step, and the same to trackers."""

  def __init__(
    self, directory: Path, last_step: int | None, trackers: Trackers
  ):
    """Opens metrics.jsonl and performance.jsonl.

    Args:
      directory: Their folder.
      last_step: Later lines of an earlier run are removed from metrics.jsonl;
        None for all. What performance.jsonl tells has happened: it keeps them.
      trackers: They show the same; closed with this.
    """
    directory.mkdir(parents=True, exist_ok=True)
    first = 0 if last_step is None else last_step + 1
    self._metrics = _Lines(
      directory / 'metrics.jsonl', lambda row: row['step'] < first
    )
    self._performance = _Lines(directory / PERFORMANCE, lambda row: True)
    self._trackers = trackers

  def write(self, step: int, values: Mapping[str, float]):
    """Writes the metrics of a step."""
    self._metrics.write({'step': step} | _finite(values))
    self._trackers.write(step, values)

  def write_performance(self, step: int, values: Mapping[str, float]):
    """Writes times, speed and memory of the steps up to one."""
    self._performance.write(
      {'step': step, 'unix_time': time.time()} | _finite(values)
    )
    self._trackers.write(step, values)

  def write_completions(self, step: int, rows: Sequence[Mapping[str, Any]]):
    """Shows sample completions of a step; files of their own have more."""
    self._trackers.write_completions(step, rows)

  def __enter__(self):
    return self

  def __exit__(self, kind, *_):
    # What is closed after an error may fail for the same reason.
    ignored = (OSError,) if kind else ()
    for close in (
      self._metrics.close,
      self._performance.close,
      lambda: self._trackers.close(failed=kind is not None),
    ):
      with contextlib.suppress(*ignored):
        close()


def _finite(values: Mapping[str, float]) -> dict[str, float | None]:
  """Returns metrics in order of their names; JSON has no NaN, but null."""
  return {
    name: float(value) if math.isfinite(value) else None
    for name, value in sorted(values.items())
  }


class _Lines:
  """A file of JSON lines that goes on where an earlier run has ended."""

  def __init__(self, path: Path, keep: Callable[[dict], bool]):
    """Opens the file, without a torn last line and the lines not to keep."""
    kept = filter(keep, read(path))
    partial = path.with_suffix('.partial')
    partial.write_text(''.join(json.dumps(row) + '\n' for row in kept))
    partial.replace(path)
    self._file = open(path, 'a')

  def write(self, row: dict):
    self._file.write(json.dumps(row, allow_nan=False) + '\n')
    self._file.flush()

  def close(self):
    self._file.close()


class Stopwatch:
  """Divides the time of a step between its parts.

  Attributes:
    secs: Seconds by part. Their sum is the time since the start. The time in
      which programs are built is a part of its own, in whichever it falls.
  """

  def __init__(self):
    self.secs: dict[str, float] = {}
    self._compile = compile_time.clock()
    self._last, self._compiled = time.monotonic(), self._compile.secs

  def lap(self, part: str) -> float:
    """Adds the seconds since the last lap to a part, and returns them."""
    now, compiled = time.monotonic(), self._compile.secs
    secs = now - self._last
    # Another thread may have built programs meanwhile.
    building = min(max(compiled - self._compiled, 0.0), secs)
    self._add(COMPILE, building)
    self._add(part, secs - building)
    self._last, self._compiled = now, compiled
    return secs - building

  def _add(self, part: str, secs: float):
    if secs or part != COMPILE:
      self.secs[part] = self.secs.get(part, 0.0) + secs


def memory() -> dict[str, float]:
  """Returns the most memory that was in use at once so far.

  Returns:
    memory/peak_gb: On the fullest of this process's devices, in 10⁹ bytes.
    memory/peak_frac: The share of that device's memory that JAX may take.
    memory/host_peak_gb: In this process, with its programs and libraries.
    The first two are left out where a device does not tell, as a CPU.
  """
  unit = 1 if sys.platform == 'darwin' else 1024  # Linux counts kibibytes.
  host = unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  found = {'memory/host_peak_gb': host / 1e9}
  stats = [device.memory_stats() or {} for device in jax.local_devices()]
  peaks = [each for each in stats if 'peak_bytes_in_use' in each]
  if peaks:
    fullest = max(peaks, key=lambda each: each['peak_bytes_in_use'])
    peak = fullest['peak_bytes_in_use']
    found['memory/peak_gb'] = peak / 1e9
    if limit := fullest.get('bytes_limit'):
      found['memory/peak_frac'] = peak / limit
  return found


class Progress:
  """A live line in the terminal: stage, step, metrics, speed, time left.

  A line is printed every `print_steps` steps if there is no terminal.
  """

  def __init__(self, stage: str, start: int, total: int, print_steps: int):
    self._stage, self._start, self._total = stage, start, total
    self._print_steps = print_steps
    self._console = Console()
    self._began = self._last = time.monotonic()
    self._live = None
    if self._console.is_terminal:
      self._live = Live(console=self._console, refresh_per_second=4)
      self._live.start()

  def step_secs(self) -> float:
    """Returns the seconds since the last call."""
    now = time.monotonic()
    secs, self._last = now - self._last, now
    return secs

  def log(self, text: str):
    """Prints a line of its own; the time left is estimated from then on."""
    self._console.print(f'{self._stage} {text}', highlight=False)
    self._began = time.monotonic()

  def update(self, step: int, numbers: dict[str, str], keep: bool = False):
    """Shows a step.

    Args:
      step: Number of the step.
      numbers: Formatted metrics by name.
      keep: Prints the line without a terminal even between `print_steps`.
    """
    done = max(step - self._start, 1)
    left = (time.monotonic() - self._began) / done * (self._total - step)
    shown = '  '.join(f'{name} {value}' for name, value in numbers.items())
    line = (
      f'{self._stage} {step}/{self._total}  {shown}  '
      f'ETA {int(left) // 60}:{int(left) % 60:02d}'
    )
    if self._live:
      self._live.update(Text(line, no_wrap=True, overflow='ellipsis'))
    elif keep or step % self._print_steps == 0 or step == self._total:
      print(line, flush=True)

  def __enter__(self):
    return self

  def __exit__(self, *_):
    if self._live:
      self._live.stop()
