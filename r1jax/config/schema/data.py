"""Prompts and texts: `config.data`, `config.tokenizer`, `config.corpus`."""

from collections.abc import Iterator, Mapping
import dataclasses
import json
from typing import Any

from r1jax.config.conditions import Condition, is_set, one_of
from r1jax.config.field import key
from r1jax.config.run_conditions import (
  code_prompts,
  dataset,
  general_documents,
  plain_template,
  prompt_stage,
  reads_rows,
  reads_task,
  samples,
  splits_steps,
  stage,
)
from r1jax.config.schema.section import Problem, Section


@dataclasses.dataclass(frozen=True)
class TokenizerConfig(Section):
  """The tokenizer."""

  source: str = key(
    'character',
    "'character', 'bilingual' (Cyrillic too), or the folder of a Hugging Face "
    'tokenizer.',
  )
  add_bos_token: bool = key(
    False,
    'Whether prompts of templates that are no chat templates begin with BOS '
    'even if tokenizer.json does not add it. DeepSeek models were trained so.',
    only_if=plain_template(),
  )
  chat_template_name: str = key(
    '',
    "Which of several chat templates of the tokenizer data.template = 'chat' is; "
    "'' chooses as transformers does: 'tool_use' for conversations with tools, "
    "if there is one, else 'default'.",
    only_if=one_of('data.template', 'chat').warned,
  )
  stop_tokens: tuple[str, ...] = key(
    (),
    'Texts of tokens that end a completion, beside those that the tokenizer '
    'names; the first ends the responses that are trained on. () takes the one '
    "that the chat template ends the assistant's turns with.",
  )


@dataclasses.dataclass(frozen=True)
class DataConfig(Section):
  """Prompts to train on and to evaluate on, and how they are written."""

  task: str = key(
    'arithmetic',
    'What is trained on and evaluated: a synthetic task (data/tasks/) or a '
    'named dataset (data/sources.py).',
    registered=('task', 'dataset'),
    only_if=reads_task(),
  )
  path: str = key(
    '',
    "Other files with a dataset's fields, instead of its own, to train on: "
    'JSONL, JSON, Parquet, a folder, or a pattern; relative to $R1JAX_DATA or to '
    'here, or in a bucket or on the hub (hf://datasets/OWNER/NAME/PATH).',
    only_if=(dataset('data.task'), prompt_stage()),
  )
  eval_path: str = key(
    '',
    'The same, to evaluate on.',
    only_if=(dataset('data.task'), stage('rl').quiet),
  )
  columns: Mapping[str, str] = key(
    {},
    "The columns of these files, by the dataset's fields: {'question': "
    "'problem', 'answer': 'solution'}. A text with braces, '{Body} {Question}', "
    "is filled in. The field 'choices' has the options of a multiple-choice "
    'question.',
    only_if=(dataset('data.task'), prompt_stage()),
  )
  answer_in: str = key(
    'whole',
    "Where the answer is in its field: the 'whole' of it, behind the last "
    "'####' ('hashes', as in GSM8K), or in the last \\boxed{} ('boxed', as in "
    'MATH).',
    choices=('whole', 'hashes', 'boxed'),
    only_if=(dataset('data.task'), prompt_stage()),
  )
  mixture: tuple[str, ...] = key(
    (),
    "Sources that are trained on instead of the task: 'name' or 'name:weight' "
    'each.',
    registered=('task', 'dataset'),
    only_if=prompt_stage(),
  )
  mixture_temperature: float = key(
    1.0,
    'T: shares are proportional to weight^(1/T), or size^(1/T).',
    above=0,
    only_if=(is_set('mixture'), prompt_stage()),
  )
  decontaminate: tuple[str, ...] = key(
    (),
    'Datasets whose held-out questions no training question may share ten '
    'words with; one that does is removed.',
    registered=('dataset',),
    only_if=prompt_stage(),
  )
  max_bad_row_share: float = key(
    0.0,
    "Largest share of a training set's rows that may be dropped as bad; with "
    '0 a bad row is an error. Evaluation questions are never dropped.',
    at_least=0,
    below=1,
    only_if=reads_rows(),
  )
  pass_rates: str = key(
    '', "A JSONL file of 'id' and 'pass_rate'.", only_if=prompt_stage()
  )
  min_pass_rate: float = key(
    0.0,
    'Least pass rate of a training prompt.',
    at_least=0,
    at_most=1,
    only_if=is_set('pass_rates'),
  )
  max_pass_rate: float = key(
    1.0,
    'Largest pass rate of a training prompt.',
    at_least=0,
    at_most=1,
    only_if=is_set('pass_rates'),
  )
  sort_by_pass_rate: bool = key(
    False, 'Whether easy prompts come first, instead of a shuffle.'
  )
  response_format: str = key(
    'think_answer',
    "The form of a completion: 'think_answer', 'think' (R1's own), "
    "'reasoning_summary', 'special_token'; for plain models 'boxed' (the last "
    "\\\\boxed{}, or several that are one answer) or 'plain' ('The answer is "
    "42' too); see "
    'data/text/response_formats.py; or one that a plugin registers.',
    registered=('response_format',),
  )
  template: str = key(
    'r1_zero',
    "The prompt template (data/text/template.py), 'chat' for the tokenizer's "
    'own, or a .jinja file.',
  )
  system: str = key('', 'A system message, for chat templates.')
  template_args: Mapping[str, Any] = key(
    {},
    "Variables of a chat template, such as {'enable_thinking': False}; of JSON's "
    'types.',
  )
  response_prefix: str = key(
    '',
    'Text that the prompt ends with and every completion so begins with, such '
    "as '<think>\\n' for R1. What the template writes of it already is not "
    'repeated.',
  )
  step_delimiter: str = key(
    '\n\n',
    'Text that ends a reasoning step, for search and process reward models.',
    only_if=splits_steps(),
  )
  code_packages: tuple[str, ...] = key(
    (),
    'Installed packages that programs may import in the sandbox beside the '
    "standard library, such as ('numpy', 'sortedcontainers').",
    only_if=(code_prompts(), samples()),
  )
  max_prompt_tokens: int = key(
    1024,
    'Longest prompt; a longer one is a bad row.',
    unit='tokens',
    at_least=1,
    only_if=samples(),
  )

  def conflicts(self) -> Iterator[Problem]:
    for name in self.template_args:
      if name in ('messages', 'tools', 'documents', 'add_generation_prompt'):
        yield 'template_args', f'may not set {name!r}, which rows give'
    try:
      json.dumps(dict(self.template_args))
    except (TypeError, ValueError):
      yield 'template_args', "must hold values of JSON's types alone"
    if self.mixture and self.path:
      yield (
        'path',
        'stands for the files of data.task, which a mixture does not read; '
        'leave one of them empty',
      )
    if self.sort_by_pass_rate and not self.pass_rates:
      yield 'sort_by_pass_rate', 'needs pass_rates'
    if self.min_pass_rate > self.max_pass_rate:
      yield (
        'min_pass_rate',
        f'must be at most max_pass_rate = {self.max_pass_rate}',
      )


def _share(default: float, meaning: str, *only_if: Condition):
  return key(default, meaning, at_least=0, at_most=1, only_if=only_if)


@dataclasses.dataclass(frozen=True)
class CorpusConfig(Section):
  """The noisy synthetic documents that a base model is pre-trained on.

  The rest of the documents are step-by-step solutions, see data/tasks/corpus.py.
  """

  tasks: tuple[str, ...] = key(
    (),
    "Tasks of the documents, 'name' or 'name:weight' each; () for data.task "
    'alone.',
    registered=('task',),
    only_if=stage('pretrain').warned,
  )
  guess_share: float = _share(
    0.75, 'Share of documents that guess without reasoning.'
  )
  guess_accuracy: float = _share(
    0.12, 'Share of the guesses that are right.', is_set('guess_share').warned
  )
  slip_rate: float = _share(0.08, 'Probability that a reasoning step is wrong.')
  corrected_slip_share: float = _share(
    0.5,
    'Share of wrong steps that are corrected after "wait".',
    is_set('slip_rate').warned,
  )
  retracted_guess_share: float = _share(
    0.4, 'Share of solutions that open with a guess and retract it with "wait".'
  )
  malformed_share: float = _share(0.06, 'Share of documents that lack a tag.')
  connective_rate: float = _share(
    0.0, 'Probability that a reasoning step opens with a word.'
  )
  language_mixing_rate: float = _share(
    0.0, 'Probability that such a word, or "wait", is of the second language.'
  )
  general_error_rate: float = _share(
    0.0,
    'Probability that a part of an answer to a general question is wrong.',
    general_documents(),
  )
