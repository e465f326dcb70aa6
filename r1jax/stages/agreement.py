"""Whether all processes of a run have made the same step."""

from collections.abc import Mapping
import json
from typing import Any

import jax
import numpy as np

from r1jax import files, processes
from r1jax.errors import UserError


def check_step(
  step: int, metrics: Mapping[str, Any], position: Any, signum: int
) -> int:
  """Compares a step between all processes of a run.

  Args:
    step: The step.
    metrics: Its metrics, on the device or on the host.
    position: The position of the data behind it, as JSON, with the tokens of
      samples that go on.
    signum: The signal that this process has met; 0 for none.

  Returns:
    The signal that some process has met; 0 for none.

  Raises:
    UserError: naming what differs, with the values of two processes.
  """
  if not processes.several():
    return signum
  values = {
    name: float(np.asarray(value)).hex()
    for name, value in jax.device_get(dict(metrics)).items()
    if not name.startswith('time/')
  }
  values['position of the data'] = files.digest_of(
    json.dumps(position, sort_keys=True)
  )[:12]
  found = processes.exchange({'values': values, 'signum': signum})
  first = found[0]['values']
  for other, theirs in enumerate(each['values'] for each in found):
    for name in sorted(first.keys() | theirs.keys()):
      if first.get(name) != theirs.get(name):
        raise UserError(
          f'step {step}: processes differ in {name}: {_shown(first.get(name))} '
          f'in process 0 and {_shown(theirs.get(name))} in process {other}; no '
          'checkpoint of this step is saved'
        )
  return max(each['signum'] for each in found)


def _shown(value: str | None) -> str:
  if value is None:
    return 'nothing'
  return f'{float.fromhex(value):.17g}' if 'p' in value else value
