"""The one training loop: steps, logging, evaluation, checkpoints, resume.

  restore or initialise → (step → log → evaluate → checkpoint) … → weights

Every stage that trains a network runs in it. A run that was killed goes on
from its newest checkpoint and ends with the same numbers, bit for bit.
"""

import abc
from collections.abc import Callable, Mapping, Sequence
import contextlib
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from r1jax import buckets, interrupts, processes, waits
from r1jax.config.schema.training import CheckpointConfig, SkippedUpdatesConfig
from r1jax.errors import Diverged, UserError, unknown
from r1jax.stages import agreement, divergence, ending, performance, run_record
from r1jax.stages.goodput import Goodput
from r1jax.stages.line import Line
from r1jax.stages.loop import Loop, Step, StepOutput
from r1jax.stages.performance import Performance
from r1jax.stages.profile import Profiler, Steps
from r1jax.stages.stage import Stage, save_weights
from r1jax.stages.stragglers import Stragglers
from r1jax.tracking import tensorboard, trackers
from r1jax.train.metrics import MetricsWriter, Progress

if TYPE_CHECKING:
  from r1jax.train.checkpoint import Checkpointer

_log = logging.getLogger(__name__)


class TrainedStage(Stage):
  """A stage whose work is the training loop.

  Attributes:
    print_steps: Steps between two progress lines where there is no terminal.
    weights_dtype: Type in which the final weights are written.
    seed: Seed of the run.
    num_steps: Number of training steps.
    logging_steps, save_steps: Steps between two lines, and two checkpoints.
    eval_steps: Steps between two evaluations; 0 for none.
    save_total_limit, keep_period, metric_for_best_model, lower_is_better: The
      checkpoints that are kept; see CheckpointConfig.
    updates_per_step: Updates of a network in one step.
    profile_steps: Steps to profile; None for none.
    change_first_state: Changes the state before the first step; None as it is.
    skipped_limit: The share of updates that may be skipped; None for any.
    tracking: The trackers that show its metrics; see r1jax/tracking.
    holders: The processes whose devices train; () if all of them do.
    fp8: Whether it computes products in FP8.
    likelihoods: Whether its loss is a mean of negative log-likelihoods, which
      is how a loss that explodes is known.
  """

  print_steps: ClassVar[int] = 100
  weights_dtype: ClassVar[str] = 'float32'
  seed: int
  num_steps: int
  logging_steps: int = 1
  save_steps: int
  eval_steps: int = 0
  save_total_limit: int
  keep_period: int = 0
  metric_for_best_model: str = ''
  lower_is_better: bool = False
  updates_per_step: int = 1
  fp8: bool = False
  likelihoods: ClassVar[bool] = False
  profile_steps: Steps | None = None
  change_first_state: Callable[[Any], Any] | None = None
  skipped_limit: SkippedUpdatesConfig | None = None
  tracking: tuple[str, ...] = ('tensorboard',)
  holders: tuple[int, ...] = ()

  def set_checkpoints(self, section: CheckpointConfig):
    """Takes from its section which checkpoints are saved and kept."""
    self.save_steps = section.save_steps
    self.save_total_limit = section.save_total_limit
    self.keep_period = section.keep_period
    self.metric_for_best_model = section.metric_for_best_model
    self.lower_is_better = section.lower_is_better

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

  def completions(self) -> Sequence[Mapping[str, Any]]:
    """Returns completions of the last evaluation for trackers, as JSON rows."""
    return ()

  def extra_metrics(self, state: Any) -> dict[str, float]:
    """Returns metrics of the state, read at each line."""
    del state
    return {}

  def progress_numbers(self, values: dict, speed: dict) -> dict[str, str]:
    """Returns the numbers that the live line shows, by their short names.

    Args:
      values: Metrics of the line.
      speed: Metrics of performance.jsonl; {} for the line of a step before a
        resume.
    """
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
    if not buckets.home(directory / ending.CHECKPOINTS).exists():
      return None
    with self.checkpoints(directory, read_only=True) as checkpoints:
      restored = checkpoints.restore(self.abstract_state(params))
    return restored and self.policy(restored[1])

  def checkpoints(
    self, directory: Path, read_only: bool = False
  ) -> 'Checkpointer':
    """Opens the stage's checkpoints."""
    # Orbax takes long to import, and a command that only samples needs none.
    from r1jax.train.checkpoint import Checkpointer
    from r1jax.train.retention import Retention

    return Checkpointer(
      directory / ending.CHECKPOINTS,
      Retention(
        self.save_total_limit,
        self.keep_period,
        self.metric_for_best_model,
        self.lower_is_better,
      ),
      self.seed,
      processes.from_first(lambda: run_record.config_digests(directory.parent)),
      read_only,
      self.holders,
    )


class Trainer:
  """Runs a TrainedStage in its folder."""

  def __init__(self, stage: TrainedStage, directory: Path):
    self._stage, self._directory = stage, directory
    self._own = processes.own_folder(directory)
    if not processes.is_first():  # The first one's came with the run.
      buckets.fetch(self._own)
    self._pushes = buckets.Pushes(self._own)
    self._shown: dict[str, str] = {}
    self._goodput = Goodput(self._own)
    self._profiler = Profiler(
      stage.profile_steps, self._own / tensorboard.FOLDER
    )

  def run(self, params: Any, metadata: dict) -> Path:
    """Trains to the end and writes the weights; returns their path.

    Raises:
      Interrupted: a signal came; after SIGTERM a checkpoint is saved, of the
        last step or, where that takes too long, of the one before.
      Diverged: nothing was learnt of many steps in a row, or of too many.
      DiskFull: a checkpoint or metrics found no room.
    """
    stage, directory = self._stage, self._directory
    kept = lambda: ending.kept_checkpoint(directory)
    with ending.explained(stage.name, directory, kept):
      try:
        state = self._trained(params, metadata.get('config', {}))
      except Diverged as error:
        step = ending.latest_step(directory)
        stand = f' (the checkpoint of step {step} stands)' if step else ''
        raise type(error)(f'{error}{stand}') from error
      finally:  # However it ends, its last lines are in the bucket.
        with contextlib.suppress(UserError):
          self._pushes.now()
      self._goodput.lap('save')  # Checkpoints that are still being written.
      self._goodput.write()
      if summary := self._goodput.summary():
        _log.info('%s: %s', stage.name, summary)
      processes.from_first(lambda: stage.report(directory))
      with waits.told(f'{stage.name}: writing its weights'):
        return save_weights(  # Last: it says that all is there.
          directory,
          stage.policy(state),
          metadata | stage.metadata(state),
          stage.weights_dtype,
        )

  def _trained(self, params: Any, config: Mapping[str, Any]) -> Any:
    """Returns the state after the last step; trackers show the flat config."""
    stage, directory = self._stage, self._directory
    with (
      stage.resources(),
      stage.checkpoints(directory) as checkpoints,
      interrupts.deferred(patient=processes.several()) as deferral,
    ):
      with waits.told(f'{stage.name}: reading its newest checkpoint'):
        restored = checkpoints.restore(stage.abstract_state(params))
      self._goodput.resume(restored[0] if restored else 0)
      start, line = 0, Line()
      if restored:
        start, line = restored[0], Line(**restored[2]['line'])
      self._profiler.check(stage.name, start, stage.num_steps)
      last_line = start - line.is_due if restored else None
      with (
        MetricsWriter(
          self._own,
          last_line,
          trackers.opened(stage.tracking, directory, config, last_line),
        ) as writer,
        Progress(
          stage.name, start, stage.num_steps, stage.print_steps
        ) as progress,
      ):
        data = stage.data()
        if restored:
          state = restored[1]
          data.set_state(restored[2]['data'])
          progress.log(f'goes on after step {start}')
        else:
          state = self._initialise(params, writer, progress)
        loop = Loop(
          last=Step(start, state, data.get_state(), line),
          data=data,
          checkpoints=checkpoints,
          writer=writer,
          progress=progress,
          guard=divergence.guard_of(stage, restored, state),
          performance=Performance(stage.fp8),
          stragglers=Stragglers(stage.name),
          pushes=self._pushes,
        )
        self._goodput.lap('setup')
        progress.step_secs()
        self._make_steps(loop, deferral)
    return loop.last.state

  def _make_steps(self, loop: Loop, deferral: interrupts.Deferral):
    """Trains all steps after the last whole one."""
    stage, start = self._stage, loop.last.step
    first = f'{stage.name}: making step {start + 1}, the first of this process'
    try:
      if loop.last.line.is_due:
        self._log(loop)
      for step in range(start + 1, stage.num_steps + 1):
        self._profiler.before(step)
        # The first one compiles; the progress line shows the others.
        is_first = step == start + 1
        with waits.told(first) if is_first else contextlib.nullcontext():
          self._step(step, loop, deferral)
        self._profiler.after(step, loop.last.state)
      self._profiler.close()
      self._tell_best(loop.checkpoints, loop.progress)
    except interrupts.Interrupted:
      if deferral.signum and not deferral.patient:
        loop.save_if_there()
      raise

  def _step(self, step: int, loop: Loop, deferral: interrupts.Deferral):
    """Trains a step, and logs, evaluates and saves what is due after it."""
    stage, guard, goodput = self._stage, loop.guard, self._goodput
    goodput.lap('other')
    output = stage.train_step(loop.last.state, step, loop.data)
    secs = goodput.step(output.secs)
    # One assignment: a signal never meets a step with another one's position.
    loop.last = Step(
      step,
      output.state,
      loop.data.get_state(),
      loop.last.line.after(output.metrics),
    )
    loop.performance.add(output)
    guard.add(step, output.metrics)
    shown = self._log(loop)
    self._pushes.due()
    goodput.lap('other')
    agreed = agreement.check_step(
      step,
      output.metrics,
      loop.last.position,
      deferral.check(),
      output.own_secs,
    )
    goodput.lap('waiting')
    loop.stragglers.add(step, agreed.own_secs, secs)
    stops = agreed.signum
    saves = self._due(stage.save_steps, step) or stops
    if saves or guard.is_due or step == stage.num_steps:
      guard.check(stage.policy(output.state))
    if saves and guard.lost < 2:  # A step that learnt nothing is not kept.
      with self._untimed(loop, 'save'):
        loop.save(self._rating(step, loop.values))
      goodput.saved(step)
    if shown:
      loop.writer.write_performance(
        step, shown | goodput.shares() | loop.stragglers.metrics()
      )
      loop.stragglers.clear()
    if shown or saves:
      goodput.write()
    if stops and step < stage.num_steps:
      deferral.stop(stops)
    # After the last step it ends what would follow.
    deferral.signum = deferral.signum or stops

  def _tell_best(self, checkpoints: 'Checkpointer', progress: Progress):
    """Says which checkpoint is the best, where the config asks for it."""
    if best := checkpoints.best():
      progress.log(
        f'has its best {self._stage.metric_for_best_model}, {best[1]:.4g}, in '
        f'the checkpoint of step {best[0]}'
      )

  @contextlib.contextmanager
  def _untimed(self, loop: Loop, part: str):
    """Leaves what is done within out of the speed; it has its own part."""
    with loop.performance.untimed(loop.last.state, loop.progress):
      self._goodput.lap(performance.UPDATE)
      yield
      self._goodput.lap(part)

  def _initialise(
    self, params: Any, writer: MetricsWriter, progress: Progress
  ) -> Any:
    """Returns the first state, after an evaluation where there are any."""
    stage = self._stage
    state = stage.init_state(params)
    if stage.change_first_state:
      state = stage.change_first_state(state)
    if stage.eval_steps:
      progress.log('compiles, and evaluates the initial weights')
      self._goodput.lap('setup')
      values = self._evaluated(state, 0, writer)
      self._goodput.lap('evaluation')
      writer.write(0, values)
      if self._shown:
        shown = ', '.join(map(' '.join, self._shown.items()))
        progress.log(f'starts at {shown}')
    return state

  def _evaluated(
    self, state: Any, step: int, writer: MetricsWriter
  ) -> dict[str, float]:
    """Returns the metrics of what is held out, after a step; 0 for the start."""
    stage = self._stage
    with waits.told(f'{stage.name}: evaluating after step {step}'):
      values = stage.evaluate(state, step, self._own)
    writer.write_completions(step, stage.completions())
    self._shown = stage.headline(values)
    return values

  def _log(self, loop: Loop) -> dict[str, float]:
    """Writes the last step's line and evaluates, where the step asks for it.

    Returns:
      Speed, times and memory of the steps since the last line; {} without one.
    """
    stage, (step, state, _, line) = self._stage, loop.last
    values, shown = {}, {}
    logs = self._due(stage.logging_steps, step)
    evaluates = stage.eval_steps and self._due(stage.eval_steps, step)
    if logs:
      values = line.values() | stage.extra_metrics(state)
      self._goodput.lap(performance.UPDATE)  # The metrics come after it.
      shown = loop.performance.shown(loop.progress.step_secs())
      loop.performance.clear()
    if evaluates:
      with self._untimed(loop, 'evaluation'):
        values |= self._evaluated(state, step, loop.writer)
    if values:
      loop.writer.write(step, values)
      numbers = stage.progress_numbers(values, shown)
      numbers |= performance.progress_numbers(shown)
      loop.progress.update(step, numbers | self._shown, keep=bool(evaluates))
    loop.values = values
    loop.last = loop.last._replace(line=line.logged(logs))
    return shown

  def _rating(self, step: int, values: Mapping[str, float]) -> float | None:
    """Returns the metric that says which checkpoint is the best, if any does.

    Raises:
      UserError: a step that is evaluated and logged does not have it.
    """
    stage = self._stage
    name = stage.metric_for_best_model
    if not name or name in values:
      return values.get(name)
    if step % stage.save_steps == 0:
      raise unknown(f'{stage.name}.metric_for_best_model', name, values)
    return None

  def _due(self, every: int, step: int) -> bool:
    return step % every == 0 or step == self._stage.num_steps
