"""Inputs on the Hugging Face hub, from a stand-in of it."""

import json
from pathlib import Path
import subprocess

import pytest

from r1jax import buckets, hub
from r1jax.data import readers
from r1jax.errors import UserError
from tests import fake_hub
from tests.checkpoints import test_imported
from tests.stages.conftest import command

_ROWS = [{'question': 'What is 2 + 3?', 'answer': '5'}]


@pytest.fixture
def served(tmp_path, monkeypatch):
  """The stand-in, with a model and a dataset, and an empty cache."""
  from huggingface_hub import constants

  monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(tmp_path / 'hub'))
  monkeypatch.setenv('R1JAX_CACHE', str(tmp_path / 'cache'))
  monkeypatch.delenv('HF_TOKEN', raising=False)
  hub.fetch.cache_clear()
  with fake_hub.served() as server:
    monkeypatch.setenv('HF_ENDPOINT', server.url)
    server.repositories['models', 'me/small'] = {
      'config.json': b'{}',
      'model.safetensors': b'weights',
      'pytorch_model.bin': b'the same in another format',
      'onnx/config.json': b'{}',
    }
    lines = '\n'.join(map(json.dumps, _ROWS)).encode()
    server.repositories['datasets', 'me/sums'] = {
      'main/train-0.jsonl': lines,
      'main/train-1.jsonl': lines,
      'README.md': b'none',
    }
    yield server
  hub.fetch.cache_clear()


def _names(folder: Path) -> list[str]:
  paths = (p for p in folder.rglob('*') if p.is_file())
  return sorted(p.relative_to(folder).as_posix() for p in paths)


def test_of_a_model_come_the_files_that_are_of_use(served):
  folder = buckets.given('hf://me/small')
  assert _names(folder) == ['config.json', 'model.safetensors']
  assert (folder / 'model.safetensors').read_bytes() == b'weights'
  assert buckets.given('hf://me/small@main') == folder


def test_a_file_of_a_dataset_is_read_as_one_of_this_host(served):
  (path,) = readers.files('hf://datasets/me/sums/main/train-0')
  assert json.loads(path.read_text()) == _ROWS[0]
  paths = readers.files('hf://datasets/me/sums/main/train-*.jsonl')
  assert [path.name for path in paths] == ['train-0.jsonl', 'train-1.jsonl']
  with pytest.raises(UserError, match='data: no hf://datasets/me/sums/absent'):
    readers.files('hf://datasets/me/sums/absent')


def test_a_run_without_a_network_finds_what_is_in_the_cache(
  served, monkeypatch
):
  before = buckets.given('hf://me/small')
  hub.fetch.cache_clear()
  count = len(served.requests)
  monkeypatch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', True)
  assert buckets.given('hf://me/small') == before
  assert len(served.requests) == count
  with pytest.raises(UserError, match='cannot be reached, and me/other is not'):
    buckets.given('hf://me/other')


def test_a_hub_that_is_not_there_is_one_line(served, monkeypatch):
  monkeypatch.setenv('HF_ENDPOINT', 'http://localhost:9')
  with pytest.raises(UserError, match='the hub cannot be reached'):
    buckets.given('hf://me/small')


@pytest.mark.parametrize(
  'url, message',
  [
    ('hf://me/absent', 'the hub has no model me/absent; if it is private'),
    ('hf://me/gated', 'the model me/gated is gated; accept its terms'),
    ('hf://me/small@v9', "me/small has no revision 'v9'"),
    ('hf://small', 'the form of a repository is'),
    ('hf://me/small/../x', 'the form of a repository is'),
  ],
)
def test_what_the_hub_does_not_have_is_one_line(served, url, message):
  served.gated.add('me/gated')
  with pytest.raises(UserError, match=message):
    buckets.given(url)


_CONFIG = """
from r1jax.configs import imported

def get_config():
  config = imported.get_config('hf://me/tiny')
  config.data.update(
    task='rows',
    path='hf://datasets/me/sums/main/train-*.jsonl',
    eval_path='hf://datasets/me/sums/main/train-0.jsonl',
    answer_in='hashes',
  )
  return config
"""


@pytest.mark.slow
def test_a_config_of_ten_lines_trains_a_model_of_the_hub(
  served, environment, tmp_path
):
  test_imported._write_hf_folder(tmp_path / 'hf')
  served.repositories['models', 'me/tiny'] = {
    path.name: path.read_bytes() for path in (tmp_path / 'hf').iterdir()
  }
  rows = [
    {'question': f'{n}+{n}', 'answer': f'{n}+{n} is\n#### {2 * n}'}
    for n in range(1, 9)
  ]
  served.repositories['datasets', 'me/sums']['main/train-0.jsonl'] = '\n'.join(
    map(json.dumps, rows)
  ).encode()
  served.repositories['datasets', 'me/sums'].pop('main/train-1.jsonl')
  config = tmp_path / 'mine.py'
  config.write_text(_CONFIG)
  workdir = tmp_path / 'run'
  outcome = subprocess.run(
    command(
      'train',
      f'--config={config}',
      f'--workdir={workdir}',
      '--config.rl.max_steps=1',
      '--config.rl.prompts_per_step=2',
      '--config.rl.group_size=2',
      '--config.rl.num_minibatches=1',
      '--config.rl.max_new_tokens=16',
      '--config.eval.num_problems=4',
      '--config.eval.num_samples=2',
      '--config.rollout.decode_steps=4',
    ),
    env=environment
    | {'HF_ENDPOINT': served.url, 'HF_HUB_CACHE': str(tmp_path / 'hub')},
    capture_output=True,
    text=True,
    timeout=600,
  )
  assert outcome.returncode == 0, outcome.stderr
  assert 'hf://me/tiny is commit ' in outcome.stdout
  assert (workdir / 'rl' / 'model.safetensors').exists()
