"""The part that reward models and DPO share: preferences and their accuracy."""

import abc
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from r1jax.algos import common
from r1jax.config.schema.run import RunConfig
from r1jax.data.preference_batches import LabelledBatch, PairBatch
from r1jax.data.sample_packing import RowShape
from r1jax.sharding import Layout
from r1jax.stages.build import preference_data
from r1jax.stages.build.abstract import packed_rows
from r1jax.stages.packed import PackedStage


class PreferenceStage(PackedStage):
  """Learns from preferences; measured by how many it ranks right."""

  @classmethod
  def reads(cls, config: RunConfig) -> dict[str, list[Path]]:
    return {
      f'{cls.name}.{key}': files
      for key, files in preference_data.files(cls.section_of(config)).items()
    }

  @abc.abstractmethod
  def margins(self, state: Any, batch: PairBatch | LabelledBatch) -> np.ndarray:
    """Returns by how much each example of a batch is ranked right."""

  def evaluate(self, state: Any, step: int, directory: Path) -> dict:
    """Returns accuracies on what is held out: of all, by group, the worst."""
    del step, directory
    rights: list[np.ndarray] = []
    groups: list[np.ndarray] = []
    for batch in self.eval_batches():
      rights.append(common.pairwise_accuracy(self.margins(state, batch)))
      groups.append(_group(batch))
    right, group = self.of_examples(rights), self.of_examples(groups)
    metrics = {
      'eval/accuracy': right.mean(),
      'eval/accuracy_stderr': right.std() / np.sqrt(len(right)),
    }
    by_group = {
      name: right[group == i].mean()
      for i, name in enumerate(self._datasets.names)
      if (group == i).any()
    }
    if len(by_group) > 1:
      metrics |= {
        f'eval/accuracy/{name}': value for name, value in by_group.items()
      }
      metrics['eval/worst_group'] = min(by_group.values())
    return {name: float(value) for name, value in metrics.items()}

  def of_examples(self, values: list) -> np.ndarray:
    """Joins values of the batches, without those that fill the last one."""
    weights = [example_weight(batch) for batch in self.eval_batches()]
    return np.concatenate(values)[np.concatenate(weights) > 0]


def abstract_batch(
  layout: Layout, shape: RowShape, labelled: bool = False
) -> PairBatch | LabelledBatch:
  """Returns the largest batch of a stage as shapes and shardings.

  Args:
    layout: The mesh.
    shape: Shape of the rows; its samples are the examples.
    labelled: Whether examples are single labelled responses, not pairs.
  """
  rows = packed_rows(layout, shape)

  def one(dtype):
    return jax.ShapeDtypeStruct(
      (shape.num_samples,), dtype, sharding=layout.replicated()
    )

  if labelled:
    return LabelledBatch(
      rows=rows,
      safe_B=one(jnp.float32),
      weight_B=one(jnp.float32),
      group_B=one(jnp.int32),
    )
  return PairBatch(rows=rows, weight_P=one(jnp.float32), group_P=one(jnp.int32))


def example_weight(batch: PairBatch | LabelledBatch) -> np.ndarray:
  """Returns the weight of each example; 0 for one that fills the batch."""
  return batch.weight_P if isinstance(batch, PairBatch) else batch.weight_B


def _group(batch: PairBatch | LabelledBatch) -> np.ndarray:
  return batch.group_P if isinstance(batch, PairBatch) else batch.group_B
