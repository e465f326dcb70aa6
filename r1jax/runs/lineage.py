"""Records what a run's output came from: lineage.json, and the tree of them.

  {'stages': ['sft'], 'config_sha256': …, 'commit': …, 'versions': {…},
   'inputs': {'init': {'path': …, 'sha256': …, 'run': '../zero'}, …},
   'output': {'path': 'sft/model.safetensors', 'sha256': …}}

Paths of other runs are relative, so that a folder of runs may be moved.
"""

from collections.abc import Mapping
from importlib import metadata
import json
import os
from pathlib import Path
import platform
import re
import subprocess

from r1jax import buckets, files
from r1jax.config.schema.run import RunConfig
from r1jax.errors import UserError
from r1jax.runs import inputs
from r1jax.stages import run_record

FILE = 'lineage.json'


def write(workdir: Path, config: RunConfig, output: Path):
  """Records what a run's output came from, unless that was done already.

  Inputs are those that the run began with, see inputs.py.

  Args:
    workdir: The run's folder.
    config: The run.
    output: The file that it left.
  """
  record = workdir / FILE
  if record.exists():
    return
  known = inputs.recorded(workdir)
  lineage = {
    'stages': list(config.stages),
    'config_sha256': files.json_digest(workdir / 'config.json'),
    'commit': _commit(),
    'versions': _versions(),
    'inputs': {
      key: _input(path, workdir, known.get(key, {}).get('sha256', ''))
      for key, path in inputs.files_of(config).items()
    },
    'output': {
      'path': str(output.relative_to(workdir)),
      'sha256': files.digest(output),
    },
  }
  files.write_text(record, json.dumps(lineage, indent=1) + '\n')


def check_inputs(workdir: Path):
  """Refuses inputs that are not what the runs that made them have left.

  Args:
    workdir: The folder of a run that has recorded its inputs.

  Raises:
    UserError: naming the file, and the run that made it.
  """
  for key, entry in inputs.recorded(workdir).items():
    path = Path(entry['path'])
    run = _run_of(path)
    record = read(run) if run else None
    if record is None or run is None:
      continue
    left = run / record['output']['path']
    if left == path and record['output']['sha256'] != entry['sha256']:
      raise UserError(
        f'workdir: {key} ({path}) is not what {run} left, by its {FILE}; put '
        f'that back, or remove {run} to make it again'
      )


def read(workdir: Path) -> dict | None:
  """The record of a finished run, or None.

  Raises:
    UserError: it is broken.
  """
  path = buckets.fetch(workdir / FILE)
  try:
    record = json.loads(path.read_text())
    _check(record)
    return record
  except FileNotFoundError:
    return None
  except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
    raise UserError(
      f'lineage: {path} is broken ({type(error).__name__}: {error}); '
      'remove it, and the next run of the same command writes it from what '
      'is there now'
    ) from error


def _check(record: dict):
  """Raises an error unless a record has every field that is read."""
  texts = [
    record['config_sha256'],
    record['output']['path'],
    record['output']['sha256'],
    record['commit'] or '',
    *record['stages'],
  ]
  for source in record['inputs'].values():
    texts += [source['path'], source['sha256'], source['run'] or '']
  if not all(isinstance(text, str) for text in texts):
    raise TypeError('a path or hash is no text')


def _input(path: Path, workdir: Path, sha256: str) -> dict:
  run = _run_of(path)
  relative = lambda place: os.path.relpath(place, workdir.absolute())
  return {
    'path': relative(path) if run else str(path),
    'sha256': sha256 or files.digest(path),
    'run': run and relative(run),
  }


def _run_of(path: Path) -> Path | None:
  """Returns the folder of the finished run that a file is in; None for none."""
  return next(
    (place for place in path.absolute().parents if (place / FILE).exists()),
    None,
  )


def _commit() -> str | None:
  """Returns the commit of the source tree, with '+' if files differ from it.

  It is None where the package is no git checkout.
  """

  def git(*args):
    return subprocess.run(
      ['git', '-C', Path(__file__).parent, *args],
      capture_output=True,
      text=True,
      timeout=30,
      check=True,
    ).stdout.strip()

  try:
    return git('rev-parse', 'HEAD') + '+' * bool(
      git('status', '--porcelain', '--untracked-files=no')
    )
  except (OSError, subprocess.SubprocessError):
    return None


def _versions() -> dict[str, str]:
  packages = (
    'r1jax',
    'jax',
    'jaxlib',
    'flax',
    'optax',
    'orbax-checkpoint',
    'grain',
    'tokenizers',
    'mpmath',
  )
  return {'python': platform.python_version()} | {
    name: metadata.version(name) for name in packages
  }


def tree(workdir: Path) -> str:
  """Draws a run and all that it came from, a line each.

  Runs beside it are called by the name of their folder, others by their path
  from it.

  Raises:
    UserError: there is no finished run in the folder.
  """
  if read(workdir) is None:
    where = buckets.shown(workdir)
    raise UserError(f'lineage: {where} is no folder of a finished run')
  lines: list[str] = []
  _append_lines(workdir, workdir.resolve().parent, '', '', lines, set())
  return '\n'.join(lines)


def _append_lines(
  workdir: Path,
  beside: Path,
  indent: str,
  key: str,
  lines: list[str],
  seen: set[Path],
):
  record, place = read(workdir), workdir.resolve()
  name = os.path.relpath(place, beside)
  line = f'{indent}{key and key + " ← "}{name}'
  if record is None:
    lines.append(f'{line}: gone')
    return
  line += (
    f' ({" + ".join(record["stages"])}; config '
    f'{record["config_sha256"][:8]}, commit {str(record["commit"])[:8]}, '
    f'output {record["output"]["sha256"][:8]})'
  )
  if place in seen:
    lines.append(f'{line}: as above')
    return
  seen.add(place)
  lines.append(line)
  for entry in run_record.changes(workdir):
    lines.append(f'{indent}  ~ {run_record.described(entry)}')
  for key, found in record['inputs'].items():
    if found['run'] is None:
      lines.append(f'{indent}  {key} ← {found["path"]} ({found["sha256"][:8]})')
      continue
    saved = re.search(r'/checkpoints/(\d+)/', found['path'])
    label = f'{key} (step {saved[1]})' if saved else key
    _append_lines(
      workdir / found['run'], beside, indent + '  ', label, lines, seen
    )
    parent = read(workdir / found['run'])
    if parent and _is_another(found, parent):
      lines.append(f'{indent}    ! it was {found["sha256"][:8]} then')


def _is_another(source: Mapping, parent: Mapping) -> bool:
  """Returns whether a run has left another output than the one that was read.

  A checkpoint of the run is no output, and has a digest of its own.
  """
  left = os.path.join(source['run'], parent['output']['path'])
  return (
    os.path.normpath(left) == os.path.normpath(source['path'])
    and parent['output']['sha256'] != source['sha256']
  )
