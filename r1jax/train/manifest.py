"""The list of a checkpoint's files with their SHA-256, and the check of it.

  <step>/files.json   {'state/d/0f3a…': {'bytes': 470, 'sha256': …}, …}

Each process hashes the array files that it has written, after they are
written and before the checkpoint is renamed to its final name; the first one
adds the rest and writes the list. So a checkpoint that has its name has its
list, and the training steps wait for none of it.
"""

from collections.abc import Iterator, Mapping, Sequence
import json
from pathlib import Path

from r1jax import files
from r1jax.errors import UserError

FILE = 'files.json'
_PARTS = 'sha256'  # The folder of what each process has hashed, until then.
_TMP = '.orbax-checkpoint-tmp'  # Suffix of a folder that is not finished.
# Orbax writes these when the list is finished; no array depends on them.
_STATUS, _LATE = '_CHECKPOINT_METADATA', 'commit_success.txt'


def write_part(root: Path, own: Path, process: int):
  """Hashes the files that a process has written.

  Args:
    root: The folder of the checkpoint, which is not finished.
    own: The folder below it of what this process has written.
    process: Its number.
  """
  folder = root / _PARTS
  folder.mkdir(exist_ok=True)
  part = {_name(root, path): _entry(path) for path in _files_in(own)}
  files.write_text(folder / f'{process}.json', json.dumps(part))


def write(root: Path):
  """Writes the list of a checkpoint's files, from the parts and what they lack.

  Args:
    root: The folder of the checkpoint, all of whose items are finished.
  """
  entries: dict[str, dict] = {}
  for part in sorted((root / _PARTS).glob('*.json')):
    entries |= json.loads(part.read_text())
    part.unlink()
  if (root / _PARTS).exists():
    (root / _PARTS).rmdir()
  for path in _files_in(root):
    if path not in (root / _STATUS, root / _LATE):
      entries.setdefault(_name(root, path), _entry(path))
  files.write_text(root / FILE, json.dumps(entries, indent=1) + '\n')


def is_in(root: Path) -> bool:
  """Whether a checkpoint has a list: those of older versions have none."""
  return (root / FILE).exists()


def problems(root: Path, share: int = 0, shares: int = 1) -> list[str]:
  """Returns what is wrong with the files of a checkpoint, a text for each.

  Args:
    root: The folder of the checkpoint.
    share: The part of the files that this process reads, of …
    shares: … so many of about the same size.

  Raises:
    UserError: A file cannot be read, which does not say that it is broken.
  """
  try:
    entries = json.loads((root / FILE).read_text())
    names = _shared(entries, shares)[share]
    found = {name: _problem(root / name, entries[name]) for name in names}
    if share == 0:
      found[_STATUS] = _status_problem(root / _STATUS)
    return [f'{name} {problem}' for name, problem in found.items() if problem]
  except (ValueError, TypeError, KeyError, AttributeError, UnicodeError):
    return [f'{FILE} is no list of files any more']
  except OSError as error:
    raise UserError(
      f'checkpoint: cannot read {root}: {error}; give this user the right to '
      'read it, or mend the disk'
    ) from error


def _shared(entries: Mapping[str, Mapping], shares: int) -> list[list[str]]:
  """Splits files by their names into parts of about the same size."""
  loads = [0] * shares
  parts: list[list[str]] = [[] for _ in range(shares)]
  sizes = {name: int(entry['bytes']) for name, entry in entries.items()}
  for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
    least = loads.index(min(loads))
    loads[least] += sizes[name]
    parts[least].append(name)
  return parts


def _problem(path: Path, entry: Mapping) -> str:
  """Says what is wrong with a file; '' for nothing."""
  if not path.is_file():
    return 'is missing'
  size = path.stat().st_size
  if size != entry['bytes']:
    kind = 'is cut off' if size < entry['bytes'] else 'has grown'
    return f'{kind} ({size} of {entry["bytes"]} bytes)'
  if files.digest(path) != entry['sha256']:
    return 'has other bytes than were written'
  return ''


def _status_problem(path: Path) -> str:
  """Says what is wrong with Orbax's record of a checkpoint; '' for nothing.

  It is times and names of classes, which Orbax reads with each checkpoint.
  """
  try:
    json.loads(path.read_text())['item_handlers']
  except FileNotFoundError:
    return 'is missing'
  except (ValueError, TypeError, KeyError, UnicodeError):
    return 'is not JSON any more'
  return ''


def _entry(path: Path) -> dict:
  return {'bytes': path.stat().st_size, 'sha256': files.digest(path)}


def _name(root: Path, path: Path) -> str:
  """Returns a file's path below a checkpoint that is finished."""
  parts = path.relative_to(root).parts
  return '/'.join(part.removesuffix(_TMP) for part in parts)


def _files_in(folder: Path) -> Iterator[Path]:
  for path in sorted(folder.rglob('*')):
    if path.is_file() and _PARTS not in path.relative_to(folder).parts:
      yield path


def leaf_problems(found: Mapping, expected: Mapping) -> list[str]:
  """Returns the arrays whose checksums are not those of the saved ones."""
  return [
    f'{name} is not what was saved (checksum {leaf["checksum"]}, not '
    f'{expected[name]["checksum"]})'
    for name, leaf in found.items()
    if leaf['checksum'] != expected[name]['checksum']
  ]


def misfits(saved: Mapping[str, Mapping], wanted: Mapping[str, Mapping]):
  """Returns how saved arrays differ from those that a run has, a text each.

  A restore would cast one dtype to another without a word.

  Args:
    saved: Shape and dtype of each array in the checkpoint, by its path.
    wanted: The same of the run's state.
  """
  texts = [f'{name} is missing' for name in wanted if name not in saved]
  texts += [f'{name} is unknown' for name in saved if name not in wanted]
  for name, want in wanted.items():
    for field in ('shape', 'dtype'):
      if name in saved and saved[name][field] != want[field]:
        texts.append(
          f'{name} has {field} {saved[name][field]} there and {want[field]} here'
        )
  return texts


def shown(texts: Sequence[str], most: int = 4) -> str:
  """Joins the first of several texts into one, and counts the others."""
  more = f', and {len(texts) - most} more' * (len(texts) > most)
  return '; '.join(texts[:most]) + more
