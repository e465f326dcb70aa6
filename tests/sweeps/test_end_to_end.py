"""A sweep that is ended and goes on leaves what uninterrupted runs leave."""

import csv
import json
import signal
import subprocess
import time

import numpy as np
import pytest

from tests.conftest import ROOT
from tests.stages.conftest import SMALL, command, run

pytestmark = pytest.mark.slow

# Reinforcement alone, which every run compiles to the same programs.
_SHORT = (
  '--config.stages=("rl",)',
  '--config.init=random',
  '--config.rl.max_steps=4',
  '--config.rl.eval_steps=2',
  '--config.rl.save_steps=1',
)
_VALUES, _SEEDS = ('0.25', '1.0'), (0, 1)
_GRID = f'--grid=rl.temperature={",".join(_VALUES)}'


def _lines(path) -> list[str]:
  return path.read_text().split('\n')[:-1] if path.exists() else []


def _started(environment, out):
  return subprocess.Popen(
    command('sweep', SMALL, f'--out={out}', _GRID, '--seeds=2', *_SHORT),
    env=environment,
    cwd=ROOT,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def test_a_sweep_that_was_ended_goes_on(environment, tmp_path):
  out = tmp_path / 'out'
  process = _started(environment, out)
  second = out / f'temperature={_VALUES[1]}/seed_0'
  while len(_lines(second / 'rl/metrics.jsonl')) < 3:
    assert process.poll() is None, process.communicate()
    time.sleep(0.05)
  process.send_signal(signal.SIGTERM)
  _, stderr = process.communicate(timeout=240)
  assert process.returncode == 143, stderr
  assert '1 of 4 runs are finished, and the same command goes on' in stderr
  log = (second / 'sweep.log').read_text()
  assert 'the checkpoint of step' in log.split('\n')[-2]
  report = run(environment, 'sweep', f'--out={out}', '--report').stdout
  assert '1.0/seed_0 is unfinished' in report
  assert '1.0/seed_1 is not begun' in report

  process = _started(environment, out)
  stdout, stderr = process.communicate(timeout=600)
  assert process.returncode == 0, stderr
  assert '1 of 4 runs are finished already' in stdout
  assert 'goes on after step' in (second / 'sweep.log').read_text()

  finals = {}
  for value in _VALUES:
    for seed in _SEEDS:
      alone = tmp_path / f'{value}-{seed}'
      run(
        environment,
        'train',
        SMALL,
        f'--workdir={alone}',
        *_SHORT,
        f'--config.rl.temperature={value}',
        f'--config.seed={seed}',
      )
      swept = out / f'temperature={value}/seed_{seed}'
      expected = _lines(alone / 'rl/metrics.jsonl')
      assert _lines(swept / 'rl/metrics.jsonl') == expected
      ours, theirs = (
        place / 'rl/model.safetensors' for place in (swept, alone)
      )
      assert ours.read_bytes() == theirs.read_bytes()
      finals[value, seed] = json.loads(expected[-1])
  _check_report(environment, out, finals)


def _check_report(environment, out, finals):
  """Compares the tables with what uninterrupted runs have left."""
  metric = 'eval/completions/mean_length'
  run(environment, 'sweep', f'--out={out}', '--report', f'--metric={metric}')
  with open(out / 'table.csv') as file:
    rows = list(csv.DictReader(file))
  means = [np.mean([finals[v, s][metric] for s in _SEEDS]) for v in _VALUES]
  assert [float(row[metric]) for row in rows] == pytest.approx(means)
  assert [row['finished'] for row in rows] == ['2', '2']
  gain = float(rows[1][f'{metric} difference'])
  assert gain == pytest.approx(means[1] - means[0])
  assert (out / 'curves.png').stat().st_size > 5000


def test_a_sweep_refuses_what_its_devices_refuse(environment, tmp_path):
  out = tmp_path / 'out'
  done = run(
    environment,
    'sweep',
    SMALL,
    f'--out={out}',
    '--grid=mesh.tensor=1,3',
    code=2,
  )
  (line,) = done.stderr.strip().split('\n')
  assert line.startswith('r1jax: ') and '(in tensor=3)' in line
  assert not out.exists()
