"""The files that a run reads, and whether they are still what it began with.

A run records the digests of all its files in inputs.json before it writes
anything else. When it is resumed they must be the same: with other rows, or in
another order, it would go on from a state that no data have made.
"""

from collections.abc import Mapping
import json
from pathlib import Path

from r1jax import files, registry
from r1jax.checkpoints import storage
from r1jax.config.schema.run import RunConfig
from r1jax.data import readers
from r1jax.data.text import tokenizer
from r1jax.errors import UserError
from r1jax.runs.stage_list import running, stage_class
from r1jax.stages import initial
from r1jax.stages.build import parts as build
from r1jax.stages.stage import listed

FILE = 'inputs.json'
# A larger file counts as unchanged where its path, size and time are the same.
HASHED_BYTES = 1 << 30
_SHOWN = 3  # Files that an error lists.


def files_of(config: RunConfig) -> dict[str, Path]:
  """Returns every file that a run reads, by the key that names it."""
  classes = [stage_class(name) for name in running(config)]
  found: dict[str, list[Path]] = {}
  if not classes[0].starts_fresh and config.init != 'random':
    found['init'] = [initial.init_file(config)]
  if config.tokenizer.source not in tokenizer.BUILT_IN:
    folder = readers.resolve(config.tokenizer.source)
    found['tokenizer.source'] = build.tokenizer_files_of(folder)
  if config.data.template.endswith('.jinja'):
    found['data.template'] = [readers.resolve(config.data.template)]
  if config.plugins:
    found['plugins'] = [
      file for name in config.plugins for file in registry.files_of(name)
    ]
  for stage in classes:
    found |= stage.reads(config)
  return {
    key: path
    for name, paths in found.items()
    for key, path in listed(
      name, [file for path in paths for file in _expanded(path.expanduser())]
    ).items()
  }


def _expanded(path: Path) -> list[Path]:
  """Returns the files that are read of a folder; a file is itself."""
  if not path.is_dir():
    return [path]
  weights = sorted(path.glob('*.safetensors'))
  if not weights:
    return sorted(each for each in path.rglob('*') if each.is_file())
  beside = (path / storage.INDEX_FILE, path / 'config.json')
  return [*weights, *(file for file in beside if file.exists())]


def claim(workdir: Path, config: RunConfig):
  """Records the files of a run, or refuses those that changed since it began.

  Args:
    workdir: The run's folder.
    config: The run.

  Raises:
    UserError: naming the files, and what to do. Nothing in the folder changes.
  """
  check(workdir, config)
  record = workdir / FILE
  if not record.exists():
    found = {
      key: _entry(path, files.digest(path))
      for key, path in files_of(config).items()
    }
    files.write_text(record, json.dumps(found, indent=1) + '\n')


def check(workdir: Path, config: RunConfig):
  """Refuses files that changed since the run in a folder began; see claim."""
  if changed := changes(workdir, config):
    raise UserError(
      f'workdir: {workdir} began with other data: {changed}; put them back, or '
      f'remove {workdir} to begin again, or use another --workdir'
    )


def changes(workdir: Path, config: RunConfig) -> str:
  """Says which files differ from those that a run began with; '' for none.

  A folder without a record, such as that of a run that is yet to begin, has no
  differences.
  """
  if not (workdir / FILE).exists():
    return ''
  before, now = recorded(workdir), files_of(config)
  changed = [
    f'{key} ({path}) {"has changed" if key in before else "is new"}'
    for key, path in now.items()
    if not _is_same(path, before.get(key))
  ]
  changed += [
    f'{key} ({entry["path"]}) is not read any more'
    for key, entry in before.items()
    if key not in now
  ]
  more = f', and {len(changed) - _SHOWN} more' * (len(changed) > _SHOWN)
  return ', '.join(changed[:_SHOWN]) + more


def recorded(workdir: Path) -> dict[str, dict]:
  """Returns the record of a run's files by key; {} where there is none.

  Raises:
    UserError: it is broken.
  """
  path = workdir / FILE
  try:
    record = json.loads(path.read_text())
    for entry in record.values():
      if not all(isinstance(entry[key], str) for key in ('path', 'sha256')):
        raise TypeError('a path or hash is no text')
    return record
  except FileNotFoundError:
    return {}
  except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
    raise UserError(
      f'workdir: {path} is broken ({type(error).__name__}: {error}), which says '
      'what data the run began with; use another --workdir'
    ) from error


def _entry(path: Path, sha256: str) -> dict:
  status = path.stat()
  return {
    'path': str(path.absolute()),
    'sha256': sha256,
    'bytes': status.st_size,
    'mtime_ns': status.st_mtime_ns,
  }


def _is_same(path: Path, before: Mapping | None) -> bool:
  if before is None or not path.exists():
    return False
  if path.stat().st_size >= HASHED_BYTES and (
    _entry(path, before['sha256']) == before
  ):
    return True
  return files.digest(path) == before['sha256']
