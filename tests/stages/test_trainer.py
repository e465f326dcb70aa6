"""The training loop on a stage of one weight: cadences, resume, divergence."""

import contextlib
import errno
import logging
import os

import jax.numpy as jnp
import pytest

from r1jax import compile_time
from r1jax.checkpoints.storage import SafetensorsReader
from r1jax.errors import DiskFull, Diverged, UserError
from r1jax.train import metrics
from tests.stages.conftest import rows
from tests.stages.toy import Clock, Toy, assert_alike, train


def test_it_logs_every_so_many_steps_and_the_last(tmp_path):
  train(tmp_path, logging_steps=2)
  lines = rows(tmp_path, 'toy')
  assert [line['step'] for line in lines] == [2, 4, 5]
  assert [line['loss'] for line in lines] == [3, 10, 15]  # 1 + 2, … + 4, … + 5.


def test_it_evaluates_before_the_first_step_and_after_the_last(tmp_path):
  stage, _ = train(tmp_path, eval_steps=3, logging_steps=2)
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
  train(tmp_path, logging_steps=3, skipped=(1, 2, 4))
  lines = rows(tmp_path, 'toy')
  assert [line['skipped_updates'] for line in lines] == [2, 1]
  assert [line['critic/skipped_updates'] for line in lines] == [4, 2]


@pytest.fixture
def clock(monkeypatch):
  """A clock that moves only when it is told to, and no time to compile."""
  clock = Clock()
  built = compile_time.CompileClock()
  monkeypatch.setattr(metrics, 'time', clock)
  monkeypatch.setattr(compile_time, 'clock', lambda: built)
  return clock


def _performance(tmp_path) -> list[dict]:
  """The lines of performance.jsonl, without the memory."""
  lines = metrics.read(tmp_path / 'toy/performance.jsonl')
  for line in lines:
    assert 0 < line.pop('memory/host_peak_gb') < 1e3
    assert 'memory/peak_gb' not in line  # A CPU does not tell.
  return lines


def test_speed_is_that_of_the_steps_alone(tmp_path, clock):
  """Three tokens and a second a step; an evaluation takes 100 seconds."""
  train(tmp_path, eval_steps=3, logging_steps=2, clock=clock)
  lines = _performance(tmp_path)
  assert [line['step'] for line in lines] == [2, 4, 5]
  for line in lines:
    assert line['speed/tokens_per_sec'] == 3
    assert line['time/update'] == 1


def test_goodput_is_the_share_of_the_steps(tmp_path, clock):
  train(tmp_path, eval_steps=3, logging_steps=2, clock=clock)
  lines = _performance(tmp_path)
  shares = [
    (line['goodput'], line['goodput/evaluation'], line['unix_time'])
    for line in lines
  ]
  want = [(2, 100, 102), (4, 200, 204), (5, 300, 305)]
  assert shares == [(s / all_, e / all_, all_) for s, e, all_ in want]
  for line in lines:
    parts = [v for name, v in line.items() if name.startswith('goodput/')]
    assert sum(parts) == pytest.approx(1)
    assert line['goodput/update'] == line['goodput']


def test_a_run_says_its_goodput_at_the_end(tmp_path, clock, caplog):
  with caplog.at_level(logging.INFO, 'r1jax'):
    train(tmp_path, eval_steps=3, clock=clock)
  assert 'toy: goodput 2% of 0:05:05: evaluation 98%, update 2%' in caplog.text


def test_steps_that_a_kill_repeats_are_lost(tmp_path, clock):
  """Killed in step 4 after the checkpoint of step 2: step 3 is made twice."""

  def kill():
    raise RuntimeError('killed')

  with pytest.raises(RuntimeError, match='killed'):
    train(tmp_path, at_step={4: kill}, clock=clock)
  train(tmp_path, clock=clock)
  lines = _performance(tmp_path)
  assert [line['step'] for line in lines] == [1, 2, 3, 3, 4, 5]
  last = lines[-1]
  assert last['goodput/lost'] == 1 / 6 and last['goodput'] == 5 / 6


def test_the_weights_are_written_last_with_their_metadata(tmp_path):
  _, path = train(tmp_path)
  reader = SafetensorsReader(path)
  assert reader.read('w').tolist() == [15]
  assert reader.metadata == {'made_by': 'toy'}
  kept = sorted(p.name for p in (tmp_path / 'toy/checkpoints').iterdir())
  assert kept == ['4', '5']


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path):
  """Killed in step 4, after the checkpoint of step 2 and the line of step 3."""

  class Killed(Exception):
    pass

  def kill():
    raise Killed

  whole, cut = tmp_path / 'whole', tmp_path / 'cut'
  cadences = dict(eval_steps=3, skipped=(3,))
  train(whole, **cadences)
  with pytest.raises(Killed):
    train(cut, at_step={4: kill}, **cadences)
  assert [line['step'] for line in rows(cut, 'toy')] == [0, 1, 2, 3]
  assert not (cut / 'toy/model.safetensors').exists()
  stage, _ = train(cut, **cadences)
  assert stage.steps == [3, 4, 5] and stage.evaluations == [3, 5]
  assert_alike(cut, whole)


def test_a_run_that_lacks_only_its_weights_writes_them(tmp_path):
  _, path = train(tmp_path)
  written = path.read_bytes()
  path.unlink()
  stage, path = train(tmp_path)
  assert stage.steps == [] and path.read_bytes() == written


def test_the_latest_checkpoint_holds_the_policy(tmp_path):
  stage = Toy()
  params = {'w': jnp.zeros(1)}
  assert stage.latest_params(tmp_path / 'toy', params) is None
  train(tmp_path)
  assert stage.latest_params(tmp_path / 'toy', params)['w'].tolist() == [15]


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
    train(tmp_path, at_step={step: fill})
  message = str(caught.value)
  assert message.startswith(f'toy: the disk of {tmp_path}/toy is full; ')
  assert kept in message and '\n' not in message


def test_a_checkpoint_that_finds_no_room_is_a_full_disk(tmp_path, monkeypatch):
  def save(self, *checkpoint):
    raise ValueError('writing kvstore: [Errno 28] No space left on device')

  monkeypatch.setattr('r1jax.train.checkpoint.Checkpointer.save', save)
  with pytest.raises(DiskFull, match='there is no checkpoint yet'):
    train(tmp_path)


def test_another_error_is_left_as_it_is(tmp_path):
  def fail():
    raise OSError(errno.EIO, 'a broken disk')

  with pytest.raises(OSError, match='a broken disk'):
    train(tmp_path, at_step={1: fail})


@pytest.mark.parametrize('code', [errno.EACCES, errno.EPERM, errno.EROFS])
def test_a_folder_that_may_not_be_written_is_one_line(tmp_path, code):
  path = tmp_path / 'toy/checkpoints/4'

  def refuse():
    try:
      raise OSError(code, os.strerror(code), str(path))
    except OSError as error:
      raise RuntimeError('a long story\nof a library') from error

  with pytest.raises(UserError) as caught:
    train(tmp_path, at_step={4: refuse})
  message = str(caught.value)
  assert message.startswith(
    f'toy: cannot write to {tmp_path}/toy ({os.strerror(code)}); '
  )
  assert 'the checkpoint of step 2 is kept' in message and '\n' not in message


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
    train(tmp_path, updates_per_step=updates, **changes)
  message = str(caught.value)
  assert f'toy: training has diverged: no update of {steps}' in message
  assert 'lower toy.optimizer.learning_rate' in message and '\n' not in message
  assert caught.value.exit_code not in (0, 1, 2)
  assert not (tmp_path / 'toy/model.safetensors').exists()


def test_a_loss_that_explodes_stops_a_run_that_learns_likelihoods(tmp_path):
  """Ten times the first loss; the loss of a policy has no such scale."""
  far = dict(num_steps=20, losses={1: 3.0} | dict.fromkeys(range(4, 21), 31.0))
  with pytest.raises(Diverged, match='steps 4 to 13 .* ten times the first'):
    train(tmp_path / 'far', likelihoods=True, **far)
  train(tmp_path / 'policy', **far)
  near = {step: 29.0 if step % 8 else 31.0 for step in range(2, 21)}
  train(
    tmp_path / 'near', likelihoods=True, num_steps=20, losses=near | {1: 3.0}
  )
  # A model that knows its data from the start may have a loss near 0.
  low = {1: 0.01} | dict.fromkeys(range(2, 21), 2.0)
  train(tmp_path / 'low', likelihoods=True, num_steps=20, losses=low)


def test_parameters_that_explode_stop_a_run_whose_loss_does_not(tmp_path):
  """Five steps add 15: too much to 0.1, not to 0.2."""
  same = dict(losses=dict.fromkeys(range(1, 6), 0.0))
  message = 'norm of the parameters is 151 times .* lower toy.optimizer'
  with pytest.raises(Diverged, match=message):
    train(tmp_path / 'far', first=0.1, save_steps=9, **same)
  assert not (tmp_path / 'far/toy/model.safetensors').exists()
  train(tmp_path / 'near', first=0.2, **same)


@pytest.mark.parametrize(
  'first, diverges', [(0.0, False), (1.0, True), (4.0, False)]
)
def test_a_resumed_run_diverges_where_an_uninterrupted_one_does(
  tmp_path, first, diverges
):
  """Twenty steps add 210: too much to 1, not to 4, nor to what began as 0."""
  ending = pytest.raises(Diverged) if diverges else contextlib.nullcontext()
  changes = dict(first=first, losses=dict.fromkeys(range(1, 21), 0.0))
  with ending:
    train(tmp_path / 'whole', num_steps=20, **changes)
  train(tmp_path / 'cut', num_steps=2, **changes)
  with ending:
    train(tmp_path / 'cut', num_steps=20, **changes)


def test_checkpoints_stand_when_a_run_diverges(tmp_path):
  with pytest.raises(Diverged, match='checkpoint of step 6 stands'):
    train(tmp_path, num_steps=30, skipped=tuple(range(6, 31)))
  kept = {p.name for p in (tmp_path / 'toy/checkpoints').iterdir()}
  assert kept == {'4', '6'}  # None of the steps that were lost follows.


@pytest.mark.parametrize(
  'skipped', [(1,), (5,), (1, 2), tuple(range(2, 21, 2)), tuple(range(2, 9))]
)
def test_updates_that_are_skipped_now_and_then_do_not_stop_a_run(
  tmp_path, skipped
):
  _, path = train(tmp_path, num_steps=20, skipped=skipped)
  assert path.exists()


def test_the_best_checkpoint_is_kept_and_told(tmp_path, capsys):
  """The loss falls to step 4 and rises again; only the last one is kept too."""
  train(
    tmp_path,
    num_steps=10,
    losses={2: 3.0, 4: 1.0, 6: 5.0, 8: 2.0, 10: 9.0},
    save_total_limit=1,
    keep_period=6,
    metric_for_best_model='loss',
    lower_is_better=True,
  )
  kept = {p.name for p in (tmp_path / 'toy/checkpoints').iterdir()}
  assert kept == {'4', '6', '10'}
  assert 'has its best loss, 1, in the checkpoint of step 4' in (
    capsys.readouterr().out
  )


def test_a_metric_that_no_step_has_is_named(tmp_path):
  message = "toy.metric_for_best_model: unknown 'los'; did you mean 'loss'"
  with pytest.raises(UserError, match=message):
    train(tmp_path, metric_for_best_model='los')
