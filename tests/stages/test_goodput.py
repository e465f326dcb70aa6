"""The account of a run's time, of resumed runs too."""

import json

import pytest

from r1jax import compile_time
from r1jax.stages.goodput import Goodput
from r1jax.train import metrics
from tests.stages.toy import Clock


@pytest.fixture
def clock(monkeypatch):
  clock, built = Clock(), compile_time.CompileClock()
  clock.built = built
  monkeypatch.setattr(metrics, 'time', clock)
  monkeypatch.setattr(compile_time, 'clock', lambda: built)
  return clock


def _spend(goodput, clock, **secs):
  for part, spent in secs.items():
    clock.now += spent
    goodput.lap(part)


def _secs(goodput, total) -> dict[str, float]:
  """The seconds of the parts that have any, by their shares."""
  shares = goodput.shares()
  assert shares.pop('goodput') == pytest.approx(
    sum(
      shares[f'goodput/{part}']
      for part in ('rollout', 'reward', 'reference', 'update', 'host')
    )
  )
  assert sum(shares.values()) == pytest.approx(1)
  return {
    name.removeprefix('goodput/'): pytest.approx(share * total)
    for name, share in shares.items()
    if share
  }


def test_every_second_has_one_part(tmp_path, clock):
  goodput = Goodput(tmp_path)
  goodput.resume(0)
  _spend(goodput, clock, setup=4, evaluation=6)
  clock.now += 10
  clock.built.add(clock.now - 5, 2)
  assert goodput.step(
    {'rollout': 3, 'compile': 2, 'update': 4, 'host': 0.5}
  ) == pytest.approx(8)
  _spend(goodput, clock, waiting=1, save=3, other=1)
  assert _secs(goodput, 25) == {
    'setup': 4,
    'evaluation': 6,
    'rollout': 3,
    'update': 4,
    'host': 0.5,
    'compile': 2,
    'other': 1.5,
    'waiting': 1,
    'save': 3,
  }
  assert goodput.shares()['goodput'] == pytest.approx(7.5 / 25)
  assert goodput.summary().startswith('goodput 30% of 0:00:25: evaluation 24%')


def test_what_the_parts_of_a_step_leave_is_the_update(tmp_path, clock):
  """Where the host reads the next data while the device computes."""
  goodput = Goodput(tmp_path)
  goodput.resume(0)
  clock.now += 5
  goodput.step({'data': 2})
  assert _secs(goodput, 5) == {'waiting': 2, 'update': 3}


def _run(folder, clock, start, steps, saves):
  goodput = Goodput(folder)
  goodput.resume(start)
  _spend(goodput, clock, setup=1)
  for step in steps:
    clock.now += 10
    goodput.step({})
    if step in saves:
      _spend(goodput, clock, save=2)
      goodput.saved(step)
    goodput.write()
  return goodput


def test_steps_that_are_repeated_are_lost(tmp_path, clock):
  """Killed after step 4, and again after it, with the checkpoint of step 2."""
  _run(tmp_path, clock, 0, (1, 2, 3, 4), (2,))
  _run(tmp_path, clock, 2, (3, 4), ())
  goodput = _run(tmp_path, clock, 2, (3, 4, 5), ())
  # 20 s of lost steps, 1 s of setup and 20 s again; then 1 s and 30 s count.
  total = 1 + 20 + 2 + 20 + (1 + 20) + (1 + 30)
  assert _secs(goodput, total) == {
    'setup': 1 + 1,
    'save': 2,
    'update': 20 + 30,
    'lost': 20 + 21,
  }


def test_a_checkpoint_that_was_not_finished_loses_its_steps_too(
  tmp_path, clock
):
  _run(tmp_path, clock, 0, (1, 2, 3, 4), (2, 4))
  goodput = _run(tmp_path, clock, 2, (3,), ())
  assert _secs(goodput, 56) == {'setup': 2, 'save': 2, 'update': 30, 'lost': 22}


def test_a_run_that_begins_again_has_lost_all(tmp_path, clock):
  _run(tmp_path, clock, 0, (1, 2), (2,))
  goodput = _run(tmp_path, clock, 0, (1,), ())
  assert _secs(goodput, 34) == {'setup': 1, 'update': 10, 'lost': 23}
  assert json.loads((tmp_path / 'goodput.json').read_text())['saved'] == {}


def test_accounts_of_old_checkpoints_are_dropped(tmp_path, clock):
  steps = range(1, 101)
  _run(tmp_path, clock, 0, steps, steps)
  saved = json.loads((tmp_path / 'goodput.json').read_text())['saved']
  assert list(map(int, saved)) == list(range(37, 101))


def test_a_run_without_time_says_nothing(tmp_path, clock):
  goodput = Goodput(tmp_path)
  assert goodput.shares() == {} and goodput.summary() == ''
