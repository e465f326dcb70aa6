"""The command line: `r1jax COMMAND [flags]`.

  r1jax train --config=r1_zero_tiny --workdir=runs/zero

Each command is a module of r1jax/cli/commands with `define_flags(values)`,
`run(config, values)` and a `KIND`:

  config  The command takes any config.
  stage   It takes the config of one run, or a stage of a pipeline (--stage).
  path    It takes a path instead of a config: `run(path, values)`.
  plain   It takes neither: `run(values)`.
  args    It reads its arguments itself: `run(args)`.

A command of the first two kinds may define `rewritten(args)`, which replaces
short forms of its arguments.

Nothing heavy is imported before a command runs: errors and help are fast.
"""

from collections.abc import Iterator
import contextlib
import importlib
from importlib import metadata
import logging
import os
import signal
import sys
import threading

import r1jax
from r1jax import files, interrupts
from r1jax.errors import DiskFull, UserError
from r1jax.launch import cluster

USAGE = """r1jax: from a base model to DeepSeek-R1-Zero, in JAX.

usage: r1jax COMMAND --config=CONFIG[:ARGUMENT] [--config.KEY=VALUE ...] [flags]

CONFIG is the name of a shipped experiment, such as r1_zero_tiny, or a file.

commands:
  train          run the stages of a config:      [--workdir=DIR]
                                                  [--profile_steps=FIRST:LAST]
  pipeline       run a pipeline of configs:       [--workdir=DIR]
                                                  [--only=STAGE | --from=STAGE]
  sweep          run a config for a grid of keys and several seeds:
                                                  --out=DIR --seeds=3
                                                  --grid rl.group_size=4,8
  lineage        show where a run came from:      r1jax lineage RUN
  eval           pass@1, best of n, tree search:  [--workdir=DIR]
                 or whole suites: --suite=math500,aime24 [--model=hf://…] [--out=DIR]
  compare        two evaluations of the same problems: r1jax compare A B
  lm-eval        lm-evaluation-harness on a policy: r1jax lm-eval --tasks …
  sample         complete prompts:                [--workdir=DIR] --prompt=TEXT
  config         print a config with all keys, or what a key means:
                                                  r1jax config --help KEY
  docs           write the page of all keys:      [--out=DIR]
  info           count parameters, FLOPs and memory
  aot            compile a step for TPU slices that are not there:
                                                  --topology=v5p:8x8x16
  plan           propose meshes for so many chips: --chip=v5p --chips=1024
  decontaminate  list training questions that occur in an evaluation set
  import-hf      Hugging Face checkpoint to r1jax weights:
                                                  r1jax import-hf DIR --out=OUT
  export-hf      r1jax weights to a Hugging Face checkpoint:
                                                  r1jax export-hf SOURCE --out=DIR

For a pipeline, eval, sample, info, aot, plan and decontaminate take --stage=STAGE.
`r1jax COMMAND --help` shows the flags of a command, `r1jax config --help` the keys
of a config, and `r1jax --version` what is installed. Without --workdir, train and
pipeline write to runs/<name of the config>, and eval and sample read the weights
of config.init.

On several hosts the same command runs on each. Slurm, GKE and TPU slices tell it
how many there are; elsewhere give --coordinator=HOST:PORT of the first one,
--num_processes=N and --process_id=0 … N−1. They wait for each other for 300
seconds (--initialization_timeout). --workdir is a folder that all hosts share, or
gs://BUCKET/PATH.

exit codes: 0, or 2 (wrong input), 3 (aot: too large for the slice), 4 (training
has diverged), 5 (the disk is full), 6 (another process of the run has ended), 7
(sweep: a run has failed), 8 (too many updates were skipped), 130 (Ctrl-C), 143
(SIGTERM), 129 (SIGHUP).
A command that a signal or a full disk ends says what it has kept.
"""
COMMANDS = (
  'train',
  'pipeline',
  'sweep',
  'lineage',
  'eval',
  'compare',
  'lm-eval',
  'sample',
  'config',
  'docs',
  'info',
  'aot',
  'plan',
  'decontaminate',
  'import-hf',
  'export-hf',
)
_HELP_FLAGS = '-h', '--help'
# Commands that run in several processes, one on each host.
_ON_HOSTS = ('train', 'pipeline', 'eval', 'sample')


def run(argv: list[str]):
  """Runs one command.

  Args:
    argv: Its name and arguments.

  Raises:
    UserError: Anything that the user can correct.
    SystemExit: The command ends with an exit code of its own.
  """
  if not argv or argv[0] in (*_HELP_FLAGS, 'help'):
    print(USAGE, end='')
    return
  if argv == ['--version']:
    versions = (f'{name} {metadata.version(name)}' for name in ('jax', 'flax'))
    print(f'r1jax {r1jax.__version__}, {", ".join(versions)}')
    return
  name, args = argv[0], argv[1:]
  if name in _ON_HOSTS:
    args, given = cluster.taken_flags(args)
    if not any(arg in _HELP_FLAGS for arg in args):
      cluster.join(given)
  if name not in COMMANDS:
    raise UserError(
      f'unknown command {name!r}; there are {", ".join(COMMANDS)}'
    )
  module = name.replace('-', '_')
  command = importlib.import_module(f'r1jax.cli.commands.{module}')
  if command.KIND == 'args':
    command.run(args)
  elif command.KIND in ('path', 'plain'):
    _run_without_config(name, command, args)
  else:
    _run_on_config(name, command, args)


def _run_on_config(name: str, command, args: list[str]):
  from r1jax.cli import config_file

  if hasattr(command, 'rewritten'):
    args = command.rewritten(args)
  args = config_file.normalized(args)
  values, holder = config_file.config_flags_of(args)
  command.define_flags(values)
  if command.KIND == 'stage':
    config_file.define_stage_flag(values)
  if any(arg in _HELP_FLAGS for arg in args):
    topics = [arg for arg in args if not arg.startswith('-')]
    if not topics:
      print(f'usage: r1jax {name} --config=CONFIG [flags]\n{values.get_help()}')
    if hasattr(command, 'help_text'):
      print(command.help_text(topics, config_file.help_class(args)))
    return
  with _agreed():
    config = config_file.load(values, holder, args)
    if command.KIND == 'stage':
      config = config_file.select_stage(config, values)
  command.run(config, values)


@contextlib.contextmanager
def _agreed() -> Iterator[None]:
  """Ends in an error in all processes of the run, or in none."""
  if not cluster.joined():
    yield
    return
  from r1jax import processes

  with processes.agreed():
    yield


def _run_without_config(name: str, command, args: list[str]):
  from absl import flags

  values = flags.FlagValues()
  flags.DEFINE_bool(
    'help', False, 'Show this.', short_name='h', flag_values=values
  )
  command.define_flags(values)
  usage = f'usage: r1jax {name} {command.ARGUMENTS}'
  if any(arg in _HELP_FLAGS for arg in args):
    print(f'{usage} [flags]\n{values.get_help()}')
    return
  try:
    paths = values(['r1jax', *args])[1:]
  except flags.Error as error:
    raise UserError(f'{name}: {error}') from error
  num_paths = 1 if command.KIND == 'path' else 0
  if len(paths) != num_paths or ('out' in values and not values.out):
    raise UserError(usage)
  command.run(*paths, values)


def _configure_logging():
  """Prints messages of r1jax loggers: plain to stdout, warnings to stderr.

  Messages about long waits go to stderr too: they are no results.
  """
  logger = logging.getLogger('r1jax')
  logger.setLevel(logging.INFO)
  logger.propagate = False
  messages = logging.StreamHandler(sys.stdout)
  messages.addFilter(lambda record: record.levelno < logging.WARNING)
  warnings = logging.StreamHandler(sys.stderr)
  warnings.setLevel(logging.WARNING)
  warnings.setFormatter(logging.Formatter('r1jax: %(message)s'))
  logger.handlers = [messages, warnings]
  waiting = logging.getLogger('r1jax.waits')
  waiting.propagate = False
  waiting.handlers = [logging.StreamHandler(sys.stderr)]


def main():
  """Runs the command line; every foreseen end is one line and an exit code."""
  _configure_logging()
  interrupts.install()
  threading.excepthook = _thread_error
  try:
    run(sys.argv[1:])
    cluster.leave()
  except UserError as error:
    cluster.leave(str(error))
    # An orderly exit would write what is left in the streams, and print another
    # error on a full disk; in several processes it waits minutes for the others.
    if isinstance(error, DiskFull) or cluster.joined():
      interrupts.exit_now(error.exit_code, str(error))
    print(f'r1jax: {error}', file=sys.stderr)
    sys.exit(error.exit_code)
  except interrupts.Interrupted as error:
    name = signal.Signals(error.signum).name
    cluster.leave(f'it was ended by {name}')
    interrupts.end(error.signum, error.kept or _unsaid_hint())
  except SystemExit:  # The command ends with an exit code of its own.
    cluster.leave()
    raise
  except BrokenPipeError:  # The reader of the output has closed it.
    if cluster.joined():
      cluster.leave('its output was closed')
      os._exit(0)
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(0)
  except Exception as error:
    if files.is_disk_full(error):
      cluster.leave('its disk is full')
      interrupts.exit_now(DiskFull.exit_code, f'the disk is full: {error}')
    if not cluster.joined():
      raise
    cluster.fail(error)


def _unsaid_hint() -> str:
  """Says how to go on where no stage was running."""
  if sys.argv[1:2] in (['train'], ['pipeline'], ['sweep']):
    return 'the same command goes on from what is finished'
  return 'nothing was changed'


def _thread_error(args: threading.ExceptHookArgs):
  """Prints the error of a thread, unless the main thread says the same."""
  if not files.is_disk_full(args.exc_value):
    threading.__excepthook__(args)


if __name__ == '__main__':
  main()
