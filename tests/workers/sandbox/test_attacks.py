"""No program gets out of any tier, or takes what is not its own."""

import os
from pathlib import Path
import subprocess
import sys
import textwrap

import pytest

from r1jax.workers.sandbox import slot as sandbox_slot
from tests.workers.sandbox import attacks, hogs
from tests.workers.sandbox.processes import SECS, descendants


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


@pytest.mark.parametrize('name', hogs.HOGS)
def test_no_program_takes_more_than_its_share(sandbox, name):
  source, statuses = hogs.HOGS[name]
  secs = 0.3 if 'timeout' in statuses else SECS
  with sandbox.slot() as slot:
    reply = slot.run_script(source, 'x', secs)
    assert reply.status in statuses and reply.secs < SECS
    assert slot.run_script('print(input())', 'fine', SECS).value == 'fine\n'
    assert descendants(slot._server.pid) <= 2  # bwrap has two of its own.


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


def test_the_input_of_a_script_cannot_be_changed(sandbox):
  source = """
import ctypes, mmap, os
attempts = [
  lambda: os.write(0, b'x'),
  lambda: os.ftruncate(0, 1 << 30),
  lambda: mmap.mmap(0, 4, mmap.MAP_SHARED, mmap.PROT_WRITE),
  lambda: ctypes.CDLL(None).fallocate(0, 0, 0, 1 << 30) == 0 or 1 / 0,
  lambda: open('/dev/stdin', 'w').write('x' * 99999),
]
for attempt in attempts:
  try:
    print(attempt())
  except Exception:
    pass
print(os.fstat(0).st_size, open(0).read())"""
  with sandbox.slot() as slot:
    assert slot.run_script(source, 'fine', SECS).value == '4 fine\n'


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
