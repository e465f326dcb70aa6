"""Sampling on several devices and processes, and the memory it takes."""

import dataclasses
import json
import os
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

from r1jax.model import parameters
from r1jax.model.parameters import parameter_shardings
from r1jax.model.transformer import Transformer
from r1jax.rollout import sizes
from r1jax.rollout.engine import Engine
from r1jax.sharding import Layout, make_mesh
from tests.conftest import ROOT, dense_config, make, one_device, small_config
from tests.rollout import sampling_process
from tests.rollout.conftest import SIZES, sample_three


@pytest.mark.slow
@pytest.mark.parametrize(
  'config,sizes,atol',
  [
    (small_config(), SIZES, 1e-5),
    (
      dense_config(num_attention_heads=4, num_key_value_heads=2),
      dataclasses.replace(SIZES, kv_cache_int8=True),
      # A value half-way between two of the 255 steps rounds to either.
      2e-2,
    ),
  ],
  ids=['mla', 'gqa-int8'],
)
def test_eight_devices_sample_what_one_does(config, sizes, atol):
  """Two prompts over four parts of a batch: the mesh need not divide them."""
  model, params = make(config)
  want = sample_three(Engine(model, sizes), params, jax.random.key(2))
  experts = 2 if config.n_routed_experts else 1
  layout = Layout(make_mesh(dict(data=-1, tensor=2, expert=experts)))
  wide = Transformer(config, layout)
  spread = jax.device_put(
    jax.device_get(params), parameter_shardings(wide, layout)
  )
  got = sample_three(Engine(wide, sizes), spread, jax.random.key(2))
  np.testing.assert_array_equal(got.tokens_BT, want.tokens_BT)
  np.testing.assert_allclose(got.logp_BT, want.logp_BT, atol=atol)


@pytest.mark.parametrize(
  'config',
  [
    small_config(dtype='bfloat16'),
    dense_config(num_attention_heads=4, num_key_value_heads=2),
  ],
  ids=['mla', 'gqa'],
)
@pytest.mark.parametrize(
  'mesh',
  [
    dict(tensor=2, expert=2, fsdp=2),
    dict(data=8),
    dict(data=4, tensor=2),
    dict(data=2, fsdp=2, sequence=2),
  ],
  ids=str,
)
def test_the_memory_that_is_counted_is_what_a_device_holds(config, mesh):
  if not config.n_routed_experts:
    mesh = mesh | {
      'fsdp': mesh.get('fsdp', 1) * mesh.get('expert', 1),
      'expert': 1,
    }
  layout = Layout(make_mesh(mesh))
  model = Transformer(config, layout)
  params = parameters.init_params(model, jax.random.key(0))
  engine = Engine(model, SIZES)
  trained, sampled, pool = (
    sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(tree))
    for tree in (params, engine.prepare_params(params), engine.new_kv_cache())
  )
  counted = sizes.memory_per_device(model, layout, SIZES)
  bytes_of = list(counted.values())
  assert bytes_of == [trained, sampled, pool]


def test_weights_that_are_sampled_as_they_are_trained_count_once(
  small, monkeypatch
):
  model, params, _ = small
  monkeypatch.setattr(sizes, '_MAX_UNROLLED_LAYERS', 0)
  assert Engine(model, SIZES).prepare_params(params) is params
  trained, sampled, _ = sizes.memory_per_device(
    model, model.layout, SIZES
  ).values()
  assert trained and not sampled


def _start(address: str, processes: int, process: int, devices: int):
  env = dict(
    os.environ,
    JAX_PLATFORMS='cpu',
    JAX_COMPILATION_CACHE_DIR=jax.config.jax_compilation_cache_dir,
    JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS='0.5',
  )
  return subprocess.Popen(
    [
      sys.executable,
      '-m',
      'tests.rollout.sampling_process',
      address,
      *map(str, (processes, process, devices)),
    ],
    env=env,
    cwd=ROOT,
    text=True,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
  )


def _reported(process) -> dict:
  out, errors = process.communicate(timeout=240)
  assert process.returncode == 0, errors
  return json.loads(out.splitlines()[-1])


@pytest.mark.slow
def test_two_processes_of_two_devices_sample_what_one_device_does():
  """Speculating, with a pool that is short, and with weights that train split
  over both processes and decode whole on each."""
  with socket.socket() as free:
    free.bind(('localhost', 0))
    address = f'localhost:{free.getsockname()[1]}'
  pair = [_start(address, 2, process, 2) for process in (0, 1)]
  alone = sampling_process.drawn(one_device())
  first, second = map(_reported, pair)
  assert (first['processes'], first['devices']) == (2, 4)
  assert first == second and first['preempted'] > 0
  assert first['tokens'] == alone['tokens']
  for got, want in zip(first['logp'], alone['logp']):
    np.testing.assert_allclose(got, want, atol=1e-5)
