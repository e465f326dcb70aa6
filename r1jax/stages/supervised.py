"""Next-token pre-training on the synthetic web."""

from pathlib import Path

import jax
import ml_collections

from r1jax.data import batching
from r1jax.errors import UserError
from r1jax.model import transformer
from r1jax.model.moe import Balancing
from r1jax.stages import build, report
from r1jax.train import optimizer, state as train_state, step as train_step
from r1jax.train import weights
from r1jax.train.checkpoint import Checkpointer
from r1jax.train.metrics import MetricsWriter, Progress

NAME = 'pretrain'


class Pretrain:
  """Built and checked first, run after the workdir is claimed."""

  def __init__(self, config: ml_collections.ConfigDict, parts: build.Parts):
    self._config = config.pretrain
    self._seed = config.seed
    self._model = parts.model
    length, context = config.pretrain.length_tokens, config.model.max_context
    if length > context:
      raise UserError(f'pretrain.length_tokens = {length} exceeds '
                      f'model.max_context = {context}')
    self._corpus = build.corpus(config, parts)
    self._corpus.check()
    self._tx = optimizer.make(
        build.optimizer_config(config.pretrain), self._config.steps)

  def run(self, directory: Path, about: dict) -> Path:
    """Trains, or goes on from a checkpoint; returns the weights' file."""
    c, tx, model = self._config, self._tx, self._model
    layout = train_state.shardings(model, tx)
    data = batching.token_batches(self._corpus)
    with Checkpointer(directory / 'checkpoints', c.keep_checkpoints,
                      self._seed) as checkpoints:
      restored = checkpoints.restore(train_state.abstract(
          jax.eval_shape(self._init), tx, layout))
      if restored:
        start, state, position = restored
        data.set_state(position)
      else:
        start = 0
        state = jax.jit(lambda p: train_state.create(p, tx),
                        out_shardings=layout)(self._init())
      step_fn = train_step.supervised(
          model, tx, Balancing(c.balance_speed, c.balance_loss),
          train_step.LookAhead(c.mtp.weight, c.mtp.later_weight,
                               round(c.mtp.switch_share * c.steps)),
          c.microbatches)
      with (MetricsWriter(directory, start) as writer,
            Progress(NAME, start, c.steps, plain_every=100) as progress):
        if start:
          progress.tell(f'goes on after step {start}')
        tokens, skipped = 0, 0.0
        for step in range(start + 1, c.steps + 1):
          batch = next(data)
          state, metrics = step_fn(state, batch)
          tokens += batch.weight_BT.sum()
          skipped += metrics['skipped_updates']
          if step % c.log_every == 0 or step == c.steps:
            metrics = jax.device_get(metrics | {'skipped_updates': skipped})
            rate = tokens / progress.step_secs()
            writer.write(step, metrics, {'speed/tokens_per_sec': rate})
            progress.update(step, {
                'loss': f"{metrics['loss']:.4f}", 'tok/s': f'{rate:,.0f}'})
            tokens, skipped = 0, 0.0
          if step % c.checkpoint_every == 0 or step == c.steps:
            checkpoints.save(step, state, data.get_state())
    report.write_loss(directory)
    path = directory / 'model.safetensors'  # Last: it says that all is there.
    weights.save(path, state.params, 'bfloat16', about)
    return path

  def _init(self):
    return transformer.init_params(self._model, jax.random.key(self._seed))
