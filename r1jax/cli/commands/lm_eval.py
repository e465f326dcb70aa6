"""r1jax lm-eval: runs lm-evaluation-harness on a policy of r1jax.

r1jax lm-eval --model_args config=imported:FOLDER --tasks gsm8k --apply_chat_template

Everything after the command is lm_eval's own; --model is r1jax. model_args are
config and workdir, as in `r1jax eval`, max_gen_toks, seed, and keys of the config,
such as tokenizer.source=FOLDER. The harness comes with `pip install '.[lm_eval]'`.
"""

from collections.abc import Mapping, Sequence
import os
import sys
from typing import Any

from r1jax.errors import UserError

KIND = 'args'
NAME = 'r1jax'
_HARNESS_ARGS = 'batch_size', 'max_batch_size', 'device'
_MAX_GEN_TOKS = 2048  # Tokens of a completion where a task names no number.


def run(args: Sequence[str]):
  """Registers the model, and hands the arguments to the harness.

  Raises:
    UserError: The harness is not installed, or --model names another model.
  """
  if not args or any(arg in ('-h', '--help') for arg in args):
    print(f'{__doc__}\nIts flags: lm_eval run --help')
    return
  _harness()
  from lm_eval.__main__ import cli_evaluate

  register()
  sys.argv = ['lm_eval', *_with_model(args)]
  cli_evaluate()


def _harness():
  try:
    import lm_eval  # noqa: F401
  except ImportError as error:
    raise UserError(
      'lm-eval: lm-evaluation-harness is not installed; in the checkout: pip '
      "install -e '.[lm_eval]'"
    ) from error


def _with_model(args: Sequence[str]) -> list[str]:
  given = [
    value or following
    for arg, following in zip(args, [*args[1:], ''])
    for flag, _, value in [arg.partition('=')]
    if flag in ('--model', '-M')
  ]
  if not given:
    return ['--model', NAME, *args]
  if given != [NAME]:
    raise UserError(f'lm-eval: --model is {NAME} here, not {given[0]}')
  return list(args)


def register():
  """Adds `r1jax` to the models of lm_eval, also for use from Python."""
  from lm_eval.api.model import LM
  from lm_eval.api.registry import model_registry

  if NAME not in model_registry:
    model_registry.register(NAME, target=type('R1jaxLM', (Policy, LM), {}))


class Policy:
  """A policy of r1jax, with the methods of a model of lm-evaluation-harness."""

  def __init__(
    self,
    config: str = '',
    workdir: str = '',
    max_gen_toks: int = _MAX_GEN_TOKS,
    seed: int = 0,
    **others,
  ):
    """Loads the policy.

    Args:
      config: A config by name or file, as --config of r1jax.
      workdir: The folder of a run; '' for the weights of config.init.
      max_gen_toks: Tokens of a completion where a task names no number.
      seed: Seed of tasks that sample.
      others: Keys of the config with their values; and batch_size and
        device, which the harness gives every model and which have no effect:
        batches follow from config.rollout, and the devices are JAX's.
    """
    super().__init__()
    overrides = {
      key: value for key, value in others.items() if key not in _HARNESS_ARGS
    }
    self._max_gen_toks, self._seed = int(max_gen_toks), int(seed)
    self._text, self._template, self._tokenizer_name = _loaded(
      config, workdir, self._max_gen_toks, overrides
    )

  def loglikelihood(self, requests, disable_tqdm=False):
    """Scores (context, continuation) pairs."""
    del disable_tqdm
    pairs = [self._text.pair(*request.args) for request in requests]
    return list(map(tuple, self._text.score(pairs)))

  def loglikelihood_rolling(self, requests, disable_tqdm=False):
    """Scores whole texts, in windows of the model's context."""
    del disable_tqdm
    return [self._rolling(*request.args) for request in requests]

  def _rolling(self, text: str) -> float:
    from lm_eval import utils

    from r1jax.evaluate.text_model import TokenPair

    windows = utils.get_rolling_token_windows(
      self._text.tokenizer.encode(text),
      self._text.prefix_id,
      self._text.max_length - 1,
      1,
    )
    pairs = [
      TokenPair(*utils.make_disjoint_window(window)) for window in windows
    ]
    return sum(score.logp for score in self._text.score(pairs))

  def generate_until(self, requests, disable_tqdm=False):
    """Completes contexts up to stop strings."""
    import jax
    from lm_eval.models.utils import normalize_gen_kwargs

    from r1jax.evaluate.text_model import Prompted

    del disable_tqdm
    return self._text.complete(
      [
        Prompted(
          context,
          _sampling(
            normalize_gen_kwargs(kwargs, self._max_gen_toks),
            self._text.tokenizer.stop_ids,
          ),
        )
        for context, kwargs in (request.args for request in requests)
      ],
      jax.random.key(self._seed),
    )

  def apply_chat_template(self, chat_history, add_generation_prompt=True):
    """Renders messages by the template of the config."""
    return _rendered(self._template, chat_history, add_generation_prompt)

  @property
  def tokenizer_name(self) -> str:
    """The tokenizer's source, a part of the names of the harness's caches."""
    return self._tokenizer_name

  def chat_template(self, chat_template=False):
    """Returns the name of the template, which the harness keeps."""
    del chat_template
    return type(self._template).__name__


def _loaded(
  config: str, workdir: str, max_gen_toks: int, overrides: Mapping[str, Any]
) -> tuple:
  """Returns the policy, its template, and the name of its tokenizer."""
  import dataclasses

  from r1jax import compilation_cache
  from r1jax.cli import config_file, policy
  from r1jax.evaluate.text_model import TextModel
  from r1jax.stages.build import parts as build
  from r1jax.stages.build import sampler

  if not config:
    raise UserError(
      'lm-eval: give --model_args config=CONFIG, such as imported:FOLDER'
    )
  args = config_file.normalized(
    [f'--config={config}']
    + [f'--config.{key}={value}' for key, value in overrides.items()]
  )
  values, holder = config_file.config_flags_of(args)
  config_file.define_workdir_flag(values)
  config_file.define_stage_flag(values)
  if workdir:
    args.append(f'--workdir={workdir}')
  run = config_file.select_stage(config_file.load(values, holder, args), values)
  context = run.model.max_position_embeddings
  new = min(max_gen_toks, context // 2)
  run = dataclasses.replace(
    run,
    data=dataclasses.replace(run.data, max_prompt_tokens=context - new),
    rl=dataclasses.replace(run.rl, max_new_tokens=new),
  )
  compilation_cache.enable(run.compilation_cache_dir)
  parts = build.parts(run)
  params = policy.load_params(run, parts, os.fspath(values.workdir))
  text = TextModel(
    parts.model,
    params,
    sampler.engine(run, parts, run.rollout.max_num_seqs),
    parts.tokenizer,
  )
  return text, parts.template, run.tokenizer.source


def _sampling(kwargs: dict, stop_ids: tuple[int, ...]) -> Any:
  """Returns how a task wants its completions, which it says with HF's names.

  Raises:
    UserError: It asks for something that the sampler does not have.
  """
  from r1jax.rollout.sampling import SamplingParams

  known = {'until', 'max_gen_toks', 'do_sample', 'temperature'}
  optional = ('top_p', 'top_k', 'min_p', 'repetition_penalty')
  if extra := set(kwargs) - known - set(optional):
    raise UserError(
      f'lm-eval: the sampler has no {", ".join(sorted(extra))}, which a task '
      'asks for in generation_kwargs'
    )
  return SamplingParams(
    max_new_tokens=kwargs['max_gen_toks'],
    stop_token_ids=stop_ids,
    stop_strings=tuple(filter(None, kwargs['until'])),
    temperature=kwargs['temperature'],
    **{name: kwargs[name] for name in optional if name in kwargs},
  )


def _rendered(template: Any, messages: Sequence[dict], opens: bool) -> str:
  """Returns the text of messages in the template of a run.

  Raises:
    UserError: The last one is the assistant's, which no template goes on.
  """
  from r1jax.data.text import conversation
  from r1jax.message import Message

  if not opens:
    raise UserError(
      'lm-eval: prefilled answers of the assistant are not supported; leave out '
      'gen_prefix'
    )
  turns = tuple(Message(m['role'], m['content']) for m in messages)
  if len(turns) == 1 and turns[0].role == 'user':
    return template.render(turns[0].content)
  return conversation.render(template, turns[-1].content, turns)
