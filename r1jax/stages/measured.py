"""Stages that learn from examples and measure what is held out of them."""

import abc
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

from r1jax.checkpoints import weights
from r1jax.data import batching
from r1jax.model.moe import LoadBalancing
from r1jax.stages import report
from r1jax.stages.build import parts as build
from r1jax.stages.stage import OUTPUT, Stage
from r1jax.train import optimizer
from r1jax.train import state as train_state
from r1jax.train.checkpoint import Checkpointer
from r1jax.train.metrics import MetricsWriter, Progress


class Measured(Stage):
  """A few passes over examples, an update each batch, and what is held out
  measured before, now and then, and after."""

  def __init__(
    self,
    config: ml_collections.ConfigDict,
    parts: build.Parts,
    lessons: Any,
    untrained: tuple[str, ...],
  ):
    """Args:
    config: Of the run.
    parts: Its parts.
    lessons: Sequences of batches, `train` and `held_out`.
    untrained: Parts of the model that get no gradient.
    """
    c = self._config = config[self.name]
    self._seed, self._model, self._lessons = config.seed, parts.model, lessons
    self._steps = len(lessons.train)
    self._tx = optimizer.make(
      build.optimizer_config(c), self._steps, untrained=untrained
    )
    self._balancing = LoadBalancing(
      c.routed_bias_update_rate, c.router_aux_loss_coef
    )

  def run(self, directory: Path, base_params, about: dict) -> Path:
    """Trains, or goes on from a checkpoint; returns the weights' file."""
    c = self._config
    data = batching.token_batches(self._lessons.train)
    layout = self._shardings()
    with Checkpointer(
      directory / 'checkpoints', c.save_total_limit, self._seed
    ) as checkpoints:
      restored = checkpoints.restore(
        jax.tree.map(
          lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
          jax.eval_shape(self._fresh, base_params),
          layout,
        )
      )
      start = restored[0] if restored else 0
      with (
        MetricsWriter(directory, start) as writer,
        Progress(self.name, start, self._steps, print_steps=100) as progress,
      ):
        if restored:
          _, state, position = restored
          data.set_state(position)
          progress.log(f'goes on after step {start}')
          shown = {}
        else:
          state = jax.jit(self._fresh, out_shardings=layout)(
            jax.tree.map(jnp.copy, base_params)
          )  # A step takes its state.
          found = self._evaluated(state, base_params)
          writer.write(0, found)
          shown = {'accuracy': f'{found["eval/accuracy"]:.3f}'}
          progress.log(f'starts at accuracy {shown["accuracy"]}')
        for step in range(start + 1, self._steps + 1):
          batch = next(data)
          state, metrics = self._step(state, batch, base_params)
          last = step == self._steps
          values = {}
          if step % c.logging_steps == 0 or last:
            values |= jax.device_get(metrics) | self._told(state)
            # All so far, those between two lines too.
            values['skipped_updates'] = step - int(self._train(state).updates)
          if step % c.eval_steps == 0 or last:
            values |= self._evaluated(state, base_params)
            shown |= {'accuracy': f'{values["eval/accuracy"]:.3f}'}
          if values:
            writer.write(step, values)
          if 'loss' in values:
            shown |= {'loss': f'{values["loss"]:.4f}'}
          progress.update(step, shown, keep='eval/accuracy' in values)
          if step % c.save_steps == 0 or last:
            checkpoints.save(step, state, data.get_state())
    report.write_preferences(directory)
    path = directory / OUTPUT  # Last: it says that all is there.
    weights.save(
      path, self._train(state).params, 'float32', about | self._about(state)
    )
    return path

  @abc.abstractmethod
  def _shardings(self):
    """Of the state."""

  @abc.abstractmethod
  def _fresh(self, params):
    """The state before the first step."""

  @abc.abstractmethod
  def _step(self, state, batch, base_params):
    """The state after a batch, and metrics."""

  @abc.abstractmethod
  def _train(self, state) -> train_state.TrainState:
    """Parameters and optimiser in it."""

  @abc.abstractmethod
  def _evaluated(self, state, base_params) -> dict[str, float]:
    """Of what is held out: 'eval/accuracy', its '_stderr', and others."""

  def _about(self, state) -> dict:
    """What the weights' file says besides."""
    return {}

  def _told(self, state) -> dict[str, float]:
    """What a step tells besides its metrics."""
    return {}

  def _batches(self):
    held_out = self._lessons.held_out
    return (held_out[i] for i in range(len(held_out)))
