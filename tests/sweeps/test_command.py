"""r1jax sweep: bad input is one line and writes nothing; a dry run lists runs."""

import json
import shlex
import subprocess

import pytest

from r1jax.cli import main
from r1jax.cli.commands import sweep as command
from r1jax.errors import UserError
from r1jax.sweeps import plan, runner
from tests.conftest import ROOT
from tests.sweeps.conftest import lines

_TOY = f'--config={ROOT}/tests/runs/toy.py'
_GRID = '--grid=toy.width=1,2'


def _sweep(out, *args):
  main.run(['sweep', f'--out={out}', *args])


def _refused(out, *args, config=_TOY) -> str:
  """Returns the error of a sweep; asserts that nothing was written."""
  before = sorted(out.rglob('*')) if out.exists() else None
  with pytest.raises(UserError) as caught:
    _sweep(out, *([config] if config else []), *args)
  assert before == (sorted(out.rglob('*')) if out.exists() else None)
  message = str(caught.value)
  assert '\n' not in message and caught.value.exit_code == 2
  return message


@pytest.mark.parametrize(
  'args, parts',
  [
    (['--grid=toy.wdth=1,2'], ['unknown key toy.wdth', 'toy.width']),
    (
      ['--grid', 'toy.width=1,0'],
      ['toy.width = 0', 'at least 1', '(in width=0)'],
    ),
    (
      ['--grid=toy.width=-5,-4,-3,-2,-1'],
      [
        '-5 must be',
        '-3 must be',
        'at least 1 (in width=-3); and 2 more errors',
      ],
    ),
    (['--grid=toy.width=1,x'], ['toy.width=x', '(in width=x)']),
    (
      ['--grid=toy.width=1,0', '--grid=rl.temperature=1,0'],
      ['toy.width = 0', 'rl.temperature = 0.0'],
    ),
    ([_GRID, '--grid=toy.width=3'], ['toy.width is given twice']),
    (['--grid=toy.width='], ['toy.width has no values']),
    (
      ['--grid=toy.step_secs=0,0.1,0.0'],
      ['step_secs=0 and step_secs=0.0 are the same config'],
    ),
    (
      ['--grid=data.path=a,b'],
      ["data.path = 'a' has no effect", '(in path=b)'],
    ),
    ([], ['nothing to sweep; give --grid KEY=VALUE,VALUE or --seeds']),
    ([_GRID, '--seeds=x'], ['--seeds=x']),
    ([_GRID, '--seeds=1,1'], ['none twice']),
    (['--grid=seed=1,2'], ['seed is set by --seeds']),
    ([_GRID, '--config.seed=3'], ['seed is set by --seeds']),
    (
      [_GRID, '--config.toy.width=3'],
      ['toy.width is in --grid and in --config.toy.width'],
    ),
    ([_GRID, '--config.toy.width2=3'], ['unknown key toy.width2']),
    ([_GRID, '--baseline=toy.width=3'], ['is none of the grid points width=1']),
    ([_GRID, '--baseline=toy.wdth=1'], ["did you mean 'toy.width'"]),
    ([_GRID, '--paralel=2'], ['paralel']),
    ([_GRID, '--parallel=0'], ['parallel']),
    ([_GRID, 'more'], ["unexpected argument 'more'"]),
    (
      [_GRID, '--config.stages=("toy","pretrain")'],
      ['pretrain begins with random parameters'],
    ),
    (
      ['--grid=stages=("pretrain","toy"),("pretrain",)'],
      ['ends with toy and', 'with pretrain; grid points must run the same'],
    ),
    ([_GRID, '--config.mesh.tensor=3'], ['tensor=3', '8 devices']),
  ],
)
def test_bad_input_is_one_line(tmp_path, args, parts):
  message = _refused(tmp_path / 'out', '--dry_run', *args)
  assert all(part in message for part in parts), message


def test_flags_without_which_there_is_no_sweep(tmp_path):
  out = tmp_path / 'out'
  assert 'give --config=CONFIG' in _refused(out, _GRID, config='')
  with pytest.raises(UserError, match='give --out=DIR'):
    main.run(['sweep', _TOY, _GRID])
  with pytest.raises(UserError, match="unknown 'no_config'"):
    main.run(['sweep', '--config=no_config', f'--out={out}', _GRID])


def test_an_error_of_the_device_ends_the_sweep_before_it_begins(
  tmp_path, monkeypatch
):
  """It is found by a dry run in a process of its own, which stands here."""
  done = subprocess.CompletedProcess(
    [], 2, '', 'r1jax: keys without effect: x\nr1jax: mesh: tensor=3 is wrong\n'
  )
  monkeypatch.setattr(subprocess, 'run', lambda *args, **options: done)
  message = _refused(tmp_path / 'out', _GRID)
  assert message == 'mesh: tensor=3 is wrong'


def _listed(capsys, out, *args) -> list[str]:
  _sweep(out, _TOY, '--dry_run', *args)
  return capsys.readouterr().out.splitlines()


def test_a_dry_run_lists_the_commands_and_writes_nothing(tmp_path, capsys):
  out = tmp_path / 'out'
  head, *rest = _listed(
    capsys,
    out,
    '--grid',
    'toy.width=1,2',
    '--grid=data.task="arithmetic"',
    '--seeds=3,5',
    '--config.toy.num_steps=4',
    '--config.compilation_cache_dir=a b',
  )
  assert not out.exists()
  assert head.startswith(
    f'4 runs in {out} (grid points × seeds: 2 × 2); 1 at once'
  )
  assert rest[::2] == [
    f'width={width},task=arithmetic/seed_{seed}'
    for seed in (3, 5)
    for width in (1, 2)
  ]
  assert shlex.split(rest[7]) == [
    'r1jax',
    'train',
    _TOY,
    f'--workdir={out}/width=2,task=arithmetic/seed_5',
    '--config.toy.num_steps=4',
    '--config.compilation_cache_dir=a b',
    '--config.toy.width=2',
    '--config.data.task=arithmetic',
    '--config.seed=5',
  ]


def test_seeds_alone_are_a_sweep(tmp_path, capsys):
  rest = _listed(capsys, tmp_path / 'out', '--seeds=2')[1:]
  assert rest[::2] == ['toy/seed_0', 'toy/seed_1']


def test_a_pipeline_is_swept_by_its_command(tmp_path, capsys):
  config = f'--config={ROOT}/tests/configs/small_pipeline.py'
  eight = ['--config.reasoning.rl.prompts_per_step=8'] + [
    f'--config.{name}.mesh.data=8'
    for name in ('base', 'cold_start', 'reasoning', 'kept', 'student')
  ]
  out = tmp_path / 'out'
  _sweep(
    out,
    config,
    *eight,
    '--grid=reasoning.rl.group_size=4,8',
    '--seeds=2',
    '--dry_run',
  )
  text = capsys.readouterr().out
  assert 'group_size=8/seed_1\n  r1jax pipeline --config=' in text
  message = _refused(
    out, *eight, '--grid=reasoning.rl.max_steps=2,0', '--dry_run', config=config
  )
  assert 'pipeline: reasoning: rl.max_steps = 0 must be' in message


@pytest.fixture
def idle(monkeypatch):
  """Lets sweeps run nothing; returns the list of runs that fail."""
  failing: list[str] = []
  monkeypatch.setattr(command, '_check_apart', lambda given: None)
  monkeypatch.setattr(runner, 'run_all', lambda *args: failing)
  return failing


def test_a_sweep_that_ran_nothing_says_so(tmp_path, idle, capsys):
  out = tmp_path / 'out'
  _sweep(out, _TOY, _GRID, '--metric=loss')
  text = capsys.readouterr().out
  assert '- width=1/seed_0 is not begun' in text
  assert (out / 'table.md').read_text() == text
  idle.append('width=2/seed_0')
  with pytest.raises(SystemExit) as caught:
    _sweep(out, _TOY, _GRID)
  assert caught.value.code == 7
  assert '1 of 2 runs have failed: width=2/seed_0' in capsys.readouterr().err


@pytest.mark.parametrize(
  'args, part',
  [
    (['--grid=toy.num_steps=1,2'], 'its grid keys are toy.width there'),
    ([_GRID, '--config.toy.num_steps=2'], 'its overrides are none there'),
    (['--grid=toy.width=2,3'], 'with width=1; give these too'),
    ([_GRID, '--seeds=1,2'], 'with seed_0; give these too'),
  ],
)
def test_a_folder_of_another_sweep_is_refused(tmp_path, idle, args, part):
  out = tmp_path / 'out'
  _sweep(out, _TOY, _GRID)
  message = _refused(out, *args)
  assert 'holds another sweep' in message and part in message


def test_a_sweep_takes_more_values_and_seeds(tmp_path, idle):
  out = tmp_path / 'out'
  _sweep(out, _TOY, _GRID)
  _sweep(out, _TOY, '--grid=toy.width=1,2,3', '--seeds=2')
  assert len(plan.read(out).run_folders(out)) == 6


def test_a_folder_of_something_else_is_refused(tmp_path):
  (tmp_path / 'file').write_text('')
  (tmp_path / 'full').mkdir()
  (tmp_path / 'full/notes.txt').write_text('')
  assert 'is a file' in _refused(tmp_path / 'file', _GRID)
  assert 'holds no sweep' in _refused(tmp_path / 'full', _GRID)


def test_a_run_of_another_config_in_its_folder_is_refused(tmp_path, idle):
  out = tmp_path / 'out'
  _sweep(out, _TOY, _GRID)
  place = out / 'width=2/seed_0'
  place.mkdir(parents=True)
  (place / 'config.json').write_text(json.dumps({'seed': 7}))
  message = _refused(out, _GRID, '--dry_run')
  assert f'{place} belongs to another config' in message
  assert f'remove {place} to make it again' in message


@pytest.mark.parametrize(
  'args, part',
  [
    (['--seeds=2'], '--report takes no --seeds'),
    ([_GRID], '--report takes no --grid'),
    (['--dry_run'], '--report takes no --dry_run'),
    ([_TOY], '--report takes no --config'),
    (['--metrics=loss'], 'metrics'),
    ([], 'holds no sweep'),
  ],
)
def test_a_report_takes_what_is_there(tmp_path, args, part):
  assert part in _refused(tmp_path / 'out', '--report', *args, config='')


def test_a_report_is_of_a_sweep_that_ran_before(folder, capsys):
  with plan.claimed(folder.out, folder.sweep):
    pass
  for seed in range(3):
    folder.add(0, seed, lines(0.1, 0.5))
    folder.add(1, seed, lines(0.1, 0.75))
  _sweep(folder.out, '--report', '--baseline=group_size=8', '--metric=loss')
  text = capsys.readouterr().out
  assert '| loss' in text and 'difference to group_size=8' in text
  with pytest.raises(UserError, match="did you mean 'eval/pass@1'"):
    _sweep(folder.out, '--report', '--metric=eval/pass@2')


def test_help_shows_the_flags(capsys):
  main.run(['sweep', '--help'])
  text = capsys.readouterr().out
  assert text.startswith('usage: r1jax sweep --config=CONFIG --out=DIR')
  assert '--grid' in text and '--last_lines' in text
