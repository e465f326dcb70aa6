"""The files beside the weights of an exported checkpoint: its tokenizer.

transformers loads the result, tokenises prompts as the run did, and stops where
the run stopped.
"""

from collections.abc import Mapping
import json
import logging
from pathlib import Path
from typing import Any, NamedTuple

import tokenizers
from tokenizers import processors

from r1jax import buckets, registry
from r1jax.config.schema.data import DataConfig, TokenizerConfig
from r1jax.data import readers
from r1jax.data.text import chat, prompting, tokenizer, tokenizer_files
from r1jax.data.text.tokenizer import Tokenizer
from r1jax.data.text.tokenizer_files import GENERATION, SETTINGS
from r1jax.errors import UserError

_log = logging.getLogger(__name__)
_ARGS = 'data.template_args.'


class TokenizerExport(NamedTuple):
  """Tokenizer files and settings of an exported checkpoint.

  Attributes:
    files: Contents of its files, by name.
    token_ids: The ids that config.json and generation_config.json name.
  """

  files: dict[str, bytes]
  token_ids: dict[str, Any]


def export(
  weights: Path, recorded: Mapping[str, Any], source: str = ''
) -> TokenizerExport:
  """Returns the tokenizer's files of an exported checkpoint.

  Args:
    weights: The r1jax weights, beside which import-hf puts a tokenizer.
    recorded: The config of the run that made them, by dotted key.
    source: The tokenizer to write instead: a folder, or a built-in one.

  Raises:
    UserError: a tokenizer is named, but not there, or the template is not.
  """
  beside = weights if weights.is_dir() else weights.parent
  name = source or recorded.get('tokenizer.source', '')
  if not name and tokenizer_files.has_tokenizer(beside):
    name = str(beside)
  if not name:
    _log.warning(
      'export-hf: %s names no tokenizer and has none beside it, so that none is '
      'written; give one with --tokenizer=FOLDER',
      weights,
    )
    return TokenizerExport({}, {})
  text = _load(name, bool(source), weights)
  template = None
  if recorded.get('data.template'):
    template, text = prompting.template_and_tokenizer(
      text, *_settings(recorded)
    )
  token_ids = _token_ids(text)
  files = _tokenizer_files(text)
  if template is not None:
    _set_template(files, chat.jinja_source(template, text))
  elif tokenizer_files.DEFAULT in text.chat_templates:
    _set_template(files, chat.own_source(text))
  generation = json.loads(files.get(GENERATION, b'{}')) | token_ids
  files[GENERATION] = _json(generation)
  return TokenizerExport(files, token_ids)


def merged_stops(folder: Path) -> dict[str, bytes]:
  """Returns generation_config.json with the stop tokens of config.json too.

  Args:
    folder: A Hugging Face checkpoint.

  Returns:
    The file's content by name; empty if it has every stop token already.
  """
  path = folder / GENERATION
  ids = list(tokenizer_files.stop_ids(folder))
  settings = json.loads(path.read_text()) if path.exists() else {}
  stops = settings.get('eos_token_id')
  if not ids or ids == (stops if isinstance(stops, list) else [stops]):
    return {}
  return {GENERATION: _json(settings | {'eos_token_id': ids})}


def _load(name: str, is_given: bool, weights: Path) -> Tokenizer:
  if name in tokenizer.BUILT_IN:
    return tokenizer.load(name)
  try:
    return tokenizer.load(str(readers.resolve(name)))
  except UserError as error:
    if is_given:
      raise
    raise UserError(
      f'export-hf: {weights} was made with the tokenizer {name}, which cannot '
      f'be read ({error}); give its folder with --tokenizer=FOLDER'
    ) from error


def _settings(
  recorded: Mapping[str, Any],
) -> tuple[DataConfig, TokenizerConfig]:
  """Returns the sections of the run's config that shape prompts."""
  args = {
    key.removeprefix(_ARGS): value
    for key, value in recorded.items()
    if key.startswith(_ARGS)
  }
  text = {
    name: recorded[f'data.{name}']
    for name in ('template', 'system', 'response_prefix')
    if f'data.{name}' in recorded
  }
  name = text['template']
  if not name.endswith('.jinja') and name != 'chat':
    registry.template.get(name, 'export-hf: data.template')
  return DataConfig(**text, template_args=args), TokenizerConfig(
    add_bos_token=recorded.get('tokenizer.add_bos_token', False),
    chat_template_name=recorded.get('tokenizer.chat_template_name', ''),
    stop_tokens=tuple(recorded.get('tokenizer.stop_tokens', ())),
  )


def _token_ids(text: Tokenizer) -> dict[str, Any]:
  stops = list(text.stop_ids)
  ids: dict[str, Any] = {
    'eos_token_id': stops if len(stops) > 1 else stops[0],
    'pad_token_id': text.pad_id,
  }
  return ids if text.bos_id is None else ids | {'bos_token_id': text.bos_id}


def _tokenizer_files(text: Tokenizer) -> dict[str, bytes]:
  """Returns the files of a tokenizer as transformers reads them."""
  if text.source in tokenizer.BUILT_IN:
    settings = {
      'tokenizer_class': 'PreTrainedTokenizerFast',
      'clean_up_tokenization_spaces': False,
    }
    return {
      'tokenizer.json': text.to_json().encode(),
      SETTINGS: _json(settings | text.special_tokens),
    }
  folder = buckets.given(text.source)
  files = {
    name: (folder / name).read_bytes()
    for name in tokenizer_files.present(folder)
  }
  files.pop('tokenizer.json.gz', None)
  core = tokenizer_files.tokenizer_json(folder)
  if text.prefix_ids != tokenizer_files.read(folder).prefix_ids:
    core = _with_prefix(core, text)
  return files | {'tokenizer.json': core.encode()}


def _with_prefix(core: str, text: Tokenizer) -> str:
  """Returns tokenizer.json whose post-processor adds what the run's prompts had."""
  if not text.prefix_ids:  # Chat templates write all of it.
    return core
  tokens = [(text.token_text(id_), id_) for id_ in text.prefix_ids]
  begin = ' '.join(f'{token}:0' for token, _ in tokens)
  changed = tokenizers.Tokenizer.from_str(core)
  changed.post_processor = processors.TemplateProcessing(
    single=f'{begin} $A:0', pair=f'{begin} $A:0 $B:1', special_tokens=tokens
  )
  return changed.to_str()


def _set_template(files: dict[str, bytes], source: str | None):
  """Puts a chat template where new and old versions of transformers look."""
  if source is None:
    _log.warning(
      'export-hf: the template of the run is Python code of a plugin, so that no '
      'chat template is written'
    )
    return
  settings = json.loads(files[SETTINGS])
  files[SETTINGS] = _json(settings | {'chat_template': source})
  files['chat_template.jinja'] = source.encode()


def _json(value: Any) -> bytes:
  return json.dumps(value, indent=2, ensure_ascii=False).encode() + b'\n'
