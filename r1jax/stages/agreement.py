"""Whether all processes of a run have made the same step."""

from collections.abc import Mapping
import json
from typing import Any, NamedTuple

import jax
import numpy as np

from r1jax import files, processes
from r1jax.errors import UserError


class Agreed(NamedTuple):
  """The things that all processes know after a step.

  Attributes:
    signum: The signal that some process has met; 0 for none.
    own_secs: For each process, the seconds in which it worked alone, by part.
  """

  signum: int
  own_secs: list[dict[str, float]]


def check_step(
  step: int,
  metrics: Mapping[str, Any],
  position: Any,
  signum: int,
  own_secs: Mapping[str, float],
) -> Agreed:
  """Compares a step between all processes of a run.

  Args:
    step: The step.
    metrics: Its metrics, on the device or on the host.
    position: The position of the data behind it, as JSON, with the tokens of
      samples that go on.
    signum: The signal that this process has met; 0 for none.
    own_secs: Seconds in which this process worked alone, by part; they may
      differ.

  Returns:
    The signal, and the seconds of all processes, of one exchange.

  Raises:
    UserError: naming what differs, with the values of two processes.
  """
  if not processes.several():
    return Agreed(signum, [dict(own_secs)])
  values = {
    name: float(np.asarray(value)).hex()
    for name, value in jax.device_get(dict(metrics)).items()
    if not name.startswith('time/')
  }
  values['position of the data'] = files.digest_of(
    json.dumps(position, sort_keys=True)
  )[:12]
  found = processes.exchange(
    {'values': values, 'signum': signum, 'own_secs': dict(own_secs)}
  )
  first = found[0]['values']
  for other, theirs in enumerate(each['values'] for each in found):
    for name in sorted(first.keys() | theirs.keys()):
      if first.get(name) != theirs.get(name):
        raise UserError(
          f'step {step}: processes differ in {name}: {_shown(first.get(name))} '
          f'in process 0 and {_shown(theirs.get(name))} in process {other}; no '
          'checkpoint of this step is saved'
        )
  return Agreed(
    max(each['signum'] for each in found), [each['own_secs'] for each in found]
  )


def _shown(value: str | None) -> str:
  if value is None:
    return 'nothing'
  return f'{float.fromhex(value):.17g}' if 'p' in value else value
