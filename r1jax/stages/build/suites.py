"""The problems of evaluation suites, as the prompts of a run's policy."""

from collections.abc import Sequence
import dataclasses

from r1jax import registry
from r1jax.config.schema.run import RunConfig
from r1jax.data import splits
from r1jax.data.datasets import SyntheticPrompts, TemplatedPrompts
from r1jax.data.quarantine import Quarantine
from r1jax.errors import UserError
from r1jax.evaluate.suite_run import Problems, Reader
from r1jax.evaluate.suites import MAX_NEW_TOKENS, Suite
from r1jax.records import Prompt
from r1jax.rewards.reward_manager import RewardManager
from r1jax.stages.build import prompts, sampler
from r1jax.stages.build.parts import Parts

_MAX_BAD_SHARE = 0.05  # Rows of a suite that may be left out, and are told.


def problems(
  suite: Suite, parts: Parts, num_samples: int = 0, num_problems: int = 0
) -> Problems:
  """Returns the problems of a suite in the template of a run.

  Args:
    suite: The suite.
    parts: The template, the tokenizer and the parser.
    num_samples: Completions of each problem; 0 for the suite's own number.
    num_problems: Only the first so many; 0 for the whole suite.

  Raises:
    UserError: its data are missing (the message says where to get them), over
      5 % of its rows are bad, or it has fewer problems than were asked for.
  """
  k = num_samples or suite.num_samples
  if suite.dataset in registry.task:
    count = num_problems or suite.num_problems
    stream = SyntheticPrompts(
      suite.dataset, splits.HELD_OUT, 0, parts.template, count
    )
    return Problems(suite, [stream[i] for i in range(count)], k, count)
  quarantine = Quarantine(_MAX_BAD_SHARE)
  rows = prompts.suite_rows(suite.dataset, quarantine)
  dropped = quarantine.dropped
  available = len(rows) + len(dropped)
  if len(dropped) > _MAX_BAD_SHARE * available:
    where, why = dropped[0]
    raise UserError(
      f'--suite: {len(dropped)} of {available} rows of {suite.name} cannot be '
      f'read or graded, too many to leave out; the first: {where} {why}'
    )
  excluded = tuple(f'{where} {why}' for where, why in dropped)
  if num_problems > len(rows):
    raise UserError(
      f'--suite: {suite.name} has {len(rows)} problems, fewer than '
      f'config.eval.num_problems = {num_problems}'
    )
  rows = rows[: num_problems or len(rows)]
  return Problems(suite, _rendered(rows, suite, parts), k, available, excluded)


def _rendered(
  rows: Sequence[Prompt], suite: Suite, parts: Parts
) -> list[Prompt]:
  """Returns prompts whose text asks for the form of the answer.

  A response format with tags around the answer needs no instruction, since the
  template asks for the tags. `question` stays the question alone.
  """
  asks = '' if parts.parser.format.answer_start else suite.instruction
  asked = [
    dataclasses.replace(row, question=f'{row.question}\n{asks}')
    if asks and not row.messages
    else row
    for row in rows
  ]
  templated = TemplatedPrompts(asked, parts.template)
  return [
    dataclasses.replace(row, text=templated[i].text)
    for i, row in enumerate(rows)
  ]


def sized(
  config: RunConfig, found: Sequence[Problems], parts: Parts, max_new: int = 0
) -> RunConfig:
  """Returns a config whose prompts and completions have room for all suites.

  Args:
    config: The run.
    found: The problems of all suites.
    parts: Its tokenizer.
    max_new: Tokens of a completion; 0 for DeepSeek's 32,768, or those that the
      model's context leaves, if these are fewer.

  Raises:
    UserError: the model's context is too short for the prompts, or for max_new.
  """
  width, longest = max(
    (len(parts.tokenizer.encode_prompt(prompt.text)), prompt.id)
    for each in found
    for prompt in each.prompts
  )
  context = config.model.max_position_embeddings
  if width >= context:
    raise UserError(
      f'--suite: the prompt of {longest} has {width} tokens, and the context of '
      f'the model only {context} (config.model.max_position_embeddings)'
    )
  return dataclasses.replace(
    config,
    data=dataclasses.replace(config.data, max_prompt_tokens=width),
    rl=dataclasses.replace(
      config.rl, max_new_tokens=max_new or min(MAX_NEW_TOKENS, context - width)
    ),
  )


def reader(config: RunConfig, parts: Parts) -> Reader:
  """Returns how suites' prompts are written and completions read.

  Args:
    config: The run, as `sized` returns it.
    parts: Its tokenizer and parser.
  """
  return Reader(
    parts.tokenizer,
    parts.parser,
    RewardManager({}, {}, parts.parser, sampler.reward_options(config)),
    sampler.eval_sampling(config, parts),
  )
