"""The training loop on a stage of one weight: cadences, resume, SIGTERM."""

import os
import signal

import jax
import jax.numpy as jnp
import pytest

from r1jax.checkpoints.storage import SafetensorsReader
from r1jax.stages.trainer import StepOutput, TrainedStage
from r1jax.train import metrics
from tests.stages.conftest import rows


class _Stream:
  """Yields 1, 2, 3, …"""

  def __init__(self):
    self._last = 0

  def __next__(self):
    self._last += 1
    return self._last

  def get_state(self):
    return {'last': self._last}

  def set_state(self, state):
    self._last = state['last']


class _Clock:
  """A clock that moves only when it is told to."""

  now = 0.0

  def monotonic(self):
    return self.now


class _Toy(TrainedStage):
  """Adds the numbers of a stream to its one weight."""

  name, section = 'toy', None

  def __init__(self, **changes):
    self.seed, self.num_steps = 0, 5
    self.save_steps, self.save_total_limit = 2, 2
    self.skipped, self.at_step = (), {}
    self.steps, self.evaluations, self.clock = [], [], _Clock()
    for name, value in changes.items():
      setattr(self, name, value)

  def data(self):
    return _Stream()

  def init_state(self, params):
    return jax.tree.map(jnp.copy, params)

  def abstract_state(self, params):
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), params
    )

  def train_step(self, state, step, data):
    self.steps.append(step)
    self.clock.now += 1
    state = {'w': state['w'] + next(data)}
    if step in self.at_step:
      self.at_step[step]()
    skipped = float(step in self.skipped)
    values = {
      'loss': state['w'][0],
      'skipped_updates': skipped,
      'critic/skipped_updates': 2 * skipped,
    }
    return StepOutput(state, values, {'tokens': 3.0})

  def evaluate(self, state, step, directory):
    self.evaluations.append(step)
    self.clock.now += 100
    return {'eval/w': float(state['w'][0])}

  def policy(self, state):
    return state


def _train(directory, **changes):
  stage = _Toy(**changes)
  path = stage.run(directory / 'toy', {'w': jnp.zeros(1)}, {'made_by': 'toy'})
  return stage, path


def test_it_logs_every_so_many_steps_and_the_last(tmp_path):
  _train(tmp_path, logging_steps=2)
  lines = rows(tmp_path, 'toy')
  assert [line['step'] for line in lines] == [2, 4, 5]
  assert [line['loss'] for line in lines] == [3, 10, 15]  # 1 + 2, … + 4, … + 5.


def test_it_evaluates_before_the_first_step_and_after_the_last(tmp_path):
  stage, _ = _train(tmp_path, eval_steps=3, logging_steps=2)
  assert stage.evaluations == [0, 3, 5]
  lines = {line['step']: line for line in rows(tmp_path, 'toy')}
  assert list(lines) == [0, 2, 3, 4, 5]
  assert {step: line.get('eval/w') for step, line in lines.items()} == {
    0: 0,
    2: None,
    3: 6,
    4: None,
    5: 15,
  }
  assert 'loss' not in lines[3]  # It only evaluates there.


def test_skipped_updates_are_summed_between_two_lines(tmp_path):
  _train(tmp_path, logging_steps=3, skipped=(1, 2, 4))
  lines = rows(tmp_path, 'toy')
  assert [line['skipped_updates'] for line in lines] == [2, 1]
  assert [line['critic/skipped_updates'] for line in lines] == [4, 2]


def test_speed_is_that_of_the_steps_alone(tmp_path, monkeypatch):
  """Three tokens and a second a step; an evaluation takes 100 seconds."""
  clock, speeds = _Clock(), []
  monkeypatch.setattr(metrics, 'time', clock)
  write = metrics.MetricsWriter.write

  def record(self, step, values, speed=None):
    speeds.append(speed)
    write(self, step, values, speed)

  monkeypatch.setattr(metrics.MetricsWriter, 'write', record)
  _train(tmp_path, eval_steps=3, logging_steps=2, clock=clock)
  per_sec = {'speed/tokens_per_sec': 3.0}
  assert speeds == [None, per_sec, {}, per_sec, per_sec]


def test_the_weights_are_written_last_with_their_metadata(tmp_path):
  _, path = _train(tmp_path)
  reader = SafetensorsReader(path)
  assert reader.read('w').tolist() == [15]
  assert reader.metadata == {'made_by': 'toy'}
  kept = sorted(p.name for p in (tmp_path / 'toy/checkpoints').iterdir())
  assert kept == ['4', '5']


def _assert_alike(one, other):
  for name in ('metrics.jsonl', 'model.safetensors'):
    assert (one / 'toy' / name).read_bytes() == (
      other / 'toy' / name
    ).read_bytes()


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path):
  """Killed in step 4, after the checkpoint of step 2 and the line of step 3."""

  class Killed(Exception):
    pass

  def kill():
    raise Killed

  whole, cut = tmp_path / 'whole', tmp_path / 'cut'
  cadences = dict(eval_steps=3, skipped=(3,))
  _train(whole, **cadences)
  with pytest.raises(Killed):
    _train(cut, at_step={4: kill}, **cadences)
  assert [line['step'] for line in rows(cut, 'toy')] == [0, 1, 2, 3]
  assert not (cut / 'toy/model.safetensors').exists()
  stage, _ = _train(cut, **cadences)
  assert stage.steps == [3, 4, 5] and stage.evaluations == [3, 5]
  _assert_alike(cut, whole)


def test_sigterm_saves_the_step_and_stops(tmp_path):
  whole, cut = tmp_path / 'whole', tmp_path / 'cut'
  handler = signal.getsignal(signal.SIGTERM)
  terminate = lambda: os.kill(os.getpid(), signal.SIGTERM)
  _train(whole)
  with pytest.raises(KeyboardInterrupt):
    _train(cut, at_step={3: terminate})
  assert signal.getsignal(signal.SIGTERM) is handler
  assert (cut / 'toy/checkpoints/3').is_dir()
  assert not (cut / 'toy/model.safetensors').exists()
  stage, _ = _train(cut)
  assert stage.steps == [4, 5]
  _assert_alike(cut, whole)


def test_sigterm_in_the_last_step_lets_the_run_finish(tmp_path):
  terminate = lambda: os.kill(os.getpid(), signal.SIGTERM)
  _, path = _train(tmp_path, at_step={5: terminate})
  assert path.exists()


def test_a_run_that_lacks_only_its_weights_writes_them(tmp_path):
  _, path = _train(tmp_path)
  written = path.read_bytes()
  path.unlink()
  stage, path = _train(tmp_path)
  assert stage.steps == [] and path.read_bytes() == written


def test_the_latest_checkpoint_holds_the_policy(tmp_path):
  stage = _Toy()
  params = {'w': jnp.zeros(1)}
  assert stage.latest_params(tmp_path / 'toy', params) is None
  _train(tmp_path)
  assert stage.latest_params(tmp_path / 'toy', params)['w'].tolist() == [15]
