"""Process reward models: what the stage label_steps has found out of steps,
learnt by a scalar head."""

from pathlib import Path
from typing import NamedTuple
import zlib

import ml_collections
import numpy as np

from r1jax.algos import prm as process
from r1jax.data import readers, step_labels
from r1jax.data.quarantine import Quarantine
from r1jax.data.step_labels import StepLabelBatches, StepLabelledResponse
from r1jax.errors import UserError, unknown
from r1jax.rewards.prm import KIND
from r1jax.stages.build import parts as build
from r1jax.stages.measured import Measured
from r1jax.train import prm_step
from r1jax.train import state as train_state


class Lessons(NamedTuple):
  """Batches to learn from, and those held out."""

  train: StepLabelBatches
  held_out: StepLabelBatches
  delimiter: str


class PRM(Measured):
  """Says after each step of a thought how likely it is to end well."""

  name = 'prm'
  leaves_policy = False

  def __init__(self, config: ml_collections.ConfigDict, parts: build.Parts):
    _check(config, parts)
    super().__init__(
      config, parts, lessons(config, parts), untrained=('mtp', 'head')
    )
    c = self._config
    self._chances = prm_step.probabilities(parts.model)
    self._update = prm_step.process_reward_model(
      parts.model, self._tx, self._balancing, c.gradient_accumulation_steps
    )

  @classmethod
  def check(cls, config, parts, missing):
    _check(config, parts)
    build.check_files('prm.data', config.prm.data, missing)

  def _shardings(self):
    return train_state.shardings(self._model, self._tx)

  def _fresh(self, params):
    return train_state.create(params, self._tx)

  def _step(self, state, batch, base_params):
    return self._update(state, batch)

  def _train(self, state) -> train_state.TrainState:
    return state

  def _about(self, state) -> dict:
    """How its numbers are read: what rewards.prm.ProcessScoringConfig holds."""
    c = self._config
    return {
      'scoring': {
        'kind': KIND,
        'delimiter': self._lessons.delimiter,
        'max_tokens': c.length_buckets[-1],
        'batch_size': c.score_batch_size,
      }
    }

  def _evaluated(self, state, base_params) -> dict[str, float]:
    """process.classification_metrics of all steps that are held out."""
    chance, label = [], []
    for batch in self._batches():
      ends_BT = batch.weight_BT > 0
      chance_BT = np.asarray(
        self._chances(state.params, batch.tokens_BT, batch.valid_BT)
      )
      chance.append(chance_BT[ends_BT])
      label.append(batch.label_BT[ends_BT])
    found = process.classification_metrics(
      np.concatenate(chance), np.concatenate(label)
    )
    return {f'eval/{name}': value for name, value in found.items()}


def _check(config: ml_collections.ConfigDict, parts: build.Parts):
  """What the numbers of config.prm need, whatever it learns from."""
  c = config.prm
  if not config.model.scalar_head:
    raise UserError(
      'prm: model.scalar_head is False; a chance is what a '
      'scalar head says: set it'
    )
  build.divides(
    'prm.batch_size',
    c.batch_size,
    c.gradient_accumulation_steps,
    parts.model.layout,
  )
  build.widths('prm', c.length_buckets, config.model.max_position_embeddings)
  if not c.data:
    raise UserError('prm: data names no labelled steps to learn from')
  if c.labels not in process.LABELS:
    raise unknown('prm: labels', c.labels, process.LABELS)
  if not 0 < c.eval_share < 1:
    raise UserError(
      f'prm: eval_share must lie within (0, 1), got {c.eval_share}'
    )


def lessons(config: ml_collections.ConfigDict, made: build.Parts) -> Lessons:
  """What config.prm says, whose numbers are checked.

  Raises:
    UserError: bad data, or none.
  """
  c, widths = config.prm, tuple(config.prm.length_buckets)
  quarantine = Quarantine(config.data.max_bad_row_share)
  found = [
    thought
    for path in c.data
    for thought in step_labels.read(
      path, made.tokenizer, c.labels, widths[-1], quarantine
    )
  ]
  total = len(found) + len(quarantine.dropped)
  if told := quarantine.finish('prm.data', total):
    print(told)
  if not found:
    raise UserError(f'prm: data: no rows in {", ".join(c.data)}')
  delimiters = sorted({thought.delimiter for thought in found})
  if len(delimiters) > 1 or not delimiters[0]:
    raise UserError(
      'prm: data: the provenance of all rows must name one '
      f'delimiter; they have {delimiters}'
    )
  sides: tuple[list[StepLabelledResponse], list[StepLabelledResponse]] = [], []
  for thought in found:
    sides[_held_out(thought.question, c.eval_share)].append(thought)
  for side, said in zip(sides, ('to learn from', 'to evaluate on')):
    if not side:
      raise UserError(
        f'prm: eval_share = {c.eval_share} leaves no question {said}'
      )
  shape = c.batch_size, widths, made.tokenizer.pad_id
  return Lessons(
    StepLabelBatches(sides[0], *shape, config.seed, c.num_train_epochs),
    StepLabelBatches(sides[1], *shape, shuffle=False),
    delimiters[0],
  )


def _held_out(question: str, share: float) -> bool:
  """By its hash, so that a question is never on both sides."""
  return zlib.crc32(f'steps: {question}'.encode()) < share * (1 << 32)


def files(section: ml_collections.ConfigDict) -> list[Path]:
  """What `data` of the section stands for."""
  return [file for path in section.data for file in readers.files(path)]
