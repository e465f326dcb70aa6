"""Whether all processes of a run were given the same: config, code and data."""

from importlib import metadata
import json
from pathlib import Path

import jax

import r1jax
from r1jax import files, processes
from r1jax.config.keys import flatten, record
from r1jax.config.schema.run import RunConfig
from r1jax.runs import inputs

_PACKAGES = 'jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'numpy'


def check(config: RunConfig, reads_data: bool = True):
  """Refuses a run whose hosts differ; one process has nothing to compare.

  Args:
    config: The run.
    reads_data: Whether the files that the config names are read, and compared.

  Raises:
    UserError: naming what differs, with the values of both processes.
  """
  if not processes.several():
    return
  processes.check_same(
    {key: json.dumps(value) for key, value in flatten(record(config)).items()},
    'configs',
  )
  code = Path(r1jax.__file__).parent
  sources = ''.join(
    f'{path.relative_to(code)} {files.digest(path)}\n'
    for path in sorted(code.rglob('*.py'))
  )
  versions = {name: metadata.version(name) for name in _PACKAGES}
  processes.check_same(
    {'r1jax': files.digest_of(sources)[:12]}
    | versions
    | {'local devices': f'{jax.local_device_count()} {jax.default_backend()}'},
    'programs',
  )
  if not reads_data:
    return
  with processes.agreed():
    found = {key: _fact(path) for key, path in inputs.files_of(config).items()}
  processes.check_same(found, 'files that the config names')


def _fact(path: Path) -> str:
  """Returns a file's hash; of a large one, which takes minutes, its size."""
  if not path.exists():
    return 'absent'  # What reads it says so.
  size = path.stat().st_size
  if size >= inputs.HASHED_BYTES:
    return f'{size} bytes'
  return files.digest(path)[:12]
