"""Process reward models: how likely a thought is to end well after each step."""

from pathlib import Path
from typing import Any

import numpy as np

from r1jax import registry
from r1jax.algos import prm
from r1jax.config.schema.preferences import PRMConfig
from r1jax.config.schema.run import RunConfig
from r1jax.model.transformer import Transformer
from r1jax.records import PackedRows
from r1jax.rewards.prm import KIND
from r1jax.stages.build import packing, prm_data
from r1jax.stages.build import parts as build
from r1jax.stages.build.abstract import packed_rows, train_state_of
from r1jax.stages.packed import PackedStage, check_scalar_head
from r1jax.stages.stage import Kind, Update
from r1jax.train import optimizer, prm_step

_UNTRAINED = ('mtp', 'head')


@registry.stage('prm')
class PRM(PackedStage):
  """Learns the labels that the stage label_steps has left."""

  section = PRMConfig
  takes = {
    'init': (Kind.POLICY, Kind.REWARD_MODEL, Kind.PRM),
    'prm.data': (Kind.STEP_LABELS,),
  }
  untrained = _UNTRAINED
  likelihoods = True

  def __init__(self, config: RunConfig, parts: build.Parts):
    _check(config, parts)
    shape = packing.example_row_shape(config, self.name, parts.model.layout)
    super().__init__(
      config, parts, prm_data.datasets(config, parts, shape), shape
    )
    self._probabilities = prm_step.probabilities(parts.model, shape)
    (self._update,) = self.update(
      config, parts.model.layout, num_updates=self.num_steps, model=parts.model
    )

  @classmethod
  def leaves(cls, config: RunConfig) -> Kind:
    return Kind.PRM

  @classmethod
  def reads(cls, config: RunConfig) -> dict[str, list[Path]]:
    return {'prm.data': prm_data.files(config.prm)}

  @classmethod
  def check(cls, config, parts, missing):
    _check(config, parts)
    build.check_files('prm.data', config.prm.data, missing)

  @classmethod
  def update(cls, config, layout, *, num_updates=1000, model=None):
    """Returns the program of a step; see Stage.update."""
    c = config.prm
    shape = packing.example_row_shape(config, cls.name, layout)
    model = model or Transformer(config.model, layout)
    tx = optimizer.make(c.optimizer, num_updates, untrained=_UNTRAINED)
    step = prm_step.process_reward_model(model, tx, c, shape)
    batch = packed_rows(layout, shape, labelled=True)
    arguments = (train_state_of(model, tx), batch)
    size = shape.microbatch_rows, shape.row_tokens, shape.max_microbatches
    return [Update('PRM', model, step, arguments, *size)]

  def rows(self, batch: PackedRows) -> PackedRows:
    return batch

  def update_on(self, state: Any, batch: PackedRows) -> tuple[Any, dict]:
    return self._update.step(state, batch)

  def evaluate(self, state: Any, step: int, directory: Path) -> dict:
    """Returns classification metrics of all steps that are held out."""
    del step, directory
    probability, label = [], []
    for rows in self.eval_batches():
      probability_BT = np.asarray(self._probabilities(state.params, rows))
      probability.append(probability_BT[rows.mask_BT])
      label.append(rows.label_BT[rows.mask_BT])
    metrics = prm.classification_metrics(
      np.concatenate(probability), np.concatenate(label)
    )
    return {f'eval/{name}': value for name, value in metrics.items()}

  def metadata(self, state: Any) -> dict:
    """Returns how its numbers are read: see rewards/prm.py."""
    c = self._config
    return {
      'scoring': {
        'kind': KIND,
        'delimiter': self._datasets.delimiter,
        'max_tokens': c.max_tokens,
        'batch_size': c.score_batch_size,
      }
    }


def _check(config: RunConfig, parts: build.Parts):
  """Refuses a config that cannot train, whatever is in its files."""
  check_scalar_head(config, 'prm')
  packing.example_row_shape(config, 'prm', parts.model.layout)
  prm_data.check(config)
