"""TensorBoard: event files in the folder `tensorboard` of a stage."""

from collections.abc import Mapping, Sequence
import json
import time
from typing import Any

from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto import event_pb2

from r1jax import registry
from r1jax.tracking.tracker import TrackedRun, Tracker

FOLDER = 'tensorboard'


@registry.tracker('tensorboard')
class TensorBoard(Tracker):
  """Writes an event file in the calling thread.

  The SummaryWriter of tensorboardX writes in a thread of its own: on a full
  disk that thread ends, and the training then waits for it for ever.
  """

  in_folder = True

  def __init__(self, run: TrackedRun):
    """Opens a file; TensorBoard ignores earlier files from its first step on."""
    folder = run.folder / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    # Runs that go on within a second have a file each.
    self._events = EventsWriter(str(folder / 'events'), f'.{run.first_step}')
    start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
    self._write(run.first_step, session_log=start)
    if run.first_step == 0:
      values = {
        key: value if isinstance(value, int | float | str) else repr(value)
        for key, value in run.config.items()
      }
      for part in summary.hparams(values, {}):
        self._write(0, summary=part)

  def write(self, step: int, values: Mapping[str, float]):
    for name, value in values.items():
      self._write(step, summary=summary.scalar(name, float(value)))
    self._events.flush()

  def write_completions(self, step: int, rows: Sequence[Mapping[str, Any]]):
    for i, row in enumerate(rows):
      others = {key: row[key] for key in row if key not in _LONG}
      # Indented lines are shown as they are, whatever marks are in them.
      parts = [json.dumps(others, ensure_ascii=False)]
      parts += [f'{key}:\n\n{_indented(row[key])}' for key in _LONG]
      text = summary.text(f'completions/{i}', '\n\n'.join(parts))
      self._write(step, summary=text)
    self._events.flush()

  def _write(self, step: int, **event):
    self._events.write_event(
      event_pb2.Event(wall_time=time.time(), step=step, **event)
    )

  def close(self, failed: bool):
    del failed
    self._events.close()


_LONG = ('prompt', 'completion')


def _indented(text: str) -> str:
  return '\n'.join(f'    {line}' for line in str(text).splitlines())
