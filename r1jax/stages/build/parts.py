"""The parts that every stage needs, made and checked before a run writes."""

from collections.abc import Collection, Sequence
import dataclasses
import logging
from pathlib import Path
from typing import Any

from r1jax import files, registry
from r1jax.config.schema.data import DataConfig
from r1jax.config.schema.run import RunConfig
from r1jax.config.schema.training import warmup_problem
from r1jax.data import mixture, readers
from r1jax.data.text import (
  openings,
  prompting,
  response_formats,
  tokenizer,
  tokenizer_files,
)
from r1jax.data.text.template import PromptTemplate
from r1jax.data.text.tokenizer import Tokenizer
from r1jax.errors import UserError
from r1jax.model import kernels
from r1jax.model.parameters import parameter_shardings
from r1jax.model.transformer import Transformer
from r1jax.rollout import replicas
from r1jax.sharding import Layout
from r1jax.stages.build import prompts

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Parts:
  """The model of a run, and how its texts are written and read.

  Attributes:
    model: The transformer on its mesh.
    tokenizer: Between text and token ids.
    template: Makes a prompt's text of a question or of messages.
    parser: Reads thought and answer out of a completion.
  """

  model: Transformer
  tokenizer: Tokenizer
  template: PromptTemplate
  parser: response_formats.ResponseParser


def parts(config: RunConfig) -> Parts:
  """Builds the parts of a run.

  Raises:
    UserError: the mesh, the model, the tokenizer or the data do not fit.
  """
  prompts.check(config.data)
  layout = replicas.training_layout(
    dataclasses.asdict(config.mesh), config.rollout.sampling_devices
  )
  model = Transformer(config.model, layout)
  parameter_shardings(model, layout)
  kernels.check_heads(config.model.num_attention_heads, layout)
  source = config.tokenizer.source
  if source not in tokenizer.BUILT_IN:
    source = str(readers.resolve(source))
  text = tokenizer.load(source)
  if text.vocab_size > config.model.vocab_size:
    raise UserError(
      f'tokenizer: {config.tokenizer.source} has {text.vocab_size} ids, more '
      f'than config.model.vocab_size = {config.model.vocab_size}; raise it'
    )
  template, text = prompting.template_and_tokenizer(
    text, config.data, config.tokenizer
  )
  return Parts(model, text, template, parser(config.data, template))


def parser(
  data: DataConfig, template: PromptTemplate
) -> response_formats.ResponseParser:
  """Returns the parser of completions that follow a template's prompts.

  Raises:
    UserError: there is no such format, or prompts open another one.
  """
  form = registry.response_format.get(
    data.response_format, 'data.response_format'
  )
  opening = openings.of_template(template)
  if opening.text and form.reasoning_start:
    if opening.tag != form.reasoning_start:
      raise UserError(
        f'data.response_format = {data.response_format!r} begins with '
        f'{form.reasoning_start!r}, but prompts end with {opening.text!r} '
        '(data.template, data.response_prefix); choose those of one format'
      )
    if opening.closed:
      return response_formats.ResponseParser(form, prompt_start=opening.text)
    return response_formats.ResponseParser(form, True)
  return response_formats.ResponseParser(form)


def tokenizer_files_of(folder: Path) -> list[Path]:
  """Returns the files of a tokenizer's folder that are read."""
  return [
    folder / name
    for name in tokenizer_files.present(folder, tokenizer_files.ALL_FILES)
  ]


def text_files(config: RunConfig) -> list[str]:
  """Returns digests of the tokenizer's and the template's files."""
  found = []
  if config.tokenizer.source not in tokenizer.BUILT_IN:
    found += tokenizer_files_of(readers.resolve(config.tokenizer.source))
  if config.data.template.endswith('.jinja'):
    found.append(readers.resolve(config.data.template))
  return list(map(files.digest, found))


def check_context(config: RunConfig):
  """Refuses prompts and completions that exceed the model's context."""
  prompt, new = config.data.max_prompt_tokens, config.rl.max_new_tokens
  context = config.model.max_position_embeddings
  if prompt + new > context:
    raise UserError(
      f'data.max_prompt_tokens = {prompt} and rl.max_new_tokens = {new} exceed '
      f'model.max_position_embeddings = {context}; lower either, as in '
      f'--config.rl.max_new_tokens={max(context - prompt, 1)}'
    )


def check_warmup(config: RunConfig, name: str, num_updates: int):
  """Refuses a warm-up that is longer than a stage's data last.

  A default that a paper's larger data have is a warning.

  Args:
    config: The run.
    name: The stage.
    num_updates: Updates that its data make.

  Raises:
    UserError: naming the key.
  """
  c = getattr(config, name)
  for key, problem in warmup_problem(
    c.optimizer, num_updates, f'all that {name}.data make'
  ):
    steps = c.optimizer.warmup_steps
    message = f'{name}.{key} = {steps} {problem}'
    if steps != type(c)().optimizer.warmup_steps:
      raise UserError(message)
    _log.warning('%s', message)


def divides(key: str, rows: int, num_parts: int, layout: Layout):
  """Refuses rows that do not split into batches, and each over the mesh.

  Args:
    key: The key of the rows, for errors.
    rows: The number of rows.
    num_parts: The number of batches.
    layout: The mesh.
  """
  shards = layout.size('B')
  if rows < 1 or rows % (num_parts * shards):
    axes = ' × '.join(layout.activation_axes('B'))
    raise UserError(
      f'{key} = {rows} does not divide into {num_parts} batches over the '
      f"mesh's {axes} = {shards}"
    )


def check_files(
  key: str,
  names: Sequence[str],
  missing: Collection[str],
  known: Collection[str] | None = None,
):
  """Refuses a list that names a file that is not there.

  Args:
    key: The key of the list: 'sft.data'.
    names: Its entries.
    missing: The entries that other stages are still to write: 'sft.data[0]'.
    known: Names that are no files; by default the synthetic tasks.

  Raises:
    UserError: naming the file.
  """
  names_known: Any = registry.task if known is None else known
  for i, name in enumerate(mixture.parse(names)):
    if f'{key}[{i}]' not in missing and name not in names_known:
      readers.files(name)
