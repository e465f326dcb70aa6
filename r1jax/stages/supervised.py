"""Next-token prediction: pre-training on the synthetic web, and fine-tuning on
demonstrations (SFT, and with a teacher distillation)."""

from collections.abc import Sequence
from pathlib import Path

import jax
import ml_collections

from r1jax.checkpoints import weights
from r1jax.data import batching
from r1jax.errors import UserError
from r1jax.model.moe import LoadBalancing
from r1jax.records import TokenBatch
from r1jax.stages import report
from r1jax.stages.build import parts as build
from r1jax.stages.build import sft_data
from r1jax.stages.stage import OUTPUT, Stage
from r1jax.train import mtp_loss, optimizer, supervised_step
from r1jax.train import state as train_state
from r1jax.train.checkpoint import Checkpointer
from r1jax.train.metrics import MetricsWriter, Progress


class _Supervised(Stage):
  """One pass over the batches of a corpus, an update each."""

  def __init__(
    self,
    config: ml_collections.ConfigDict,
    parts: build.Parts,
    corpus: Sequence[TokenBatch],
    distillation: supervised_step.Distillation | None = None,
  ):
    c = self._config = config[self.name]
    self._seed, self._model, self._corpus = config.seed, parts.model, corpus
    self._steps, self._distillation = len(corpus), distillation
    self._tx = optimizer.make(build.optimizer_config(c), self._steps)

  def run(self, directory: Path, base_params, about: dict) -> Path:
    """Trains, or goes on from a checkpoint; returns the weights' file."""
    c, tx, model = self._config, self._tx, self._model
    layout = train_state.shardings(model, tx)
    teacher_params = self._teacher_params()
    data = batching.token_batches(self._corpus)
    with Checkpointer(
      directory / 'checkpoints', c.save_total_limit, self._seed
    ) as checkpoints:
      restored = checkpoints.restore(
        train_state.abstract(base_params, tx, layout)
      )
      if restored:
        start, state, position = restored
        data.set_state(position)
      else:
        start = 0
        state = jax.jit(
          lambda p: train_state.create(p, tx), out_shardings=layout
        )(base_params)
      step_fn = supervised_step.supervised(
        model,
        tx,
        LoadBalancing(c.routed_bias_update_rate, c.router_aux_loss_coef),
        mtp_loss.MTPLoss(
          c.mtp.loss_weight,
          c.mtp.final_loss_weight,
          round(c.mtp.switch_fraction * self._steps),
        ),
        c.gradient_accumulation_steps,
        self._distillation,
      )
      with (
        MetricsWriter(directory, start) as writer,
        Progress(self.name, start, self._steps, print_steps=100) as progress,
      ):
        if start:
          progress.log(f'goes on after step {start}')
        tokens, skipped = 0, 0.0
        for step in range(start + 1, self._steps + 1):
          batch = next(data)
          state, metrics = step_fn(state, batch, teacher_params)
          tokens += (batch.weight_BT > 0).sum()
          skipped += metrics['skipped_updates']
          if step % c.logging_steps == 0 or step == self._steps:
            metrics = jax.device_get(metrics | {'skipped_updates': skipped})
            rate = tokens / progress.step_secs()
            writer.write(step, metrics, {'speed/tokens_per_sec': rate})
            progress.update(
              step, {'loss': f'{metrics["loss"]:.4f}', 'tok/s': f'{rate:,.0f}'}
            )
            tokens, skipped = 0, 0.0
          if step % c.save_steps == 0 or step == self._steps:
            checkpoints.save(step, state, data.get_state())
    report.write_loss(directory)
    path = directory / OUTPUT  # Last: it says that all is there.
    weights.save(path, state.params, self.dtype, about)
    return path

  def _teacher_params(self):
    return None


class Pretrain(_Supervised):
  """On noisy documents that are made as they are read."""

  name = 'pretrain'
  fresh = True
  dtype = 'bfloat16'  # What the next stage reads.

  def __init__(self, config: ml_collections.ConfigDict, parts: build.Parts):
    _check_length(config, self.name)
    corpus = build.corpus(config, parts)
    corpus.check()
    super().__init__(config, parts, corpus)


class SFT(_Supervised):
  """On demonstrations, packed; only responses are learnt."""

  name = 'sft'
  dtype = 'float32'

  def __init__(self, config: ml_collections.ConfigDict, parts: build.Parts):
    _check_length(config, self.name)
    sft_data.check(config, parts)
    self._path = config.sft.teacher_model
    distillation = sft_data.distillation(config, parts)
    super().__init__(
      config, parts, sft_data.demonstrations(config, parts), distillation
    )

  @classmethod
  def check(cls, config, parts, missing):
    _check_length(config, cls.name)
    sft_data.check(config, parts)
    build.check_files('sft.data', config.sft.data, missing)
    if 'sft.teacher_model' not in missing:
      sft_data.distillation(config, parts)

  def _teacher_params(self):
    if not (self._distillation and self._distillation.teacher):
      return None
    return weights.load(Path(self._path), self._distillation.teacher)


def _check_length(config: ml_collections.ConfigDict, name: str):
  length, context = (
    config[name].length_tokens,
    config.model.max_position_embeddings,
  )
  if length > context:
    raise UserError(
      f'{name}.length_tokens = {length} exceeds '
      f'model.max_position_embeddings = {context}'
    )
