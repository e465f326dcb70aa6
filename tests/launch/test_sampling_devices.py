"""Runs whose devices train or sample equal those whose devices do both."""

import pytest

from tests.launch.test_processes import (
  _assert_a_killed_run_resumes,
  _assert_same_metrics,
  _metrics,
  _Run,
)

pytestmark = pytest.mark.slow

_STEPS = (
  '--config.rl.max_steps=4',
  # All groups of a step are completed: else the choice depends on the hosts.
  '--config.rl.oversample=1.0',
  '--config.rl.prompts_per_step=8',
  # A step has 32 sequences: groups are complete one after another.
  '--config.rollout.max_num_seqs=12',
  '--config.mesh.fsdp=2',
  '--config.mesh.data=1',
)
_APART = '--config.rollout.sampling_devices=2'
_OFF_POLICY = ('--config.rl.one_step_off_policy',)
_RENEWED = (*_OFF_POLICY, '--config.rl.in_flight_renewal=0.4')


@pytest.fixture(scope='module')
def together(environment, tmp_path_factory):
  """Finished runs of one process, whose two devices train and sample."""
  found = {}
  for flags in ((), _OFF_POLICY, _RENEWED):
    workdir = tmp_path_factory.mktemp('together') / 'run'
    one = _Run(environment, workdir, *_STEPS, *flags, processes=1, devices=2)
    assert one.ended()[0][0] == 0
    found[flags] = workdir
  return found


@pytest.mark.parametrize(
  'flags, scope, processes, devices',
  [
    ((), 'global', 1, 4),
    ((), 'global', 2, 2),
    (_OFF_POLICY, 'global', 1, 4),
    (_OFF_POLICY, 'host', 4, 1),
    (_RENEWED, 'global', 2, 2),
  ],
)
def test_they_equal_devices_that_do_both(
  environment, together, tmp_path, flags, scope, processes, devices
):
  run = _Run(
    environment,
    tmp_path / 'run',
    *_STEPS,
    _APART,
    *flags,
    f'--config.rollout.scope={scope}',
    processes=processes,
    devices=devices,
  )
  assert [code for code, _ in run.ended()] == [0] * processes
  _assert_same_metrics(tmp_path / 'run', together[flags])


def test_samples_are_one_step_old(together):
  stale = {
    flags: [
      m['rollout/stale_token_frac']
      for m in _metrics(workdir)
      if 'rollout/stale_token_frac' in m
    ]
    for flags, workdir in together.items()
  }
  assert stale[()] == [0, 0, 0, 0]
  assert stale[_OFF_POLICY] == [0, 1, 1, 1]
  first, *others = stale[_RENEWED]  # Some tokens come after the new weights.
  assert first == 0 and all(0 < share < 1 for share in others)


@pytest.mark.usefixtures('together')  # It trains their base model.
def test_samples_drawn_ahead_survive_a_kill(environment, tmp_path):
  """Groups are unfinished too, and go on under the next policy."""
  flags = (
    *_STEPS,
    _APART,
    *_RENEWED,
    '--config.rl.oversample=1.5',
    '--config.rl.save_steps=1',
  )
  _assert_a_killed_run_resumes(environment, tmp_path, *flags)


def test_a_stage_that_samples_nothing_is_refused(environment, tmp_path):
  run = _Run(
    environment | {'R1JAX_CACHE': str(tmp_path / 'empty')},
    tmp_path / 'run',
    _APART,
    devices=2,
  )
  for code, line in run.ended(120):
    assert code == 2
    assert "the stage 'pretrain' has no work for processes that only" in line
