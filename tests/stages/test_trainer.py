"""The training loop on a stage of one weight: cadences, resume, signals."""

import errno
import os
import signal
import time

import jax
import jax.numpy as jnp
import pytest

from r1jax import interrupts
from r1jax.checkpoints.storage import SafetensorsReader
from r1jax.errors import DiskFull, Diverged
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
    self.skipped, self.at_step, self.losses = (), {}, {}
    self.at_evaluation = {}
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
      'loss': self.losses.get(step, state['w'][0]),
      'skipped_updates': skipped,
      'critic/skipped_updates': 2 * skipped,
    }
    return StepOutput(state, values, {'tokens': 3.0})

  def evaluate(self, state, step, directory):
    self.evaluations.append(step)
    if step in self.at_evaluation:
      self.at_evaluation[step]()
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


@pytest.fixture
def hangup():
  """Ends what nohup does, for which a run ignores SIGHUP too."""
  before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
  yield
  signal.signal(signal.SIGHUP, before)


def _send(*signums):
  def send():
    for signum in signums:
      os.kill(os.getpid(), signum)

  return send


@pytest.mark.parametrize(
  'signums, code',
  [
    ((signal.SIGTERM,), 143),
    ((signal.SIGTERM, signal.SIGTERM), 143),
    ((signal.SIGTERM,) * 5, 143),
    ((signal.SIGHUP,), 129),
    ((signal.SIGHUP, signal.SIGTERM), 129),
  ],
)
@pytest.mark.usefixtures('hangup')
def test_sigterm_saves_the_step_and_stops(tmp_path, signums, code):
  whole, cut = tmp_path / 'whole', tmp_path / 'cut'
  handlers = [signal.getsignal(signum) for signum in signums]
  _train(whole)
  with pytest.raises(interrupts.Interrupted) as caught:
    _train(cut, at_step={3: _send(*signums)})
  assert caught.value.exit_code == code
  assert 'toy: the checkpoint of step 3 is kept' in caught.value.kept
  assert [signal.getsignal(signum) for signum in signums] == handlers
  assert (cut / 'toy/checkpoints/3').is_dir()
  assert not (cut / 'toy/model.safetensors').exists()
  stage, _ = _train(cut)
  assert stage.steps == [4, 5]
  _assert_alike(cut, whole)


def test_sigterm_in_a_step_that_takes_long_saves_the_step_before(
  tmp_path, monkeypatch
):
  monkeypatch.setattr(interrupts, '_STEP_SECS', 0.2)
  whole, cut = tmp_path / 'whole', tmp_path / 'cut'
  _train(whole)

  def hang():
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(60)

  with pytest.raises(interrupts.Interrupted) as caught:
    _train(cut, at_step={4: hang}, save_steps=5)
  assert 'the checkpoint of step 3 is kept' in caught.value.kept
  stage, _ = _train(cut)
  assert stage.steps == [4, 5]
  _assert_alike(cut, whole)


def test_sigterm_in_a_long_evaluation_keeps_the_step_and_its_line(
  tmp_path, monkeypatch
):
  monkeypatch.setattr(interrupts, '_STEP_SECS', 0.2)

  def hang():
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(60)

  whole, cut = tmp_path / 'whole', tmp_path / 'cut'
  _, path = _train(whole, eval_steps=3)
  with pytest.raises(interrupts.Interrupted) as caught:
    _train(cut, eval_steps=3, at_evaluation={3: hang})
  assert 'the checkpoint of step 3 is kept' in caught.value.kept
  _, resumed = _train(cut, eval_steps=3)
  assert resumed.read_bytes() == path.read_bytes()
  lines = rows(cut, 'toy')
  assert [line['step'] for line in lines] == [0, 1, 2, 3, 4, 5]
  assert 'eval/w' not in lines[3] and lines[3]['loss'] == 6


@pytest.mark.parametrize('step', [1, 2])
def test_a_step_that_takes_long_leaves_what_there_was(
  tmp_path, monkeypatch, step
):
  """Nothing before the first step; within an update the state is consumed."""
  monkeypatch.setattr(interrupts, '_STEP_SECS', 0.2)

  def consumed(stage):
    def hang():
      stage.state['w'].delete()
      os.kill(os.getpid(), signal.SIGTERM)
      time.sleep(60)

    return hang

  stage = _Toy(save_steps=5)
  train_step = stage.train_step

  def keep_state(state, at, data):
    stage.state = state
    return train_step(state, at, data)

  stage.train_step, stage.at_step = keep_state, {step: consumed(stage)}
  with pytest.raises(interrupts.Interrupted) as caught:
    stage.run(tmp_path / 'toy', {'w': jnp.zeros(1)}, {})
  assert 'there is no checkpoint yet' in caught.value.kept


def test_sigterm_in_the_last_step_lets_the_run_finish(tmp_path):
  _, path = _train(tmp_path, at_step={5: _send(signal.SIGTERM)})
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


def test_ctrl_c_says_whether_there_is_a_checkpoint(tmp_path):
  def interrupt():
    raise interrupts.Interrupted(signal.SIGINT)

  with pytest.raises(interrupts.Interrupted) as caught:
    _train(tmp_path, at_step={2: interrupt})
  assert caught.value.exit_code == 130
  assert caught.value.kept == (
    'toy: there is no checkpoint yet, and the same command begins again'
  )
  with pytest.raises(interrupts.Interrupted) as caught:
    _train(tmp_path, at_step={3: interrupt})
  assert 'the checkpoint of step 2 is kept' in caught.value.kept


@pytest.mark.parametrize('code', [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
@pytest.mark.parametrize(
  'step, kept',
  [(1, 'there is no checkpoint yet'), (4, 'the checkpoint of step 2 is kept')],
)
def test_a_full_disk_is_one_line_that_says_what_is_kept(
  tmp_path, code, step, kept
):
  def fill():
    try:
      raise OSError(code, os.strerror(code))
    except OSError as error:
      raise RuntimeError('a long story\nof a library') from error

  with pytest.raises(DiskFull) as caught:
    _train(tmp_path, at_step={step: fill})
  message = str(caught.value)
  assert message.startswith(f'toy: the disk of {tmp_path}/toy is full; ')
  assert kept in message and '\n' not in message


def test_a_checkpoint_that_finds_no_room_is_a_full_disk(tmp_path, monkeypatch):
  def save(self, step, state, data_state):
    raise ValueError('writing kvstore: [Errno 28] No space left on device')

  monkeypatch.setattr('r1jax.train.checkpoint.Checkpointer.save', save)
  with pytest.raises(DiskFull, match='there is no checkpoint yet'):
    _train(tmp_path)


def test_another_error_is_left_as_it_is(tmp_path):
  def fail():
    raise OSError(errno.EIO, 'a broken disk')

  with pytest.raises(OSError, match='a broken disk'):
    _train(tmp_path, at_step={1: fail})


_NAN, _INF = float('nan'), float('inf')


@pytest.mark.parametrize(
  'changes, steps',
  [
    # Ten steps in a row without a finite gradient.
    (dict(num_steps=40, skipped=tuple(range(6, 41))), 'steps 6 to 15'),
    # Half of a short run, at its end.
    (dict(num_steps=6, skipped=(2, 3, 4, 5, 6)), 'steps 2 to 6'),
    (dict(num_steps=4, skipped=(3, 4)), 'steps 3 to 4'),
    (dict(num_steps=1, skipped=(1,)), 'step 1 '),
    # Updates that were made of a loss that is no number.
    (dict(losses={3: _NAN, 4: _INF, 5: -_INF}), 'steps 3 to 5'),
    # Lines and checkpoints that are far apart.
    (
      dict(num_steps=60, skipped=tuple(range(3, 61)), logging_steps=60),
      'steps 3 to 12',
    ),
    # Few steps of many updates each.
    (
      dict(num_steps=40, losses=dict.fromkeys(range(7, 41), _NAN), updates=16),
      'steps 7 to 9',
    ),
  ],
)
def test_a_run_that_learns_nothing_any_more_stops(tmp_path, changes, steps):
  updates = changes.pop('updates', 1)
  with pytest.raises(Diverged) as caught:
    _train(tmp_path, updates_per_step=updates, **changes)
  message = str(caught.value)
  assert f'toy: training has diverged: no update of {steps}' in message
  assert 'lower toy.optimizer.learning_rate' in message and '\n' not in message
  assert caught.value.exit_code not in (0, 1, 2)
  assert not (tmp_path / 'toy/model.safetensors').exists()


def test_checkpoints_stand_when_a_run_diverges(tmp_path):
  with pytest.raises(Diverged, match='checkpoint of step 6 stands'):
    _train(tmp_path, num_steps=30, skipped=tuple(range(6, 31)))
  kept = {p.name for p in (tmp_path / 'toy/checkpoints').iterdir()}
  assert kept == {'4', '6'}  # None of the steps that were lost follows.


@pytest.mark.parametrize(
  'skipped', [(1,), (5,), (1, 2), tuple(range(2, 21, 2)), tuple(range(2, 9))]
)
def test_updates_that_are_skipped_now_and_then_do_not_stop_a_run(
  tmp_path, skipped
):
  _, path = _train(tmp_path, num_steps=20, skipped=skipped)
  assert path.exists()
