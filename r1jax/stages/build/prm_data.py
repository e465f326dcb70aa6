"""The dataset of process reward models: thoughts whose steps are labelled."""

import logging
from pathlib import Path
from typing import NamedTuple
import zlib

from r1jax.config.schema.preferences import PRMConfig
from r1jax.config.schema.run import RunConfig
from r1jax.data import readers, step_labels
from r1jax.data.quarantine import Quarantine
from r1jax.data.sample_packing import RowShape
from r1jax.data.step_labels import StepLabelBatches, StepLabelledResponse
from r1jax.errors import UserError
from r1jax.stages.build import parts as build

_log = logging.getLogger(__name__)


class PRMDatasets(NamedTuple):
  """Batches of thoughts.

  Attributes:
    train: Batches to learn from.
    eval: Batches to evaluate on, of other questions.
    delimiter: The text that ends a step.
  """

  train: StepLabelBatches
  eval: StepLabelBatches
  delimiter: str


def check(config: RunConfig):
  """Refuses a config.prm that names no data."""
  if not config.prm.data:
    raise UserError('prm: data names no labelled steps to learn from')


def datasets(
  config: RunConfig, parts: build.Parts, shape: RowShape
) -> PRMDatasets:
  """Reads config.prm.data and splits it by question.

  Args:
    config: The run.
    parts: Its tokenizer.
    shape: Shape of the rows of a batch.

  Raises:
    UserError: bad data, or none.
  """
  c = config.prm
  quarantine = Quarantine(config.data.max_bad_row_share)
  rows = [
    row
    for path in c.data
    for row in step_labels.read(
      path, parts.tokenizer, c.labels, c.max_tokens, quarantine
    )
  ]
  total = len(rows) + len(quarantine.dropped)
  if summary := quarantine.finish('prm.data', total):
    _log.info('%s', summary)
  if not rows:
    raise UserError(f'prm: data: no rows in {", ".join(c.data)}')
  delimiters = sorted({row.delimiter for row in rows})
  if len(delimiters) > 1 or not delimiters[0]:
    raise UserError(
      'prm: data: the provenance of all rows must name one delimiter; they '
      f'have {delimiters}'
    )
  splits: tuple[list[StepLabelledResponse], list[StepLabelledResponse]]
  splits = [], []
  for row in rows:
    splits[_is_held_out(row.question, c.eval_share)].append(row)
  for split, purpose in zip(splits, ('to learn from', 'to evaluate on')):
    if not split:
      raise UserError(
        f'prm: eval_share = {c.eval_share} leaves no question {purpose}'
      )
  return PRMDatasets(
    StepLabelBatches(splits[0], shape, config.seed, c.num_train_epochs),
    StepLabelBatches(splits[1], shape, shuffle=False),
    delimiters[0],
  )


def _is_held_out(question: str, share: float) -> bool:
  """Decides by a question's hash, so that it is never on both sides."""
  return zlib.crc32(f'steps: {question}'.encode()) < share * (1 << 32)


def files(c: PRMConfig) -> list[Path]:
  """Returns the files that config.prm.data names."""
  return [file for path in c.data for file in readers.files(path)]
