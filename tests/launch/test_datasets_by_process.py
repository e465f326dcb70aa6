"""Datasets that several processes sample together equal that of one process."""

from collections.abc import Callable
import json
from pathlib import Path
import signal
import time

import pytest

from tests.conftest import ROOT
from tests.launch.test_processes import _Run
from tests.stages.conftest import run as run_alone

pytestmark = pytest.mark.slow

_SMALL = f'--config={ROOT}/tests/configs/small.py'
_REJECTION_SAMPLING = (
  '--config.stages=("rejection_sampling",)',
  '--config.rl.max_new_tokens=40',
  '--config.rejection_sampling.num_prompts=14',
  '--config.rejection_sampling.num_samples=3',
  '--config.rejection_sampling.prompts_per_chunk=5',  # Four in the last one.
  '--config.rejection_sampling.require_correct=False',
  '--config.rejection_sampling.require_format=False',
  '--config.rejection_sampling.max_per_prompt=2',
  '--config.rejection_sampling.top_logprobs=4',
)
_LABEL_STEPS = (
  '--config.stages=("label_steps",)',
  '--config.rl.max_new_tokens=40',
  '--config.label_steps.num_prompts=10',
  '--config.label_steps.num_samples=3',
  '--config.label_steps.num_continuations=2',
  '--config.label_steps.prompts_per_chunk=4',
)
_STAGES = {
  'rejection_sampling': (_REJECTION_SAMPLING, 'accepted.jsonl'),
  'label_steps': (_LABEL_STEPS, 'steps.jsonl'),
}
_GLOBAL, _BY_HOST = (
  ('--config.mesh.fsdp=2', '--config.mesh.data=-1'),
  (
    '--config.rollout.scope=host',
    '--config.mesh.fsdp=2',
    '--config.mesh.data=-1',
  ),
)

# Each process writes how many answers it grades, and how many it samples.
_COUNT = """
from r1jax.graders import dispatch
from r1jax.rollout.session import Session

def counted(name, number, function):
  def call(*args, **kwargs):
    with open(f'{folder}/{name}_{process}', 'a') as file:
      print(number(*args), file=file)
    return function(*args, **kwargs)
  return call

dispatch.verdicts = counted('graded', len, dispatch.verdicts)
Session.submit = counted('sampled', lambda *_: 1, Session.submit)
"""


@pytest.fixture(scope='module')
def base(environment, tmp_path_factory) -> str:
  """The flag of weights to sample from."""
  workdir = tmp_path_factory.mktemp('base') / 'run'
  flags = f'--workdir={workdir}', '--config.stages=("pretrain",)'
  run_alone(environment, 'train', _SMALL, *flags)
  return f'--config.init={workdir}/pretrain/model.safetensors'


@pytest.fixture(scope='module')
def alone(environment, base, tmp_path_factory) -> Callable[..., Path]:
  """Returns the folder of a stage that one process has run, on some devices."""
  finished: dict[tuple, Path] = {}

  def folder(stage: str, devices: int = 2) -> Path:
    if (stage, devices) not in finished:
      workdir = tmp_path_factory.mktemp('alone') / 'run'
      run = _Run(
        environment,
        workdir,
        base,
        *_STAGES[stage][0],
        *_GLOBAL,
        processes=1,
        devices=devices,
      )
      assert run.ended()[0][0] == 0
      finished[stage, devices] = workdir / stage
    return finished[stage, devices]

  return folder


def _assert_same_dataset(got: Path, want: Path):
  for name in (_STAGES[want.name][1], 'report.json'):
    assert (got / name).read_bytes() == (want / name).read_bytes(), name
  assert not (got / 'partial.jsonl').exists()
  assert not (got / 'processes').exists()  # The first process writes all.


def _rows(folder: Path) -> list[dict]:
  text = (folder / _STAGES[folder.name][1]).read_text()
  return list(map(json.loads, text.splitlines()))


@pytest.mark.parametrize('stage', _STAGES)
@pytest.mark.parametrize('scope', [_GLOBAL, _BY_HOST], ids=['global', 'host'])
@pytest.mark.parametrize('processes, devices', [(2, 1), (2, 2), (4, 1)])
def test_several_processes_write_the_dataset_of_one(
  environment, base, alone, tmp_path, stage, scope, processes, devices
):
  run = _Run(
    environment,
    tmp_path / 'run',
    base,
    *_STAGES[stage][0],
    *scope,
    processes=processes,
    devices=devices,
  )
  assert [code for code, _ in run.ended()] == [0] * processes
  want = alone(stage, processes * devices)
  assert len(_rows(want)) > 10
  _assert_same_dataset(tmp_path / 'run' / stage, want)
