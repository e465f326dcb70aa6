"""The files of a run's folder that say which config its stages have had.

  config.json    the config that holds now, of the keys that results depend on
  changes.jsonl  a line for each time that the run went on with another config:
                 {"stage": "rl", "after_step": 40, "config_sha256": …,
                  "changed": {"rl.max_steps": [40, 80]}}

`config_sha256` is the digest of the config before, which checkpoints up to that
step have.
"""

from collections.abc import Mapping
import json
from pathlib import Path
from typing import Any

from r1jax import files
from r1jax.errors import UserError
from r1jax.train import metrics

CONFIG, CHANGES = 'config.json', 'changes.jsonl'


def changes(run: Path) -> list[dict]:
  """Returns the changes of a run's config, in their order.

  Args:
    run: The folder of the run.

  Raises:
    UserError: the file is broken.
  """
  path = run / CHANGES
  try:
    found = metrics.read(path)
    for each in found:
      str(each['config_sha256']), str(each['stage']), int(each['after_step'])
      {key: (old, new) for key, (old, new) in each['changed'].items()}
    return found
  except (ValueError, TypeError, KeyError, AttributeError) as error:
    raise UserError(
      f'workdir: {path} is broken ({type(error).__name__}: {error}), which says '
      'how the config of the run has changed; use another --workdir'
    ) from error


def stages(run: Path) -> tuple[str, ...]:
  """Returns the stages of a run's config; () where there is no readable one."""
  try:
    return tuple(json.loads((run / CONFIG).read_text())['stages'])
  except (OSError, ValueError, KeyError, TypeError):
    return ()


def config_digests(run: Path) -> tuple[str, ...]:
  """Returns the digest of a run's config, and those that it had before.

  It is empty where there is no run, as for a stage that is used by itself.
  """
  record = run / CONFIG
  if not record.exists():
    return ()
  earlier = (each['config_sha256'] for each in changes(run))
  return files.json_digest(record), *earlier


def described(entry: Mapping[str, Any]) -> str:
  """Says in one line what has changed, and from which step on."""
  changed = ', '.join(
    f'{key} {shown(old)} → {shown(new)}'
    for key, (old, new) in entry['changed'].items()
  )
  return f'after step {entry["after_step"]} of {entry["stage"]}: {changed}'


def shown(value: Any) -> str:
  """Returns a value of a key; None stands for a key that is absent."""
  return 'absent' if value is None else repr(value)
