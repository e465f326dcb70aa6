"""Pipelines: what they leave, what they skip, and what they refuse."""

import json
import re
import shutil
import signal
import subprocess
import time

import numpy as np
import pytest

from r1jax import files
from r1jax.runs import lineage, pipeline
from r1jax.stages import dataset_stage, rejection_sampling
from tests.configs import small_pipeline
from tests.conftest import ROOT
from tests.stages.conftest import command, rows, run

PIPELINE = '--config=tests/configs/small_pipeline.py'


@pytest.fixture(scope='module')
def finished(environment, tmp_path_factory):
  place = tmp_path_factory.mktemp('pipelines') / 'whole'
  return place, run(
    environment, 'pipeline', PIPELINE, f'--workdir={place}'
  ).stdout


@pytest.mark.slow
def test_every_stage_leaves_its_output_and_where_it_came_from(
  finished, environment
):
  place, printed = finished
  config = small_pipeline.get_config()
  for name in config.stages:
    record = lineage.read(place / name)
    assert (place / name / record['output']['path']).exists()
  assert [row['step'] for row in rows(place / 'cold_start', 'sft')] == [1, 2, 3]
  assert {'nll', 'kl', 'loss'} <= rows(place / 'student', 'sft')[0].keys()
  tree = run(environment, 'lineage', str(place / 'student')).stdout
  for line in (
    'student (sft; ',
    '  init ← base (pretrain; ',
    '  sft.teacher_model ← reasoning (rl; ',
    '    init ← cold_start (sft; ',
    '  sft.data ← kept (rejection_sampling; ',
  ):
    assert f'\n{line}' in f'\n{tree}'
  assert (place / 'table.md').read_text().strip() in printed
  assert re.search(r'\| student \|( \d+\.\d{3} \|){9}\n', printed)


@pytest.mark.slow
def test_accepted_rows_say_what_they_are_and_came_from(finished):
  place, _ = finished
  lines = (
    (place / 'kept/rejection_sampling/accepted.jsonl').read_text().splitlines()
  )
  kept = [json.loads(line) for line in lines]
  report = json.loads(
    (place / 'kept/rejection_sampling/report.json').read_text()
  )
  sampled = [row for row in kept if 'answer' in row]
  assert report['accepted'] == len(sampled) and len(kept) - len(sampled) == 6
  assert (
    report['num_completions']
    == 36
    == report['accepted'] + sum(report['dropped'].values())
  )
  for row in sampled:
    source = row['provenance']
    assert row['id'] == f'{source["prompt"]}-{source["sample"]}'
    assert source['checkpoint'] == files.digest(
      place / 'reasoning/rl/model.safetensors'
    )
    assert set(source['scores']) == {
      'format',
      'language',
      'repetition',
      'correct',
    }
    assert row['teacher']['kept'] == 4
  per_prompt = [row['provenance']['prompt'] for row in sampled]
  assert max(map(per_prompt.count, per_prompt)) <= 2


@pytest.mark.slow
def test_a_second_run_makes_what_is_lacking_alone(
  finished, environment, tmp_path
):
  """A record that a kill prevented, a new evaluation, and an output that is gone.

  Neither its old record nor its old evaluation hides that it is gone.
  """
  whole, _ = finished
  place = tmp_path / 'again'
  shutil.copytree(whole, place)
  (place / 'student/lineage.json').unlink()
  before = {p: p.stat().st_mtime_ns for p in place.rglob('*.safetensors')}
  base = place / 'base/pretrain/model.safetensors'
  base.unlink()
  (place / 'base/lineage.json').write_text(
    (whole / 'base/lineage.json')
    .read_text()
    .replace(files.digest(whole / 'base/pretrain/model.safetensors'), 'old')
  )
  (place / 'base/evaluation.json').write_text('{"arithmetic/pass@1": 7.0}')
  printed = run(
    environment,
    'pipeline',
    PIPELINE,
    f'--workdir={place}',
    '--config.evaluations=("countdown", "arithmetic")',
  ).stdout
  assert printed.count('is finished already; nothing to do') == 4
  assert {p for p in before if before[p] != p.stat().st_mtime_ns} == {base}
  for name in ('base', 'student'):
    assert lineage.read(place / name) == lineage.read(whole / name)
  measured, known = (
    pipeline.measured(folder / 'student/evaluation.json')
    for folder in (place, whole)
  )
  assert known.items() < measured.items()
  measured, known = (
    pipeline.measured(folder / 'base/evaluation.json')
    for folder in (place, whole)
  )
  assert measured['arithmetic/pass@1'] == known['arithmetic/pass@1']
  assert '| stage | countdown/' in printed
  assert 'manners' not in (place / 'table.md').read_text()


@pytest.mark.slow
def test_killed_while_it_samples_it_goes_on_to_the_same_end(
  finished, environment, tmp_path
):
  whole, _ = finished
  cut = tmp_path / 'cut'
  for name in ('base', 'cold_start', 'reasoning'):
    shutil.copytree(whole / name, cut / name)
  process = subprocess.Popen(
    command('pipeline', PIPELINE, f'--workdir={cut}', '--from=kept'),
    env=environment,
    cwd=ROOT,
    stdout=subprocess.DEVNULL,
    stderr=subprocess.DEVNULL,
  )
  partial = cut / 'kept/rejection_sampling/partial.jsonl'
  deadline = time.monotonic() + 240
  while not (partial.exists() and '"done": 4' in partial.read_text()):
    assert process.poll() is None and time.monotonic() < deadline
    time.sleep(0.005)
  process.send_signal(signal.SIGKILL)
  process.wait()
  printed = run(environment, 'pipeline', PIPELINE, f'--workdir={cut}').stdout
  assert 'rejection_sampling goes on after prompt' in printed
  for file in (
    'kept/rejection_sampling/accepted.jsonl',
    'kept/rejection_sampling/report.json',
    'student/sft/metrics.jsonl',
    'student/sft/model.safetensors',
  ):
    assert (cut / file).read_bytes() == (whole / file).read_bytes(), file


@pytest.mark.slow
def test_what_changed_under_a_finished_stage_is_refused(finished, environment):
  whole, _ = finished
  done = run(
    environment,
    'pipeline',
    PIPELINE,
    f'--workdir={whole}',
    '--config.cold_start.sft.num_train_epochs=2',
    code=2,
  )
  assert 'sft.num_train_epochs is 1 there and 2 here' in done.stderr


def test_a_torn_chunk_is_sampled_again(tmp_path):
  partial = tmp_path / 'partial.jsonl'
  partial.write_text(
    '{"id": "a"}\n{"done": 2, "counts": {"correct": 3}}\n{"id": "b"}\n{"id": "c'
  )
  done, kept, counts = dataset_stage.resumed(partial)
  assert (done, [row['id'] for row in kept]) == (2, ['a'])
  assert counts == {'correct': 3}
  assert partial.read_text().endswith('{"done": 2, "counts": {"correct": 3}}\n')


@pytest.mark.slow
def test_an_empty_dataset_says_which_filter_emptied_it(
  finished, environment, tmp_path
):
  whole, _ = finished
  for name in ('base', 'cold_start', 'reasoning'):
    shutil.copytree(whole / name, tmp_path / name)
  done = run(
    environment,
    'pipeline',
    PIPELINE,
    f'--workdir={tmp_path}',
    '--only=kept',
    '--config.kept.rejection_sampling.max_tokens=1',
    code=2,
  )
  assert 'filters accept none of 36 completions: ' in done.stderr
  assert 'truncated dropped' in done.stderr
  assert 'max_tokens dropped' in done.stderr


def test_a_random_subset_is_the_same_again():
  picked = rejection_sampling._subset([{'n': n} for n in range(9)], 4, 0)
  assert picked == rejection_sampling._subset(
    [{'n': n} for n in range(9)], 4, 0
  )
  assert len(picked) == 4 and np.all(np.diff([r['n'] for r in picked]) > 0)
