"""A tier is used only if it holds, and nothing of a sandbox stays behind."""

import os
import signal
import subprocess
import sys
import time

import pytest

from r1jax.errors import UserError
from r1jax.workers.sandbox import canaries, seccomp, tiers
from r1jax.workers.sandbox.sandbox import Sandbox, SandboxUnavailable
from tests.workers.sandbox.processes import SECS, descendants


def test_a_server_that_died_is_replaced(sandbox):
  with sandbox.slot() as slot:
    os.killpg(slot._server.pid, signal.SIGKILL)
    slot._server.wait()
    assert slot.run_script('print(1)', '', SECS).value == '1\n'
    with slot.call_session([('p', '')], SECS) as calls:
      os.killpg(slot._server.pid, signal.SIGKILL)
      slot._server.wait()
      time.sleep(0.05)  # Below bwrap, the rest goes a moment later.
      assert calls.call('1', SECS).status == 'lost'
    assert slot.run_script('print(1)', '', SECS).value == '1\n'


def test_nothing_stays_when_the_sandbox_closes(sandbox):
  other = Sandbox(slots=1, tier=sandbox.tier)
  with other.slot() as slot:
    pid = slot._server.pid
  other.close()
  time.sleep(0.05)
  assert descendants(pid) == 0 and not os.path.exists(f'/proc/{pid}')


def test_nothing_stays_when_its_owner_is_killed(sandbox):
  source = f"""
from r1jax.workers.sandbox.sandbox import Sandbox
with Sandbox(slots=1, tier={sandbox.tier!r}) as made, made.slot() as slot:
  print(slot._server.pid, flush=True)
  slot.run_script('while True: pass', '', {SECS})
"""
  with subprocess.Popen(
    [sys.executable, '-c', source], text=True, stdout=subprocess.PIPE
  ) as owner:
    pid = int(owner.stdout.readline())
    time.sleep(0.1)
    assert descendants(pid) >= 1
    owner.kill()
  for _ in range(100):
    if not os.path.exists(f'/proc/{pid}'):
      break
    time.sleep(0.05)
  assert not os.path.exists(f'/proc/{pid}') and descendants(pid) == 0


def test_the_strongest_tier_that_holds_is_taken(sandbox):
  order = tiers.TIERS.index
  with Sandbox(slots=1) as chosen:
    assert order(chosen.tier) <= order(sandbox.tier)


def test_this_process_is_never_forked(sandbox, monkeypatch):
  def fork():
    raise AssertionError('forked')

  monkeypatch.setattr(os, 'fork', fork)
  with Sandbox(slots=1, tier=sandbox.tier) as made, made.slot() as slot:
    assert slot.run_script('print(1)', '', SECS).value == '1\n'


def test_a_tier_that_lets_a_canary_through_is_refused(sandbox, monkeypatch):
  monkeypatch.setattr(
    canaries,
    '_ATTACKS',
    canaries._ATTACKS
    + """
def gets_out(): return True
""",
  )
  with pytest.raises(UserError, match='not stopped: gets_out'):
    Sandbox(slots=1, tier=sandbox.tier)


@pytest.mark.parametrize(
  'hole', [{'socket': 41}, {'memfd_create': 319}, {'shmget': 29}]
)
def test_the_canaries_notice_a_hole_in_the_filter(sandbox, monkeypatch, hole):
  source = tiers.inspect.getsource
  monkeypatch.setattr(
    tiers.inspect,
    'getsource',
    lambda module: (
      source(module)
      + f'\nPROGRAM |= {hole}\nSERVER |= {hole}\n' * (module is seccomp)
    ),
  )
  with pytest.raises(UserError, match='not stopped: '):
    Sandbox(slots=1, tier=sandbox.tier)


def test_without_a_tier_nothing_runs(monkeypatch):
  monkeypatch.setattr(tiers, '_missing', lambda tier: 'it is not here')
  with pytest.raises(UserError, match='bubblewrap: it is not here; landlock'):
    Sandbox()


def test_a_tier_that_does_not_start_gives_way_to_the_next(sandbox, monkeypatch):
  monkeypatch.setattr(tiers.shutil, 'which', lambda name: '/bin/false')
  with pytest.raises(UserError, match='bubblewrap: did not start'):
    Sandbox(slots=1, tier='bubblewrap')
  if sandbox.tier != 'bubblewrap':
    with Sandbox(slots=1) as made:
      assert made.tier != 'bubblewrap'


def test_a_sandbox_that_cannot_start_again_scores_nothing(sandbox, monkeypatch):
  with Sandbox(slots=1, tier=sandbox.tier) as made, made.slot() as slot:
    monkeypatch.setattr(tiers, '_missing', lambda tier: 'it is gone')
    os.killpg(slot._server.pid, signal.SIGKILL)
    slot._server.wait()
    with pytest.raises(SandboxUnavailable, match='it is gone'):
      slot.run_script('print(1)', '', SECS)


def test_another_machine_is_refused(monkeypatch):
  monkeypatch.setattr(
    seccomp.os, 'uname', lambda: type('Uname', (), {'machine': 'riscv64'})
  )
  with pytest.raises(UserError, match='not of riscv64'):
    Sandbox()


def test_an_unknown_tier_is_named():
  with pytest.raises(UserError, match="no tier 'docker'"):
    Sandbox(tier='docker')
