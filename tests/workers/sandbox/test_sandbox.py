"""No program gets out of any tier, or hides, or stays."""

import os
from pathlib import Path
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from r1jax.errors import UserError
from r1jax.workers.sandbox import canaries, seccomp, tiers
from r1jax.workers.sandbox import sandbox as sandboxes
from r1jax.workers.sandbox import slot as sandbox_slot
from r1jax.workers.sandbox.sandbox import Sandbox
from tests.workers.sandbox import attacks

SECS = 10  # What ends by itself ends long before that.


@pytest.fixture(scope='module')
def target(tmp_path_factory) -> Path:
  """A file for all to read, with a secret."""
  folder = tmp_path_factory.mktemp('target')
  for place in [folder, *folder.parents[:-2]]:
    if place.owner() == folder.owner() and os.access(place, os.W_OK):
      place.chmod(0o755)
  (folder / 'secret_module.py').write_text('')
  (folder / 'secret').write_text('the secret')
  os.environ['R1JAX_CANARY'] = 'the secret'
  yield folder / 'secret'
  del os.environ['R1JAX_CANARY']
  assert (folder / 'secret').read_text() == 'the secret'


@pytest.fixture(scope='module', params=tiers.TIERS)
def sandbox(request, target):
  try:
    made = Sandbox(slots=1, tier=request.param)
  except sandboxes.SandboxUnavailable as error:
    pytest.skip(str(error))
  with made:
    yield made


def _facts(target: Path) -> str:
  return attacks.PREAMBLE + (
    f'SECRET, FOLDER, REPOSITORY, PARENT = {str(target)!r}, '
    f'{str(target.parent)!r}, {__file__!r}, {os.getpid()}\n'
  )


def _attack(name: str) -> str:
  return 'def attack():\n' + textwrap.indent(attacks.ATTACKS[name], '  ')


@pytest.mark.parametrize('name', attacks.ATTACKS)
def test_no_attack_gets_its_way(sandbox, target, name):
  with (
    sandbox.slot() as slot,
    slot.call_session(
      [('facts', _facts(target)), ('attack', _attack(name))], SECS
    ) as calls,
  ):
    assert calls.loaded.status == 'ok'
    found = calls.call('bool(attack())', SECS)
  assert found.value is not True
  assert found.status != 'lost' and (found.status != 'ok' or not found.value)
  escaped = ['/tmp/r1jax-escaped', '/dev/shm/r1jax-escaped', 'r1jax-escaped']
  assert not any(map(os.path.lexists, escaped))


@pytest.mark.parametrize('name', attacks.HARMLESS)
def test_a_plain_process_can_do_these(target, name):
  # All in one would be quicker, but one that fails must not hide another.
  source = '\n'.join(
    [_facts(target), _attack(name), 'sys.exit(0 if attack() else 1)']
  )
  assert (
    subprocess.run(
      [sys.executable, '-S', '-c', source], cwd='/', stdout=subprocess.DEVNULL
    ).returncode
    == 0
  )


def test_calls_outside_the_list_do_not_exist(sandbox, target):
  source = (
    attacks.PREAMBLE
    + f"""
CALLS = {attacks.CALLS!r}
def reached(name):
  return call(*CALLS[name]) != -1 or ctypes.get_errno() != 38
"""
  )
  with (
    sandbox.slot() as slot,
    slot.call_session([('calls', source)], SECS) as calls,
  ):
    replies = {
      name: calls.call(f'reached({name!r})', SECS) for name in attacks.CALLS
    }
  assert {
    name: reply
    for name, reply in replies.items()
    if reply.status != 'ok' or reply.value is not False
  } == {}


@pytest.mark.parametrize('name', attacks.HOGS)
def test_no_program_takes_more_than_its_share(sandbox, name):
  source, statuses = attacks.HOGS[name]
  secs = 0.3 if 'timeout' in statuses else SECS
  start = time.monotonic()
  with sandbox.slot() as slot:
    assert slot.run_script(source, 'x', secs).status in statuses
    assert time.monotonic() - start < SECS
    assert slot.run_script('print(input())', 'fine', SECS).value == 'fine\n'
    assert _descendants(slot._server.pid) <= 2  # bwrap has two of its own.


def _descendants(pid: int) -> int:
  """Processes below one, the server itself not counted under bwrap."""
  parents = {}
  for entry in os.listdir('/proc'):
    if entry.isdigit():
      try:
        fields = Path(f'/proc/{entry}/stat').read_text().rpartition(')')[2]
      except OSError:
        continue
      parents[int(entry)] = int(fields.split()[1])
  found, last = {pid}, 0
  while len(found) != last:
    last = len(found)
    found |= {child for child, parent in parents.items() if parent in found}
  return len(found) - 1


def test_a_value_that_is_too_long_does_not_come_back(sandbox):
  with sandbox.slot() as slot, slot.call_session([('p', '')], SECS) as calls:
    assert calls.call('"x" * (2 << 20)', SECS).status == 'output'
    assert calls.call('1 + 1', SECS).value == 2


def test_programs_meet_only_themselves(sandbox):
  with sandbox.slot() as slot:
    for _ in range(2):
      with slot.call_session(
        [
          (
            'p',
            'import math, builtins\nseen = '
            '(hasattr(math, "left"), hasattr(builtins, "left"))\n'
            'math.left = builtins.left = 1',
          )
        ],
        SECS,
      ) as calls:
        assert calls.call('list(seen)', SECS).value == [False, False]


def test_programs_run_as_programs_do(sandbox):
  source = """
import sys, dataclasses, heapq, collections, bisect, functools, decimal, email
from typing import List, Optional
@dataclasses.dataclass(order=True)
class Pair:
  a: int
  b: Optional[int] = None
if __name__ == '__main__':
  n = int(input())
  print(n, Pair(n), *sys.stdin.read().split())
  print('é', file=sys.stderr)
  sys.exit()
"""
  with sandbox.slot() as slot:
    reply = slot.run_script(source, '1\na b\nc é', SECS)
    assert reply.value == '1 Pair(a=1, b=None) a b c é\n', reply
    read = 'print(open(0).read().split())'
    assert slot.run_script(read, 'a\nb', SECS).value == "['a', 'b']\n"
    big = 'x' * (1 << 20)
    assert (
      slot.run_script('print(len(input()))', big, SECS).value == '1048576\n'
    )
    assert slot.run_script('print("unread")', big, SECS).value == 'unread\n'
    assert (
      slot.run_script('import sys; sys.exit(3)', '', SECS).status == 'error'
    )
    assert slot.run_script('1/0', '', SECS).status == 'error'
    assert slot.run_script('x = "\0"', '', SECS).status == 'error'
    assert slot.run_script('x = "\ud800"', '', SECS).status == 'error'


def test_a_set_has_one_order_and_random_one_seed(sandbox):
  source = 'import random; print({"a", "b", "c", "d"}, random.random())'
  with sandbox.slot() as slot:
    first = slot.run_script(source, '', SECS)
    slot.stop()
    assert slot.run_script(source, '', SECS) == first and first.status == 'ok'


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
  assert _descendants(pid) == 0 and not os.path.exists(f'/proc/{pid}')


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
    assert _descendants(pid) >= 1
    owner.kill()
  for _ in range(100):
    if not os.path.exists(f'/proc/{pid}'):
      break
    time.sleep(0.05)
  assert not os.path.exists(f'/proc/{pid}') and _descendants(pid) == 0


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
    with pytest.raises(sandboxes.SandboxUnavailable, match='it is gone'):
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


@pytest.mark.parametrize(
  'payload',
  [
    b'',
    b'x',
    b'[]',
    b'{}',
    b'null',
    b'1',
    b'{"error": "ok"}',
    b'\xff',
    b'{"error": "correct", "message": ""}',
    b'[' * 100_000,
    b'{"value": ' + b'9' * 10_000 + b'}',
  ],
)
def test_a_forged_reply_is_an_error(payload):
  assert sandbox_slot._parse_reply(payload).status == 'error'
