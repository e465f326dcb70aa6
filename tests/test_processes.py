"""Processes compare what they were given; a function stands for another one."""

import pytest

from r1jax import processes
from r1jax.errors import UserError
from r1jax.stages import agreement


@pytest.fixture
def other(monkeypatch):
  """Gives a second process, which says what a function makes of each value."""

  def says(change):
    monkeypatch.setattr(processes, 'several', lambda: True)
    monkeypatch.setattr(processes, 'exchange', lambda x: [x, change(x)])

  return says


def test_an_error_of_another_process_is_raised_here(other):
  other(lambda _: (5, 'data: no file x.jsonl'))
  with pytest.raises(UserError, match='process 1: data: no file x') as error:
    with processes.agreed():
      pass
  assert error.value.exit_code == 5


def test_an_error_of_its_own_comes_first(other):
  other(lambda _: None)
  with pytest.raises(ValueError, match='mine'):
    with processes.agreed():
      raise ValueError('mine')


def test_facts_that_differ_are_named_with_both_values(other):
  other(lambda facts: facts | {'seed': '1'})
  with pytest.raises(
    UserError, match="configs differ: seed is '0' in process 0 and '1' in"
  ):
    processes.check_same({'seed': '0', 'stages': 'rl'}, 'configs')
  other(lambda facts: facts)
  processes.check_same({'seed': '0'}, 'configs')


def test_a_step_that_differs_is_named_with_both_values(other):
  def one_ulp(told):
    return told | {'values': told['values'] | {'loss': (0.5 + 2**-53).hex()}}

  other(one_ulp)
  with pytest.raises(UserError, match='step 3: processes differ in loss: 0.5'):
    agreement.check_step(3, {'loss': 0.5, 'grad_norm': 1.0}, {'row': 7}, 0, {})


def test_positions_that_differ_are_refused(other):
  other(
    lambda told: (
      told | {'values': told['values'] | {'position of the data': 'x'}}
    )
  )
  with pytest.raises(UserError, match='differ in position of the data'):
    agreement.check_step(3, {'loss': 0.5}, {'row': 7}, 0, {})


def test_a_signal_of_any_process_reaches_all(other):
  other(lambda told: told | {'signum': 15})
  agreed = agreement.check_step(3, {'loss': 0.5}, {'row': 7}, 0, {})
  assert agreed.signum == 15


def test_the_own_time_of_each_process_may_differ(other):
  other(lambda told: told | {'own_secs': {'host': 3.0}})
  agreed = agreement.check_step(3, {'loss': 0.5}, {}, 0, {'host': 1.0})
  assert agreed == (0, [{'host': 1.0}, {'host': 3.0}])


def test_one_process_has_nothing_to_ask():
  assert agreement.check_step(3, {}, {}, 2, {}) == (2, [{}])
  assert processes.from_first(lambda: {'a': 1}) == {'a': 1}
  with pytest.raises(ValueError), processes.agreed():
    raise ValueError


def test_nan_is_the_same_in_all_processes(other):
  other(lambda told: told)
  assert agreement.check_step(1, {'loss': float('nan')}, {}, 0, {}).signum == 0
