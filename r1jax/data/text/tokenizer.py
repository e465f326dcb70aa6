"""The tokenizer: built-in characters, or a folder of a Hugging Face tokenizer."""

from collections.abc import Sequence
import gzip
import json
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from r1jax.errors import UserError

# Built-in tokenizers, named in config.tokenizer.source instead of a folder.
CHARACTER, BILINGUAL = 'character', 'bilingual'
BUILT_IN = (CHARACTER, BILINGUAL)

# The tokenizer's files in a folder of the Hugging Face hub.
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
UNKNOWN = '\ufffd'  # The text of an id that is no token, and of broken UTF-8.
_ASCII = '\n' + ''.join(chr(code) for code in range(32, 127))
_CYRILLIC = ''.join(chr(code) for code in range(0x430, 0x450))
_ALPHABETS = {CHARACTER: _ASCII, BILINGUAL: _ASCII + _CYRILLIC}
_KNOWS = {
  CHARACTER: 'printable ASCII and the newline',
  BILINGUAL: 'printable ASCII, the newline and Cyrillic а to я',
}


class Tokenizer:
  """Converts text to token ids and back.

  Attributes:
    vocab_size: Largest token id + 1; the model's vocabulary may be larger.
    pad_id: Id that fills arrays. It may equal a stop id, since masks are never
      derived from ids.
    bos_id: Id of the beginning-of-sequence token (BOS), or None.
    adds_bos: Whether every prompt begins with BOS; otherwise only those do
      whose template writes it.
    stop_ids: Ids of the tokens that end a completion; the first is EOS.
    source: The value of config.tokenizer.source.
    chat_template: Jinja source of the folder's chat template, or None.
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
    self._known_ids = frozenset(core.get_vocab(with_added_tokens=True).values())
    self.vocab_size = max(self._known_ids) + 1
    self._unknown_core: tokenizers.Tokenizer | None = None

  def encode(self, text: str) -> list[int]:
    """Returns the ids of a text, without adding BOS or EOS.

    Raises:
      UserError: the text has a lone surrogate, or a character that a built-in
        tokenizer does not know.
    """
    try:
      encoding = self._core.encode(text, add_special_tokens=False)
    except TypeError as error:
      raise UserError(
        'tokenizer: the text is not valid Unicode: it holds half a character '
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

  def encode_prompt(self, text: str) -> list[int]:
    """Returns the ids of a prompt, with at most one BOS, at its beginning.

    Many chat templates write BOS, and some tokenizers add it as well; however
    many begin the text, one is kept.

    Raises:
      UserError: there is a BOS inside the prompt, where it would begin a new
        document.
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
        f'tokenizer: {self.token_text(self.bos_id)!r}, which begins a document, '
        'stands inside the prompt; remove it'
      )
    return [self.bos_id] * (self.adds_bos or first > 0) + rest

  def token_text(self, id_: int | None) -> str:
    """Returns the text of a special token; '' for None."""
    return '' if id_ is None else self._core.id_to_token(id_) or ''

  def first_difference(self, other: 'Tokenizer') -> str:
    """Describes the first token that differs; '' for equal vocabularies."""
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
    """Returns the text of token ids; see decode_batch."""
    return self.decode_batch([ids])[0]

  def decode_batch(self, rows: Sequence[Sequence[int]]) -> list[str]:
    """Returns the text of each row of token ids, special tokens included.

    A model's vocabulary may be padded beyond the tokenizer's, and a tokenizer's
    may have gaps. An id that is no token is shown as U+FFFD in its place, so
    that '4', no token, '2' does not read as 42.
    """
    ids_of = [list(map(int, row)) for row in rows]
    known = [self._known_ids.issuperset(ids) for ids in ids_of]
    decoded = iter(
      self._core.decode_batch(
        [ids for ids, plain in zip(ids_of, known) if plain],
        skip_special_tokens=False,
      )
    )
    return [
      next(decoded) if plain else self._decode_with_unknown(ids)
      for ids, plain in zip(ids_of, known)
    ]

  def _decode_with_unknown(self, ids: Sequence[int]) -> str:
    """Returns the text of token ids some of which are no tokens."""
    # A token of that text stands for them, so that the decoder sees one row:
    # some decoders strip the space before the first token.
    core = self._unknown_core
    if core is None:
      core = tokenizers.Tokenizer.from_str(self._core.to_str())
      core.add_special_tokens([tokenizers.AddedToken(UNKNOWN)])
      self._unknown_core = core
    unknown = core.token_to_id(UNKNOWN)
    assert unknown is not None  # It has just been added.
    return core.decode(
      [i if i in self._known_ids else unknown for i in ids],
      skip_special_tokens=False,
    )


def load(source: str) -> Tokenizer:
  """Returns the tokenizer that config.tokenizer.source names.

  Args:
    source: A name of BUILT_IN, or a folder as on the Hugging Face hub: with
      tokenizer.json (or tokenizer.json.gz) and tokenizer_config.json, and
      perhaps generation_config.json, which may name more stop tokens.

  Raises:
    UserError: a file is missing or cannot be read, or names no EOS token.
  """
  if source in BUILT_IN:
    return _character_tokenizer(source)
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
  """Returns the EOS ids of generation_config.json, if there is one."""
  path = folder / 'generation_config.json'
  if not path.exists():
    return []
  ids = json.loads(path.read_text()).get('eos_token_id') or []
  return [ids] if isinstance(ids, int) else ids


def _chat_template(folder: Path, settings: dict) -> str | None:
  """Returns the chat template of its own file, or of the settings, or None."""
  path = folder / 'chat_template.jinja'
  if path.exists():
    return path.read_text()
  template = settings.get('chat_template')
  if isinstance(template, list):  # Several templates, by name.
    template = {t['name']: t['template'] for t in template}.get('default')
  return template


def _character_tokenizer(source: str) -> Tokenizer:
  """Makes a built-in tokenizer: one token per character and special token."""
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
