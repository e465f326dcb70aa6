"""One tokenizer class: the miniature's characters, or a folder from a hub."""

from collections.abc import Sequence
import gzip
import json
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from r1jax.errors import UserError

# The names that a config may give instead of a folder.
CHARACTER, BILINGUAL = 'character', 'bilingual'
BUILT_IN = (CHARACTER, BILINGUAL)

# What a folder may hold of a tokenizer.
FILES = (
  'tokenizer.json',
  'tokenizer.json.gz',
  'tokenizer_config.json',
  'chat_template.jinja',
  'generation_config.json',
)

_SPECIAL = (
  '<pad>',
  '<bos>',
  '<eos>',
  '<think>',
  '</think>',
  '<answer>',
  '</answer>',
  'User:',
  'Assistant:',
)
_UNKNOWN = '\ufffd'
_ASCII = '\n' + ''.join(chr(code) for code in range(32, 127))
_CYRILLIC = ''.join(chr(code) for code in range(0x430, 0x450))
_ALPHABETS = {CHARACTER: _ASCII, BILINGUAL: _ASCII + _CYRILLIC}
_KNOWS = {
  CHARACTER: 'printable ASCII and the newline',
  BILINGUAL: 'printable ASCII, the newline and Cyrillic а to я',
}


class Tokenizer:
  """Text to ids and back.

  Attributes:
    vocab_size: Largest id + 1; the model's vocabulary may be larger.
    pad_id: Fills arrays. It may equal a stop id: masks never compare ids.
    bos_id: Opens a prompt, or None where the family has no such token.
    adds_bos: It opens every prompt, and not only those whose template says so.
    stop_ids: Any of them ends a completion.
    source: What the config named.
    chat_template: Jinja, as the folder has it; None without one.
  """

  def __init__(
    self,
    core: tokenizers.Tokenizer,
    source: str,
    pad_id: int,
    bos_id: int | None,
    stop_ids: Sequence[int],
    adds_bos: bool = True,
    chat_template: str | None = None,
  ):
    self._core = core
    self.source = source
    self.pad_id = pad_id
    self.bos_id = bos_id
    self.adds_bos = adds_bos
    self.stop_ids = tuple(stop_ids)
    self.chat_template = chat_template
    self.vocab_size = max(core.get_vocab(with_added_tokens=True).values()) + 1

  def encode(self, text: str) -> list[int]:
    """Ids of the text, with no BOS or EOS added.

    Raises:
      UserError: a character that the character tokenizer does not have, or
        half of one.
    """
    try:
      encoding = self._core.encode(text, add_special_tokens=False)
    except TypeError as error:
      raise UserError(
        'tokenizer: this is no text: it holds half a character '
        '(a lone surrogate)'
      ) from error
    if self.source in BUILT_IN and -1 in (
      ids := [-1 if token == '<unk>' else 0 for token in encoding.tokens]
    ):
      start, end = encoding.offsets[ids.index(-1)]
      raise UserError(
        f'tokenizer: the {self.source} tokenizer has no '
        f'{text[start:end]!r}; it knows {_KNOWS[self.source]}'
      )
    return encoding.ids

  def prompt(self, text: str) -> list[int]:
    """Ids of a prompt, with exactly one BOS where the family opens with one.

    Many chat templates write the BOS themselves, and some tokenizers add it as
    well: however many open the text, one is left.

    Raises:
      UserError: a BOS further on, where a document would seem to begin.
    """
    ids = self.encode(text)
    if self.bos_id is None:
      return ids
    first = next(
      (i for i, id_ in enumerate(ids) if id_ != self.bos_id), len(ids)
    )
    rest = ids[first:]
    if self.bos_id in rest:
      raise UserError(
        f'tokenizer: {self.text_of(self.bos_id)!r}, which opens a document, '
        'stands inside the prompt'
      )
    return [self.bos_id] * (self.adds_bos or first > 0) + rest

  def text_of(self, id_: int | None) -> str:
    """The text of a special token; '' for None."""
    return '' if id_ is None else self._core.id_to_token(id_)

  def difference(self, other: 'Tokenizer') -> str:
    """The first token that the two do not share; '' where they share all."""
    ours, theirs = (
      t._core.get_vocab(with_added_tokens=True) for t in (self, other)
    )
    for token, id_ in sorted(ours.items(), key=lambda item: item[1]):
      if theirs.get(token) != id_:
        return f'{token!r} is {id_} here and {theirs.get(token)} there'
    return (
      ''
      if len(ours) == len(theirs)
      else (f'{len(ours)} tokens here and {len(theirs)} there')
    )

  def decode(self, ids: Sequence[int]) -> str:
    return self.decode_batch([ids])[0]

  def decode_batch(self, rows: Sequence[Sequence[int]]) -> list[str]:
    """Text of each row; an id that the tokenizer does not have is shown.

    A model's vocabulary may be padded beyond the tokenizer's. Were such an id
    dropped, a completion with junk in it could pass as well formed.
    """
    texts = self._core.decode_batch(
      [[int(i) for i in row if i < self.vocab_size] for row in rows],
      skip_special_tokens=False,
    )
    return [
      text + _UNKNOWN * sum(i >= self.vocab_size for i in row)
      for text, row in zip(texts, rows)
    ]


def load(source: str) -> Tokenizer:
  """Returns the tokenizer that a config names: built in, or a folder.

  A folder holds tokenizer.json (or .json.gz) and tokenizer_config.json, as on
  the Hugging Face hub; generation_config.json may name more stop tokens.

  Raises:
    UserError: a file is missing or is not what it should be.
  """
  if source in BUILT_IN:
    return _characters(source)
  folder = Path(source).expanduser()
  packed = folder / 'tokenizer.json.gz'
  plain = folder / 'tokenizer.json'
  path = plain if plain.exists() else packed
  if not path.exists():
    raise UserError(
      f'tokenizer: no tokenizer.json in {folder}; give the folder of a '
      f'Hugging Face tokenizer, or one of {BUILT_IN}, in '
      '--config.tokenizer.source'
    )
  try:
    opened = gzip.open(path, 'rt') if path == packed else open(path)
    with opened as file:
      core = tokenizers.Tokenizer.from_str(file.read())
    settings = json.loads((folder / 'tokenizer_config.json').read_text())
    stops = _stop_ids(folder)
  except Exception as error:  # tokenizers raises bare Exception.
    raise UserError(f'tokenizer: cannot read {folder}: {error}') from error

  def id_of(name: str) -> int | None:
    token = settings.get(name)
    token = token['content'] if isinstance(token, dict) else token
    return core.token_to_id(token) if token else None

  eos = id_of('eos_token')
  if eos is None:
    raise UserError(f'tokenizer: {folder} names no eos_token')
  pad = id_of('pad_token')
  return Tokenizer(
    core,
    source,
    pad_id=eos if pad is None else pad,
    bos_id=id_of('bos_token'),
    stop_ids=(eos, *(stop for stop in stops if stop != eos)),
    adds_bos=settings.get('add_bos_token', True),
    chat_template=_chat_template(folder, settings),
  )


def _stop_ids(folder: Path) -> list[int]:
  """Those that end a completion besides the one that ends a document."""
  path = folder / 'generation_config.json'
  if not path.exists():
    return []
  found = json.loads(path.read_text()).get('eos_token_id') or []
  return [found] if isinstance(found, int) else found


def _chat_template(folder: Path, settings: dict) -> str | None:
  """From a file of its own, as newer folders have it, or the settings."""
  alone = folder / 'chat_template.jinja'
  if alone.exists():
    return alone.read_text()
  found = settings.get('chat_template')
  if isinstance(found, list):  # Several, by name.
    found = {each['name']: each['template'] for each in found}.get('default')
  return found


def _characters(source: str) -> Tokenizer:
  names = [*_SPECIAL, *_ALPHABETS[source], '<unk>']
  vocab = {name: index for index, name in enumerate(names)}
  core = tokenizers.Tokenizer(models.WordLevel(vocab, unk_token='<unk>'))
  core.pre_tokenizer = pre_tokenizers.Split(
    tokenizers.Regex(r'[\s\S]'), behavior='isolated'
  )
  core.decoder = decoders.Fuse()
  core.add_special_tokens(
    [tokenizers.AddedToken(name, normalized=False) for name in _SPECIAL]
  )
  return Tokenizer(
    core, source, pad_id=vocab['<pad>'], bos_id=None, stop_ids=(vocab['<eos>'],)
  )
