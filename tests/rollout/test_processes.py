"""The sampler on several hosts: every process decides and draws the same."""

import json
import os
import socket
import subprocess
import sys

import jax
import numpy as np

from tests.conftest import ROOT, one_device
from tests.rollout import sampling_process


def _start(address: str, processes: int, process: int, devices: int):
  env = dict(
      os.environ, JAX_PLATFORMS='cpu',
      JAX_COMPILATION_CACHE_DIR=jax.config.jax_compilation_cache_dir,
      JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS='0.5')
  return subprocess.Popen(
      [sys.executable, '-m', 'tests.rollout.sampling_process', address,
       *map(str, (processes, process, devices))],
      env=env, cwd=ROOT, text=True, stdout=subprocess.PIPE,
      stderr=subprocess.PIPE)


def _told(process) -> dict:
  out, errors = process.communicate(timeout=240)
  assert process.returncode == 0, errors
  return json.loads(out.splitlines()[-1])


def test_two_processes_of_two_devices_sample_what_one_device_does():
  """Speculating, with parameters and cache spread over both."""
  with socket.socket() as free:
    free.bind(('localhost', 0))
    address = f'localhost:{free.getsockname()[1]}'
  pair = [_start(address, 2, process, 2) for process in (0, 1)]
  alone = sampling_process.drawn(one_device())
  first, second = map(_told, pair)
  assert (first['processes'], first['devices']) == (2, 4)
  assert first == second
  assert first['tokens'] == alone['tokens']
  for got, want in zip(first['logp'], alone['logp']):
    np.testing.assert_allclose(got, want, atol=1e-5)
