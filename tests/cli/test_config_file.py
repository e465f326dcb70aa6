"""--config finds shipped experiments by name and the user's files by path."""

import os
from pathlib import Path
import subprocess
import sys

import pytest

from r1jax import registry
from r1jax.cli import config_file, main
from r1jax.errors import UserError
from tests.conftest import ROOT

_USER_CONFIG = """
from r1jax.config import algorithms
from r1jax.configs import r1_zero_tiny


def get_config():
  config = r1_zero_tiny.get_config()
  config.rl.update(algorithms.ppo())
  config.rl.max_steps = 17
  return config
"""


@pytest.fixture(scope='module')
def installed(tmp_path_factory) -> Path:
  """Returns the folder that a wheel of this source tree installs into."""
  pytest.importorskip('setuptools')
  folder = tmp_path_factory.mktemp('installed')
  subprocess.run(
    [sys.executable, 'setup.py', '-q', 'build_py', f'--build-lib={folder}'],
    cwd=ROOT,
    check=True,
  )
  return folder


@pytest.fixture
def elsewhere(tmp_path) -> Path:
  """A folder of the user, with a folder named configs of his own."""
  (tmp_path / 'configs').mkdir()
  (tmp_path / 'configs/__init__.py').write_text('')
  (tmp_path / 'configs/mine.py').write_text(_USER_CONFIG)
  return tmp_path


def _printed_config(config: str, package: Path, folder: Path) -> str:
  """Returns the output of `r1jax config` in `folder`, importing `package`."""
  done = subprocess.run(
    [sys.executable, '-m', 'r1jax.cli.main', 'config', f'--config={config}'],
    cwd=folder,
    env=dict(os.environ, PYTHONPATH=str(package)),
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  return done.stdout


@pytest.mark.parametrize('source', ['installed', 'checkout'])
def test_names_and_files_beside_a_folder_named_configs(
  installed, elsewhere, source
):
  package = installed if source == 'installed' else ROOT
  shipped = _printed_config('r1_zero_tiny', package, elsewhere)
  assert '\n  max_steps: 80\n' in shipped
  mine = _printed_config('configs/mine.py', package, elsewhere)
  assert '\n  max_steps: 17\n' in mine
  pipeline = _printed_config('pipeline_algorithms_tiny', package, elsewhere)
  assert '\ndpo_robust:\n' in pipeline


def test_the_wheel_ships_no_package_named_configs(installed):
  assert [path.name for path in installed.iterdir()] == ['r1jax']
  files = {path.stem for path in (ROOT / 'configs').glob('*.py')}
  assert files == {path.stem for path in installed.glob('r1jax/configs/*.py')}


def test_help_and_config_import_nothing_heavy():
  script = (
    'import sys; from r1jax.cli import main; main.run({!r}); '
    'sys.exit(str([m for m in {!r} if m in sys.modules]))'
  )
  for argv, forbidden in (
    (['--help'], ['absl', 'ml_collections', 'numpy', 'jax']),
    (['train', '--help'], ['jax', 'flax', 'orbax']),
    (['config', '--config=r1_zero_tiny'], ['jax', 'flax', 'grain']),
    (['config', '--help', 'rl.group_size'], ['jax', 'flax', 'grain']),
  ):
    done = subprocess.run(
      [sys.executable, '-c', script.format(argv, forbidden)],
      cwd=ROOT,
      capture_output=True,
      text=True,
    )
    assert done.stderr.strip() == '[]', argv


def test_every_shipped_experiment_has_a_config():
  for name, file in config_file.shipped_experiments().items():
    if name != 'imported':  # It needs the folder of a checkpoint.
      assert config_file.config_of_file(str(file)).to_dict(), name


def test_a_name_takes_an_argument(capsys, tmp_path):
  (tmp_path / 'argument.py').write_text(
    'from r1jax.config import base\n\n\n'
    'def get_config(steps):\n'
    '  config = base.get_config()\n'
    '  config.rl.max_steps = int(steps)\n'
    '  return config\n'
  )
  main.run(['config', f'--config={tmp_path}/argument.py:29'])
  assert '\n  max_steps: 29\n' in capsys.readouterr().out


_PLUGIN = """
import dataclasses
from r1jax import registry
from r1jax.config.field import key
from r1jax.config.schema.section import Section
from r1jax.stages.stage import Stage


@registry.reward('brevity')
def brevity(sample):
  return -sample.num_tokens


@dataclasses.dataclass(frozen=True)
class HalveConfig(Section):
  times: int = key(1, 'How often weights are halved.', at_least=1)


@registry.stage('halve')
class Halve(Stage):
  section = HalveConfig
"""


@pytest.fixture
def plugin(tmp_path):
  """A file that registers a reward and a stage."""
  path = tmp_path / 'mine.py'
  path.write_text(_PLUGIN)
  yield str(path)
  for kind in registry.KINDS:
    kind.forget(str(path.resolve()))


def _printed(capsys, *args) -> str:
  main.run(['config', *args])
  return capsys.readouterr().out


@pytest.mark.parametrize(
  'key, stage',
  [
    ('rl.reward.brevity', ''),
    ('rl.general_reward.brevity', ''),
    ('reasoning.rl.reward.brevity', 'reasoning.'),
    ('final.rl.general_reward.brevity', 'final.'),
  ],
)
def test_a_reward_of_a_plugin_has_a_weight_on_the_command_line(
  capsys, plugin, key, stage
):
  """Though the file of the config names neither the reward nor the plugin."""
  config = 'pipeline_r1_tiny' if stage else 'r1_zero_tiny'
  extra = ['--config.rl.max_steps=3'] if not stage else []
  if key == 'rl.general_reward.brevity':
    extra = ['--config.data.mixture=("arithmetic:1","manners:1")']
  printed = _printed(
    capsys,
    f'--config={config}',
    f'--config.{stage}plugins=("{plugin}",)',
    f'--config.{key}=0.25',
    *extra,
  )
  assert printed.count('brevity: 0.25') == 1


def test_a_stage_of_a_plugin_has_keys_on_the_command_line(capsys, plugin):
  """Though the file of the config does not name them."""
  given = ['--config=r1_zero_tiny', f'--config.plugins=("{plugin}",)']
  stages = '--config.stages=("pretrain","rl","halve")'
  shown = _printed(capsys, *given, stages, '--config.halve.times=3')
  assert 'halve:\n  times: 3\n' in shown
  with pytest.raises(UserError, match='halve.times = 0 must be at least 1'):
    main.run(['config', *given, stages, '--config.halve.times=0'])
  with pytest.raises(UserError, match='unknown key halve.tims'):
    main.run(['config', *given, stages, '--config.halve.tims=3'])


@pytest.mark.parametrize(
  'args',
  [
    ['--config.rl.reward.brevity=1.0'],
    ['--config.rl.reward.brevty=1.0', '--config.plugins=("PLUGIN",)'],
    ['--config.rl.general_reward.x=1', '--config.plugins=("PLUGIN",)'],
    ['--config.rl.reward.brevity.x=1.0', '--config.plugins=("PLUGIN",)'],
    ['--config.rl.rewards.brevity=1.0', '--config.plugins=("PLUGIN",)'],
  ],
)
def test_a_reward_that_nothing_registers_is_an_unknown_key(plugin, args):
  args = [arg.replace('PLUGIN', plugin) for arg in args]
  with pytest.raises(UserError, match='unknown key rl'):
    main.run(['config', '--config=r1_zero_tiny', *args])


def test_help_knows_the_keys_of_plugins(capsys, plugin, tmp_path):
  given = ['--config=r1_zero_tiny', f'--config.plugins=("{plugin}",)']
  shown = _printed(capsys, *given, '--help', 'halve.times')
  assert shown.startswith('halve.times (int, default 1, at least 1)')
  assert 'halve (section)' in _printed(capsys, *given, '--help')
  # Also where a config file, or a run of a pipeline, names the plugin.
  path = tmp_path / 'pipeline.py'
  path.write_text(
    'from r1jax.configs import pipeline_r1_tiny\n\n\n'
    'def get_config():\n'
    '  config = pipeline_r1_tiny.get_config()\n'
    f'  config.final.plugins = ({plugin!r},)\n'
    '  return config\n'
  )
  assert 'How often' in _printed(
    capsys, f'--config={path}', '--help', 'halve.times'
  )
  with pytest.raises(UserError, match="did you mean 'halve.times'"):
    main.run(['config', *given, '--help', 'halve.time'])


_WRONG = (
  '--config.rl.group_size=1',
  '--config.rl.temperature=-1',
  '--config.rl.optimizer.adam_beta1=2.0',
  '--config.rl.optimizer.weight_decay=-0.1',
  '--config.rl.optimizer.learning_rate=0.0',
  '--config.rl.optimizer.max_grad_norm=0.0',
  '--config.rl.optimizer.warmup_steps=100000',
  '--config.pretrain.optimizer.warmup_steps=1501',
  '--config.pretrain.optimizer.learning_rate=inf',
  '--config.model.rms_norm_eps=0.0',
  '--config.rl.adv_estimator=grop',
  '--config.rl.policy_loss=clp',
  '--config.rl.environment=anser',
  '--config.data.task=gsm8',
  '--config.data.response_format=think_anser',
  '--config.corpus.tasks=("arithmetics:1",)',
)
_PARTS = (
  'rl.group_size = 1 must be at least 2',
  'rl.temperature = -1.0 must be above 0',
  'rl.optimizer.adam_beta1 = 2.0 must be at least 0 and below 1',
  'rl.optimizer.weight_decay = -0.1 must be at least 0',
  'rl.optimizer.learning_rate = 0.0 must be above 0',
  'rl.optimizer.max_grad_norm = 0.0 must be above 0',
  'pretrain.optimizer.learning_rate = inf must be finite',
  'model.rms_norm_eps = 0.0 must be above 0',
  "rl.adv_estimator: unknown 'grop'; did you mean 'grpo'?",
  "rl.policy_loss: unknown 'clp'; did you mean 'clip'?",
  "rl.environment: unknown 'anser'; did you mean 'answer'?",
  "data.task: unknown 'gsm8'; did you mean 'gsm8k'?",
  "data.response_format: unknown 'think_anser'",
  "corpus.tasks: unknown 'arithmetics'; did you mean 'arithmetic'?",
)


@pytest.mark.parametrize('command', ['config', 'train'])
def test_everything_that_is_wrong_is_said_at_once(tmp_path, command):
  """The commands `config` and `train` report all wrong keys in one error."""
  workdir = [f'--workdir={tmp_path}/run'] if command == 'train' else []
  with pytest.raises(UserError) as caught:
    main.run([command, '--config=r1_zero_tiny', *workdir, *_WRONG])
  message = str(caught.value)
  for part in _PARTS:
    assert part in message, message
  assert '\n' not in message and not (tmp_path / 'run').exists()


@pytest.mark.parametrize(
  'args, part',
  [
    (
      ['--config.rl.optimizer.warmup_steps=161'],
      'rl.optimizer.warmup_steps = 161 is longer than the run of 160 updates '
      '(rl.max_steps = 80, × num_minibatches = 2)',
    ),
    (
      ['--config.rl.max_steps=2'],
      'warmup_steps = 5 is longer than the run of 4',
    ),
    (
      ['--config.pretrain.max_steps=99'],
      'pretrain.optimizer.warmup_steps = 100 is longer than the run of 99',
    ),
    (
      [
        '--config.rl.adv_estimator=gae',
        '--config.rl.ppo.critic_warmup_steps=78',
      ],
      'rl.optimizer.warmup_steps = 5 is longer than the run of 4',
    ),
    (['--config.rl.ppo.critic_learning_rate=0.0'], 'must be above 0'),
    (
      ['--config.data.path=mine.jsonl'],
      "data.path = 'mine.jsonl' has no effect",
    ),
    (['--config.sft.batch_size=3'], 'sft.batch_size = 3 has no effect'),
    (['--config.mesh.data=0'], 'mesh.data = 0 must be at least 1, or -1'),
  ],
)
def test_config_refuses_what_train_refuses(args, part):
  with pytest.raises(UserError) as caught:
    main.run(['config', '--config=r1_zero_tiny', *args])
  assert part in str(caught.value)


def test_all_runs_of_a_pipeline_are_checked_at_once():
  with pytest.raises(UserError) as caught:
    main.run(
      [
        'config',
        '--config=pipeline_r1_tiny',
        '--config.base.pretrain.batch_size=0',
        '--config.final.rl.reward_models.helpful=',
        '--config.zero.rl.adv_estimator=grop',
      ]
    )
  message = str(caught.value)
  assert 'base: pretrain.batch_size = 0 must be at least 1' in message
  assert "zero: rl.adv_estimator: unknown 'grop'" in message


@pytest.mark.parametrize(
  'flag, value',
  [
    ('enable_thinking=False', {'enable_thinking': False}),
    ('date_string=1 Jan 2025', {'date_string': '1 Jan 2025'}),
    ('depth=3', {'depth': 3}),
  ],
)
def test_variables_of_a_template_are_set_by_flags(flag, value):
  args = config_file.normalized(
    ['--config=r1_zero_tiny', f'--config.data.template_args.{flag}']
  )
  values, holder = config_file.config_flags_of(args)
  config = config_file.load(values, holder, args)
  assert config_file.run_config(config).data.template_args == value


@pytest.mark.parametrize(
  'key', ['data.nothing', 'data.template_argz.a', 'rl.reward.mine', 'nothing']
)
def test_other_keys_are_not_added(key):
  args = config_file.normalized(['--config=r1_zero_tiny', f'--config.{key}=1'])
  values, holder = config_file.config_flags_of(args)
  with pytest.raises(UserError, match=f'unknown key {key}'):
    config_file.load(values, holder, args)
