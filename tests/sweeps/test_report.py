"""Tables and curves of a sweep, from the files of its runs."""

import csv
import json
import os

import numpy as np
import pytest
from scipy import stats

from r1jax.errors import UserError
from r1jax.sweeps import attempts, plan, report, results
from tests.sweeps.conftest import Folder, lines

_FOUR = 0.25, 0.5, 0.375  # Final pass@1 of group size 4, by seed.
_EIGHT = 0.5, 0.625, 0.875


def _filled(folder: Folder) -> Folder:
  for seed in range(3):
    folder.add(0, seed, lines(0.1, _FOUR[seed]), secs=10.0 + seed)
    folder.add(1, seed, lines(0.1, 0.2, _EIGHT[seed]))
  return folder


def _write(folder: Folder, *metrics, baseline=0, **options) -> str:
  return report.write(
    folder.sweep, folder.out, metrics, folder.sweep.points[baseline], **options
  )


def _csv(folder: Folder, name: str) -> list[dict]:
  with open(folder.out / name) as file:
    return list(csv.DictReader(file))


def test_means_intervals_and_differences_agree_with_scipy(folder):
  text = _write(_filled(folder))
  base, other = _csv(folder, 'table.csv')
  four, eight = map(np.array, (_FOUR, _EIGHT))
  for row, values in ((base, four), (other, eight)):
    low, high = stats.t.interval(0.95, 2, values.mean(), stats.sem(values))
    assert float(row['eval/pass@1']) == pytest.approx(values.mean())
    assert float(row['eval/pass@1 low']) == pytest.approx(low)
    assert float(row['eval/pass@1 high']) == pytest.approx(high)
    assert (row['eval/pass@1 seeds'], row['finished'], row['seeds']) == (
      '3',
      '3',
      '3',
    )
  assert (base['rl.group_size'], other['rl.group_size']) == ('4', '8')
  assert float(base['wall_secs']) == 11.0
  gain = eight - four
  low, high = stats.t.interval(0.95, 2, gain.mean(), stats.sem(gain))
  assert float(other['eval/pass@1 difference']) == pytest.approx(gain.mean())
  assert float(other['eval/pass@1 difference low']) == pytest.approx(low)
  assert float(other['eval/pass@1 difference high']) == pytest.approx(high)
  assert float(other['eval/pass@1 p']) == 0.25  # All of three go up.
  assert base['eval/pass@1 difference'] == base['eval/pass@1 p'] == ''
  assert 'The smallest p there can be is 0.25 with 3 seeds' in text
  assert (folder.out / 'table.md').read_text() == text + '\n'


def test_the_table_reads_as_markdown(folder):
  head, line, base, other, *_ = _write(_filled(folder)).split('\n')
  cells = [
    [cell.strip() for cell in row.strip('|').split('|')]
    for row in (head, base, other)
  ]
  assert cells == [
    ['grid point', 'seeds', 'eval/pass@1', 'Δ', 'p', 'wall time'],
    ['group_size=4', '3 of 3', '0.38 [0.06, 0.69]', 'baseline', '', '11 s'],
    [
      'group_size=8',
      '3 of 3',
      '0.67 [0.19, 1.14]',
      '+0.29 [−0.18, +0.77]',
      '0.25',
      '10 s',
    ],
  ]
  assert len({len(row) for row in (head, line, base, other)}) == 1
  assert set(line) == {'|', '-', ' '}


def test_what_is_missing_is_said_and_counts_nowhere(folder):
  folder.add(0, 0, lines(0.1, 0.3))
  folder.add(0, 1, lines(0.1, 0.5))
  folder.add(1, 0, lines(0.1, 0.9, 0.99), code=143)
  place = folder.add(1, 1, lines(0.1, 0.4), code=4)
  (place / attempts.LOG).write_text('rl 1/2\nr1jax: rl: it has diverged\n\n')
  text = _write(folder)
  base, other = _csv(folder, 'table.csv')
  assert (base['finished'], base['eval/pass@1']) == ('2', '0.4')
  assert other['finished'] == '0'
  assert {other[f'eval/pass@1{x}'] for x in ('', ' low', ' p')} == {''}
  assert other['wall_secs'] == ''
  listed = [line for line in text.split('\n') if line.startswith('- ')]
  assert listed == [
    '- group_size=4/seed_2 is not begun',
    '- group_size=8/seed_0 is unfinished (rl is at step 2)',
    '- group_size=8/seed_1 is failed (exit code 4: rl: it has diverged)',
    '- group_size=8/seed_2 is not begun',
  ]


def test_differences_are_of_common_seeds_alone(folder):
  folder.add(0, 0, lines(0.1, 0.2))
  folder.add(0, 1, lines(0.1, 0.4))
  folder.add(1, 1, lines(0.1, 0.5))
  folder.add(1, 2, lines(0.1, 0.9))
  text = _write(folder)
  other = _csv(folder, 'table.csv')[1]
  assert float(other['eval/pass@1']) == pytest.approx(0.7)
  assert float(other['eval/pass@1 difference']) == pytest.approx(0.1)
  assert other['eval/pass@1 difference seeds'] == '1'
  assert other['eval/pass@1 difference low'] == ''
  assert 'The smallest p there can be is 1 with 1 seed.' in text


def test_another_baseline_turns_the_signs(folder):
  _write(_filled(folder), baseline=1)
  row = _csv(folder, 'table.csv')[0]
  gain = np.subtract(_FOUR, _EIGHT).mean()
  assert float(row['eval/pass@1 difference']) == pytest.approx(gain)


def test_metrics_are_chosen_by_name(folder):
  _filled(folder)
  _write(folder, 'loss', 'eval/pass@1')
  assert float(_csv(folder, 'table.csv')[0]['loss']) == 9.0
  with pytest.raises(UserError, match="did you mean 'eval/pass@1'"):
    _write(folder, 'eval/pas@1')


def test_a_noisy_metric_is_the_mean_of_its_last_lines(folder):
  for point in (0, 1):
    for seed in range(3):
      folder.add(point, seed, [{'step': s, 'loss': float(s)} for s in range(6)])
  text = _write(folder, last_lines=4)
  assert float(_csv(folder, 'table.csv')[0]['loss']) == np.mean([2, 3, 4, 5])
  assert 'of the mean of the last 4 lines' in text


def test_a_value_that_is_not_finite_is_missing(folder):
  for seed in range(3):
    folder.add(0, seed, lines(0.1, None if seed == 1 else 0.5))
    folder.add(1, seed, lines(0.1, 0.5))
  text = _write(folder)
  assert '- group_size=4/seed_1 has no final eval/pass@1' in text
  assert _csv(folder, 'table.csv')[0]['eval/pass@1 seeds'] == '2'


def test_a_killed_attempt_makes_the_wall_time_unknown(folder):
  place = folder.add(0, 0, lines(0.1, 0.5))
  path = place / attempts.FILE
  path.write_text('{"began": 10.0, "cores": 1}\n' + path.read_text())
  text = _write(folder)
  assert '- group_size=4/seed_0 is finished (its wall time is unknown)' in text
  assert _csv(folder, 'table.csv')[0]['wall_secs'] == ''
  assert _csv(folder, 'table.csv')[0]['finished'] == '1'


def test_a_run_whose_files_are_gone_is_not_finished(folder):
  place = folder.add(0, 0, lines(0.1, 0.5))
  (place / 'lineage.json').unlink()
  assert not attempts.is_finished(place, folder.sweep.stages)
  assert results.read(folder.sweep, folder.out)[0].state == 'unfinished'


def test_runs_have_all_their_metrics(folder):
  _write(_filled(folder))
  rows = _csv(folder, 'runs.csv')
  assert [(row['rl.group_size'], row['seed']) for row in rows] == [
    (point, seed) for point in '48' for seed in '012'
  ]
  assert [float(row['eval/pass@1']) for row in rows] == [*_FOUR, *_EIGHT]
  assert {row['commit'] for row in rows} == {'0123456+'}
  assert {row['loss'] for row in rows} == {'9.0'}


def test_curves_are_means_over_the_seeds_that_have_a_step(folder):
  _filled(folder).add(0, 2, lines(0.4), code=143)
  _write(folder)
  rows = {
    (row['grid point'], int(row['step'])): row
    for row in _csv(folder, 'curves.csv')
  }
  first, second = rows['group_size=4', 0], rows['group_size=4', 1]
  assert (first['seeds'], second['seeds']) == ('3', '2')
  assert float(first['mean']) == pytest.approx(0.2)
  assert float(second['mean']) == pytest.approx(np.mean(_FOUR[:2]))
  low, _ = stats.t.interval(0.95, 1, np.mean(_FOUR[:2]), stats.sem(_FOUR[:2]))
  assert float(second['low']) == pytest.approx(low)
  assert (folder.out / 'curves.png').stat().st_size > 5000


def test_many_points_are_drawn_too(tmp_path):
  from r1jax.sweeps import curves
  from r1jax.sweeps.statistics import estimate

  found = {f'x={i}': {0: estimate([i]), 1: estimate([i, 2])} for i in range(30)}
  curves.draw({'a': found, 'b': found}, tmp_path / 'many.png')
  assert (tmp_path / 'many.png').stat().st_size > 5000


def _pipeline(tmp_path) -> Folder:
  """A pipeline of a policy, a dataset and a policy that evaluations are of."""
  folder = Folder(
    tmp_path / 'out',
    command='pipeline',
    stages=('zero/rl', 'kept/rejection_sampling', 'final/rl'),
  )
  for seed in range(3):
    place = folder.add(0, seed, lines(0.1, 0.2), stage='zero/rl', secs=100.0)
    folder.add(0, seed, lines(0.3, 0.4), stage='final/rl', secs=100.0)
    (place / 'kept/rejection_sampling').mkdir(parents=True)
    (place / 'kept/rejection_sampling/report.json').write_text(
      json.dumps({'accepted': 30 + seed, 'dropped': {'wrong': 4}, 'ok': True})
    )
    for i, stage in enumerate(('zero', 'kept', 'final')):
      folder.lineage(place / stage)
      os.utime(place / stage / 'lineage.json', (0, 1010.0 + 20 * i))
    (place / 'final/evaluation.json').write_text(
      json.dumps(
        {
          'arithmetic/pass@1': 0.5 + seed / 10,
          'arithmetic/format': 1.0,
          'manners/quality': 0.25,
        }
      )
    )
    os.utime(place / 'final/evaluation.json', (0, 1090.0))
  return folder


def test_a_pipeline_is_compared_by_its_last_evaluation(tmp_path):
  folder = _pipeline(tmp_path)
  _write(folder)
  row = _csv(folder, 'table.csv')[0]
  assert float(row['final/arithmetic/pass@1']) == pytest.approx(0.6)
  assert float(row['final/manners/quality']) == 0.25
  assert 'final/arithmetic/format' not in row
  _write(folder, 'zero/eval/pass@1', 'kept/accepted', 'kept/dropped.wrong')
  row = _csv(folder, 'table.csv')[0]
  assert float(row['zero/eval/pass@1']) == pytest.approx(0.2)
  assert float(row['kept/accepted']) == 31
  assert float(row['kept/dropped.wrong']) == 4
  assert {row['metric'] for row in _csv(folder, 'curves.csv')} == {
    'zero/eval/pass@1'
  }


def test_a_pipeline_is_finished_when_each_of_its_stages_is(tmp_path):
  folder = _pipeline(tmp_path)
  place = folder.place(0, 0)
  assert attempts.is_finished(place, folder.sweep.stages)
  (place / 'kept/lineage.json').unlink()
  assert not attempts.is_finished(place, folder.sweep.stages)


def test_stages_of_a_pipeline_have_times(tmp_path):
  """They end with their lineage or evaluation; pauses do not count."""
  folder = _pipeline(tmp_path)
  place = folder.place(0, 0)
  found = results.read(folder.sweep, folder.out)[0]
  assert found.stage_secs == {'zero': 10.0, 'kept': 20.0, 'final': 60.0}
  (place / attempts.FILE).write_text(
    '{"began": 1000.0, "cores": 1}\n{"ended": 1025.0, "exit_code": 143}\n'
    '{"began": 1028.0, "cores": 1}\n{"ended": 1100.0, "exit_code": 0}\n'
  )
  found = results.read(folder.sweep, folder.out)[0]
  assert found.stage_secs == {'zero': 10.0, 'kept': 17.0, 'final': 60.0}
  assert found.wall_secs == 97.0


def test_the_record_of_a_sweep_is_read_as_it_was_written(folder):
  with plan.claimed(folder.out, folder.sweep):
    assert plan.read(folder.out) == folder.sweep
    with pytest.raises(UserError, match='another sweep runs in'):
      with plan.claimed(folder.out, folder.sweep):
        pass


def test_a_broken_record_is_one_line(folder):
  folder.out.mkdir()
  (folder.out / plan.RECORD).write_text('{"command": "train"')
  with pytest.raises(UserError, match=r'sweep\.json is broken .* remove it'):
    plan.read(folder.out)
