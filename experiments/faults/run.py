"""Injects every fault of a list into runs of the public command.

  python experiments/faults/run.py --out=runs/faults [--only=kill,full]

Most faults are injected by hooks.py, a plugin of config.py's run; a run that
ends before its time is resumed by the same command and must end with the same
bytes as one that nothing happened to. Where tests of the suite inject a fault,
the row names them, and they are run. Writes results.csv, a row a fault, and
rows.json in --out, from which a study that was cut off goes on.
"""

import argparse
import collections
from collections.abc import Callable
import csv
import dataclasses
import json
import os
from pathlib import Path
import random
import re
import shutil
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
CONFIG = f'--config={HERE}/config.py'
KILLS, SEED = 30, 0
# Phases, and how often a run of a few steps meets each of them at most.
PHASES = {
  'rollout': 40,
  'reward': 12,
  'update': 3,
  'position': 5,
  'save': 3,
  'files': 3,
  'rename': 8,
  'collection': 2,
}
COLUMNS = 'fault', 'injected', 'must hold', 'happened', 'verdict'


@dataclasses.dataclass
class Ended:
  """How a command ended: its exit code, its output, its last line of stderr."""

  code: int
  output: str
  line: str


class Bench:
  """Runs commands in folders below --out."""

  def __init__(self, out: Path):
    self.out = out
    self.whole = out / 'whole'
    self.env = os.environ | {
      'JAX_PLATFORMS': 'cpu',
      'R1JAX_CACHE': str(out / 'cache'),
      'PYTHONPATH': str(ROOT),
    }

  def train(self, workdir: Path, *args: str, fault: str = '') -> Ended:
    """Runs `r1jax train`, with a fault."""
    done = subprocess.run(
      [sys.executable, '-m', 'r1jax.cli.main', 'train', CONFIG]
      + [f'--workdir={workdir}', *args],
      env=self.env | {'FAULT': fault},
      cwd=ROOT,
      capture_output=True,
      text=True,
    )
    lines = done.stderr.strip().splitlines() or ['']
    return Ended(done.returncode, done.stdout + done.stderr, lines[-1])

  def fresh(self, name: str) -> Path:
    """Returns a folder that does not exist."""
    folder = self.out / name
    shutil.rmtree(folder, ignore_errors=True)
    return folder

  def copied(self, name: str) -> Path:
    """Returns a copy of the whole run that lacks its final weights."""
    folder = self.fresh(name)
    shutil.copytree(self.whole, folder)
    (folder / 'rl/model.safetensors').unlink()
    return folder

  def is_same(self, folder: Path, weights: bool = False) -> bool:
    """Whether a run left the bytes of the one that nothing happened to.

    Args:
      folder: The run's.
      weights: Compare the final weights alone.
    """
    names = ['model.safetensors', 'metrics.jsonl']
    names += [
      str(path.relative_to(self.whole / 'rl'))
      for path in sorted((self.whole / 'rl/samples').iterdir())
    ]
    return all(
      (folder / 'rl' / name).exists()
      and (folder / 'rl' / name).read_bytes()
      == (self.whole / 'rl' / name).read_bytes()
      for name in names[: 1 if weights else None]
    )

  def resumed(self, folder: Path, weights: bool = False) -> str:
    """Resumes a run to its end; says how, and raises if it is another one."""
    ended = self.train(folder)
    assert ended.code == 0, ended.line
    assert self.is_same(folder, weights), 'the resumed run has other bytes'
    same = 'weights' if weights else 'bytes'
    return f'resumed from step {_start(ended)} to the same {same}'


def _last_line(folder: Path) -> int:
  """Returns the last whole step in metrics.jsonl; 0 without one."""
  path = folder / 'rl/metrics.jsonl'
  if not path.exists():
    return 0
  lines = path.read_text().split('\n')[:-1]
  return max((json.loads(line)['step'] for line in lines), default=0)


def kill(bench: Bench) -> str:
  """kill -9 at 30 seeded points, run after run, each resumed to its end.

  Each point is a phase, in turn, and a seeded number of times that the process
  meets it. A study that was cut off goes on after the last kill.
  """
  record = bench.out / 'kills.json'
  kills = json.loads(record.read_text()) if record.exists() else []
  phases = list(PHASES)
  while sum(each['killed'] for each in kills) < KILLS:
    run = sum(not each['killed'] for each in kills)
    if not kills or not kills[-1]['killed']:
      bench.fresh(f'killed_{run}')
    folder = bench.out / f'killed_{run}'
    phase = phases[len(kills) % len(phases)]
    rng = random.Random(f'{SEED}/{len(kills)}')
    count = rng.randint(1, PHASES[phase])
    before = _last_line(folder)
    ended = bench.train(folder, fault=f'kill:{phase}:{count}')
    start = _start(ended)
    again = 0 if start is None else before - start
    assert again <= 2, f'{again} steps lost after {kills[-1]}'
    killed = ended.code == -9
    assert killed or ended.code == 0, ended.line
    # A run that meets the point less often ends, and is compared.
    assert killed or bench.is_same(folder), f'other bytes after {kills}'
    step = _last_line(folder) + 1
    kills.append(dict(phase=phase, count=count, step=step, killed=killed))
    kills[-1]['again'] = again
    record.write_text(json.dumps(kills, indent=1))
    print(f'  kill {len(kills)}: {kills[-1]}', flush=True)
  runs = sum(not each['killed'] for each in kills)
  if kills[-1]['killed']:
    bench.resumed(bench.out / f'killed_{runs}')
    runs += 1
  counts = collections.Counter(x['phase'] for x in kills if x['killed'])
  shown = ', '.join(f'{name} {counts[name]}' for name in PHASES)
  most = max(each['again'] for each in kills)
  return (
    f'{KILLS} kills ({shown}); {runs} runs ended with the same bytes; at most '
    f'{most} logged steps were made again, with a checkpoint a step'
  )


def _start(ended: Ended) -> int | None:
  """Returns the step that a run has gone on from; None if it had not begun."""
  if found := re.search(r'goes on after step (\d+)', ended.output):
    return int(found[1])
  return 0 if 'compiles, and evaluates' in ended.output else None


def _breaks(
  fault: str, code: int, text: str, weights: bool = False
) -> Callable[[Bench], str]:
  """Returns a check of a fault that ends a run, which is then resumed."""

  def check(bench: Bench) -> str:
    folder = bench.fresh(fault.replace(':', '_'))
    ended = bench.train(folder, fault=fault)
    assert ended.code == code, f'exit code {ended.code}: {ended.line}'
    assert re.search(text, ended.line), ended.line
    if 'readonly' in fault:
      (folder / 'rl/checkpoints').chmod(0o755)
    return f'exit code {code}; {bench.resumed(folder, weights)}'

  return check


def term_last(bench: Bench) -> str:
  folder = bench.fresh('term_last')
  ended = bench.train(folder, fault='term:last')
  assert ended.code == 0 and bench.is_same(folder), ended.line
  return 'nothing was left to do: it ended with 0 and the same bytes'


def clock(bench: Bench) -> str:
  for secs in (-86400, 86400):
    folder = bench.fresh('clock')
    ended = bench.train(folder, fault=f'clock:{secs}:3')
    assert ended.code == 0 and bench.is_same(folder), ended.line
  return 'a day back, a day forth: the same bytes'


def _damaged(harm: Callable[[Path], None], text: str):
  """Returns a check of a harm to the largest file of the last checkpoint."""

  def check(bench: Bench) -> str:
    folder = bench.copied('damaged')
    root = folder / 'rl/checkpoints/8/state'
    harm(max(root.rglob('d/*'), key=lambda path: path.stat().st_size))
    ended = bench.train(folder)
    assert ended.code == 0 and bench.is_same(folder), ended.line
    warning = next(
      line for line in ended.output.splitlines() if 'is broken' in line
    )
    assert text in warning and 'goes on from step 7' in warning, warning
    assert (folder / 'rl/broken_checkpoints/8').is_dir()
    return f'"{text}"; went on from step 7 to the same bytes'

  return check


def _flip(path: Path):
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 1
  path.write_bytes(content)


def _truncate(path: Path):
  path.write_bytes(path.read_bytes()[:-100])


def all_broken(bench: Bench) -> str:
  folder = bench.copied('all_broken')
  for step in (7, 8):
    _flip(folder / f'rl/checkpoints/{step}/host/metadata')
  ended = bench.train(folder)
  assert ended.code == 2, ended.line
  assert all(f'step {step}: host/metadata' in ended.line for step in (7, 8))
  return 'exit code 2; one line names both'


def flipped_weights(bench: Bench) -> str:
  folder = bench.fresh('flipped_weights')
  shutil.copytree(bench.whole, folder)
  weights = folder / 'rl/model.safetensors'
  content = bytearray(weights.read_bytes())
  content[-5] ^= 1
  weights.write_bytes(content)
  new = bench.fresh('from_flipped_weights')
  ended = bench.train(new, f'--config.init={weights}')
  assert ended.code == 2 and 'has other bytes' in ended.line, ended.line
  return f'exit code 2: "{ended.line.split(": ", 2)[2][-90:]}"'


def _refused(*args: str) -> Callable[[Bench], str]:
  """Returns a check of a resume with another config."""

  def check(bench: Bench) -> str:
    folder = bench.copied('changed')
    before = (folder / 'rl/metrics.jsonl').read_bytes()
    for arg in args:
      key = arg.removeprefix('--config.').split('=')[0]
      ended = bench.train(folder, *arg.split())
      assert ended.code == 2 and key in ended.line, ended.line
    assert (folder / 'rl/metrics.jsonl').read_bytes() == before
    return (
      f'each refused with exit code 2, naming its key; {bench.resumed(folder)}'
    )

  return check


# fault, how it is injected, what must hold, the check or the tests.
ROWS = [
  (
    'kill -9',
    f'{KILLS} seeded points (seed {SEED}) in the phases of hooks.py: rollout, '
    'reward, update, between update and data position, save, before the hash '
    'of the files, rename, removal of old checkpoints',
    'resumes from a whole step, at most one save interval lost besides the one '
    'in flight, same bytes as an uninterrupted run',
    kill,
  ),
  (
    'SIGTERM in the last step of the last stage',
    'hooks.py: term:last',
    'the run ends as if nothing had happened',
    term_last,
  ),
  (
    'SIGTERM once and twice; Ctrl-C',
    'signals to the command, at times and in phases',
    'one checkpoint within the grace time, its own exit code, resumed',
    'tests/runs/test_signals.py tests/stages/test_trainer_signals.py',
  ),
  (
    'SIGTERM in the last step of a stage that others follow',
    'a signal within the step',
    'the stage is finished, exit code 143, the next command goes on',
    'tests/stages/test_stage.py::'
    'test_sigterm_in_a_last_step_ends_the_run_before_the_next_stage',
  ),
  (
    'full disk during a save',
    'hooks.py: full:4 (RLIMIT_FSIZE 2,000 bytes from then on)',
    'a loud error; the step before restores; same bytes',
    _breaks('full:4', 5, 'the disk of .* is full; the checkpoint of step '),
  ),
  (
    'no permission, read-only folder during a save',
    'hooks.py: readonly:4 (chmod 555, and no longer root)',
    'a loud error; the step before restores; same bytes',
    _breaks(
      'readonly:4', 2, 'cannot write to .*Permission denied.*step . is kept'
    ),
  ),
  (
    'bit flip in the arrays of a checkpoint',
    'one bit of the largest file',
    'named; falls back; same bytes',
    _damaged(_flip, 'has other bytes than were written'),
  ),
  (
    'truncation of a file of a checkpoint',
    'the last 100 bytes of the largest file',
    'named; falls back; same bytes',
    _damaged(_truncate, 'is cut off'),
  ),
  (
    'deletion of a file of a checkpoint',
    'the largest file',
    'named; falls back; same bytes',
    _damaged(lambda path: path.unlink(), 'is missing'),
  ),
  (
    'flip, truncation, deletion of each file of a checkpoint; wrong arrays in '
    'right files; a cast on restore',
    'every file in turn',
    'never loaded',
    'tests/train/test_checkpoint.py tests/train/test_checksums.py',
  ),
  (
    'all checkpoints broken',
    'a bit of the data position in both',
    'refused; every one is named',
    all_broken,
  ),
  (
    'bit flip in final weights',
    'one bit, then a run that begins with them',
    'refused; the tensor is named',
    flipped_weights,
  ),
  (
    'bit flip anywhere in a weights file',
    'bits in length, header and tensors',
    'never loaded',
    'tests/checkpoints/test_weights.py',
  ),
  (
    'NaN as the loss, step after step',
    'hooks.py: nan:3:loss',
    'stops with its own exit code; of the lost steps at most the first is kept, '
    'whose weights are right',
    _breaks('nan:3:loss', 4, 'training has diverged', weights=True),
  ),
  (
    'NaN in all weights',
    'hooks.py: nan:3:weights',
    'NaN is never checkpointed; the step before restores',
    _breaks('nan:3:weights', 4, 'diverged|norm of the parameters'),
  ),
  (
    'NaN or Inf in gradient or log-probs',
    'poisoned batches',
    'parameters and optimizer untouched, counted; the run ends after N',
    'tests/train/test_policy_step.py::'
    'test_a_poisoned_batch_changes_nothing_and_is_counted '
    'tests/stages/test_trainer.py::'
    'test_a_run_that_learns_nothing_any_more_stops',
  ),
  (
    'a reward raises, hangs, returns NaN, None or the wrong length',
    'rewards of a plugin',
    'bounded time; the sample is masked; above a share the run stops',
    'tests/rewards/test_plugins.py tests/stages/test_plugin_runs.py',
  ),
  (
    'a reward worker dies or stops',
    'SIGKILL and SIGSTOP of workers',
    'no job is lost',
    'tests/workers/test_pool.py tests/workers/test_job_queue.py',
  ),
  (
    'the sandbox disappears',
    'its server is killed and cannot start again',
    'scores nothing',
    'tests/workers/sandbox/test_sandbox.py',
  ),
  (
    'a host is killed, stopped, told to end; a broken checkpoint on several',
    'processes with collectives of one machine',
    'all end within the deadline and say why; the restart has the same bytes',
    'tests/launch/test_processes.py::'
    'test_a_killed_process_ends_all_and_the_run_resumes_bit_equal '
    'tests/launch/test_processes.py::test_a_stopped_process_ends_the_others '
    'tests/launch/test_processes.py::'
    'test_all_processes_go_back_to_the_last_good_checkpoint',
  ),
  (
    'the clock jumps',
    'hooks.py: clock, a day in step 3, both ways',
    'same bytes',
    clock,
  ),
  (
    'config, mesh, dtype, tokenizer changed at resume',
    'keys on the command line',
    'refused, naming the key; the folder is as before',
    _refused(
      '--config.rl.group_size=2',
      '--config.seed=1',
      '--config.mesh.data=1',
      '--config.model.dtype=bfloat16',
      '--config.tokenizer.source=bilingual --config.model.vocab_size=138',
    ),
  ),
  (
    'data, plugin or weights changed at resume',
    'other files',
    'refused, naming the file',
    'tests/runs/test_inputs.py',
  ),
  (
    'two runs in one directory',
    'a lock that another process holds',
    'the second refuses',
    'tests/runs/test_run.py::test_two_runs_on_one_workdir_are_refused',
  ),
  (
    'poisoned rows',
    'empty, NUL, too long, twice, unparsable, no text',
    'quarantined or named when the data are read',
    'tests/data/test_files.py',
  ),
  (
    'all rewards equal',
    'equal rewards in every estimator',
    'advantage zero, no NaN',
    'tests/algos/test_advantage.py',
  ),
]


def _pytest(bench: Bench, tests: str) -> str:
  """Runs tests of the suite; returns how many have passed."""
  report = bench.out / 'report.xml'
  subprocess.run(
    [sys.executable, '-m', 'pytest', '-q', '-m', '', f'--junitxml={report}']
    + tests.split(),
    cwd=ROOT,
    env=os.environ | {'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': str(ROOT)},
    stdout=subprocess.DEVNULL,
  )
  suite = next(ElementTree.parse(report).getroot().iter('testsuite'))
  failed = int(suite.get('failures', 0)) + int(suite.get('errors', 0))
  total, skipped = int(suite.get('tests', 0)), int(suite.get('skipped', 0))
  assert total and not failed, f'{failed} of {total} tests failed'
  return f'{total - skipped} tests passed' + f', {skipped} skipped' * bool(
    skipped
  )


def _checked(bench: Bench, check) -> tuple[str, str]:
  """Returns what happened, and the verdict."""
  try:
    if isinstance(check, str):
      return _pytest(bench, check), 'holds'
    return check(bench), 'holds'
  except AssertionError as error:
    return str(error), 'FAILS'


def write_results(rows: dict[str, dict[str, str]]):
  """Writes results.csv, with the rows that were not run yet as such."""
  with open(HERE / 'results.csv', 'w', newline='') as file:
    writer = csv.DictWriter(file, COLUMNS, lineterminator='\n')
    writer.writeheader()
    for fault, injected, holds, check in ROWS:
      if isinstance(check, str):
        injected = f'{injected}: {check}'
      values = (fault, injected, holds, '', 'not run')
      writer.writerow(rows.get(fault) or dict(zip(COLUMNS, values)))


def read_results() -> list[dict[str, str]]:
  """Returns the rows of results.csv."""
  with open(HERE / 'results.csv', newline='') as file:
    return list(csv.DictReader(file))


def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--out', required=True, type=Path)
  parser.add_argument('--only', default='', help='Parts of names of faults.')
  args = parser.parse_args()
  only = [part for part in args.only.split(',') if part]
  bench = Bench(args.out.absolute())
  bench.out.mkdir(parents=True, exist_ok=True)
  record = bench.out / 'rows.json'
  rows = json.loads(record.read_text()) if record.exists() else {}
  if not (bench.whole / 'rl/model.safetensors').exists():
    ended = bench.train(bench.whole)
    assert ended.code == 0, ended.output
  for fault, injected, holds, check in ROWS:
    if only and not any(part in fault for part in only):
      continue
    if not only and rows.get(fault, {}).get('verdict') == 'holds':
      continue
    began = time.monotonic()
    happened, verdict = _checked(bench, check)
    if isinstance(check, str):
      injected = f'{injected}: {check}'
    values = (fault, injected, holds, happened, verdict)
    rows[fault] = dict(zip(COLUMNS, values, strict=True))
    record.write_text(json.dumps(rows, indent=1))
    secs = time.monotonic() - began
    print(f'{verdict}: {fault}: {happened} ({secs:.0f} s)', flush=True)
  write_results(rows)
  if any(row['verdict'] != 'holds' for row in rows.values()):
    sys.exit(1)


if __name__ == '__main__':
  main()
