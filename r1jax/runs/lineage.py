"""Where a run's output came from: lineage.json, and the tree of them.

  {'stages': ['sft'], 'config_sha256': …, 'commit': …, 'versions': {…},
   'inputs': {'init': {'path': …, 'sha256': …, 'run': '../zero'}, …},
   'output': {'path': 'sft/model.safetensors', 'sha256': …}}

Paths of other runs are relative, so that a folder of runs may be moved.
"""

import hashlib
from importlib import metadata
import json
import os
from pathlib import Path
import platform
import subprocess

import ml_collections

from r1jax.checkpoints.storage import write_text
from r1jax.data import mixture, readers, sources, tasks
from r1jax.data.text import tokenizer
from r1jax.errors import UserError
from r1jax.stages import prm
from r1jax.stages.build import parts as build
from r1jax.stages.build import preference_data

FILE = 'lineage.json'


def write(workdir: Path, config: ml_collections.ConfigDict, made: Path):
  """Records what `made` came from, unless that was done already: from what is
  there now, if the run was killed before it did."""
  record = workdir / FILE
  if record.exists():
    return
  said = {
    'stages': list(config.stages),
    'config_sha256': _digest_of(
      json.dumps(
        json.loads((workdir / 'config.json').read_text()), sort_keys=True
      )
    ),
    'commit': _commit(),
    'versions': _versions(),
    'inputs': {
      key: _input(path.expanduser(), workdir)
      for key, path in inputs(config).items()
    },
    'output': {'path': str(made.relative_to(workdir)), 'sha256': digest(made)},
  }
  write_text(record, json.dumps(said, indent=1) + '\n')


def read(workdir: Path) -> dict | None:
  """The record of a finished run, or None.

  Raises:
    UserError: it is broken.
  """
  record = workdir / FILE
  try:
    said = json.loads(record.read_text())
    _check(said)
    return said
  except FileNotFoundError:
    return None
  except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
    raise UserError(
      f'lineage: {record} is broken ({type(error).__name__}: {error}); '
      'remove it, and the next run of the same command writes it from what '
      'is there now'
    ) from error


def _check(said: dict):
  """Raises an error unless it has what readers of records look at."""
  texts = [
    said['config_sha256'],
    said['output']['path'],
    said['output']['sha256'],
    said['commit'] or '',
    *said['stages'],
  ]
  for found in said['inputs'].values():
    texts += [found['path'], found['sha256'], found['run'] or '']
  if not all(isinstance(text, str) for text in texts):
    raise TypeError('a path or hash is no text')


def inputs(config: ml_collections.ConfigDict) -> dict[str, Path]:
  """Every file or folder that a config's stages read, by its key."""
  data, found = config.data, {}
  first = build.running(config)[0]
  if first != 'pretrain' and config.init != 'random':
    found['init'] = build.init_file(config)
  if config.tokenizer.source not in tokenizer.BUILT_IN:
    found['tokenizer.source'] = readers.resolve(config.tokenizer.source)
  if 'sft' in config.stages:
    if config.sft.teacher_model not in ('', 'stored'):
      found['sft.teacher_model'] = Path(config.sft.teacher_model)
    _add(found, 'sft.data', _demonstrations(config.sft.data))
  for name in ('reward_model', 'dpo'):
    if name in config.stages:
      for key, files in preference_data.files(config[name]).items():
        _add(found, f'{name}.{key}', files)
  if 'prm' in config.stages:
    _add(found, 'prm.data', prm.files(config.prm))
  if {'rl', 'rejection_sampling', 'label_steps'} & set(config.stages):
    names = list(mixture.parse(data.mixture or (data.task,)))
    _add(found, 'data.task', _dataset_files(names, tasks.TRAIN, data.path))
    if data.pass_rates:
      found['data.pass_rates'] = readers.resolve(data.pass_rates)
  if 'rejection_sampling' in config.stages:
    _add(
      found,
      'rejection_sampling.extra_data',
      _demonstrations(config.rejection_sampling.extra_data),
    )
    if config.rejection_sampling.reward_model:
      found['rejection_sampling.reward_model'] = Path(
        config.rejection_sampling.reward_model
      )
  if 'rl' in config.stages:
    if config.rl.adv_estimator == 'gae' and config.rl.ppo.critic_init:
      found['rl.ppo.critic_init'] = Path(config.rl.ppo.critic_init)
    found |= {
      f'rl.reward_models.{kind}': Path(file)
      for kind, file in config.rl.reward_models.items()
      if file
    }
    _add(
      found,
      'data.eval',
      _dataset_files([data.task], tasks.HELD_OUT, data.eval_path),
    )
  return found


def _demonstrations(data) -> list[Path]:
  return [
    file
    for name in mixture.parse(data)
    if name not in tasks.TASKS
    for file in readers.files(name)
  ]


def _dataset_files(names, split: str, path: str) -> list[Path]:
  if path:
    return readers.files(path)
  return [
    file
    for name in names
    if name not in tasks.TASKS
    for file in readers.files(sources.get(name).path(split))
  ]


def _add(found: dict[str, Path], key: str, files: list[Path]):
  for i, file in enumerate(files):
    found[f'{key}[{i}]' if len(files) > 1 else key] = file


def _input(path: Path, workdir: Path) -> dict:
  run = next(
    (place for place in path.absolute().parents if (place / FILE).exists()),
    None,
  )
  relative = lambda place: os.path.relpath(place, workdir.absolute())
  return {
    'path': relative(path) if run else str(path),
    'sha256': digest(path),
    'run': run and relative(run),
  }


def digest(path: Path) -> str:
  """SHA-256 of a file, or of the files of a folder with their names."""
  if path.is_file():
    with open(path, 'rb') as file:
      return hashlib.file_digest(file, 'sha256').hexdigest()
  return _digest_of(
    ''.join(
      f'{part.relative_to(path)} {digest(part)}\n'
      for part in sorted(path.rglob('*'))
      if part.is_file()
    )
  )


def _digest_of(text: str) -> str:
  return hashlib.sha256(text.encode()).hexdigest()


def _commit() -> str | None:
  """Of the source tree, with '+' if files differ from it; None without."""

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
    'math-verify',
  )
  return {'python': platform.python_version()} | {
    name: metadata.version(name) for name in packages
  }


def tree(workdir: Path) -> str:
  """A run and all that it came from, a line each. Runs beside it have the name
  of their folder, others their path from it.

  Raises:
    UserError: there is no finished run here.
  """
  if not workdir.is_dir() or read(workdir) is None:
    raise UserError(f'lineage: {workdir} is no folder of a finished run')
  lines: list[str] = []
  _grow(workdir, workdir.resolve().parent, '', '', lines, set())
  return '\n'.join(lines)


def _grow(
  workdir: Path,
  beside: Path,
  indent: str,
  key: str,
  lines: list[str],
  seen: set[Path],
):
  said, place = read(workdir), workdir.resolve()
  name = os.path.relpath(place, beside)
  line = f'{indent}{key and key + " ← "}{name}'
  if said is None:
    lines.append(f'{line}: gone')
    return
  line += (
    f' ({" + ".join(said["stages"])}; config '
    f'{said["config_sha256"][:8]}, commit {str(said["commit"])[:8]}, '
    f'output {said["output"]["sha256"][:8]})'
  )
  if place in seen:
    lines.append(f'{line}: as above')
    return
  seen.add(place)
  lines.append(line)
  for key, found in said['inputs'].items():
    if found['run'] is None:
      lines.append(f'{indent}  {key} ← {found["path"]} ({found["sha256"][:8]})')
      continue
    _grow(workdir / found['run'], beside, indent + '  ', key, lines, seen)
    parent = read(workdir / found['run'])
    if parent and parent['output']['sha256'] != found['sha256']:
      lines.append(f'{indent}    ! it was {found["sha256"][:8]} then')
