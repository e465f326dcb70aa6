"""What users bring needs no change of the package: each kind by a plugin.

The plugins are the examples of docs/extending.md. One run through the public
`runs.run.train` uses a task, a format, a template, an estimator, a policy loss
and a stage that the package does not know.
"""

import json

import numpy as np
import pytest

from r1jax import registry
from r1jax.checkpoints import hf_config
from r1jax.checkpoints.storage import SafetensorsReader
from r1jax.config.load import load, to_config_dict
from r1jax.config.schema.model import ModelConfig
from r1jax.config.schema.run import RunConfig
from r1jax.data import datasets, splits
from r1jax.data.tasks.task import problem_at
from r1jax.data.text import chat, reasoning, tokenizer
from r1jax.data.text.response_formats import ResponseParser
from r1jax.errors import UserError
from r1jax.graders import dispatch
from r1jax.runs import run
from r1jax.stages.build import parts as build
from tests.configs import small
from tests.conftest import ROOT, one_device
from tests.test_extending import EXAMPLES

# Where the package's own ones are registered: what a new built-in one changes.
_BUILT_IN = (
  ('task', 'arithmetic', 'data/tasks/arithmetic.py'),
  ('task', 'countdown', 'data/tasks/countdown.py'),
  ('task', 'manners', 'data/tasks/manners.py'),
  ('dataset', 'gsm8k', 'data/suites.py'),
  ('response_format', 'think', 'data/text/response_formats.py'),
  ('template', 'r1_zero', 'data/text/template.py'),
  ('adv_estimator', 'rloo', 'algos/advantage.py'),
  ('policy_loss', 'clip', 'algos/policy_loss.py'),
  ('model_family', 'qwen3', 'checkpoints/families.py'),
  ('stage', 'rl', 'stages/rl.py'),
)
_ONE_RUN = ('largest', 'notes', 'batch_mean', 'unclipped', 'scale')


@pytest.fixture
def plugins(tmp_path, monkeypatch):
  """Returns write(*names), which writes examples and imports them."""
  monkeypatch.chdir(tmp_path)

  def write(*names: str) -> tuple[str, ...]:
    for name in names:
      (tmp_path / f'{name}.py').write_text(EXAMPLES[f'{name}.py'])
    files = tuple(f'{name}.py' for name in names)
    registry.load_plugins(files)
    return files

  yield write
  for file in tmp_path.glob('*.py'):
    for kind in registry.KINDS:
      kind.forget(str(file.resolve()))


@pytest.mark.parametrize('kind, name, file', _BUILT_IN)
def test_where_the_built_in_ones_are(kind, name, file):
  origin = getattr(registry, kind).origin(name)
  assert origin.file == str(ROOT / 'r1jax' / file) and not origin.plugin


def test_a_task(plugins):
  plugins('largest')
  template = chat.load_template('r1_zero_brief', tokenizer.load('character'))
  prompts = datasets.SyntheticPrompts('largest', splits.TRAIN, 0, template, 20)
  for i in range(20):
    prompt = prompts[i]
    _, a, b = prompt.question.split()
    assert prompt.answer == str(max(int(a), int(b)))
    assert prompt.question == problem_at('largest', 'train', 0, i).question
    [verdict] = dispatch.verdicts(
      [(prompt.answer, prompt.answer, prompt.source)]
    )
    assert verdict.score == 1


def test_a_dataset_from_a_jsonl(plugins, tmp_path):
  plugins('riddles')
  rows = [
    {'id': str(i), 'riddle': f'{i}+1', 'solution': str(i + 1)} for i in (1, 2)
  ]
  (tmp_path / 'riddles.jsonl').write_text('\n'.join(map(json.dumps, rows)))
  source = registry.dataset.get('riddles')
  [first, _] = datasets.read(source, splits.TRAIN)
  assert (first.question, first.answer, first.source) == ('1+1', '2', 'math')
  with pytest.raises(UserError, match='riddles_test.jsonl.*written by hand'):
    datasets.read(source, splits.HELD_OUT)


def test_a_benchmark(plugins, tmp_path):
  plugins('gems')
  row = {'key': 'g1', 'stem': 'Red?', 'options': ['ruby', 'jade'], 'right': 0}
  path = tmp_path / 'gems.jsonl'
  path.write_text(json.dumps(row))
  source = registry.dataset.get('gems')
  [prompt] = datasets.read(source, splits.HELD_OUT, str(path))
  assert f'{prompt.answer}) ruby' in prompt.question
  path.unlink()
  with pytest.raises(UserError, match='hf download .* mine/gems --include'):
    datasets.read(source, splits.HELD_OUT)


def test_a_response_format_and_a_template(plugins):
  plugins('notes')
  text = '<note>so</note><answer>7</answer>'
  parsed = ResponseParser(registry.response_format.get('notes')).parse(text)
  assert (parsed.reasoning, parsed.answer, parsed.errors) == ('so', '7', 0)
  assert reasoning.split(text) == ('so', '7')
  template = chat.load_template('short', tokenizer.load('character'))
  assert template.render('2+2') == 'q 2+2 a '


def test_a_model_family(plugins, tmp_path):
  plugins('mistral')
  values = dict(
    model_type='mistral',
    vocab_size=64,
    hidden_size=16,
    intermediate_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=128,
    rms_norm_eps=1e-5,
    rope_theta=1e4,
    sliding_window=None,
  )
  config_file = tmp_path / 'config.json'
  config_file.write_text(json.dumps(values))
  config = load(hf_config.read_config(tmp_path), ModelConfig, 'model')
  assert (config.attention, config.qk_norm, config.head_dim) == (
    'gqa',
    False,
    4,
  )
  config_file.write_text(json.dumps(values | {'sliding_window': 64}))
  with pytest.raises(UserError, match='sliding_window = 64; only None'):
    hf_config.read_config(tmp_path)


def _config(files):
  config = small.get_config()
  config.plugins = files
  config.stages = ('pretrain', 'rl', 'scale')
  config.pretrain.max_steps = 1
  config.rl.update(
    max_steps=1, adv_estimator='batch_mean', policy_loss='unclipped'
  )
  config.data.update(
    task='largest',
    response_format='notes',
    template='short',
    max_prompt_tokens=16,
  )
  with config.unlocked():
    config.scale = to_config_dict(registry.stage.get('scale').section())
  config.scale.factor = 2.0
  return config


@pytest.mark.slow
def test_one_run_with_a_plugin_of_every_kind(plugins, tmp_path, monkeypatch):
  monkeypatch.setattr(
    build.replicas, 'training_layout', lambda *_: one_device()
  )
  monkeypatch.setenv('R1JAX_CACHE', str(tmp_path / 'cache'))
  config = load(_config(plugins(*_ONE_RUN)), RunConfig)
  workdir = tmp_path / 'run'
  path = run.train(config, str(workdir))
  before = SafetensorsReader(workdir / 'rl/model.safetensors')
  after = SafetensorsReader(path)
  for name in before.shapes:
    np.testing.assert_array_equal(after.read(name), 2 * before.read(name))
  record = json.loads((workdir / 'config.json').read_text())
  assert record['scale'] == {'factor': 2.0}
  lineage = json.loads((workdir / 'lineage.json').read_text())
  assert len([k for k in lineage['inputs'] if k.startswith('plugins')]) == 5


def test_a_section_of_a_plugin_is_checked_like_any_other(plugins):
  plugins(*_ONE_RUN)
  config = _config(('scale.py',))
  assert load(config, RunConfig).scale.factor == 2.0
  assert load(config, RunConfig) == load(config, RunConfig)
  config.scale.factor = -1.0
  with pytest.raises(UserError, match='scale.factor = -1.0 must be above 0'):
    load(config, RunConfig)
  with config.unlocked():
    del config.scale
  assert load(config, RunConfig).scale.factor == 1.0
  config.stages = ('pretrain', 'rl')
  assert not hasattr(load(config, RunConfig), 'scale')


@pytest.mark.parametrize(
  'key, value, message',
  [
    ('rl.adv_estimator', 'rlo', "rl.adv_estimator: .*did you mean 'rloo'"),
    ('rl.policy_loss', 'cip', "rl.policy_loss: .*did you mean 'clip'"),
    ('data.task', 'arithmetics', "did you mean 'arithmetic'"),
    ('data.response_format', 'thinks', "response_format: .*mean 'think'"),
    ('data.template', 'r1_zer', "template: .*did you mean 'r1_zero'"),
  ],
)
def test_an_unknown_name_is_found_before_anything_is_written(
  key, value, message, tmp_path, monkeypatch
):
  monkeypatch.setattr(
    build.replicas, 'training_layout', lambda *_: one_device()
  )
  config = small.get_config()
  config.update_from_flattened_dict({key: value})
  with pytest.raises(UserError, match=message):
    run.train(load(config, RunConfig), str(tmp_path / 'run'))
  assert not (tmp_path / 'run').exists()
