"""Whole runs in a bucket, on hosts that share nothing else."""

import subprocess
import time

import pytest

from tests import fake_gcs
from tests.conftest import ROOT
from tests.launch.test_processes import _free_port
from tests.stages.conftest import SMALL, command, run

pytestmark = pytest.mark.slow

_RUN = (
  'train',
  SMALL,
  '--config.stages=("pretrain",)',
  '--config.pretrain.max_steps=60',
  '--config.pretrain.save_steps=20',
)
_URL = '--workdir=gs://bucket/runs/zero'
_OUTPUTS = 'pretrain/model.safetensors', 'pretrain/metrics.jsonl'


@pytest.fixture
def server():
  pytest.importorskip('gcsfs')
  with fake_gcs.serving('bucket') as server:
    yield server


def _host(environment, server, folder, **more) -> dict[str, str]:
  """Returns the environment of a host with a disk of its own."""
  cache = {'R1JAX_CACHE': str(folder / 'cache')}
  return environment | server.environment() | cache | more


def _content(server, name: str) -> bytes:
  return server.buckets['bucket'][f'runs/zero/{name}'].content


def test_a_killed_run_goes_on_on_another_host_and_ends_as_on_a_disk(
  environment, server, tmp_path
):
  hosts = [_host(environment, server, tmp_path / str(i)) for i in range(4)]
  killed = subprocess.Popen(command(*_RUN, _URL), env=hosts[0], cwd=ROOT)
  whole = 'runs/zero/pretrain/checkpoints/20/commit_success.txt'
  deadline = time.monotonic() + 400
  while whole not in server.buckets['bucket']:
    assert time.monotonic() < deadline and killed.poll() is None
    time.sleep(0.02)
  killed.kill()
  killed.wait()
  said = run(hosts[1], *_RUN, _URL).stdout
  assert 'goes on after step' in said
  assert 'gs://bucket/runs/zero: done in' in said
  workdir = tmp_path / 'on a disk'
  run(hosts[2], *_RUN, f'--workdir={workdir}')
  for name in _OUTPUTS:
    assert _content(server, name) == (workdir / name).read_bytes()
  # A host that had no part in it reads the run and its weights.
  said = run(hosts[3], *_RUN, _URL).stdout
  assert 'gs://bucket/runs/zero/pretrain is finished already' in said
  said = run(hosts[3], 'lineage', 'gs://bucket/runs/zero').stdout
  assert 'pretrain' in said
  lines = run(hosts[3], 'sample', SMALL, _URL, '--prompt=1+2').stdout
  assert lines.strip()


def test_processes_on_two_hosts_share_a_bucket_alone(
  environment, server, tmp_path
):
  sharded = '--config.mesh.fsdp=2', '--config.mesh.data=1'
  place = f'--coordinator=localhost:{_free_port()}', '--num_processes=2'
  processes = [
    subprocess.Popen(
      command(*_RUN, _URL, *sharded, *place, f'--process_id={i}'),
      env=_host(environment, server, tmp_path / str(i)),
      cwd=ROOT,
    )
    for i in range(2)
  ]
  assert [process.wait(timeout=400) for process in processes] == [0, 0]
  assert _content(server, 'pretrain/processes/1/metrics.jsonl') == _content(
    server, 'pretrain/metrics.jsonl'
  )
  whole = 'pretrain/checkpoints/60/state/commit_success.txt'
  assert f'runs/zero/{whole}' in server.buckets['bucket']
  flags = environment['XLA_FLAGS']
  two = f'{flags} --xla_force_host_platform_device_count=2'
  third = _host(environment, server, tmp_path / '2', XLA_FLAGS=two)
  said = run(third, *_RUN, _URL, *sharded).stdout
  assert 'is finished already' in said
