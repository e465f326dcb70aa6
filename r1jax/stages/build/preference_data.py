"""What reward models and DPO learn from: preferences, and those held out."""

from collections.abc import Callable, Collection
from pathlib import Path
from typing import NamedTuple

import ml_collections

from r1jax.data import (
  mixture,
  preference_batches,
  preferences,
  readers,
  sources,
  tasks,
)
from r1jax.data.preference_batches import PreferenceBatches, PreferenceExample
from r1jax.data.preferences import Preference
from r1jax.data.quarantine import Quarantine
from r1jax.errors import UserError
from r1jax.stages.build import parts as build


class Lessons(NamedTuple):
  """What a stage learns from and what it is measured on.

  Attributes:
    train, held_out: Batches; the second in the order of the rows.
    groups: How many training examples each has. The indices of the batches
      count these first, and then those that are held out alone.
    names: Of all groups.
  """

  train: PreferenceBatches
  held_out: PreferenceBatches
  groups: dict[str, int]
  names: tuple[str, ...]


def lessons(
  config: ml_collections.ConfigDict,
  made: build.Parts,
  name: str,
  tokenise: Callable[[list[Preference], Quarantine], list[PreferenceExample]],
  labelled: bool = False,
) -> Lessons:
  """What config[name] says.

  Args:
    config: Of the run.
    made: Its parts.
    name: Of the section.
    tokenise: Makes examples of preferences; bad ones go to the quarantine.
    labelled: Of single responses, not of pairs.

  Raises:
    UserError: bad data, or none.
  """
  c = config[name]
  check(config, made, name)
  quarantine = Quarantine(config.data.max_bad_row_share)
  rows = _Rows(config, name, made, labelled, quarantine)
  train, held_out = [], []
  for source, count in mixture.parse(c.data).items():
    learnt, aside = rows.both(source, count)
    train += learnt
    held_out += aside
  if c.eval_data:
    held_out = [
      row
      for source, count in mixture.parse(c.eval_data).items()
      for row in rows.held_out(source, count)
    ]
  total = len(train) + len(held_out) + len(quarantine.dropped)
  examples, measured = (
    tokenise(some, quarantine) for some in (train, held_out)
  )
  if told := quarantine.finish(f'{name}.data', total):
    print(told)
  if not examples:
    raise UserError(
      f'{name}: data: no rows to learn from in {", ".join(c.data)}'
    )
  if not measured:
    raise UserError(
      f'{name}: no row is held out to evaluate on; raise '
      f'{name}.eval_share, or name some in {name}.eval_data'
    )
  groups = preference_batches.group_sizes(examples)
  names = (
    *groups,
    *(
      group
      for group in preference_batches.group_sizes(measured)
      if group not in groups
    ),
  )
  shape = c.batch_size, tuple(c.length_buckets), made.tokenizer.pad_id
  return Lessons(
    PreferenceBatches(examples, names, *shape, config.seed, c.num_train_epochs),
    PreferenceBatches(measured, names, *shape, shuffle=False),
    groups,
    names,
  )


def check(
  config: ml_collections.ConfigDict,
  made: build.Parts,
  name: str,
  missing: Collection[str] = (),
):
  """What config[name] says, whatever is in the files that it names.

  Args:
    config: Of the run.
    made: Its parts.
    name: Of the section.
    missing: Entries of its lists whose files are to come.

  Raises:
    UserError: naming the key that means nothing.
  """
  c = config[name]
  build.divides(
    f'{name}.batch_size',
    c.batch_size,
    c.gradient_accumulation_steps,
    made.model.layout,
  )
  build.widths(name, c.length_buckets, config.model.max_position_embeddings)
  if not 0 <= c.eval_share < 1:
    raise UserError(
      f'{name}: eval_share must lie within [0, 1), got {c.eval_share}'
    )
  if c.max_eval_rows < 0:
    raise UserError(f'{name}: max_eval_rows must not be below 0')
  if not c.data:
    raise UserError(f'{name}: data names nothing to learn from')
  for key in ('data', 'eval_data'):
    for source, count in mixture.parse(c[key]).items():
      _check_count(name, key, source, count)
    build.check_files(
      f'{name}.{key}', c[key], missing, (*tasks.TASKS, *sources.SOURCES)
    )


def _check_count(name: str, key: str, source: str, count: float | None):
  if source not in tasks.TASKS:
    if count is not None:
      raise UserError(
        f'{name}: {key}: {source} is a file: it counts by its '
        f'rows; leave :{count:g} out'
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


def files(section: ml_collections.ConfigDict) -> dict[str, list[Path]]:
  """The files that `data` and `eval_data` of a section stand for."""
  found = {'data': [], 'eval_data': []}
  for key, split in (('data', tasks.TRAIN), ('eval_data', tasks.HELD_OUT)):
    for name in mixture.parse(section[key]):
      if name in sources.SOURCES:
        found[key] += readers.files(preferences.dataset_path(name, split))
        if not section.eval_data:
          found['eval_data'] += readers.files(
            preferences.dataset_path(name, tasks.HELD_OUT)
          )
      elif name not in tasks.TASKS:
        found[key] += readers.files(name)
  return found


class _Rows:
  """Preferences of files, of datasets, and of the task."""

  def __init__(
    self,
    config: ml_collections.ConfigDict,
    name: str,
    made: build.Parts,
    labelled: bool,
    quarantine: Quarantine,
  ):
    self._c, self._seed = config[name], config.seed
    self._template, self._labelled = made.template, labelled
    self._quarantine = quarantine
    self._synthetic = preferences.SyntheticPreferences(
      **self._c.synthetic_preferences
    )

  def both(self, source: str, count: float | None):
    """To learn from, and what of the same source is held out."""
    aside = not self._c.eval_data
    if source in tasks.TASKS:
      return (
        self._made(tasks.TRAIN, int(count)),
        self.held_out(source, None) if aside else [],
      )
    if source in sources.SOURCES:
      found = self._read(preferences.dataset_path(source, tasks.TRAIN), source)
      return found, self.held_out(source, None) if aside else []
    found = self._read(source, '')
    if not aside:
      return found, []
    share = self._c.eval_share
    held = [preferences.is_eval_row(row.prompt.id, share) for row in found]
    return (
      [row for row, out in zip(found, held) if not out],
      self._first([row for row, out in zip(found, held) if out]),
    )

  def held_out(self, source: str, count: float | None) -> list[Preference]:
    """To evaluate on alone."""
    if source in tasks.TASKS:
      return self._made(tasks.HELD_OUT, int(count or self._c.max_eval_rows))
    group = ''
    if source in sources.SOURCES:
      group = source
      source = preferences.dataset_path(source, tasks.HELD_OUT)
    return self._first(self._read(source, group))

  def _made(self, split: str, count: int) -> list[Preference]:
    draw = (
      preferences.synthetic_responses
      if self._labelled
      else preferences.synthetic_pairs
    )
    return draw(self._synthetic, self._template, split, self._seed, count)

  def _read(self, path: str, group: str) -> list[Preference]:
    found = preferences.read(path, self._template, group, self._quarantine)
    return preferences.to_labelled_responses(found) if self._labelled else found

  def _first(self, found: list[Preference]) -> list[Preference]:
    return found[: self._c.max_eval_rows or None]
