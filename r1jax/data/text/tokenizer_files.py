"""Reads the files of a Hugging Face tokenizer, as transformers does.

tokenizer.json           the tokenizer, without its truncation and padding
tokenizer_config.json    special and added tokens, whether BOS is added,
                         the chat template
special_tokens_map.json  special tokens that tokenizer_config.json lacks
chat_template.jinja      a chat template, instead of the config's
additional_chat_templates/NAME.jinja
                         more chat templates, by name
generation_config.json,  more tokens that end a completion
config.json
"""

from collections.abc import Iterator, Sequence
import gzip
import json
import logging
from pathlib import Path
from typing import Any, NamedTuple

import tokenizers

from r1jax.errors import UserError

# The files of a tokenizer that belong to a copy of its folder.
FILES = (
  'tokenizer.json',
  'tokenizer.json.gz',
  'tokenizer_config.json',
  'special_tokens_map.json',
  'chat_template.jinja',
  'generation_config.json',
)
SETTINGS, GENERATION = 'tokenizer_config.json', 'generation_config.json'
# Files that may name the tokens at which `generate` of transformers stops.
_STOPS = GENERATION, 'config.json'
ALL_FILES = (*FILES, 'config.json')  # All that a tokenizer is read from.
_MORE_TEMPLATES = 'additional_chat_templates'
DEFAULT = 'default'  # The chat template that is used where none is named.
_NAMED = 'bos', 'eos', 'unk', 'pad', 'sep', 'cls', 'mask'
_log = logging.getLogger(__name__)


class TokenizerFiles(NamedTuple):
  """The content of a tokenizer's folder.

  Attributes:
    core: The tokenizer, which neither cuts nor pads.
    special_tokens: Texts of the named special tokens, such as 'eos_token'.
    prefix_ids: Ids that the post-processor of tokenizer.json puts before plain
      text, such as BOS.
    bos_begins_documents: Whether BOS stands at the beginning of a document
      alone: it is added there, or the settings ask for it.
    stop_ids: Ids of generation_config.json and config.json that end a
      completion, each once.
    chat_templates: Jinja source of each chat template by name; a single one is
      the 'default'.
  """

  core: tokenizers.Tokenizer
  special_tokens: dict[str, str]
  prefix_ids: tuple[int, ...]
  bos_begins_documents: bool
  stop_ids: tuple[int, ...]
  chat_templates: dict[str, str]

  def id_of(self, name: str) -> int | None:
    """Returns the id of a named special token such as 'eos_token', or None."""
    text = self.special_tokens.get(name)
    return None if text is None else self.core.token_to_id(text)


def present(folder: Path, names: Sequence[str] = FILES) -> list[str]:
  """Returns which of a tokenizer's files are in a folder, as relative paths.

  Args:
    folder: The folder.
    names: Files to look for beside additional chat templates.
  """
  more = sorted((folder / _MORE_TEMPLATES).glob('*.jinja'))
  return [name for name in names if (folder / name).exists()] + [
    f'{_MORE_TEMPLATES}/{path.name}' for path in more
  ]


def has_tokenizer(folder: Path) -> bool:
  """Returns whether a folder holds a tokenizer."""
  return any((folder / name).exists() for name in FILES[:2])


def read(folder: Path) -> TokenizerFiles:
  """Reads a tokenizer's folder.

  Raises:
    UserError: a file cannot be read or has a wrong value.
  """
  try:
    core = tokenizers.Tokenizer.from_str(tokenizer_json(folder))
    settings = json.loads((folder / SETTINGS).read_text())
    special_tokens = _special_tokens(folder, settings)
    _add_tokens(core, settings)
    templates = _chat_templates(folder, settings)
  except UserError:
    raise
  except Exception as error:  # tokenizers raises bare Exception.
    raise UserError(f'tokenizer: cannot read {folder}: {error}') from error
  # A run has its own limits: a length of the training of the tokenizer's
  # author would cut prompts, and padding would be taken for text.
  core.no_truncation()
  core.no_padding()
  core.encode_special_tokens = bool(settings.get('split_special_tokens'))
  prefix = _prefix_ids(folder, core)
  bos = core.token_to_id(special_tokens.get('bos_token', ''))
  return TokenizerFiles(
    core,
    special_tokens,
    prefix,
    bos is not None and (bos in prefix or bool(settings.get('add_bos_token'))),
    stop_ids(folder),
    templates,
  )


def tokenizer_json(folder: Path) -> str:
  """Returns the text of tokenizer.json, which may be packed."""
  plain = folder / FILES[0]
  if plain.exists():
    return plain.read_text(encoding='utf-8')
  with gzip.open(folder / FILES[1], 'rt', encoding='utf-8') as file:
    return file.read()


def stop_ids(folder: Path) -> tuple[int, ...]:
  """Returns the eos_token_id of generation_config.json and of config.json.

  transformers reads the second where the first is missing; hub checkpoints
  have models that need those of both.

  Raises:
    UserError: a file cannot be read, or names something else than ids.
  """
  found: list[int] = []
  for path in (folder / name for name in _STOPS):
    if not path.exists():
      continue
    try:
      ids = json.loads(path.read_text()).get('eos_token_id')
    except (OSError, ValueError, AttributeError) as error:
      raise UserError(f'tokenizer: cannot read {path}: {error}') from error
    if ids is None:
      continue
    for id_ in ids if isinstance(ids, list) else [ids]:
      if type(id_) is not int or id_ < 0:
        raise UserError(
          f'tokenizer: {path} has eos_token_id = {ids!r}; it must be a token '
          'id or a list of them'
        )
      found.append(id_)
  return tuple(dict.fromkeys(found))


def _special_tokens(folder: Path, settings: dict) -> dict[str, str]:
  """Returns the texts of the named special tokens."""
  path = folder / 'special_tokens_map.json'
  older = json.loads(path.read_text()) if path.exists() else {}
  found = {}
  for name in (f'{name}_token' for name in _NAMED):
    token = settings[name] if name in settings else older.get(name)
    token = token['content'] if isinstance(token, dict) else token
    if token:
      found[name] = token
  return found


def _add_tokens(core: tokenizers.Tokenizer, settings: dict):
  """Adds the tokens that tokenizer_config.json has beyond tokenizer.json."""
  known = {token.content for token in core.get_added_tokens_decoder().values()}
  for token in _added_tokens(settings):
    if token.content not in known:
      core.add_tokens([token])


def _added_tokens(settings: dict) -> Iterator[tokenizers.AddedToken]:
  declared = settings.get('added_tokens_decoder') or {}
  for _, fields in sorted(declared.items(), key=lambda item: int(item[0])):
    flags = {
      name: fields[name]
      for name in ('single_word', 'lstrip', 'rstrip', 'normalized', 'special')
      if name in fields
    }
    yield tokenizers.AddedToken(fields['content'], **flags)
  for name in ('additional_special_tokens', 'extra_special_tokens'):
    extra = settings.get(name) or ()
    for token in extra.values() if isinstance(extra, dict) else extra:
      content = token['content'] if isinstance(token, dict) else token
      yield tokenizers.AddedToken(content, special=True, normalized=False)


def _prefix_ids(folder: Path, core: tokenizers.Tokenizer) -> tuple[int, ...]:
  """Returns the ids that the post-processor puts before plain text.

  The settings add_bos_token and add_eos_token count for nothing beside a
  tokenizer.json, in transformers too.
  """
  encoded = core.encode('a', add_special_tokens=True)
  added = encoded.special_tokens_mask
  start = added.index(0) if 0 in added else len(added)
  prefix = tuple(encoded.ids[:start])
  suffix = tuple(
    id_ for id_, is_added in zip(encoded.ids[start:], added[start:]) if is_added
  )
  if suffix:
    tokens = ' '.join(str(core.id_to_token(id_)) for id_ in suffix)
    _log.warning(
      'tokenizer: %s ends every text with %s; prompts do not, since completions '
      'follow them',
      folder,
      tokens,
    )
  return prefix


def _chat_templates(folder: Path, settings: dict) -> dict[str, str]:
  """Returns the chat templates by name: of own files, or of the settings."""
  paths = {
    path.stem: path for path in (folder / _MORE_TEMPLATES).glob('*.jinja')
  }
  if (path := folder / 'chat_template.jinja').exists():
    paths[DEFAULT] = path
  if paths:  # They replace all of the settings, as in transformers.
    return {
      name: path.read_text(encoding='utf-8')
      for name, path in sorted(paths.items())
    }
  template: Any = settings.get('chat_template')
  if isinstance(template, list):
    return {each['name']: each['template'] for each in template}
  return {DEFAULT: template} if template else {}
