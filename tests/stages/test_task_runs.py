"""The loop on other tasks: real files, and another synthetic one."""

import json

import pytest

from tests.stages.conftest import SMALL, rows, run


@pytest.mark.parametrize('name', ['gsm8k', 'countdown'])
def test_real_files_run_log_and_checkpoint(shared, environment, tmp_path, name):
  environment = dict(environment, R1JAX_DATA=str(shared / 'data'))
  workdir = tmp_path / name
  run(environment, 'train', f'--config=configs/r1_zero_{name}.py',
      f'--workdir={workdir}', '--config.rl.steps=1',
      '--config.rl.max_new_tokens=8',
      '--config.data.max_prompt_tokens=320')  # One width: compiled once.
  lines = rows(workdir)
  assert [row['step'] for row in lines] == [0, 1]
  assert lines[1]['entropy'] > 5  # A random model under 150,000 tokens.
  assert lines[1]['verdict/unparsable'] == 1  # It closes no answer tag.
  assert lines[1]['eval/unscorable'] == lines[1]['verdict/crash'] == 0
  assert (workdir / 'rl/checkpoints/1').is_dir()


def test_synthetic_countdown_runs(environment, tmp_path):
  workdir = tmp_path / 'run'
  run(environment, 'train', SMALL, f'--workdir={workdir}',
      '--config.data.task=countdown', '--config.data.max_prompt_tokens=16',
      '--config.pretrain.steps=2', '--config.rl.steps=1',
      '--config.rl.kl_coef=0.0', '--config.rl.old_logp=recompute',
      '--config.rl.complete_share=1.0',  # As recomputing needs it.
      '--config.rl.routing_replay=True')
  row = rows(workdir)[1]
  assert 'kl' not in row and row['logp_gap/max'] < 1e-4
  saved = (workdir / 'rl/samples/step_000001.jsonl').read_text().splitlines()
  assert json.loads(json.loads(saved[0])['gold'])['target'] > 0
