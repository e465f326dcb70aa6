"""Loads the config that --config names, with its overrides.

--config is the name of a shipped experiment ('r1_zero_tiny') or a Python file
with get_config(). Text after a colon is the argument of get_config().
"""

import difflib
import os
from pathlib import Path
import re
import traceback
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from r1jax import buckets, configs, registry, source_files
from r1jax.config import effects
from r1jax.config.field import walk
from r1jax.config.keys import flatten
from r1jax.config.load import load as load_config
from r1jax.config.load import to_config_dict, with_plugin_sections
from r1jax.config.schema.run import RunConfig
from r1jax.errors import UserError, unknown

_CONFIG_FLAGS = '--config', '-config'
_TEMPLATE_ARGS = 'data.template_args'  # Overrides may add keys to it.


def normalized(args: list[str]) -> list[str]:
  """Rewrites `--config FILE` to `--config=FILE`, and a name to its file.

  Raises:
    UserError: No shipped experiment has this name.
  """
  return [
    f'{flag}={_located(value)}' if flag in _CONFIG_FLAGS and equals else arg
    for arg in joined(args)
    for flag, equals, value in [arg.partition('=')]
  ]


def joined(args: list[str]) -> list[str]:
  """Rewrites `--config FILE` to `--config=FILE`."""
  for i, arg in enumerate(args[:-1]):
    if arg in _CONFIG_FLAGS:
      return [*args[:i], f'{arg}={args[i + 1]}', *args[i + 2 :]]
  return args


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
    # Only data.template_args is not locked.
    lock_config=False,
    accept_new_attributes=True,
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
  file = config_argument(args)
  config = _loaded(file, args)
  _check_overrides(config, args)
  values['config'].parser = _LoadedConfig(config)
  try:
    extra = values(['r1jax', *args])[1:]
    config = holder.value
  except Exception as error:
    reasons = _override_errors(file, args) or [_one_line(error)]
    raise UserError(f'config: {file}: {"; ".join(reasons)}') from error
  if extra:
    raise UserError(f'unexpected argument {extra[0]!r}')
  return config


class _LoadedConfig(flags.ArgumentParser):
  """Stands for the loader of config files, with the config that it returns."""

  def __init__(self, config: ConfigDict):
    self._config = config

  def parse(self, argument: str) -> ConfigDict:
    del argument
    self._config.lock()
    for run in (self._config, *self._config.values()):
      data = run.get('data') if isinstance(run, ConfigDict) else None
      if isinstance(data, ConfigDict) and 'template_args' in data:
        data.template_args.unlock()
    return self._config


def _loaded(file: str, args: list[str]) -> ConfigDict:
  """Returns the config of a file, with the keys of plugins that `args` set.

  They are weights of rewards, and sections of stages, that the file does not
  name and that one of its plugins registers.
  """
  path, *argument = file.split(':', 1)
  if not os.path.isfile(path):
    raise UserError(f'config: no file {path}')
  config = config_of_file(path, *argument)
  for key in overridden(args):
    prefix = _run_prefix(config, key)
    if prefix is None:
      continue
    run = config[prefix[:-1]] if prefix else config
    first, *inner = key.removeprefix(prefix).split('.')
    weights = _open_mapping(run, '.'.join([first, *inner[:-1]]))
    is_new_weight = weights is not None and inner[-1] not in weights
    if is_new_weight or (inner and first not in run):
      registry.load_plugins(_plugins(config, prefix, args))
    if weights is not None and is_new_weight and inner[-1] in registry.reward:
      weights[inner[-1]] = 0.0
    elif inner and first not in run and first in registry.stage:
      with run.unlocked():
        run[first] = to_config_dict(registry.stage.get(first).section())
  return config


def _run_prefix(config: ConfigDict, key: str) -> str | None:
  """Returns the part of a key that names its run: '', or 'NAME.' in a pipeline.

  It is None for a key of the pipeline itself.
  """
  if 'model' in config:
    return ''
  name = key.partition('.')[0]
  run = config.get(name)
  return f'{name}.' if isinstance(run, ConfigDict) and 'model' in run else None


def _is_template_arg(config: ConfigDict, key: str) -> bool:
  """Returns whether a key is a variable of a run's chat template."""
  prefix = _run_prefix(config, key)
  return (
    prefix is not None
    and key.removeprefix(prefix).rpartition('.')[0] == _TEMPLATE_ARGS
  )


def overridden(args: list[str]) -> list[str]:
  """Returns the keys that arguments override, without 'config.' before them."""
  return [
    arg.split('=')[0].split('.', 1)[1]
    for arg in args
    if re.match(r'--?(no)?config\.', arg)
  ]


def _open_mapping(run: ConfigDict, key: str) -> ConfigDict | None:
  """Returns the weights of rewards that a key of a run names; else None."""
  if key not in [
    name for name, _, spec, _ in walk(RunConfig()) if spec.is_open
  ]:
    return None
  found: Any = run
  for part in key.split('.'):
    found = found.get(part) if isinstance(found, ConfigDict) else None
  return found


def _plugins(config: ConfigDict, run: str, args: list[str]) -> tuple[str, ...]:
  """Returns the plugins of a run: those of its config, or of its override.

  Args:
    config: The config of the run, or of a pipeline.
    run: The prefix of the run's keys: '' or 'NAME.'.
    args: The command's arguments.
  """
  flag = re.compile(rf'--?config\.{re.escape(run)}plugins(?==|$)')
  given = [flag.sub('--config.plugins', a) for a in args if flag.match(a)]
  if given:
    given = ['--config=-', *given]
    values, holder = config_flags_of(given)
    values['config'].parser = _LoadedConfig(ConfigDict({'plugins': ('',)}))
    try:
      values(['r1jax', *given])
    except flags.Error:  # It is reported with all other overrides.
      return ()
    return holder.value.plugins
  for name in filter(None, run.split('.')):
    config = config[name]
  return tuple(map(str, config.get('plugins', ())))


def config_argument(args: list[str]) -> str:
  """Returns the value of --config.

  Raises:
    UserError: It is not given.
  """
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


def _check_overrides(config: ConfigDict, args: list[str]):
  """Looks every overridden key up in the config of the file."""
  known = flatten(config.to_dict())
  sections = {key.rsplit('.', n)[0] for key in known for n in range(1, 4)}
  wrong = []
  for key in overridden(args):
    if _is_template_arg(config, key):
      continue
    if key not in known and key not in sections:
      near = difflib.get_close_matches(key, known, 1, 0)
      hint = ''
      if key.rsplit('.', 1)[0].endswith(('rl.reward', 'rl.general_reward')):
        hint = '; a plugin in config.plugins registers a reward of yours'
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
      values['config'].parser = _LoadedConfig(_loaded(file, alone))
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
  try:
    with source_files.run_file('r1jax_config', Path(path)) as module:
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


def given_keys(values: flags.FlagValues) -> list[str]:
  """Returns the keys of the config that the command line overrides."""
  flag: Any = values['config']
  return list(flag.override_values)


def help_class(args: list[str]) -> type[RunConfig]:
  """Returns the class of a run's config, with the stages of its plugins.

  Args:
    args: The command's arguments, perhaps with --config.

  Raises:
    UserError: The config or a plugin fails.
  """
  if not any(arg.partition('=')[0] in _CONFIG_FLAGS for arg in args):
    return RunConfig
  config = _loaded(config_argument(args), args)
  runs = [''] if 'model' in config else [f'{n}.' for n in config.get('stages')]
  plugins = [name for run in runs for name in _plugins(config, run, args)]
  if not plugins:
    return RunConfig
  registry.load_plugins(plugins)
  return with_plugin_sections(dict.fromkeys(registry.stage))[0]


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
    run = run_config(config)
    effects.check_given(run, given_keys(values))
    return run
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
  prefix = f'{values.stage}.'
  effects.check_given(
    run,
    [
      key.removeprefix(prefix)
      for key in given_keys(values)
      if key.startswith(prefix)
    ],
  )
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
  pipeline_folder = buckets.path(values.workdir)
  values['workdir'].value = str(pipeline_folder / values.stage)
  return pipeline_config.resolved(run, pipeline, pipeline_folder)
