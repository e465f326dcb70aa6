"""The datasets of reward models and DPO: preferences, and those held out."""

from collections.abc import Callable, Collection
import logging
from pathlib import Path
from typing import Any, NamedTuple

from r1jax import registry
from r1jax.config.schema.preferences import PreferencesConfig
from r1jax.config.schema.run import RunConfig
from r1jax.data import mixture, preference_batches, preferences, readers, splits
from r1jax.data.preference_batches import PreferenceBatches, PreferenceExample
from r1jax.data.preferences import Preference
from r1jax.data.quarantine import Quarantine
from r1jax.data.sample_packing import RowShape
from r1jax.errors import UserError
from r1jax.stages.build import packing
from r1jax.stages.build import parts as build

_log = logging.getLogger(__name__)


class PreferenceDatasets(NamedTuple):
  """Batches of preferences.

  Attributes:
    train: Batches to learn from.
    eval: Batches to evaluate on, in the order of the rows.
    groups: Number of training examples of each group. The group indices of
      batches count these first, and then groups that are held out alone.
    names: Names of all groups.
  """

  train: PreferenceBatches
  eval: PreferenceBatches
  groups: dict[str, int]
  names: tuple[str, ...]


def datasets(
  config: RunConfig,
  parts: build.Parts,
  name: str,
  shape: RowShape,
  tokenise: Callable[[list[Any], Quarantine], list[PreferenceExample]],
  labelled: bool = False,
) -> PreferenceDatasets:
  """Reads the data of a stage that learns from preferences.

  Args:
    config: The run.
    parts: Its tokenizer and template.
    name: The stage.
    shape: Shape of the rows of a batch.
    tokenise: Makes examples of preferences; bad ones go to the quarantine.
    labelled: Whether examples are single labelled responses, not pairs.

  Raises:
    UserError: bad data, or none.
  """
  c: PreferencesConfig = getattr(config, name)
  check(config, parts, name)
  quarantine = Quarantine(config.data.max_bad_row_share)
  rows = _Rows(config, name, parts, labelled, quarantine)
  train, held_out = rows.all()
  total = len(train) + len(held_out) + len(quarantine.dropped)
  examples, eval_examples = (
    tokenise(split, quarantine) for split in (train, held_out)
  )
  if summary := quarantine.finish(f'{name}.data', total):
    _log.info('%s', summary)
  if not examples:
    raise UserError(
      f'{name}: data: no rows to learn from in {", ".join(c.data)}'
    )
  if not eval_examples:
    raise UserError(
      f'{name}: no row is held out to evaluate on; raise {name}.eval_share, or '
      f'name some in {name}.eval_data'
    )
  groups = preference_batches.group_sizes(examples)
  names = (
    *groups,
    *(
      group
      for group in preference_batches.group_sizes(eval_examples)
      if group not in groups
    ),
  )
  return PreferenceDatasets(
    PreferenceBatches(examples, names, shape, config.seed, c.num_train_epochs),
    PreferenceBatches(eval_examples, names, shape, shuffle=False),
    groups,
    names,
  )


def check(
  config: RunConfig,
  parts: build.Parts,
  name: str,
  missing: Collection[str] = (),
):
  """Refuses a stage's section that is wrong whatever its files hold.

  Args:
    config: The run.
    parts: Its model.
    name: The stage.
    missing: Entries of its lists that other stages are still to write.

  Raises:
    UserError: naming the key.
  """
  c: PreferencesConfig = getattr(config, name)
  packing.example_row_shape(config, name, parts.model.layout)
  if not c.data:
    raise UserError(f'{name}: data names nothing to learn from')
  for key, names in (('data', c.data), ('eval_data', c.eval_data)):
    for source, count in mixture.parse(names).items():
      _check_count(name, key, source, count)
    build.check_files(
      f'{name}.{key}', names, missing, (*registry.task, *registry.dataset)
    )


def _check_count(name: str, key: str, source: str, count: float | None):
  if source not in registry.task:
    if count is not None:
      raise UserError(
        f'{name}: {key}: {source} is a file: it counts by its rows; leave '
        f':{count:g} out'
      )
    return
  if source != preferences.TASK:
    raise UserError(
      f'{name}: {key}: {source} has no preferences; {preferences.TASK} has'
    )
  if key == 'data' and (not count or count != int(count)):
    raise UserError(
      f"{name}: data: say how many of {source}, as in '{source}:1000'"
    )


def files(c: PreferencesConfig) -> dict[str, list[Path]]:
  """Returns the files that `data` and `eval_data` of a section name."""
  found: dict[str, list[Path]] = {'data': [], 'eval_data': []}
  for key, names, split in (
    ('data', c.data, splits.TRAIN),
    ('eval_data', c.eval_data, splits.HELD_OUT),
  ):
    for name in mixture.parse(names):
      if name in registry.dataset:
        found[key] += readers.files(preferences.dataset_path(name, split))
        if not c.eval_data:
          found['eval_data'] += readers.files(
            preferences.dataset_path(name, splits.HELD_OUT)
          )
      elif name not in registry.task:
        found[key] += readers.files(name)
  return found


class _Rows:
  """Reads preferences of files, of named datasets, and of the task."""

  def __init__(
    self,
    config: RunConfig,
    name: str,
    parts: build.Parts,
    labelled: bool,
    quarantine: Quarantine,
  ):
    self._c: PreferencesConfig = getattr(config, name)
    self._seed = config.seed
    self._template, self._labelled = parts.template, labelled
    self._quarantine = quarantine

  def all(self) -> tuple[list[Preference], list[Preference]]:
    """Returns all rows to learn from, and all that are held out."""
    train, held_out = [], []
    for source, count in mixture.parse(self._c.data).items():
      own, aside = self.split(source, count)
      train += own
      held_out += aside
    if self._c.eval_data:
      held_out = [
        row
        for source, count in mixture.parse(self._c.eval_data).items()
        for row in self.held_out(source, count)
      ]
    return train, held_out

  def split(
    self, source: str, count: float | None
  ) -> tuple[list[Preference], list[Preference]]:
    """Returns rows to learn from, and what of the source is held out."""
    aside = not self._c.eval_data
    if source in registry.task:
      return (
        self._synthesise(splits.TRAIN, int(count or 0)),
        self.held_out(source, None) if aside else [],
      )
    if source in registry.dataset:
      rows = self._read(preferences.dataset_path(source, splits.TRAIN), source)
      return rows, self.held_out(source, None) if aside else []
    rows = self._read(source, '')
    if not aside:
      return rows, []
    share = self._c.eval_share
    held = [preferences.is_eval_row(row.prompt.id, share) for row in rows]
    return (
      [row for row, out in zip(rows, held) if not out],
      self._first([row for row, out in zip(rows, held) if out]),
    )

  def held_out(self, source: str, count: float | None) -> list[Preference]:
    """Returns rows to evaluate on alone."""
    if source in registry.task:
      return self._synthesise(
        splits.HELD_OUT, int(count or self._c.max_eval_rows)
      )
    group = ''
    if source in registry.dataset:
      group = source
      source = preferences.dataset_path(source, splits.HELD_OUT)
    return self._first(self._read(source, group))

  def _synthesise(self, split: str, count: int) -> list[Preference]:
    make: Any = (
      preferences.synthetic_responses
      if self._labelled
      else preferences.synthetic_pairs
    )
    return make(
      self._c.synthetic_preferences, self._template, split, self._seed, count
    )

  def _read(self, path: str, group: str) -> list[Preference]:
    rows = preferences.read(path, self._template, group, self._quarantine)
    if not self._labelled:
      return rows
    return list(preferences.to_labelled_responses(rows))

  def _first(self, rows: list[Preference]) -> list[Preference]:
    return rows[: self._c.max_eval_rows or None]
