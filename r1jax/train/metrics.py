"""Metrics of a run: metrics.jsonl, TensorBoard, and one live progress line.

metrics.jsonl holds only numbers that a rerun repeats bit for bit. Speed differs
between runs, so it is written to TensorBoard and the progress line only.
"""

import contextlib
import json
import math
from pathlib import Path
import resource
import sys
import time

import jax
from rich.console import Console
from rich.live import Live
from rich.text import Text
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto import event_pb2

TENSORBOARD = 'tensorboard'  # The folder of its files.


def read(path: Path) -> list[dict]:
  """Returns the complete lines of a metrics.jsonl; [] if there is no file."""
  if not path.exists():
    return []
  lines = path.read_text().split('\n')[:-1]  # A torn last line has no '\n'.
  return [json.loads(line) for line in lines]


class MetricsWriter:
  """Writes one JSON line per step, and the same to TensorBoard."""

  def __init__(self, directory: Path, last_step: int | None):
    """Opens metrics.jsonl.

    Args:
      directory: Its folder.
      last_step: Later lines of an earlier run are removed; None for all.
    """
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / 'metrics.jsonl'
    first = 0 if last_step is None else last_step + 1
    kept = [row for row in read(path) if row['step'] < first]
    partial = path.with_suffix('.partial')
    partial.write_text(''.join(json.dumps(row) + '\n' for row in kept))
    partial.replace(path)
    self._file = open(path, 'a')
    self._tensorboard = _TensorBoard(directory / TENSORBOARD, first)

  def write(
    self,
    step: int,
    values: dict[str, float],
    speed: dict[str, float] | None = None,
  ):
    """Writes the metrics of a step; `speed` goes to TensorBoard only."""
    row = {'step': step} | {
      name: float(value) if math.isfinite(value) else None  # JSON has no NaN.
      for name, value in sorted(values.items())
    }
    self._file.write(json.dumps(row, allow_nan=False) + '\n')
    self._file.flush()
    self._tensorboard.write(step, values | (speed or {}))

  def __enter__(self):
    return self

  def __exit__(self, kind, *_):
    # What is closed after an error may fail for the same reason.
    ignored = (OSError,) if kind else ()
    for file in (self._file, self._tensorboard):
      with contextlib.suppress(*ignored):
        file.close()


class _TensorBoard:
  """Writes scalars to an event file of TensorBoard, in the calling thread.

  The SummaryWriter of tensorboardX writes in a thread of its own: on a full
  disk that thread ends, and the training then waits for it for ever.
  """

  def __init__(self, directory: Path, first_step: int):
    """Opens a file; TensorBoard ignores earlier files from a step on."""
    directory.mkdir(parents=True, exist_ok=True)
    # Runs that go on within a second have a file each.
    self._events = EventsWriter(str(directory / 'events'), f'.{first_step}')
    start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
    self._write(first_step, session_log=start)

  def write(self, step: int, values: dict[str, float]):
    for name, value in values.items():
      self._write(step, summary=summary.scalar(name, float(value)))
    self._events.flush()

  def _write(self, step: int, **event):
    self._events.write_event(
      event_pb2.Event(wall_time=time.time(), step=step, **event)
    )

  def close(self):
    self._events.close()


class Stopwatch:
  """Divides the time of a step between its parts.

  Attributes:
    secs: Seconds by part. Their sum is the time since the start.
  """

  def __init__(self):
    self.secs: dict[str, float] = {}
    self._last = time.monotonic()

  def lap(self, part: str):
    """Adds the seconds since the last lap to a part."""
    now = time.monotonic()
    self.secs[part] = self.secs.get(part, 0.0) + now - self._last
    self._last = now


def peak_memory() -> int:
  """Returns the most bytes that were in use at once so far.

  They are those of the fullest of this process's devices; on a CPU, those of
  the process, with its programs and libraries.
  """
  stats = [device.memory_stats() or {} for device in jax.local_devices()]
  peaks = [each['peak_bytes_in_use'] for each in stats if each]
  if peaks:
    return max(peaks)
  unit = 1 if sys.platform == 'darwin' else 1024  # Linux counts kibibytes.
  return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


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
