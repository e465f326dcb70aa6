"""Profiles hold the steps that were asked for, which the run must make."""

import pytest

from r1jax.errors import UserError
from r1jax.stages import profile


def test_a_range_of_steps_is_read():
  assert profile.parse('') is None
  assert profile.parse('10:12') == (10, 12)


@pytest.mark.parametrize('text', ['10', '0:2', '3:2', 'a:b', '1:2:3'])
def test_what_is_no_range_is_refused(text):
  with pytest.raises(UserError, match='must be FIRST:LAST'):
    profile.parse(text)


def test_steps_that_the_run_does_not_make_are_refused(tmp_path):
  profiler = profile.Profiler(profile.Steps(3, 4), tmp_path)
  profiler.check('rl', 2, 4)
  for start, num_steps in ((3, 9), (0, 3)):
    with pytest.raises(UserError, match='and not all of 3 to 4'):
      profiler.check('rl', start, num_steps)


def test_the_trace_holds_its_steps_alone(tmp_path, monkeypatch):
  calls = []
  monkeypatch.setattr(
    profile.jax.profiler, 'start_trace', lambda folder: calls.append(folder)
  )
  monkeypatch.setattr(
    profile.jax.profiler, 'stop_trace', lambda: calls.append('stop')
  )
  profiler = profile.Profiler(profile.Steps(2, 3), tmp_path)
  for step in range(1, 6):
    profiler.before(step)
    calls.append(step)
    profiler.after(step, {})
  assert calls == [1, str(tmp_path), 2, 3, 'stop', 4, 5]
