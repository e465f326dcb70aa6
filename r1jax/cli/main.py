"""The command line: flags → a stage, an evaluation, some samples.

r1jax train --config=configs/r1_zero_tiny.py --workdir=runs/zero
"""

from collections.abc import Callable
import difflib
import importlib.machinery
import importlib.util
import json
import os
from pathlib import Path
import re
import sys
import traceback

from absl import flags
from ml_collections import ConfigDict, config_flags
import yaml

from r1jax.config.keys import flatten
from r1jax.errors import UserError, unknown

USAGE = """r1jax: from a base model to DeepSeek-R1-Zero, in JAX.

usage: r1jax COMMAND --config=FILE[:ARGUMENT] [--config.KEY=VALUE ...] [flags]

commands:
  train    run the config's stages:   r1jax train --config=C [--workdir=DIR]
  pipeline  run a list of configs:    r1jax pipeline --config=C [--workdir=DIR]
                                      [--only=STAGE | --from=STAGE]
  lineage  where a run came from:     r1jax lineage RUN
  eval     pass@1, best of n, search: r1jax eval --config=C [--workdir=DIR]
  sample   complete prompts:          r1jax sample --config=C --prompt=TEXT
  config   print a config, resolved:  r1jax config --config=C
  info     parameters, FLOPs, memory: r1jax info --config=C
  aot      compile for an absent TPU: r1jax aot --config=C --topology=v5p:8x8x16
  decontaminate  training questions that meet an evaluation:
                                      r1jax decontaminate --config=C
  import-hf  a checkpoint of Hugging Face's form to ours:
                                      r1jax import-hf DIR --out=OURS
  export-hf  and back:                r1jax export-hf OURS --out=DIR

Of a pipeline, eval, sample, info, aot and decontaminate take --stage=STAGE.
`r1jax COMMAND --help` shows its flags; r1jax/config/base.py declares every key.
Without --workdir, train uses runs/<name of the config>, and eval and sample
read the base model that the config names.
"""

BAD_INPUT, INTERRUPTED = 2, 130  # Exit codes.


def _train(config, values):
  from r1jax.runs import run

  if 'model' not in config:
    raise UserError('train: this config is a pipeline; use r1jax pipeline')
  run.train(config, values.workdir or _workdir(values))


def _pipeline(config, values):
  from r1jax.runs import pipeline

  if 'stages' not in config or 'model' in config:
    raise UserError('pipeline: this config is of one run; use r1jax train')
  pipeline.train(
    config,
    values.workdir or _workdir(values),
    values.only,
    values['from'].value,
  )


def _workdir(values) -> str:
  """runs/NAME, of the config's file and its argument."""
  path, *argument = values['config'].config_filename.split(':', 1)
  names = [Path(path).stem, *(Path(each).name for each in argument)]
  return os.path.join('runs', '-'.join(names))


def _lineage(values, folder: str):
  del values
  from r1jax.runs import lineage

  print(lineage.tree(Path(folder).expanduser()))


def _stage_of(config, values):
  """The config that a command of one run is for: itself, or --stage's."""
  if 'model' in config:
    if values.stage:
      raise UserError('--stage is for pipelines; this config is of one run')
    return config
  from r1jax.runs import pipeline, validate

  names = tuple(map(str, config.get('stages', ())))
  if not values.stage:
    raise UserError(
      f'this config is a pipeline; give --stage, one of {", ".join(names)}'
    )
  if values.stage not in names:
    raise unknown('--stage', values.stage, names)
  config = pipeline.seeded(config)
  section = validate.of_stage(config, values.stage)
  if 'workdir' not in values:
    return section
  if not values.workdir:
    for key, parent in validate.references(section).items():
      if key.startswith(('init', 'eval.')):
        raise UserError(
          f'{values.stage}.{key} is what {parent} leaves; give '
          '--workdir, the folder of the pipeline'
        )
    return section
  place = Path(values.workdir).expanduser()
  values.workdir = str(place / values.stage)
  return validate.resolved(section, config, place)


def _eval(config, values):
  import jax

  from r1jax.stages.build import evaluation
  from r1jax.stages.build import parts as build

  parts = build.parts(config)
  params = _params(config, parts, values.workdir)
  found = evaluation.evaluator(config, parts, build.engine(config, parts)).run(
    params, jax.random.key(config.seed)
  )
  for name, value in found.metrics.items():
    print(f'{name} {value:.4f}')


def _sample(config, values):
  import jax

  from r1jax.cli import complete
  from r1jax.stages.build import parts as build

  questions = complete.questions_of(values.prompt, values.prompts)
  typed = not questions and sys.stdin.isatty()
  if not questions and not typed:
    questions = complete.lines_of(sys.stdin, 'standard input')
  parts = build.parts(config)
  how = build.rl_sampling(
    config,
    parts,
    **{
      field: value
      for field in _OF_SAMPLING
      if (value := getattr(values, field)) is not None
    },
    stop_strings=tuple(values.stop),
  )
  engine = build.engine(
    config, parts, rows=values.samples * max(len(questions), 1)
  )
  completer = complete.Completer(
    parts,
    engine,
    _params(config, parts, values.workdir),
    how,
    values.samples,
    jax.random.key(config.seed),
  )
  if typed:
    for question in _typed():
      completer.answer([question], echo=False)
  elif not completer.answer(questions):
    sys.exit(BAD_INPUT)


# Flags of `sample` that stand for fields of Sampling.
_OF_SAMPLING = (
  'temperature',
  'top_p',
  'top_k',
  'min_p',
  'repetition_penalty',
  'max_total_tokens',
)


def _typed():
  """What a person types, line by line, until the end of input."""
  from r1jax.cli import complete

  while True:
    try:
      line = input('> ').strip()
    except EOFError:
      print()
      return
    if line:
      yield complete.Question(line, repr(line))


def _config(config, values):
  del values
  print(yaml.safe_dump(json.loads(config.to_json())), end='')


def _info(config, values):
  import jax

  from r1jax.launch import info
  from r1jax.runs import run

  run.check_names(config)
  info.show(config, values.devices or jax.device_count())


def _aot(config, values):
  from r1jax.launch import aot

  code = aot.show(config, values.topology)
  if code:
    sys.exit(code)


def _decontaminate(config, values):
  from r1jax.stages.build import prompts as questions

  questions.show_overlap(config, values.out)


def _import_hf(values, folder: str) -> str:
  from r1jax.checkpoints import convert

  out = values.out
  spoken = convert.import_hf(Path(folder), Path(out))
  told = (
    f"\nIn a config: config.model = convert.model_config_of('{out}'); "
    f"config.init = '{out}'"
  )
  if not spoken:
    return told + '; it came without a tokenizer: config.tokenizer.source'
  return told + (
    f"; config.tokenizer.source = '{out}'\nTo sample: "
    f'r1jax sample --config=configs/imported.py:{out} --prompt=Q'
  )


def _export_hf(values, source: str):
  from r1jax.checkpoints import convert

  convert.export_hf(Path(source), Path(values.out), values.dtype)


def _params(config, parts, workdir: str):
  """What a run has left, or without one the base that it begins with."""
  from r1jax.runs import run

  if workdir:
    return run.trained_params(config, parts, workdir)
  return run.base_params(config, parts)


COMMANDS: dict[str, Callable] = {
  'train': _train,
  'pipeline': _pipeline,
  'eval': _eval,
  'sample': _sample,
  'config': _config,
  'info': _info,
  'aot': _aot,
  'decontaminate': _decontaminate,
}
# Of a pipeline, these want to know the stage.
OF_ONE_RUN = ('eval', 'sample', 'info', 'aot', 'decontaminate')
# These read a checkpoint or a run, which says all that a config would.
CONVERSIONS: dict[str, Callable] = {
  'import-hf': _import_hf,
  'export-hf': _export_hf,
  'lineage': _lineage,
}


def _flags(command: str, args: list[str]):
  """The flags of a command, apart from absl's global ones."""
  values = flags.FlagValues()
  config = config_flags.DEFINE_config_file(
    'config',
    None,
    'The experiment: a file with get_config(). Override a '
    'key with --config.KEY=VALUE.',
    flag_values=values,
    sys_argv=['r1jax', *args],
  )
  flags.DEFINE_bool(
    'help', False, 'Show this.', short_name='h', flag_values=values
  )
  if command == 'pipeline':
    flags.DEFINE_string('only', '', 'The one stage to run.', flag_values=values)
    flags.DEFINE_string(
      'from', '', 'The first stage to run.', flag_values=values
    )
  if command in OF_ONE_RUN:
    flags.DEFINE_string(
      'stage', '', 'Of a pipeline: whose config is meant.', flag_values=values
    )
  if command in ('train', 'pipeline', 'eval', 'sample'):
    flags.DEFINE_string(
      'workdir', '', 'Where the run is kept.', flag_values=values
    )
  if command == 'info':
    flags.DEFINE_integer(
      'devices',
      0,
      'Of the mesh; without it, those here.',
      lower_bound=0,
      flag_values=values,
    )
  if command == 'aot':
    flags.DEFINE_string(
      'topology', 'v5p:8x8x16', 'Chip and shape of a slice.', flag_values=values
    )
  if command == 'decontaminate':
    flags.DEFINE_string(
      'out', '', 'Where the whole report goes, as JSON.', flag_values=values
    )
  if command == 'sample':
    flags.DEFINE_multi_string(
      'prompt',
      [],
      'A question; may be repeated. '
      'Without any, they are read from standard input.',
      flag_values=values,
    )
    flags.DEFINE_string(
      'prompts', '', 'A file with a question a line.', flag_values=values
    )
    flags.DEFINE_integer(
      'samples',
      1,
      'Completions a question. Others of the '
      'same: --config.seed; longer ones: '
      '--config.rl.max_new_tokens.',
      lower_bound=1,
      flag_values=values,
    )
    for name, meaning in (
      ('temperature', 'Instead of config.rl.temperature; 0 is greedy.'),
      ('top_p', 'Nucleus mass.'),
      ('min_p', 'Least relative probability.'),
      ('repetition_penalty', 'Of tokens that are there already; 1 is none.'),
    ):
      flags.DEFINE_float(name, None, meaning, flag_values=values)
    flags.DEFINE_integer(
      'top_k', None, 'Only so many tokens.', flag_values=values
    )
    flags.DEFINE_integer(
      'max_total_tokens', None, 'Of prompt and completion.', flag_values=values
    )
    flags.DEFINE_multi_string(
      'stop',
      [],
      'A text that ends a completion; may be repeated.',
      flag_values=values,
    )
  return values, config


def run(argv: list[str]) -> None:
  """Runs one command.

  Raises:
    UserError: for anything that the person who typed it can mend.
  """
  if not argv or argv[0] in ('-h', '--help', 'help'):
    print(USAGE, end='')
    return
  command, rest = argv[0], _joined(argv[1:])
  if command in CONVERSIONS:
    return _convert(command, rest)
  if command not in COMMANDS:
    raise UserError(
      f'unknown command {command!r}; there are '
      f'{", ".join([*COMMANDS, *CONVERSIONS])}'
    )
  values, holder = _flags(command, rest)
  if any(arg in ('-h', '--help') for arg in rest):
    print(f'usage: r1jax {command} --config=FILE [flags]\n' + values.get_help())
    return
  _check_keys(rest)
  config = _parsed(values, holder, rest)
  if command in OF_ONE_RUN:
    config = _stage_of(config, values)
  COMMANDS[command](config, values)


def _convert(command: str, args: list[str]):
  values = flags.FlagValues()
  writes = command != 'lineage'
  if writes:
    flags.DEFINE_string(
      'out', '', 'The folder to write; new, or empty.', flag_values=values
    )
  flags.DEFINE_bool(
    'help', False, 'Show this.', short_name='h', flag_values=values
  )
  if command == 'export-hf':
    flags.DEFINE_enum(
      'dtype',
      '',
      ['', 'float32', 'bfloat16'],
      "What to write; without it, each tensor's own.",
      flag_values=values,
    )
  usage = f'r1jax {command} {_FROM[command]}' + ' --out=FOLDER' * writes
  if any(arg in ('-h', '--help') for arg in args):
    print(f'usage: {usage} [flags]\n' + values.get_help())
    return
  try:
    paths = values(['r1jax', *args])[1:]
  except flags.Error as error:
    raise UserError(f'{command}: {error}') from error
  if len(paths) != 1 or (writes and not values.out):
    raise UserError(f'usage: {usage}')
  told = CONVERSIONS[command](values, paths[0])
  if writes:
    print(f'{command}: wrote {values.out}{told or ""}')


_FROM = {
  'import-hf': 'HF_FOLDER',
  'export-hf': 'OUR_FILE_OR_FOLDER',
  'lineage': 'RUN',
}


def _parsed(values: flags.FlagValues, holder, args: list[str]):
  """The config with its overrides; the file alone is known to load."""
  try:
    extra = values(['r1jax', *args])[1:]
    config = holder.value
  except Exception as error:
    raise UserError(f'config: {_file_of(args)}: {_text(error)}') from error
  if extra:
    raise UserError(f'unexpected argument {extra[0]!r}')
  return config


def _alone(path: str, *argument: str) -> ConfigDict:
  """What get_config() of a file returns, or get_config(argument).

  Raises:
    UserError: whatever it is that the file raises, with its line.
  """
  loader = importlib.machinery.SourceFileLoader('r1jax_config', path)
  module = importlib.util.module_from_spec(
    importlib.util.spec_from_loader(loader.name, loader)
  )
  sys.modules[loader.name] = module  # A dataclass looks its module up.
  try:
    loader.exec_module(module)
    if not hasattr(module, 'get_config'):
      raise UserError('this file has no function get_config()')
    config = module.get_config(*argument)
  except (Exception, SystemExit) as error:
    told = [_text(error)]
    if not isinstance(error, UserError):
      told.insert(0, type(error).__name__)
    raise UserError(
      ': '.join([f'config: {path}{_line(error, path)}', *filter(None, told)])
    ) from error
  if not isinstance(config, ConfigDict):
    raise UserError(f'config: {path}: get_config() returns no ConfigDict')
  return config


def _line(error: BaseException, path: str) -> str:
  """':12', the line of the file in which an error arose; '' outside it."""
  lines = [
    frame.lineno
    for frame in traceback.extract_tb(error.__traceback__)
    if frame.filename == path
  ]
  if isinstance(error, SyntaxError) and error.filename == path:
    lines.append(error.lineno)
  return f':{lines[-1]}' if lines else ''


def _text(error: BaseException) -> str:
  """In one line, without the list of every key of a ConfigDict."""
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


def _joined(args: list[str]) -> list[str]:
  """`--config FILE` as `--config=FILE`."""
  for i, arg in enumerate(args[:-1]):
    if arg in ('--config', '-config'):
      return [*args[:i], f'{arg}={args[i + 1]}', *args[i + 2 :]]
  return args


def _file_of(args: list[str]) -> str:
  paths = [arg for arg in args if arg.startswith(('--config=', '-config='))]
  if not paths:
    raise UserError(
      'give --config=FILE, for example --config=configs/r1_zero_tiny.py'
    )
  return paths[-1].split('=', 1)[1]


def _check_keys(args: list[str]):
  """Loads the config file alone and looks every overridden key up in it."""
  path, *argument = _file_of(args).split(':', 1)
  if not os.path.isfile(path):
    raise UserError(f'config: no file {path}')
  known = flatten(_alone(path, *argument).to_dict())
  sections = {key.rsplit('.', n)[0] for key in known for n in range(1, 4)}
  for arg in args:
    if arg.startswith(('--config.', '-config.')):
      key = arg.split('=')[0].split('.', 1)[1]
      if key not in known and key not in sections:
        near = difflib.get_close_matches(key, known, 1, 0)
        raise UserError(f'config: unknown key {key}; did you mean {near[0]}?')


def main():
  try:
    run(sys.argv[1:])
  except UserError as error:
    print(f'r1jax: {error}', file=sys.stderr)
    sys.exit(BAD_INPUT)
  except KeyboardInterrupt:
    again = (
      '; the same command goes on from the newest checkpoint'
      if sys.argv[1] in ('train', 'pipeline')
      else ''
    )
    print(f'\nr1jax: interrupted{again}', file=sys.stderr)
    sys.exit(INTERRUPTED)
  except BrokenPipeError:  # Whoever read the output wants no more of it.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(0)


if __name__ == '__main__':
  main()
