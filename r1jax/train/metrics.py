"""What a run tells: metrics.jsonl, TensorBoard and one live line a stage.

metrics.jsonl holds only what a rerun repeats bit for bit. Speed differs from
run to run, so it goes to TensorBoard and the live line alone.
"""

import json
import math
from pathlib import Path
import threading
import time

from rich.console import Console
from rich.live import Live
from rich.text import Text
import tensorboardX


def read(path: Path) -> list[dict]:
  """The whole lines of a metrics.jsonl; none where there is no file."""
  if not path.exists():
    return []
  lines = path.read_text().split('\n')[:-1]  # A torn last line has no '\n'.
  return [json.loads(line) for line in lines]


_CLOSE_SECS = 10


class MetricsWriter:
  """One JSON line a step. On resume, lines after the restored step go."""

  def __init__(self, directory: Path, start_step: int):
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / 'metrics.jsonl'
    kept = [row for row in read(path) if row['step'] <= start_step]
    if not start_step:
      kept = []
    partial = path.with_suffix('.partial')
    partial.write_text(''.join(json.dumps(row) + '\n' for row in kept))
    partial.replace(path)
    self._file = open(path, 'a')
    self._tensorboard = tensorboardX.SummaryWriter(
      str(directory / 'tensorboard'), purge_step=start_step + 1
    )

  def write(
    self,
    step: int,
    values: dict[str, float],
    speed: dict[str, float] | None = None,
  ):
    row = {'step': step} | {
      name: float(value) if math.isfinite(value) else None  # JSON has no NaN.
      for name, value in sorted(values.items())
    }
    self._file.write(json.dumps(row, allow_nan=False) + '\n')
    self._file.flush()
    for name, value in (values | (speed or {})).items():
      self._tensorboard.add_scalar(name, float(value), step)

  def __enter__(self):
    return self

  def __exit__(self, kind, *_):
    self._file.close()
    if kind is None:
      self._tensorboard.close()
      return
    # An interrupt within `write` may leave its queue so that it never ends.
    closing = threading.Thread(target=self._tensorboard.close, daemon=True)
    closing.start()
    closing.join(_CLOSE_SECS)


class Progress:
  """One line that stays: stage, step, numbers, speed, time left.

  Where there is no terminal, a line is printed every `plain_every` steps.
  """

  def __init__(self, stage: str, start: int, total: int, plain_every: int):
    self._stage, self._start, self._total = stage, start, total
    self._plain_every = plain_every
    self._console = Console()
    self._began = self._last = time.monotonic()
    self._live = None
    if self._console.is_terminal:
      self._live = Live(console=self._console, refresh_per_second=4)
      self._live.start()

  def step_secs(self) -> float:
    """Seconds since the last call."""
    now = time.monotonic()
    secs, self._last = now - self._last, now
    return secs

  def tell(self, text: str):
    """A line of its own. Time left is counted from the last of them."""
    self._console.print(f'{self._stage} {text}', highlight=False)
    self._began = time.monotonic()

  def update(self, step: int, numbers: dict[str, str], keep: bool = False):
    """Shows the step. Without a terminal it is printed if it is one of
    `plain_every`, the last, or to `keep`."""
    done = max(step - self._start, 1)
    left = (time.monotonic() - self._began) / done * (self._total - step)
    shown = '  '.join(f'{name} {value}' for name, value in numbers.items())
    line = (
      f'{self._stage} {step}/{self._total}  {shown}  '
      f'ETA {int(left) // 60}:{int(left) % 60:02d}'
    )
    if self._live:
      self._live.update(Text(line, no_wrap=True, overflow='ellipsis'))
    elif keep or step % self._plain_every == 0 or step == self._total:
      print(line, flush=True)

  def __enter__(self):
    return self

  def __exit__(self, *_):
    if self._live:
      self._live.stop()
