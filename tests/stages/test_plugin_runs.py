"""Whole runs with rewards of plugins: logged, recorded, and stopped in time."""

import json

import pytest

from r1jax import registry
from r1jax.errors import UserError
from r1jax.rewards.plugin_reward import RewardError
from r1jax.runs import run
from tests.configs import small
from tests.conftest import run_config


def _config():
  config = small.get_config()
  config.init = 'random'
  config.stages = ('rl',)
  config.rl.oversample = 1.0
  config.rl.max_steps = 3
  config.rl.save_steps = 1
  config.rl.eval_steps = 3
  config.rl.reward.mine = 0.5
  config.plugins = ('mine.py',)
  return config


_REWARD = """
import os

@registry.reward('mine')
def mine(sample):
  {body}
  return {{'length': sample.num_tokens / 16, 'one': 1}}
"""


@pytest.mark.slow
def test_a_run_logs_and_records_its_reward(plugin, tmp_path):
  path = plugin(_REWARD.format(body=''))
  workdir = tmp_path / 'run'
  run.train(run_config(_config()), str(workdir))
  lines = (workdir / 'rl/metrics.jsonl').read_text().splitlines()
  row = json.loads(lines[1])
  assert row['rewards/mine/one/mean'] == 1
  assert row['rewards/mine/mean'] == pytest.approx(
    1 + row['rewards/mine/length/mean']
  )
  source = json.loads((workdir / 'lineage.json').read_text())['inputs']
  assert source['plugins']['path'] == path
  assert source['plugins']['sha256'] == registry.digest(path)
  plugin(_REWARD.format(body='pass'))
  with pytest.raises(UserError, match='began with another version of mine.py'):
    run.train(run_config(_config()), str(workdir))
  assert (workdir / 'rl/metrics.jsonl').read_text().splitlines() == lines


@pytest.mark.slow
def test_a_reward_that_breaks_stops_the_run_and_its_checkpoints_stand(
  plugin, tmp_path
):
  path = plugin(_REWARD.format(body="assert not os.path.exists('broken')"))
  workdir = tmp_path / 'run'
  config = _config()
  config.rl.reward_timeout_secs = 20.0
  plugin(
    _REWARD.format(
      body="""with open('calls', 'a') as file:
    file.write('x')
  assert os.path.getsize('calls') <= 40"""
    )
  )  # The third step has the 41st call.
  with pytest.raises(RewardError) as raised:
    run.train(run_config(config), str(workdir))
  text = str(raised.value)
  assert 'have no mine' in text and path in text and 'AssertionError' in text
  assert '\n' not in text
  saved = {p.name for p in (workdir / 'rl/checkpoints').iterdir()}
  assert saved & {'1', '2'} and '3' not in saved
