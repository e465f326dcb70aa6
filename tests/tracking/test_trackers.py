"""Trackers: each with its real package, offline; and one that fails."""

import json
import logging
import math
import os
from pathlib import Path
import sqlite3

import pytest
from tensorboardX.proto import event_pb2
from tensorboardX.record_writer import RecordWriter

from r1jax import registry
from r1jax.errors import UserError
from r1jax.tracking import trackers
from r1jax.tracking.tracker import TrackedRun, Tracker
from tests.stages.toy import train

_CONFIG = {'seed': 0, 'rl.max_steps': 4, 'stages': ['rl'], 'init': 'random'}
_ROWS = [
  {'kind': 'eval', 'prompt': 'User: 1+1\n', 'completion': '2', 'accuracy': 1.0},
  {
    'kind': 'eval',
    'prompt': 'User: 2+2\n',
    'completion': '5',
    'accuracy': None,
  },
]


def _show(name: str, folder: Path, steps, failed=False):
  """Shows some steps with a tracker, as one process of a run does."""
  run = TrackedRun('zero/rl', folder, _CONFIG, steps[0])
  group = trackers.Trackers((name,), run)
  assert group._open.keys() == {name}
  for step in steps:
    group.write(step, {'reward': step / 2, 'eval/pass@1': 0.5, 'lr': 1e-3})
    group.write(step, {'time/rollout': 2.0, 'kl': math.nan})
  group.write_completions(steps[-1], _ROWS)
  assert group._open.keys() == {name}  # Nothing failed.
  group.close(failed)


def _ids(folder: Path) -> dict:
  return json.loads((folder / trackers.FILE).read_text())


def _events(folder: Path):
  """Yields the events of all files of a folder, which hold framed records."""
  assert RecordWriter  # The frames are those of its write method.
  for path in sorted((folder / 'tensorboard').iterdir()):
    data = path.read_bytes()
    while data:
      length = int.from_bytes(data[:8], 'little')
      yield event_pb2.Event.FromString(data[12 : 12 + length])
      data = data[16 + length :]


def test_tensorboard_has_metrics_config_and_completions(tmp_path):
  _show('tensorboard', tmp_path, [0, 1])
  _show('tensorboard', tmp_path, [2])
  scalars, texts, tags = {}, {}, set()
  for event in _events(tmp_path):
    for value in event.summary.value:
      tags.add(value.tag)
      if value.HasField('simple_value'):
        scalars.setdefault(value.tag, []).append(event.step)
      elif value.HasField('tensor'):
        texts[value.tag] = value.tensor.string_val[0].decode()
  assert scalars['reward'] == scalars['time/rollout'] == [0, 1, 2]
  assert '    User: 2+2' in texts['completions/1/text_summary']
  assert '_hparams_/session_start_info' in tags
  assert not (tmp_path / trackers.FILE).exists()  # It gives no id.


def test_wandb_goes_on_with_the_same_run(tmp_path, monkeypatch):
  pytest.importorskip('wandb', reason='the extra wandb is not installed')
  monkeypatch.setenv('WANDB_MODE', 'offline')
  _show('wandb', tmp_path, [0, 1], failed=True)
  first = _ids(tmp_path)
  _show('wandb', tmp_path, [2])
  assert _ids(tmp_path) == first
  stored = list((tmp_path / 'wandb').glob(f'offline-run-*-{first["wandb"]}'))
  assert stored and b'completions' in b''.join(
    path.read_bytes() for each in stored for path in each.glob('*.wandb')
  )


def test_mlflow_goes_on_with_the_same_run(tmp_path, monkeypatch):
  pytest.importorskip('mlflow', reason='the extra mlflow is not installed')
  from mlflow import MlflowClient

  monkeypatch.setenv('MLFLOW_TRACKING_URI', f'sqlite:///{tmp_path}/mlflow.db')
  monkeypatch.chdir(tmp_path)  # Its artifacts lie in ./mlruns.
  _show('mlflow', tmp_path, [0, 1], failed=True)
  first = _ids(tmp_path)
  client = MlflowClient()
  assert client.get_run(first['mlflow']).info.status == 'FAILED'
  _show('mlflow', tmp_path, [2])
  assert _ids(tmp_path) == first
  run = client.get_run(first['mlflow'])
  assert run.info.status == 'FINISHED'
  assert run.data.params['rl.max_steps'] == '4'
  assert run.data.metrics['eval/pass_at_1'] == 0.5
  history = client.get_metric_history(run.info.run_id, 'reward')
  assert [(each.step, each.value) for each in history] == [
    (0, 0.0),
    (1, 0.5),
    (2, 1.0),
  ]
  names = [
    f.path for f in client.list_artifacts(run.info.run_id, 'completions')
  ]
  assert names == [f'completions/step_{n:06d}.json' for n in (1, 2)]


def test_trackio_goes_on_with_the_same_run(tmp_path):
  """It reads its folder from the environment when it is imported."""
  pytest.importorskip('trackio', reason='the extra trackio is not installed')
  import subprocess
  import sys

  program = (
    'import pathlib, sys; from tests.tracking.test_trackers import _show;'
    '_show("trackio", pathlib.Path(sys.argv[1]), list(map(int, sys.argv[2:])))'
  )
  for steps in (['0', '1'], ['2']):
    done = subprocess.run(
      [sys.executable, '-c', program, str(tmp_path), *steps],
      env=os.environ | {'TRACKIO_DIR': str(tmp_path / 'trackio')},
      capture_output=True,
      text=True,
    )
    assert done.returncode == 0, done.stderr
  name = _ids(tmp_path)['trackio']
  with sqlite3.connect(tmp_path / 'trackio/r1jax.db') as found:
    rows = found.execute('select run_name, step from metrics').fetchall()
  assert {run for run, _ in rows} == {name}
  assert {step for _, step in rows} == {0, 1, 2}


class _Broken(Tracker):
  """It fails from its second step on."""

  def __init__(self, run):
    self.id, self.steps = run.id or 'first', []
    _Broken.last = self

  def write(self, step, values):
    self.steps.append(step)
    if step > 1:
      raise ConnectionError('no\nroute to host')

  def write_completions(self, step, rows):
    raise AssertionError

  def close(self, failed):
    raise AssertionError


@pytest.fixture
def broken():
  registry.tracker.add('broken', _Broken, __file__)
  yield _Broken
  registry.tracker.forget(__file__)


def test_a_tracker_that_fails_is_one_warning_and_the_run_goes_on(
  broken, tmp_path, caplog
):
  with caplog.at_level(logging.WARNING, 'r1jax'):
    _, path = train(tmp_path, tracking=('broken',))
  assert path.exists() and broken.last.steps == [1, 1, 2]
  texts = [r.getMessage() for r in caplog.records if 'tracking' in r.message]
  assert texts == [
    'tracking: broken has failed and is left out until the run is started '
    'again: no route to host'
  ]
  assert _ids(tmp_path / 'toy') == {'broken': 'first'}


def test_one_that_is_not_installed_is_one_line_with_the_command(
  broken, monkeypatch
):
  monkeypatch.setattr(broken, 'package', 'no_such_package')
  monkeypatch.setattr(broken, 'extra', 'broken')
  with pytest.raises(UserError, match=r"pip install -e '.\[broken\]'"):
    trackers.check(('tensorboard', 'broken'))
  with pytest.raises(UserError, match="unknown 'wandbb'; did you mean 'wandb'"):
    trackers.check(('wandbb',))
