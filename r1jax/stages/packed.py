"""Stages that learn from packed sequences and measure what is held out."""

import abc
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from r1jax.config.schema.run import RunConfig
from r1jax.data import batching, sample_packing
from r1jax.data.sample_packing import RowShape
from r1jax.errors import UserError
from r1jax.model import model_flops
from r1jax.model.model_flops import TokenCounts
from r1jax.records import PackedRows
from r1jax.stages import report
from r1jax.stages.build import parts as build
from r1jax.stages.performance import UPDATE, Work
from r1jax.stages.stage import Network
from r1jax.stages.trainer import StepOutput, TrainedStage
from r1jax.train import optimizer
from r1jax.train import state as train_state
from r1jax.train.metrics import Stopwatch


class PackedStage(TrainedStage):
  """A few passes over examples, an update for each batch.

  Evaluation data are measured before, now and then, and after.

  Attributes:
    untrained: Parts of the model that get no gradient.
    predicts: Whether tokens are predicted, as by a policy; else the output head
      is not used.
  """

  untrained: tuple[str, ...]
  predicts: ClassVar[bool] = False

  def __init__(
    self, config: RunConfig, parts: build.Parts, datasets: Any, shape: RowShape
  ):
    """Builds the stage.

    Args:
      config: The run.
      parts: Its model, tokenizer and template.
      datasets: Sequences of batches, `train` and `eval`.
      shape: Shape of their rows.
    """
    c = self.section_of(config)
    self.seed, self.num_steps = config.seed, len(datasets.train)
    self.logging_steps, self.eval_steps = c.logging_steps, c.eval_steps
    self.set_checkpoints(c)
    build.check_warmup(config, self.name, self.num_steps)
    self._config, self._datasets, self._model = c, datasets, parts.model
    self._shape = shape
    self.fp8 = config.model.fp8
    self.info = model_flops.count(config.model)
    self._tx = optimizer.make(
      c.optimizer, self.num_steps, untrained=self.untrained
    )
    self._base_params: Any = None

  @classmethod
  def section_of(cls, config: RunConfig) -> Any:
    """Returns the stage's section of a run."""
    return getattr(config, cls.name)

  @classmethod
  def networks(cls, config: RunConfig) -> list[Network]:
    return [Network('', config.model, cls.section_of(config).optimizer)]

  def run(self, directory: Path, params: Any, metadata: dict) -> Path:
    self._base_params = params
    return super().run(directory, params, metadata)

  def data(self) -> Any:
    return batching.token_batches(self._datasets.train)

  def init_state(self, params: Any) -> Any:
    copied = jax.tree.map(jnp.copy, params)  # A step consumes its state.
    return jax.jit(self.fresh_state, out_shardings=self.shardings())(copied)

  def abstract_state(self, params: Any) -> Any:
    return jax.tree.map(
      lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
      jax.eval_shape(self.fresh_state, params),
      self.shardings(),
    )

  def shardings(self) -> Any:
    """Returns the shardings of the state."""
    return train_state.shardings(self._model, self._tx)

  def fresh_state(self, params: Any) -> Any:
    """Returns the state before the first step."""
    return train_state.create(params, self._tx)

  def train_step(self, state: Any, step: int, data: Any) -> StepOutput:
    del step
    watch = Stopwatch()
    batch = next(data)
    data_secs = {'data': watch.lap('data')}
    state, metrics = self.update_on(state, batch)
    rows = self.rows(batch)
    metrics['packing/efficiency'] = sample_packing.efficiency(rows, self._shape)
    counts = model_flops.counts_of_rows(
      rows.segment_BT, rows.position_BT, rows.mask_BT & self.predicts
    )
    watch.lap(UPDATE)  # The device may still be at it.
    return StepOutput(
      state,
      metrics,
      {},
      secs={name: s for name, s in watch.secs.items() if name != UPDATE},
      own_secs=data_secs,
      work={UPDATE: Work(counts.tokens, self.update_flops(counts))},
    )

  def update_flops(self, counts: TokenCounts) -> float:
    """Returns the model FLOPs of an update on so many tokens."""
    return self.info.training(counts)

  @abc.abstractmethod
  def update_on(self, state: Any, batch: Any) -> tuple[Any, dict]:
    """Returns the state after a batch, and metrics."""

  def rows(self, batch: Any) -> PackedRows:
    """Returns the packed rows of a batch."""
    return batch.rows

  def policy(self, state: Any) -> Any:
    return state.params

  def headline(self, values: dict) -> dict[str, str]:
    return {'accuracy': f'{values["eval/accuracy"]:.3f}'}

  def report(self, directory: Path):
    report.write_preferences(directory)

  def eval_batches(self) -> Iterator[Any]:
    """Yields the batches that are held out."""
    held_out = self._datasets.eval
    return (held_out[i] for i in range(len(held_out)))


def check_scalar_head(config: RunConfig, name: str):
  """Refuses a model without the head that gives scores."""
  if not config.model.scalar_head:
    raise UserError(
      f'{name}: model.scalar_head is False; a score is the output of a scalar '
      'head: set it'
    )
