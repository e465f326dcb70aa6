"""r1jax eval: measures a policy on held-out problems, or on whole suites.

r1jax eval --config=r1_zero_tiny --workdir=runs/zero
r1jax eval --suite=math500,aime24 --model=hf://Qwen/Qwen2.5-Math-1.5B-Instruct
"""

import dataclasses
import os
from pathlib import Path

from absl import flags

from r1jax.cli import config_file
from r1jax.config.schema.run import RunConfig
from r1jax.errors import UserError

KIND = 'stage'
_MODEL = '--model'
# Keys whose override replaces a part of a suite's protocol.
_SAMPLES, _PROBLEMS = 'eval.num_samples', 'eval.num_problems'
_NEW_TOKENS = 'rl.max_new_tokens'
# Keys that a suite decides, or that need no suite.
_WITHOUT_SUITES = ('data.task', 'data.eval_path', 'eval.pass_k', 'eval.search')


def rewritten(args: list[str]) -> list[str]:
  """Rewrites --model=FOLDER to --config=imported:FOLDER.

  Raises:
    UserError: --config or --workdir is given too.
  """
  for i, arg in enumerate(args[:-1]):
    if arg == _MODEL:
      args = [*args[:i], f'{arg}={args[i + 1]}', *args[i + 2 :]]
      break
  given = [arg for arg in args if arg.partition('=')[0] == _MODEL]
  for other in ('--config', '--workdir'):
    if given and any(arg.partition('=')[0] == other for arg in args):
      raise UserError(f'eval: give {_MODEL} or {other}, not both')
  return [
    f'--config=imported:{arg.partition("=")[2]}' if arg in given else arg
    for arg in args
  ]


def define_flags(values: flags.FlagValues):
  """Defines --workdir, and --suite with its folder."""
  config_file.define_workdir_flag(values)
  flags.DEFINE_string(
    'suite',
    '',
    'Whole suites by name, such as math500,aime24, or any dataset or task of '
    'r1jax, by the protocol of DeepSeek-R1. --config.eval.num_samples, '
    '--config.eval.num_problems and --config.rl.max_new_tokens replace its '
    'numbers.',
    flag_values=values,
  )
  flags.DEFINE_integer(
    'step',
    None,
    'The step of --workdir whose checkpoint is measured; by default the final '
    'weights, or the newest checkpoint.',
    lower_bound=0,
    flag_values=values,
  )
  flags.DEFINE_string(
    'out',
    '',
    'The folder of the completions and results of --suite; by default suites in '
    '--workdir, or runs/eval-NAME.',
    flag_values=values,
  )


def _at_step(config: RunConfig, values: flags.FlagValues) -> RunConfig:
  """Returns a config whose policy is a checkpoint of --workdir, with --step."""
  if values.step is None:
    return config
  if not values.workdir:
    raise UserError('eval: --step is a step of the run in --workdir; give both')
  return dataclasses.replace(config, init=f'{values.workdir}@{values.step}')


def run(config: RunConfig, values: flags.FlagValues):
  """Prints the metrics of the evaluation that config.eval describes."""
  import jax

  from r1jax import compilation_cache, processes
  from r1jax.cli import policy
  from r1jax.evaluate import suites
  from r1jax.runs import agreement, suite_evaluation
  from r1jax.stages.build import evaluation, sampler
  from r1jax.stages.build import parts as build

  wanted = suites.named(values.suite) if values.suite else ()
  _check_flags(config, values)
  config = _at_step(config, values)
  workdir = '' if values.step is not None else values.workdir
  compilation_cache.enable(config.compilation_cache_dir)
  agreement.check(config, reads_data=False)
  with processes.agreed():
    parts = build.parts(config)
  load_params = lambda: policy.load_params(config, parts, workdir)
  if wanted:
    given = config_file.given_keys(values)
    number = lambda key, value: value if key in given else 0
    suite_evaluation.evaluate(
      config,
      parts,
      load_params,
      workdir or config.init,
      values.out or _default_out(values),
      suite_evaluation.Wanted(
        wanted,
        number(_SAMPLES, config.eval.num_samples),
        number(_PROBLEMS, config.eval.num_problems),
        number(_NEW_TOKENS, config.rl.max_new_tokens),
      ),
    )
    return
  params = load_params()
  with processes.agreed():
    engine = sampler.engine(config, parts)
    evaluator = evaluation.evaluator(config, parts, engine)
  processes.silence()
  result = evaluator.run(params, jax.random.key(config.seed))
  for name, value in result.metrics.items():
    print(f'{name} {value:.4f}')


def _check_flags(config: RunConfig, values: flags.FlagValues):
  if not values.suite:
    if values.out:
      raise UserError('eval: --out is the folder of --suite; name the suites')
    return
  for key in config_file.given_keys(values):
    if key.startswith(_WITHOUT_SUITES):
      raise UserError(
        f'eval: --config.{key} has no effect on --suite, whose problems and '
        'numbers follow from its name; leave one of them out'
      )
  if config.eval.search.kind != 'none':
    raise UserError(
      'eval: --suite measures single completions; config.eval.search.kind = '
      f'{config.eval.search.kind!r} needs config.data.task instead'
    )


def _default_out(values: flags.FlagValues) -> str:
  if values.workdir:
    step = '' if values.step is None else f'-{values.step}'
    return os.path.join(values.workdir, f'suites{step}')
  run = Path(config_file.default_workdir(values))
  return str(run.with_name(f'eval-{run.name}'))
