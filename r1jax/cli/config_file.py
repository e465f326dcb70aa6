"""Loads the config that --config names, with its overrides.

--config is the name of a shipped experiment ('r1_zero_tiny') or a Python file
with get_config(). Text after a colon is the argument of get_config().
"""

import difflib
import importlib.machinery
import importlib.util
import os
from pathlib import Path
import re
import sys
import traceback
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from r1jax import configs, registry
from r1jax.config.keys import flatten
from r1jax.config.load import load as load_config
from r1jax.config.schema.run import RunConfig
from r1jax.errors import UserError, unknown

_CONFIG_FLAGS = '--config', '-config'


def normalized(args: list[str]) -> list[str]:
  """Rewrites `--config FILE` to `--config=FILE`, and a name to its file.

  Raises:
    UserError: No shipped experiment has this name.
  """
  for i, arg in enumerate(args[:-1]):
    if arg in _CONFIG_FLAGS:
      args = [*args[:i], f'{arg}={args[i + 1]}', *args[i + 2 :]]
      break
  return [
    f'{flag}={_located(value)}' if flag in _CONFIG_FLAGS and equals else arg
    for arg in args
    for flag, equals, value in [arg.partition('=')]
  ]


def _located(value: str) -> str:
  """Replaces the name of a shipped experiment by its file.

  A value with a slash or a suffix is the path of a file, and stays.
  """
  name, colon, argument = value.partition(':')
  if not re.fullmatch(r'\w+', name):
    return value
  shipped = shipped_experiments()
  if name not in shipped:
    raise unknown('config: experiment', name, shipped)
  return f'{shipped[name]}{colon}{argument}'


def shipped_experiments() -> dict[str, Path]:
  """Returns the file of each shipped experiment, by name."""
  return {
    file.stem: file
    for folder in configs.__path__
    for file in sorted(Path(folder).glob('*.py'))
    if file.stem != '__init__'
  }


def config_flags_of(args: list[str]):
  """Returns flag values with --config, its overrides and --help, and the holder
  of the config.

  absl's own flags are left out.

  Args:
    args: The command's arguments: overrides are defined as they occur.
  """
  values = flags.FlagValues()
  holder = config_flags.DEFINE_config_file(
    'config',
    None,
    'The experiment: the name of a shipped one, or a file with get_config(). '
    'Override a key with --config.KEY=VALUE.',
    flag_values=values,
    sys_argv=['r1jax', *args],
  )
  flags.DEFINE_bool(
    'help', False, 'Show this.', short_name='h', flag_values=values
  )
  return values, holder


def define_stage_flag(values: flags.FlagValues):
  """Defines --stage, for the commands that take the config of one run."""
  flags.DEFINE_string(
    'stage', '', 'The stage of a pipeline to use.', flag_values=values
  )


def define_workdir_flag(values: flags.FlagValues):
  """Defines --workdir."""
  flags.DEFINE_string(
    'workdir', '', 'The folder of the run.', flag_values=values
  )


def load(values: flags.FlagValues, holder, args: list[str]) -> ConfigDict:
  """Returns the config with its overrides; parses all flags.

  Args:
    values: The flags of the command.
    holder: The holder that config_flags_of returns.
    args: The command's arguments.

  Raises:
    UserError: The file is missing or fails, or a flag, key or value is wrong.
  """
  file = _config_argument(args)
  _check_overrides(file, args)
  try:
    extra = values(['r1jax', *args])[1:]
    config = holder.value
  except Exception as error:
    reasons = _override_errors(file, args) or [_one_line(error)]
    raise UserError(f'config: {file}: {"; ".join(reasons)}') from error
  if extra:
    raise UserError(f'unexpected argument {extra[0]!r}')
  return config


def _config_argument(args: list[str]) -> str:
  """The value of --config."""
  given = [
    value
    for arg in args
    for flag, equals, value in [arg.partition('=')]
    if flag in _CONFIG_FLAGS and equals
  ]
  if not given:
    raise UserError(
      'give --config=CONFIG, the name of an experiment or a file; for example '
      '--config=r1_zero_tiny'
    )
  return given[-1]


def _check_overrides(file: str, args: list[str]):
  """Loads the file alone and looks every overridden key up in its config."""
  path, *argument = file.split(':', 1)
  if not os.path.isfile(path):
    raise UserError(f'config: no file {path}')
  known = flatten(config_of_file(path, *argument).to_dict())
  sections = {key.rsplit('.', n)[0] for key in known for n in range(1, 4)}
  wrong = []
  for arg in args:
    if arg.startswith(('--config.', '-config.')):
      key = arg.split('=')[0].split('.', 1)[1]
      if key not in known and key not in sections:
        near = difflib.get_close_matches(key, known, 1, 0)
        hint = ''
        if key.rsplit('.', 1)[0].endswith(('rl.reward', 'rl.general_reward')):
          hint = '; the config file sets the weight of a reward of yours'
        wrong.append(f'unknown key {key} (did you mean {near[0]}?{hint})')
  if wrong:
    raise UserError(f'config: {"; ".join(wrong)}')


def _override_errors(file: str, args: list[str]) -> list[str]:
  """Returns what is wrong with each override that cannot be parsed."""
  found = []
  for arg in args:
    if arg.startswith(('--config.', '-config.')) and '=' in arg:
      alone = [f'--config={file}', arg]
      values, _ = config_flags_of(alone)
      try:
        values(['r1jax', *alone])
      except Exception as error:
        found.append(_one_line(error))
  return found


def config_of_file(path: str, *argument: str) -> ConfigDict:
  """Returns what get_config(), or get_config(argument), of a file returns.

  Raises:
    UserError: The file fails; the message names its line.
  """
  loader = importlib.machinery.SourceFileLoader('r1jax_config', path)
  spec = importlib.util.spec_from_loader(loader.name, loader)
  assert spec is not None  # A loader of a file always gives one.
  module = importlib.util.module_from_spec(spec)
  sys.modules[loader.name] = module  # Dataclasses look their module up.
  try:
    loader.exec_module(module)
    if not hasattr(module, 'get_config'):
      raise UserError('this file has no function get_config()')
    config = module.get_config(*argument)
  except (Exception, SystemExit) as error:
    reason = [_one_line(error)]
    if not isinstance(error, UserError):
      reason.insert(0, type(error).__name__)
    where = f'config: {path}{_line_suffix(error, path)}'
    raise UserError(': '.join([where, *filter(None, reason)])) from error
  if not isinstance(config, ConfigDict):
    raise UserError(f'config: {path}: get_config() returns no ConfigDict')
  return config


def _line_suffix(error: BaseException, path: str) -> str:
  """Returns ':12', the line of the file that raised; '' if it did not."""
  lines = [
    frame.lineno
    for frame in traceback.extract_tb(error.__traceback__)
    if frame.filename == path
  ]
  if isinstance(error, SyntaxError) and error.filename == path:
    lines.append(error.lineno)
  return f':{lines[-1]}' if lines else ''


def _one_line(error: BaseException) -> str:
  """The message of an error, without a ConfigDict's list of all its keys."""
  text = str(
    error.args[0]
    if isinstance(error, KeyError) and error.args
    else error.msg
    if isinstance(error, SyntaxError)
    else error
  )
  text = re.sub(
    r'Other fields present:.*(?=Did you mean)', '', text, flags=re.DOTALL
  )
  return ' '.join(text.split())


def default_workdir(values: flags.FlagValues) -> str:
  """Returns runs/NAME, after the config's file and its argument."""
  flag: Any = values['config']
  path, *argument = flag.config_filename.split(':', 1)
  names = [Path(path).stem, *(Path(each).name for each in argument)]
  return os.path.join('runs', '-'.join(names))


def run_config(config: ConfigDict) -> RunConfig:
  """Returns a config as the typed config of one run; imports its plugins.

  Raises:
    UserError: It is a pipeline, a plugin fails, or keys are wrong: all of them.
  """
  if 'model' not in config:
    raise UserError('this config is a pipeline; use r1jax pipeline')
  registry.load_plugins(tuple(map(str, config.get('plugins', ()))))
  return load_config(config, RunConfig)


def select_stage(config: ConfigDict, values: flags.FlagValues) -> RunConfig:
  """Returns the config of one run: the given one, or --stage of a pipeline.

  Names of other stages ('@base') become their files, and --workdir the folder
  of the stage.

  Raises:
    UserError: --stage is missing, unknown or superfluous, or its config names
      another stage and --workdir is missing.
  """
  if 'model' in config:
    if values.stage:
      raise UserError('--stage is for pipelines; this config is of one run')
    return run_config(config)
  from r1jax.runs import pipeline_config

  names = tuple(map(str, config.get('stages', ())))
  if not values.stage:
    raise UserError(
      f'this config is a pipeline; give --stage, one of {", ".join(names)}'
    )
  if values.stage not in names:
    raise unknown('--stage', values.stage, names)
  pipeline = pipeline_config.load_pipeline(config)
  run = pipeline.runs[values.stage]
  if 'workdir' not in values:
    return run
  if not values.workdir:
    for key, parent in pipeline_config.references(run).items():
      if key.startswith(('init', 'eval.')):
        raise UserError(
          f'{values.stage}.{key} is the output of {parent}; give --workdir, '
          'the folder of the pipeline'
        )
    return run
  pipeline_folder = Path(values.workdir).expanduser()
  values['workdir'].value = str(pipeline_folder / values.stage)
  return pipeline_config.resolved(run, pipeline, pipeline_folder)
