"""Next-token prediction: pre-training and fine-tuning share this stage."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from r1jax.config.schema.run import RunConfig
from r1jax.config.schema.training import PretrainConfig, SFTConfig
from r1jax.data import batching
from r1jax.errors import UserError
from r1jax.model import model_flops
from r1jax.model.transformer import Transformer
from r1jax.records import TokenBatch
from r1jax.sharding import Layout
from r1jax.stages import report
from r1jax.stages.build import parts as build
from r1jax.stages.build.abstract import arrays, train_state_of
from r1jax.stages.performance import UPDATE, Work
from r1jax.stages.stage import Network, Update
from r1jax.stages.trainer import StepOutput, TrainedStage
from r1jax.train import mtp_loss, optimizer, supervised_step
from r1jax.train import state as train_state
from r1jax.train.metrics import Stopwatch


class NextTokenStage(TrainedStage):
  """One update for each batch of packed documents."""

  label = ''
  likelihoods = True

  def __init__(
    self,
    config: RunConfig,
    parts: build.Parts,
    corpus: Sequence[TokenBatch],
    distillation: supervised_step.Distillation | None = None,
  ):
    c = _section(config, self.name)
    self.seed, self.num_steps = config.seed, len(corpus)
    self.logging_steps = c.logging_steps
    self.set_checkpoints(c)
    build.check_warmup(config, self.name, self.num_steps)
    self._corpus = corpus
    self._model = parts.model
    self.fp8 = config.model.fp8
    self._info = model_flops.count(config.model)
    teacher = distillation and distillation.teacher
    self._teacher_info = teacher and model_flops.count(teacher.config)
    self._tx = optimizer.make(c.optimizer, self.num_steps)
    (self._update,) = self.update(
      config,
      parts.model.layout,
      num_updates=self.num_steps,
      distillation=distillation,
      model=parts.model,
    )
    self._teacher_params = None
    self._shardings = train_state.shardings(self._model, self._tx)

  @classmethod
  def networks(cls, config: RunConfig) -> list[Network]:
    return [Network('', config.model, _section(config, cls.name).optimizer)]

  @classmethod
  def update(
    cls,
    config: RunConfig,
    layout: Layout,
    *,
    num_updates: int = 1000,
    distillation: supervised_step.Distillation | None = None,
    model: Transformer | None = None,
  ) -> list[Update]:
    """Returns the one program of a step; see Stage.update.

    Args:
      config: The run.
      layout: The mesh and its tables.
      num_updates: Updates of the whole run, for the schedules.
      distillation: How a teacher is followed; None for the text alone.
      model: The model where it is built already.
    """
    c = _section(config, cls.name)
    build.divides(
      f'{cls.name}.batch_size',
      c.batch_size,
      c.gradient_accumulation_steps,
      layout,
    )
    layout.check_row(f'{cls.name}.length_tokens', c.length_tokens)
    model = model or Transformer(config.model, layout)
    tx = optimizer.make(c.optimizer, num_updates)
    step = supervised_step.supervised(
      model,
      tx,
      c,
      mtp_loss.MTPLoss(
        c.mtp.loss_weight,
        c.mtp.final_loss_weight,
        round(c.mtp.switch_fraction * num_updates),
      ),
      c.gradient_accumulation_steps,
      distillation,
    )
    array = arrays(layout, c.batch_size, c.length_tokens)
    batch = TokenBatch(
      tokens_BT=array('BT', jnp.int32),
      target_BT=array('BT', jnp.int32),
      weight_BT=array('BT', jnp.float32),
      segment_BT=array('BT', jnp.int32),
      position_BT=array('BT', jnp.int32),
    )
    return [
      Update(
        cls.label,
        model,
        step,
        (train_state_of(model, tx), batch),
        c.batch_size,
        c.length_tokens,
        accumulation_steps=c.gradient_accumulation_steps,
      )
    ]

  def data(self) -> Any:
    return batching.token_batches(self._corpus)

  def init_state(self, params: Any) -> train_state.TrainState:
    return jax.jit(
      lambda p: train_state.create(p, self._tx), out_shardings=self._shardings
    )(params)

  def abstract_state(self, params: Any) -> train_state.TrainState:
    return train_state.abstract(params, self._tx, self._shardings)

  def train_step(self, state: Any, step: int, data: Any) -> StepOutput:
    del step
    watch = Stopwatch()
    batch = next(data)
    data_secs = {'data': watch.lap('data')}
    state, metrics = self._update.step(state, batch, self._teacher_params)
    counts = model_flops.counts_of_rows(
      batch.segment_BT, batch.position_BT, batch.weight_BT > 0
    )
    flops = self._info.training(counts)
    if self._teacher_info:
      flops += self._teacher_info.forward(counts)
    watch.lap(UPDATE)  # The device may still be at it.
    return StepOutput(
      state,
      metrics,
      {'tokens': float(counts.predicted_tokens)},
      secs={name: s for name, s in watch.secs.items() if name != UPDATE},
      own_secs=data_secs,
      work={UPDATE: Work(counts.tokens, flops)},
    )

  def policy(self, state: Any) -> Any:
    return state.params

  def report(self, directory: Path):
    report.write_loss(directory)


def check_length(config: RunConfig, name: str):
  """Refuses rows that are longer than the model's context."""
  length = _section(config, name).length_tokens
  context = config.model.max_position_embeddings
  if length > context:
    raise UserError(
      f'{name}.length_tokens = {length} exceeds '
      f'model.max_position_embeddings = {context}'
    )


def _section(config: RunConfig, name: str) -> PretrainConfig | SFTConfig:
  return getattr(config, name)
