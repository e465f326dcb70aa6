"""Whole runs through the command line: end to end, killed, resumed, refused."""

import fcntl
import json
import signal
import subprocess
import time

import pytest

from r1jax.checkpoints import weights
from r1jax.config import base
from r1jax.config.keys import flatten
from r1jax.configs import pretrain_tiny
from r1jax.stages import initial
from tests.conftest import ROOT
from tests.stages.conftest import SMALL, command, rows, run


@pytest.fixture(scope='module')
def finished(environment, tmp_path_factory):
  """An uninterrupted run: its workdir and what it printed."""
  workdir = tmp_path_factory.mktemp('runs') / 'whole'
  return workdir, run(
    environment, 'train', SMALL, f'--workdir={workdir}'
  ).stdout


def test_one_command_leaves_everything_a_person_looks_at(finished):
  workdir, printed = finished
  lines = rows(workdir)
  assert [row['step'] for row in lines] == list(range(7))
  assert {
    'reward',
    'rewards/accuracy/mean',
    'rewards/format/mean',
    'kl',
    'entropy',
    'pg_clipfrac',
    'grad_norm',
    'completions/mean_length',
    'frac_reward_zero_std',
  } <= lines[1].keys()
  for step in (0, 3, 6):
    assert {
      'eval/pass@1',
      'eval/cons@2',
      'eval/format',
      'eval/completions/self_correction',
      'eval/completions/mean_length',
    } <= lines[step].keys()
    saved = (workdir / f'rl/samples/step_{step:06d}.jsonl').read_text()
    kinds = [json.loads(line)['kind'] for line in saved.splitlines()]
    assert kinds.count('eval') == 16
    assert kinds.count('train') == (0 if step == 0 else 8)
  assert lines[1]['rollout_logp_diff/max'] < 1e-4
  assert (
    0 < lines[1]['rollout_logp_diff/mean'] < lines[1]['rollout_logp_diff/max']
  )
  assert lines[1]['rollout/stale_token_frac'] == 0  # Five groups, four trained.
  assert any(row['rollout/stale_token_frac'] > 0 for row in lines[2:])
  assert [row['step'] for row in rows(workdir, 'pretrain')] == [1, 2, 3, 4]
  assert (workdir / 'rl/curves.png').stat().st_size > 10000
  assert list((workdir / 'rl/tensorboard').iterdir())
  summary = (workdir / 'rl/summary.txt').read_text()
  assert summary.count('\n') == 6 and summary in printed
  assert 'tok/s' in printed and 'compl/s' in printed and 'ETA' in printed


@pytest.mark.slow
def test_the_second_run_finds_the_base_and_repeats_the_first(
  finished, environment, tmp_path
):
  """Another workdir, the same config: no pre-training, the same numbers."""
  workdir, _ = finished
  printed = run(
    environment, 'train', SMALL, f'--workdir={tmp_path / "second"}'
  ).stdout
  assert 'pretrain: found the output of this config in' in printed
  assert rows(tmp_path / 'second') == rows(workdir)


def test_a_finished_run_has_nothing_to_do(finished, environment):
  workdir, _ = finished
  before = (workdir / 'rl/metrics.jsonl').read_bytes()
  printed = run(environment, 'train', SMALL, f'--workdir={workdir}').stdout
  assert 'nothing to do' in printed
  assert (workdir / 'rl/metrics.jsonl').read_bytes() == before


def _kill_when(process, path, lines):
  """kill -9, once the file has that many lines."""
  deadline = time.monotonic() + 240
  while time.monotonic() < deadline and process.poll() is None:
    if path.exists() and path.read_text().count('\n') >= lines:
      process.send_signal(signal.SIGKILL)
      process.wait()
      return
    time.sleep(0.005)
  process.kill()
  raise AssertionError(f'{path} never had {lines} lines')


@pytest.mark.slow
def test_killed_and_resumed_equals_uninterrupted(
  finished, environment, tmp_path
):
  """kill -9 three times, in both stages: every number and weight the same."""
  workdir, _ = finished
  environment = dict(environment, R1JAX_CACHE=str(tmp_path / 'cache'))
  cut = tmp_path / 'cut'
  # Pre-training after step 3, RL before and after its first checkpoint.
  for stage, lines in (('pretrain', 3), ('rl', 2), ('rl', 5)):
    process = subprocess.Popen(
      command('train', SMALL, f'--workdir={cut}'),
      env=environment,
      cwd=ROOT,
      stdout=subprocess.DEVNULL,
      stderr=subprocess.DEVNULL,
    )
    _kill_when(process, cut / stage / 'metrics.jsonl', lines)
  run(environment, 'train', SMALL, f'--workdir={cut}')
  for stage in ('pretrain', 'rl'):
    assert rows(cut, stage) == rows(workdir, stage)
    for name in ('metrics.jsonl', 'model.safetensors'):
      assert (cut / stage / name).read_bytes() == (
        workdir / stage / name
      ).read_bytes()


@pytest.mark.slow
def test_eval_and_sample_read_a_run(finished, environment, tmp_path):
  workdir, _ = finished
  printed = run(environment, 'eval', SMALL, f'--workdir={workdir}').stdout
  assert 'eval/pass@1 ' in printed and 'eval/cons@2 ' in printed
  printed = run(
    environment,
    'sample',
    SMALL,
    f'--workdir={workdir}',
    '--prompt=1+2+3+4+5',
    '--prompt=9-1-1-1-1',
    '--samples=3',
  ).stdout
  assert printed.count(' tokens, ') == 6 and printed.count('9-1-1-1-1') >= 3
  # A question that cannot be served is reported; the others are answered.
  (tmp_path / 'asked.txt').write_text('2+2\n\n3+3\n')
  done = run(
    environment,
    'sample',
    SMALL,
    f'--workdir={workdir}',
    f'--prompt={"+".join("1" * 20)}',
    '--prompt=1+é',
    '--prompt=1+1',
    f'--prompts={tmp_path}/asked.txt',
    '--stop=1',
    code=2,
  )
  assert 'raise --config.data.max_prompt_tokens' in done.stderr
  answered = [done.stdout.index(text) for text in ('1+1\n', '2+2\n', '3+3\n')]
  assert answered == sorted(answered)
  blocks = done.stdout.strip().split('\n\n')
  texts = [block.split('\n', 1)[1].split('\n  ')[0] for block in blocks]
  assert len(texts) == 3 and all('1' not in text[:-1] for text in texts)
  assert "'1+é': tokenizer:" in done.stderr
  assert f'{tmp_path}/asked.txt:2: the prompt is empty' in done.stderr


def test_another_config_is_refused_and_nothing_changes(finished, environment):
  workdir, _ = finished
  before = {p: p.stat().st_mtime_ns for p in workdir.rglob('*')}
  done = run(
    environment,
    'train',
    SMALL,
    f'--workdir={workdir}',
    '--config.rl.group_size=2',
    '--config.seed=1',
    code=2,
  )
  assert 'rl.group_size is 4 there and 2 here' in done.stderr
  assert 'seed is 0 there and 1 here' in done.stderr
  assert done.stderr.count('\n') == 1
  assert before == {p: p.stat().st_mtime_ns for p in workdir.rglob('*')}


def test_two_runs_on_one_workdir_are_refused(finished, environment):
  workdir, _ = finished
  with open(workdir / '.lock', 'w') as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    done = run(environment, 'train', SMALL, f'--workdir={workdir}', code=2)
  assert 'another run is writing' in done.stderr


@pytest.mark.slow
def test_a_suite_measures_the_final_weights_or_a_checkpoint(
  finished, environment
):
  """The checkpoint of the last step holds the final weights."""
  workdir, _ = finished
  flags = (
    SMALL,
    f'--workdir={workdir}',
    '--suite=arithmetic',
    '--config.eval.num_problems=4',
    '--config.eval.num_samples=2',
  )
  for step in ((), ('--step=6',)):
    run(environment, 'eval', *flags, *step)
  found = [
    json.loads((workdir / name / 'config.json').read_text())
    for name in ('suites', 'suites-6')
  ]
  assert found[0]['weights'] == found[1]['weights']
  assert [each['policy'] for each in found] == [str(workdir), f'{workdir}@6']
  parquet = 'arithmetic/completions.parquet'
  same = [
    (workdir / name / parquet).read_bytes() for name in ('suites', 'suites-6')
  ]
  assert same[0] == same[1]
  missing = run(environment, 'eval', *flags, '--step=5', code=2).stderr
  assert 'no checkpoint' in missing or 'step 5' in missing
  printed = run(
    environment, 'compare', str(workdir / 'suites'), str(workdir / 'suites-6')
  ).stdout
  assert '+0.000' in printed


@pytest.mark.slow
def test_a_run_that_diverges_ends_with_a_code_of_its_own(environment, tmp_path):
  """Updates of 1e30: neither weights nor a checkpoint of them is left."""
  done = run(
    environment,
    'train',
    SMALL,
    f'--workdir={tmp_path}/run',
    '--config.stages=("pretrain",)',
    '--config.pretrain.max_steps=30',
    '--config.pretrain.optimizer.learning_rate=1e30',
    code=4,
  )
  line = done.stderr.splitlines()[-1]
  assert line.startswith('r1jax: pretrain: training has diverged: ')
  assert not list((tmp_path / 'run/pretrain/checkpoints').iterdir())
  assert not (tmp_path / 'run/pretrain/model.safetensors').exists()


@pytest.mark.slow
def test_other_data_are_refused_on_resume_and_nothing_is_lost(
  environment, tmp_path
):
  """Rows in another order; put back, the run goes on to the same end."""
  questions = [f'{i}+{i}' for i in range(1, 9)]
  rows_file = tmp_path / 'rows.jsonl'

  def write(order):
    rows_file.write_text(
      ''.join(
        json.dumps(
          {
            'id': str(i),
            'question': questions[i],
            'response': f'<think>\n{i}</think>\n<answer>{2 * i}</answer>',
          }
        )
        + '\n'
        for i in order
      )
    )

  arguments = (
    SMALL,
    f'--workdir={tmp_path}/run',
    '--config.stages=("sft",)',
    '--config.init=random',
    f'--config.sft.data=("{rows_file}",)',
    '--config.sft.batch_size=2',
    '--config.sft.length_tokens=64',
    '--config.sft.num_train_epochs=40',
    '--config.sft.save_steps=2',
    '--config.sft.logging_steps=1',
  )
  write(range(8))
  process = subprocess.Popen(
    command('train', *arguments),
    env=environment,
    cwd=ROOT,
    stdout=subprocess.DEVNULL,
    stderr=subprocess.DEVNULL,
  )
  # The save of step 4 waits for that of step 2.
  _kill_when(process, tmp_path / 'run/sft/metrics.jsonl', 7)
  before = (tmp_path / 'run/sft/metrics.jsonl').read_bytes()
  write(reversed(range(8)))
  done = run(environment, 'train', *arguments, code=2)
  assert f'sft.data ({rows_file}) has changed' in done.stderr
  assert (tmp_path / 'run/sft/metrics.jsonl').read_bytes() == before
  write(range(8))
  printed = run(environment, 'train', *arguments).stdout
  assert 'goes on after step' in printed


def test_the_shipped_base_was_made_by_its_config():
  config = flatten(pretrain_tiny.get_config().to_dict())
  defaults = flatten(base.get_config().to_dict())
  made_by = weights.metadata(initial.SHIPPED_BASE)['config']
  for key, value in config.items():
    if (
      key.split('.')[0]
      in ('model', 'tokenizer', 'corpus', 'pretrain', 'seed', 'stages')
      and key not in weights.RUNTIME_KEYS
    ):
      assert made_by.get(key, defaults[key]) == value, key
