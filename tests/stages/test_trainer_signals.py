"""Signals that end the training loop, and the run that goes on from there."""

import os
import signal
import time

import jax.numpy as jnp
import pytest

from r1jax import interrupts, processes
from tests.stages.conftest import rows
from tests.stages.toy import Toy, assert_alike, train


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
  train(whole)
  with pytest.raises(interrupts.Interrupted) as caught:
    train(cut, at_step={3: _send(*signums)})
  assert caught.value.exit_code == code
  assert 'toy: the checkpoint of step 3 is kept' in caught.value.kept
  assert [signal.getsignal(signum) for signum in signums] == handlers
  assert (cut / 'toy/checkpoints/3').is_dir()
  assert not (cut / 'toy/model.safetensors').exists()
  stage, _ = train(cut)
  assert stage.steps == [4, 5]
  assert_alike(cut, whole)


def test_sigterm_in_a_step_that_takes_long_saves_the_step_before(
  tmp_path, monkeypatch
):
  monkeypatch.setattr(interrupts, '_STEP_SECS', 0.2)
  whole, cut = tmp_path / 'whole', tmp_path / 'cut'
  train(whole)

  def hang():
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(60)

  with pytest.raises(interrupts.Interrupted) as caught:
    train(cut, at_step={4: hang}, save_steps=5)
  assert 'the checkpoint of step 3 is kept' in caught.value.kept
  stage, _ = train(cut)
  assert stage.steps == [4, 5]
  assert_alike(cut, whole)


@pytest.mark.parametrize('times', [1, 2])
@pytest.mark.parametrize(
  'step, changes',
  [
    (3, {}),
    (1, dict(eval_steps=1)),
    (5, {}),  # The last one, after which there is no step to go on with.
    (3, dict(logging_steps=2)),  # A line of the evaluation alone.
    (4, dict(eval_steps=2, logging_steps=4, skipped=(1, 3))),
  ],
)
def test_sigterm_in_a_long_evaluation_repeats_it_when_the_run_goes_on(
  tmp_path, monkeypatch, step, changes, times
):
  monkeypatch.setattr(interrupts, '_STEP_SECS', 0.2)

  def hang():
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(60)

  changes = dict(eval_steps=3) | changes
  whole, cut = tmp_path / 'whole', tmp_path / 'cut'
  train(whole, **changes)
  for _ in range(times):
    with pytest.raises(interrupts.Interrupted) as caught:
      train(cut, at_evaluation={step: hang}, **changes)
    assert f'the checkpoint of step {step} is kept' in caught.value.kept
    assert max(line['step'] for line in rows(cut, 'toy')) < step
  stage, _ = train(cut, **changes)
  assert stage.evaluations[0] == step and step not in stage.steps
  assert_alike(cut, whole)


def test_sigterm_while_a_long_step_is_awaited_keeps_its_line(
  tmp_path, monkeypatch
):
  """Steps are dispatched, so that the first to wait is who reads metrics."""
  monkeypatch.setattr(interrupts, '_STEP_SECS', 0.2)

  def hang(state):
    if stage.steps[-1] == 3:
      os.kill(os.getpid(), signal.SIGTERM)
      time.sleep(60)
    return {}

  whole, cut = tmp_path / 'whole', tmp_path / 'cut'
  train(whole)
  stage = Toy(extra_metrics=hang)
  with pytest.raises(interrupts.Interrupted):
    stage.run(cut / 'toy', {'w': jnp.zeros(1)}, {'made_by': 'toy'})
  resumed, _ = train(cut)
  assert resumed.steps == [4, 5]
  assert_alike(cut, whole)


def test_sums_between_two_lines_survive_a_resume(tmp_path):
  changes = dict(logging_steps=5, skipped=(1, 3, 4))
  whole, cut = tmp_path / 'whole', tmp_path / 'cut'
  train(whole, **changes)
  with pytest.raises(interrupts.Interrupted):
    train(cut, at_step={3: _send(signal.SIGTERM)}, **changes)
  train(cut, **changes)
  assert_alike(cut, whole)


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

  stage = Toy(save_steps=5)
  train_step = stage.train_step

  def keep_state(state, at, data):
    stage.state = state
    return train_step(state, at, data)

  stage.train_step, stage.at_step = keep_state, {step: consumed(stage)}
  with pytest.raises(interrupts.Interrupted) as caught:
    stage.run(tmp_path / 'toy', {'w': jnp.zeros(1)}, {})
  assert 'there is no checkpoint yet' in caught.value.kept


def test_sigterm_in_the_last_step_ends_what_would_follow(tmp_path):
  """The stage is finished first; a signal is asked for once."""
  _, path = train(tmp_path, at_step={5: _send(signal.SIGTERM)})
  assert path.exists()
  with pytest.raises(interrupts.Interrupted) as caught:
    processes.stop_if_asked('toy is finished')
  assert caught.value.exit_code == 143
  assert caught.value.kept == 'toy is finished'
  processes.stop_if_asked('toy is finished')


def test_sigterm_in_the_last_evaluation_ends_what_would_follow(tmp_path):
  train(tmp_path, eval_steps=3, at_evaluation={5: _send(signal.SIGTERM)})
  with pytest.raises(interrupts.Interrupted):
    processes.stop_if_asked('')


def test_a_run_without_a_signal_goes_on(tmp_path):
  train(tmp_path)
  processes.stop_if_asked('')


def test_ctrl_c_says_whether_there_is_a_checkpoint(tmp_path):
  def interrupt():
    raise interrupts.Interrupted(signal.SIGINT)

  with pytest.raises(interrupts.Interrupted) as caught:
    train(tmp_path, at_step={2: interrupt})
  assert caught.value.exit_code == 130
  assert caught.value.kept == (
    'toy: there is no checkpoint yet, and the same command begins again'
  )
  with pytest.raises(interrupts.Interrupted) as caught:
    train(tmp_path, at_step={3: interrupt})
  assert 'the checkpoint of step 2 is kept' in caught.value.kept
