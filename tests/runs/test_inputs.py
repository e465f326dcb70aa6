"""Files that change between a kill and the resume are refused by name."""

import json
import os

import pytest

from r1jax import files, registry
from r1jax.config.load import replace
from r1jax.errors import UserError
from r1jax.runs import inputs, lineage, pipeline, run
from r1jax.runs.pipeline_config import PipelineConfig
from r1jax.stages.build import parts as build
from tests.configs import small
from tests.conftest import one_device, run_config

_ROWS = [
  {'id': str(i), 'question': f'{i}+1', 'response': f'<think>\n{i}</think>'}
  for i in range(4)
]
_JINJA = "{{ messages[0]['content'] }}<think>\n"


def _write(path, rows=_ROWS):
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  return str(path)


@pytest.fixture
def config(tmp_path):
  """A run of SFT that reads one file of each kind."""
  (tmp_path / 'tokenizer').mkdir()
  for name in ('tokenizer.json', 'tokenizer_config.json', 'README.md'):
    (tmp_path / 'tokenizer' / name).write_text('{}')
  (tmp_path / 'base').mkdir()
  for name in ('model.safetensors', 'config.json', 'README.md'):
    (tmp_path / 'base' / name).write_text('{}')
  (tmp_path / 'chat.jinja').write_text(_JINJA)
  return replace(
    run_config(small.get_config()),
    {
      'stages': ('sft',),
      'init': str(tmp_path / 'base'),
      'sft.data': (
        _write(tmp_path / 'a.jsonl'),
        _write(tmp_path / 'b.jsonl'),
        'arithmetic:8',
      ),
      'tokenizer.source': str(tmp_path / 'tokenizer'),
      'data.template': str(tmp_path / 'chat.jinja'),
    },
  )


def test_every_file_that_is_read_is_recorded_and_no_other(config, tmp_path):
  assert {
    key: str(path.relative_to(tmp_path))
    for key, path in inputs.files_of(config).items()
  } == {
    'init[0]': 'base/model.safetensors',
    'init[1]': 'base/config.json',
    'tokenizer.source[0]': 'tokenizer/tokenizer.json',
    'tokenizer.source[1]': 'tokenizer/tokenizer_config.json',
    'data.template': 'chat.jinja',
    'sft.data[0]': 'a.jsonl',
    'sft.data[1]': 'b.jsonl',
  }


def _edit(name):
  return lambda folder: (folder / name).write_text('[]')


def _reorder(folder):
  status = (folder / 'a.jsonl').stat()
  _write(folder / 'a.jsonl', _ROWS[::-1])
  times = status.st_atime_ns, status.st_mtime_ns
  os.utime(folder / 'a.jsonl', ns=times)  # Size and time are as before.


def _append(folder):
  with open(folder / 'b.jsonl', 'a') as file:
    file.write(json.dumps(_ROWS[0]) + '\n')


@pytest.mark.parametrize(
  'change, named',
  [
    (_reorder, 'sft.data[0] (F/a.jsonl) has changed'),
    (_append, 'sft.data[1] (F/b.jsonl) has changed'),
    (_edit('tokenizer/tokenizer.json'), 'tokenizer.source[0] (F/tokenizer/'),
    (_edit('chat.jinja'), 'data.template (F/chat.jinja) has changed'),
    (_edit('base/model.safetensors'), 'init[0] (F/base/model.safetensors) has'),
    (_edit('base/second.safetensors'), 'init[1] (F/base/second.safetensors)'),
    (
      _edit('tokenizer/generation_config.json'),
      'generation_config.json) is new',
    ),
    (
      lambda folder: (folder / 'tokenizer/tokenizer_config.json').unlink(),
      'tokenizer_config.json) is not read any more',
    ),
  ],
)
def test_a_change_is_refused_and_named(config, tmp_path, change, named):
  place = tmp_path / 'run'
  place.mkdir()
  inputs.claim(place, config)
  inputs.claim(place, config)  # Nothing has changed.
  before = (place / inputs.FILE).read_bytes()
  change(tmp_path)
  with pytest.raises(UserError) as caught:
    inputs.claim(place, config)
  message = str(caught.value)
  assert named.replace('F/', f'{tmp_path}/') in message
  assert '\n' not in message and 'use another --workdir' in message
  assert (place / inputs.FILE).read_bytes() == before


def test_what_is_not_read_may_change_and_files_may_move(config, tmp_path):
  place = tmp_path / 'run'
  place.mkdir()
  inputs.claim(place, config)
  _edit('tokenizer/README.md')(tmp_path)
  _edit('base/README.md')(tmp_path)
  (tmp_path / 'a.jsonl').rename(tmp_path / 'c.jsonl')
  moved = (str(tmp_path / 'c.jsonl'), *config.sft.data[1:])
  inputs.claim(place, replace(config, {'sft.data': moved}))


def test_a_broken_record_is_named(config, tmp_path):
  (tmp_path / inputs.FILE).write_text('{"sft.data": {"path": 3}}')
  with pytest.raises(UserError, match=r'inputs.json is broken'):
    inputs.claim(tmp_path, config)


def test_data_of_rl_are_its_task_its_decontamination_and_its_rates(
  tmp_path, monkeypatch
):
  monkeypatch.setenv('R1JAX_DATA', str(tmp_path))
  (tmp_path / 'math').mkdir()
  for name in ('gsm8k_train', 'gsm8k_test', 'math500'):
    _write(tmp_path / 'math' / f'{name}.jsonl')
  rates = _write(tmp_path / 'rates.jsonl')
  config = replace(
    run_config(small.get_config()),
    {
      'stages': ('rl',),
      'init': 'random',
      'data.task': 'gsm8k',
      'data.decontaminate': ('math500',),
      'data.pass_rates': rates,
    },
  )
  found = {key: path.name for key, path in inputs.files_of(config).items()}
  assert found == {
    'data.task': 'gsm8k_train.jsonl',
    'data.eval': 'gsm8k_test.jsonl',
    'data.decontaminate': 'math500.jsonl',
    'data.pass_rates': 'rates.jsonl',
  }
  # A synthetic task reads no files, whatever data.path says.
  config = replace(config, {'data.task': 'arithmetic', 'data.path': rates})
  assert list(inputs.files_of(config)) == [
    'data.decontaminate',
    'data.pass_rates',
  ]


_PLUGIN = """
import dataclasses
from pathlib import Path
from r1jax import registry
from r1jax.config.schema.section import Section
from r1jax.stages.stage import Stage, save_weights
from helper import FAIL


@dataclasses.dataclass(frozen=True)
class ReadingConfig(Section):
  pass


@registry.stage('reading')
class Reading(Stage):
  section = ReadingConfig

  def __init__(self, config, parts):
    pass

  @classmethod
  def reads(cls, config):
    return {'reading.file': [Path('rows.jsonl')]}

  def run(self, directory, params, metadata):
    directory.mkdir(parents=True, exist_ok=True)
    (directory / 'begun').write_text('')
    if Path('fail').exists():
      raise OSError('killed')
    return save_weights(directory, params, metadata)
"""


@pytest.fixture
def reading(tmp_path, monkeypatch):
  """A run of a stage that reads rows.jsonl, and fails while there is a `fail`.

  It lies in a plugin that imports the file beside it.
  """
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(
    build.replicas, 'training_layout', lambda *_: one_device()
  )
  (tmp_path / 'stage.py').write_text(_PLUGIN)
  (tmp_path / 'helper.py').write_text('FAIL = True\n')
  (tmp_path / 'fail').write_text('')
  _write(tmp_path / 'rows.jsonl')
  registry.load_plugins(['stage.py'])
  config = small.get_config()
  config.stages, config.init = ('reading',), 'random'
  config.plugins = ('stage.py',)
  yield run_config(config)
  registry.stage.forget(str((tmp_path / 'stage.py').resolve()))


@pytest.mark.parametrize('name', ['rows.jsonl', 'helper.py'])
def test_a_run_that_resumes_on_other_data_is_refused(reading, tmp_path, name):
  place = tmp_path / 'run'
  with pytest.raises(OSError, match='killed'):
    run.train(reading, str(place))
  (tmp_path / 'fail').unlink()
  kept = (tmp_path / name).read_text()
  (tmp_path / name).write_text(kept + '\n')
  with pytest.raises(UserError, match='restore it|put them back'):
    run.train(reading, str(place))
  assert (place / 'reading/begun').exists()
  assert not (place / 'reading/model.safetensors').exists()
  (tmp_path / name).write_text(kept)
  run.train(reading, str(place))
  read = lineage.read(place)['inputs']
  assert {key: entry['path'] for key, entry in read.items()} == {
    'plugins[0]': str(tmp_path / 'stage.py'),
    'plugins[1]': str(tmp_path / 'helper.py'),
    'reading.file': 'rows.jsonl',
  }


@pytest.mark.slow
def test_a_pipeline_is_refused_before_any_stage_runs(reading, tmp_path):
  place = tmp_path / 'pipeline'
  stages = PipelineConfig(('one', 'two'), (), {'one': reading, 'two': reading})
  with pytest.raises(OSError, match='killed'):
    pipeline.train(stages, str(place))
  (tmp_path / 'fail').unlink()
  _write(tmp_path / 'rows.jsonl', _ROWS[::-1])
  with pytest.raises(UserError, match='one: workdir: .*reading.file'):
    pipeline.train(stages, str(place))
  assert sorted(path.name for path in place.iterdir()) == ['one']
  _write(tmp_path / 'rows.jsonl')
  pipeline.train(stages, str(place))


@pytest.mark.slow
def test_a_finished_run_says_that_its_data_are_others_now(
  reading, tmp_path, caplog, monkeypatch
):
  monkeypatch.setattr('logging.Logger.propagate', True, raising=False)
  (tmp_path / 'fail').unlink()
  run.train(reading, str(tmp_path / 'run'))
  sha256 = lineage.read(tmp_path / 'run')['inputs']['reading.file']['sha256']
  _write(tmp_path / 'rows.jsonl', _ROWS[::-1])
  run.train(reading, str(tmp_path / 'run'))
  assert 'was made of other data: reading.file' in caplog.text
  # A killed run later records the data that it began with.
  (tmp_path / 'run/lineage.json').unlink()
  run.train(reading, str(tmp_path / 'run'))
  assert (
    lineage.read(tmp_path / 'run')['inputs']['reading.file']['sha256'] == sha256
  )


def test_an_input_that_is_not_what_its_run_left_is_refused(config, tmp_path):
  """The file was changed between the end of its run and the start of this."""
  base, workdir = tmp_path / 'base', tmp_path / 'run'
  workdir.mkdir()
  inputs.claim(workdir, config)
  output = base / 'model.safetensors'
  record = {
    'stages': ['sft'],
    'config_sha256': '',
    'commit': None,
    'inputs': {},
    'output': {'path': output.name, 'sha256': files.digest(output)},
  }
  (base / lineage.FILE).write_text(json.dumps(record))
  lineage.check_inputs(workdir)
  output.write_text('{ }')
  (workdir / inputs.FILE).unlink()
  inputs.claim(workdir, config)
  with pytest.raises(
    UserError, match='base is not what|is not what .*base left'
  ):
    lineage.check_inputs(workdir)
