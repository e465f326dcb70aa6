"""The compiler's lightest passes: tests compile much and run little."""

import os
import subprocess
import sys

_CERTAIN = '--xla_backend_optimization_level=0'
# Three times as fast; an option of some versions alone, and one that a version
# does not know ends the process.
_LIGHTER = '--xla_cpu_use_fusion_emitters=false'
_FOUND = 'R1JAX_TEST_XLA_FLAGS'  # What was found, for processes of this one.


def light_flags() -> str:
  """For XLA_FLAGS."""
  if _FOUND not in os.environ:
    flags = f'{_CERTAIN} {_LIGHTER}'
    works = (
      subprocess.run(
        [sys.executable, '-c', 'import jax; jax.devices()'],
        env=dict(os.environ, JAX_PLATFORMS='cpu', XLA_FLAGS=flags),
        capture_output=True,
        timeout=120,
      ).returncode
      == 0
    )
    os.environ[_FOUND] = flags if works else _CERTAIN
  return os.environ[_FOUND]
