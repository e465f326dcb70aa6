"""The one training loop: steps, logging, evaluation, checkpoints, resume.

  restore or initialise → (step → log → evaluate → checkpoint) … → weights

Every stage that trains a network runs in it. A run that was killed goes on
from its newest checkpoint and ends with the same numbers, bit for bit.
"""

import abc
import contextlib
from pathlib import Path
import signal
import threading
from typing import Any, ClassVar, NamedTuple

import jax

from r1jax.stages.stage import Stage, save_weights
from r1jax.train.checkpoint import Checkpointer
from r1jax.train.metrics import MetricsWriter, Progress

# A metric that is summed over the steps between two lines, also as 'critic/…'.
_SUMMED = 'skipped_updates'


class StepOutput(NamedTuple):
  """The result of a training step.

  Attributes:
    state: The state after the step.
    metrics: Numbers by name, on the device or on the host.
    counts: Amounts processed, for the speed: {'tokens': 4096}.
  """

  state: Any
  metrics: dict[str, Any]
  counts: dict[str, float]


class TrainedStage(Stage):
  """A stage whose work is the training loop.

  Attributes:
    print_steps: Steps between two progress lines where there is no terminal.
    weights_dtype: Type in which the final weights are written.
    seed: Seed of the run.
    num_steps: Number of training steps.
    logging_steps, save_steps: Steps between two lines, and two checkpoints.
    eval_steps: Steps between two evaluations; 0 for none.
    save_total_limit: Number of checkpoints that are kept.
  """

  print_steps: ClassVar[int] = 100
  weights_dtype: ClassVar[str] = 'float32'
  seed: int
  num_steps: int
  logging_steps: int = 1
  save_steps: int
  eval_steps: int = 0
  save_total_limit: int

  @abc.abstractmethod
  def data(self) -> Any:
    """Returns the data at its start, with get_state() and set_state()."""

  @abc.abstractmethod
  def init_state(self, params: Any) -> Any:
    """Returns the state before the first step, laid out on the mesh.

    Args:
      params: Parameters to begin with. The state may share their memory, which
        the first step consumes: a stage that needs them later copies them.
    """

  @abc.abstractmethod
  def abstract_state(self, params: Any) -> Any:
    """Returns the state's shapes, dtypes and shardings, for a restore."""

  @abc.abstractmethod
  def train_step(self, state: Any, step: int, data: Any) -> StepOutput:
    """Runs one step, counted from 1; it may consume the state."""

  @abc.abstractmethod
  def policy(self, state: Any) -> Any:
    """Returns the parameters that the stage leaves."""

  def evaluate(self, state: Any, step: int, directory: Path) -> dict:
    """Returns metrics of what is held out."""
    del state, step, directory
    return {}

  def extra_metrics(self, state: Any) -> dict[str, float]:
    """Returns metrics of the state, read at each line."""
    del state
    return {}

  def progress_numbers(self, values: dict, speed: dict) -> dict[str, str]:
    """Returns the numbers that the live line shows, by their short names."""
    shown = {}
    if 'loss' in values:
      shown['loss'] = f'{values["loss"]:.4f}'
    if 'speed/tokens_per_sec' in speed:
      shown['tok/s'] = f'{speed["speed/tokens_per_sec"]:,.0f}'
    return shown

  def headline(self, values: dict) -> dict[str, str]:
    """Returns the number of an evaluation that the live line keeps."""
    del values
    return {}

  def metadata(self, state: Any) -> dict:
    """Returns metadata of the weights' file beside the run's own."""
    del state
    return {}

  def report(self, directory: Path):
    """Writes plots and a summary from metrics.jsonl."""
    del directory

  def resources(self) -> contextlib.AbstractContextManager:
    """Returns what is open while the stage runs, such as grader processes."""
    return contextlib.nullcontext()

  def run(self, directory: Path, params: Any, metadata: dict) -> Path:
    """Trains, or goes on from a checkpoint; see Stage.run."""
    return Trainer(self, directory).run(params, metadata)

  def latest_params(self, directory: Path, params: Any) -> Any | None:
    """Returns the policy of the newest checkpoint; see Stage."""
    if not (directory / 'checkpoints').exists():
      return None
    with self.checkpoints(directory) as checkpoints:
      restored = checkpoints.restore(self.abstract_state(params))
    return restored and self.policy(restored[1])

  def checkpoints(self, directory: Path) -> Checkpointer:
    """Opens the stage's checkpoints."""
    return Checkpointer(
      directory / 'checkpoints', self.save_total_limit, self.seed
    )


class Trainer:
  """Runs a TrainedStage in its folder."""

  def __init__(self, stage: TrainedStage, directory: Path):
    self._stage, self._directory = stage, directory
    self._shown: dict[str, str] = {}

  def run(self, params: Any, metadata: dict) -> Path:
    """Trains to the end and writes the weights; returns their path.

    Raises:
      KeyboardInterrupt: SIGTERM came; a checkpoint of the last step is saved.
    """
    stage, directory = self._stage, self._directory
    with (
      stage.resources(),
      stage.checkpoints(directory) as checkpoints,
      _termination() as terminated,
    ):
      restored = checkpoints.restore(stage.abstract_state(params))
      start = restored[0] if restored else 0
      with (
        MetricsWriter(directory, start) as writer,
        Progress(
          stage.name, start, stage.num_steps, stage.print_steps
        ) as progress,
      ):
        data = stage.data()
        if restored:
          _, state, position = restored
          data.set_state(position)
          progress.log(f'goes on after step {start}')
        else:
          state = self._initialise(params, writer, progress)
        line = _Line()
        progress.step_secs()
        for step in range(start + 1, stage.num_steps + 1):
          output = stage.train_step(state, step, data)
          state = output.state
          line.add(output)
          self._log(line, state, step, writer, progress)
          if self._due(stage.save_steps, step) or terminated.is_set():
            with line.untimed(state, progress):
              checkpoints.save(step, state, data.get_state())
          if terminated.is_set() and step < stage.num_steps:
            raise KeyboardInterrupt
    stage.report(directory)
    return save_weights(  # Last: it says that all is there.
      directory,
      stage.policy(state),
      metadata | stage.metadata(state),
      stage.weights_dtype,
    )

  def _initialise(
    self, params: Any, writer: MetricsWriter, progress: Progress
  ) -> Any:
    """Returns the first state, after an evaluation where there are any."""
    stage = self._stage
    state = stage.init_state(params)
    if stage.eval_steps:
      progress.log('compiles, and evaluates the initial weights')
      values = stage.evaluate(state, 0, self._directory)
      writer.write(0, values)
      self._shown = stage.headline(values)
      if self._shown:
        shown = ', '.join(map(' '.join, self._shown.items()))
        progress.log(f'starts at {shown}')
    return state

  def _log(
    self,
    line: '_Line',
    state: Any,
    step: int,
    writer: MetricsWriter,
    progress: Progress,
  ):
    """Writes a line of metrics and evaluates, where the step asks for it."""
    stage, values, speed = self._stage, {}, {}
    logs = self._due(stage.logging_steps, step)
    evaluates = stage.eval_steps and self._due(stage.eval_steps, step)
    if logs:
      values = line.values() | stage.extra_metrics(state)
      speed = line.speed(progress.step_secs())
      line.clear()
    if evaluates:
      with line.untimed(state, progress):
        found = stage.evaluate(state, step, self._directory)
      values |= found
      self._shown = stage.headline(found)
    if values:
      writer.write(step, values, speed)
      shown = stage.progress_numbers(values, speed)
      progress.update(step, shown | self._shown, keep=bool(evaluates))

  def _due(self, every: int, step: int) -> bool:
    return step % every == 0 or step == self._stage.num_steps


class _Line:
  """Metrics of the steps since the last line of metrics.jsonl."""

  def __init__(self):
    self.clear()

  def clear(self):
    self._metrics: dict[str, Any] = {}
    self._summed: dict[str, Any] = {}
    self._counts: dict[str, float] = {}
    self._secs = 0.0

  def add(self, output: StepOutput):
    self._metrics = output.metrics
    for name, value in output.metrics.items():
      if name.rpartition('/')[2] == _SUMMED:
        self._summed[name] = self._summed.get(name, 0.0) + value
    for name, count in output.counts.items():
      self._counts[name] = self._counts.get(name, 0.0) + count

  def values(self) -> dict:
    """Returns the last step's metrics on the host, and sums of some."""
    return jax.device_get(self._metrics | self._summed)

  def speed(self, secs: float) -> dict[str, float]:
    """Returns what was processed a second, if the last steps took so long."""
    return {
      f'speed/{name}_per_sec': count / (self._secs + secs)
      for name, count in self._counts.items()
    }

  @contextlib.contextmanager
  def untimed(self, state: Any, progress: Progress):
    """Leaves what is done within out of the speed, which is of steps alone."""
    jax.block_until_ready(state)
    self._secs += progress.step_secs()
    yield
    progress.step_secs()


@contextlib.contextmanager
def _termination():
  """Yields an event that SIGTERM sets, so that the loop may save and stop."""
  event = threading.Event()
  if threading.current_thread() is not threading.main_thread():
    yield event  # Only the main thread may handle signals.
    return
  before = signal.signal(signal.SIGTERM, lambda *_: event.set())
  try:
    yield event
  finally:
    signal.signal(signal.SIGTERM, before)
