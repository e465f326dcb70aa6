"""The tokenizer: built-in characters, or a folder of a Hugging Face tokenizer."""

from collections.abc import Mapping, Sequence
import copy

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from r1jax import buckets
from r1jax.data.text import tokenizer_files
from r1jax.errors import UserError

# Built-in tokenizers, named in config.tokenizer.source instead of a folder.
CHARACTER, BILINGUAL = 'character', 'bilingual'
BUILT_IN = (CHARACTER, BILINGUAL)

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
    eos_id: Id of the end-of-sequence token (EOS).
    prefix_ids: Ids that every prompt begins with, such as BOS; () for a
      tokenizer that adds none, whose prompts begin as the template does.
    stop_ids: Ids of the tokens that end a completion; the first ends the
      responses that are trained on.
    source: The value of config.tokenizer.source.
    chat_templates: Jinja source of each of the folder's chat templates, by
      name: 'default', and perhaps 'tool_use'.
    special_tokens: Texts of the special tokens that have a name, such as
      'eos_token'.
    bos_begins_documents: Whether BOS begins documents alone, so that it may
      not stand inside a prompt. One that the tokenizer leaves to templates may
      begin every turn, as <|im_start|> does.
  """

  def __init__(
    self,
    core: tokenizers.Tokenizer,
    source: str,
    pad_id: int,
    bos_id: int | None,
    stop_ids: Sequence[int],
    adds_bos: bool = True,
    chat_templates: Mapping[str, str] | None = None,
    prefix_ids: Sequence[int] | None = None,
    special_tokens: Mapping[str, str] | None = None,
    bos_begins_documents: bool | None = None,
  ):
    """Wraps a tokenizer; see the class, and:

    Args:
      core: The tokenizer of the library `tokenizers`.
      adds_bos: Whether prompts begin with BOS, where prefix_ids is None.
    """
    self._core = core
    self.source = source
    self.pad_id = pad_id
    self.bos_id = bos_id
    if prefix_ids is None:
      prefix_ids = () if bos_id is None or not adds_bos else (bos_id,)
    self.prefix_ids = tuple(prefix_ids)
    self.bos_begins_documents = (
      bos_id in self.prefix_ids
      if bos_begins_documents is None
      else bos_begins_documents
    )
    self.eos_id = stop_ids[0]
    self.stop_ids = tuple(stop_ids)
    self.chat_templates = dict(chat_templates or {})
    self.special_tokens = dict(special_tokens or {})
    self._known_ids = frozenset(core.get_vocab(with_added_tokens=True).values())
    self.vocab_size = max(self._known_ids) + 1
    self._unknown_core: tokenizers.Tokenizer | None = None

  def for_chat(self, bos_in_turns: bool) -> 'Tokenizer':
    """Returns the tokenizer for prompts of a chat template.

    The template writes all special tokens, so that none is added.

    Args:
      bos_in_turns: Whether the template begins later turns with BOS too.
    """
    chat = copy.copy(self)
    chat.prefix_ids = ()
    chat.bos_begins_documents &= not bos_in_turns
    return chat

  def with_bos(self) -> 'Tokenizer':
    """Returns the tokenizer whose prompts begin with BOS.

    Raises:
      UserError: it has no BOS.
    """
    if self.bos_id is None:
      raise UserError(
        f'tokenizer.add_bos_token: {self.source} names no bos_token'
      )
    added = copy.copy(self)
    added.prefix_ids = (self.bos_id,)
    added.bos_begins_documents = True
    return added

  def with_stop_tokens(self, ids: Sequence[int]) -> 'Tokenizer':
    """Returns the tokenizer with stop ids before the ones that it has."""
    more = copy.copy(self)
    more.stop_ids = tuple(dict.fromkeys((*ids, *self.stop_ids)))
    return more

  @property
  def num_tokens(self) -> int:
    """The number of tokens, which may be below vocab_size: ids have gaps."""
    return len(self._vocab())

  def token_id(self, text: str) -> int:
    """Returns the id of the one token that has this text.

    Raises:
      UserError: there is no such token.
    """
    id_ = self._core.token_to_id(text)
    if id_ is None:
      raise UserError(
        f'tokenizer: {text!r} is no token of {self.source}, which encodes it as '
        f'{len(self.encode(text))} tokens'
      )
    return id_

  def is_special(self, id_: int) -> bool:
    """Returns whether a token is a special one, which no text is made of."""
    token = self._core.get_added_tokens_decoder().get(id_)
    return token is not None and token.special

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
      return [*self.prefix_ids, *ids]
    first = next(
      (i for i, id_ in enumerate(ids) if id_ != self.bos_id), len(ids)
    )
    rest = ids[first:]
    if self.bos_begins_documents and self.bos_id in rest:
      raise UserError(
        f'tokenizer: {self.token_text(self.bos_id)!r}, which begins a document, '
        'stands inside the prompt; remove it'
      )
    prefix = list(self.prefix_ids)
    if first and self.bos_id not in prefix:
      prefix.append(self.bos_id)
    return prefix + rest

  def encode_response(self, prompt: str, response: str) -> list[int]:
    """Returns the ids of a text that follows a prompt, without its end.

    They are those of the whole text behind those of the prompt, since some
    tokenizers begin every text with a space of their own. Where the two texts
    would share a token, the response is encoded alone: a sampler has the ids of
    the prompt.

    Raises:
      UserError: as `encode`.
    """
    before, whole = self.encode(prompt), self.encode(prompt + response)
    if whole[: len(before)] == before:
      return whole[len(before) :]
    return self.encode(response)

  def token_text(self, id_: int | None) -> str:
    """Returns the text of a special token; '' for None."""
    return '' if id_ is None else self._core.id_to_token(id_) or ''

  def to_json(self) -> str:
    """Returns the content of tokenizer.json."""
    return self._core.to_str()

  def first_difference(self, other: 'Tokenizer') -> str:
    """Describes the first of our tokens that the other reads as something else.

    Returns:
      '' if each of our ids is the same token there; it may have more tokens.
    """
    return self.first_conflict(other) or self._first_missing(other)

  def first_conflict(self, other: 'Tokenizer') -> str:
    """Describes the first id that is one token here and another one there.

    Returns:
      '' if there is none; either may have tokens that the other lacks.
    """
    theirs, names = other._vocab(), other._names()
    for token, id_ in sorted(self._vocab().items(), key=lambda item: item[1]):
      if theirs.get(token, id_) != id_:
        return f'{token!r} is {id_} here and {theirs[token]} there'
      if names.get(id_, token) != token:
        return f'{id_} is {token!r} here and {names[id_]!r} there'
    return ''

  def shared_ids(self, other: 'Tokenizer') -> np.ndarray:
    """Returns the ids that are the same token in both, int32, in order."""
    theirs = other._vocab()
    ids = [i for token, i in self._vocab().items() if theirs.get(token) == i]
    return np.array(sorted(ids), np.int32)

  def _first_missing(self, other: 'Tokenizer') -> str:
    theirs = other._vocab()
    for token, id_ in sorted(self._vocab().items(), key=lambda item: item[1]):
      if token not in theirs:
        return f'{token!r}, {id_} here, is no token there'
    return ''

  def _vocab(self) -> dict[str, int]:
    return self._core.get_vocab(with_added_tokens=True)

  def _names(self) -> dict[int, str]:
    return {id_: token for token, id_ in self._vocab().items()}

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
      perhaps generation_config.json and config.json, which may name more stop
      tokens.

  Raises:
    UserError: a file is missing or cannot be read, or names no EOS token.
  """
  if source in BUILT_IN:
    return _character_tokenizer(source)
  folder = buckets.given(source)
  if not tokenizer_files.has_tokenizer(folder):
    raise UserError(
      f'tokenizer: no tokenizer.json in {folder}; give the folder of a '
      f'Hugging Face tokenizer, or one of {BUILT_IN}, in '
      '--config.tokenizer.source'
    )
  files = tokenizer_files.read(folder)
  eos, pad = files.id_of('eos_token'), files.id_of('pad_token')
  if eos is None:
    named = files.special_tokens.get('eos_token')
    raise UserError(
      f'tokenizer: {folder} names no eos_token'
      if named is None
      else f'tokenizer: {folder} has the eos_token {named!r}, which is no token '
      'of tokenizer.json'
    )
  return Tokenizer(
    files.core,
    source,
    pad_id=eos if pad is None else pad,
    bos_id=files.id_of('bos_token'),
    stop_ids=tuple(dict.fromkeys((eos, *files.stop_ids))),
    prefix_ids=files.prefix_ids,
    chat_templates=files.chat_templates,
    special_tokens=files.special_tokens,
    bos_begins_documents=files.bos_begins_documents,
  )


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
    core,
    source,
    pad_id=vocab['<pad>'],
    bos_id=None,
    stop_ids=(vocab['<eos>'],),
    special_tokens={
      'pad_token': '<pad>',
      'eos_token': '<eos>',
      'unk_token': '<unk>',
    },
  )
