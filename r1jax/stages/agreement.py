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
  for other, theirs in enumerate(found):
    for name, value in found[0]['values'].items():
      if theirs['values'].get(name) != value:
        error = UserError(
          f'step {step}: processes differ in {name}: {_shown(value)} in process '
          f'0 and {_shown(theirs["values"].get(name, "none"))} in process '
          f'{other}; nothing of this step is saved'
        )
        error.told = True
        raise error
  return max(each['signum'] for each in found)


def _shown(value: str) -> str:
  return f'{float.fromhex(value):.9g}' if 'p' in value else value
