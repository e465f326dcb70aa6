"""r1jax sample: completes prompts from flags, a file, a pipe or the terminal."""

import sys

from absl import flags

from r1jax.cli import config_file
from r1jax.config.schema.run import RunConfig
from r1jax.errors import UserError

KIND = 'stage'
_SOME_FAILED = 2  # Exit code.
# Flags that override fields of the sampling parameters.
_SAMPLING_FLAGS = (
  'temperature',
  'top_p',
  'top_k',
  'min_p',
  'repetition_penalty',
  'max_total_tokens',
)


def define_flags(values: flags.FlagValues):
  """Defines --workdir, --prompt, --prompts and the sampling flags."""
  config_file.define_workdir_flag(values)
  flags.DEFINE_multi_string(
    'prompt',
    [],
    'A question; may be repeated. Without any, they are read from standard '
    'input.',
    flag_values=values,
  )
  flags.DEFINE_string(
    'prompts', '', 'A file with one question a line.', flag_values=values
  )
  flags.DEFINE_integer(
    'samples',
    1,
    'Completions of each question. For other samples, change --config.seed; '
    'for longer ones, --config.rl.max_new_tokens.',
    lower_bound=1,
    flag_values=values,
  )
  for name, meaning in (
    ('temperature', 'Replaces config.rl.temperature; 0 is greedy.'),
    ('top_p', 'Probability mass of nucleus sampling.'),
    ('min_p', 'Minimum probability, relative to the likeliest token.'),
    (
      'repetition_penalty',
      'Penalty on tokens that have occurred already; 1 is none.',
    ),
  ):
    flags.DEFINE_float(name, None, meaning, flag_values=values)
  flags.DEFINE_integer(
    'top_k', None, 'Samples from the k likeliest tokens.', flag_values=values
  )
  flags.DEFINE_integer(
    'max_total_tokens',
    None,
    'Maximum number of tokens of prompt and completion.',
    flag_values=values,
  )
  flags.DEFINE_multi_string(
    'stop',
    [],
    'A text that ends a completion; may be repeated.',
    flag_values=values,
  )


def run(config: RunConfig, values: flags.FlagValues):
  """Prints completions; exits with 2 if a question could not be completed."""
  import jax

  from r1jax import compilation_cache, processes
  from r1jax.cli import policy
  from r1jax.cli.commands.sample import completer, questions
  from r1jax.runs import agreement
  from r1jax.stages.build import parts as build
  from r1jax.stages.build import sampler

  agreement.check(config, reads_data=False)
  with processes.agreed():
    asked = questions.from_flags(values.prompt, values.prompts)
  if processes.several() and not asked:
    raise UserError(
      'sample: several processes have no common input; give --prompt or '
      '--prompts'
    )
  processes.check_same({'questions': repr(asked)}, 'prompts')
  processes.silence()
  interactive = not asked and sys.stdin.isatty()
  if not asked and not interactive:
    asked = questions.from_lines(sys.stdin, 'standard input')
  compilation_cache.enable(config.compilation_cache_dir)
  parts = build.parts(config)
  params = sampler.rl_sampling(
    config,
    parts,
    **{
      field: value
      for field in _SAMPLING_FLAGS
      if (value := getattr(values, field)) is not None
    },
    stop_strings=tuple(values.stop),
  )
  engine = sampler.engine(
    config, parts, num_requests=values.samples * max(len(asked), 1)
  )
  session = completer.Completer(
    parts,
    engine,
    policy.load_params(config, parts, values.workdir),
    params,
    values.samples,
    jax.random.key(config.seed),
  )
  if interactive:
    for question in questions.typed():
      session.complete([question], show_questions=False)
  elif not session.complete(asked):
    sys.exit(_SOME_FAILED)
