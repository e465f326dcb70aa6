"""Repetition of a text in any script: the share of its n-grams that are old.

An n-gram is a stretch of n words. Scripts without spaces have no words to
count, so that a fixed number of their characters stands for one:

  'one two one two', n = 2    one two | two one | one two          −1/3
  '哈哈哈哈哈', n = 2          哈哈哈哈 | 哈哈哈哈                    −1/2

Something long that no space divides is read the same way, such as 'hahaha…', a
line of '=====' or a formula that goes round in circles.
"""

from collections.abc import Iterator
import re

from r1jax.errors import UserError

# A word is so many units long, a character of a script without spaces fewer.
_WORD_UNITS = 20
# Characters that stand for a word where translations of one text are about as
# long: 2 of Chinese and Japanese, 4 of Thai and its neighbours.
_SCRIPTS = (
  # Han with its extensions, kana, their punctuation and full-width forms.
  ('\u3001-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff'
   '\uff01-\uff9f\U00020000-\U0003ffff', 2),
  # Thai, Lao, Myanmar and Khmer, with their vowel signs.
  ('\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff', 4),
)  # fmt: skip
_MAX_WORD_CHARS = 50  # A longer word is read by its characters, 5 to a word.
_LONG_WORD_DIVISOR = 5
_INVISIBLE = re.compile('[\u00ad\u200b-\u200f\u2060\ufeff]')
_PIECE = re.compile(
  '|'.join([f'(?P<s{i}>[{chars}])' for i, (chars, _) in enumerate(_SCRIPTS)])
  + '|(?P<word>[^'
  + ''.join(chars for chars, _ in _SCRIPTS)
  + ']+)'
)


def repetition(text: str, n: int) -> float:
  """Returns the negated share of a text's n-grams that occurred before in it.

  'a b a b a b' with n = 2: ab ba ab ba ab has two distinct ones of five, so
  three of five are repeated: −0.6. A text shorter than an n-gram has 0. The
  share is within [0, 1); an n-gram counts as much as the piece that it begins
  with, so a long run of characters weighs no more than the words it stands for.

  Args:
    text: The text of a completion, in any script.
    n: Length of an n-gram in words.
  """
  if n < 1:
    raise UserError(f'repetition: n must be at least 1, got {n}')
  pieces = list(_pieces(text))
  seen: set[tuple[str, ...]] = set()
  total = distinct = units = end = 0
  for start, (_, size) in enumerate(pieces):
    while end < len(pieces) and units < n * _WORD_UNITS:
      units += pieces[end][1]
      end += 1
    if units < n * _WORD_UNITS:
      break
    gram = tuple(piece for piece, _ in pieces[start:end])
    total += size
    if gram not in seen:
      seen.add(gram)
      distinct += size
    units -= size
  return distinct / total - 1 if total else 0.0


def _pieces(text: str) -> Iterator[tuple[str, int]]:
  """Yields words, and characters of what has none, with their lengths in units."""
  for run in _INVISIBLE.sub('', text).split():
    for match in _PIECE.finditer(run):
      piece, kind = match[0], match.lastgroup or 'word'
      if kind != 'word':
        chars_per_word = _SCRIPTS[int(kind[1:])][1]
        yield piece, _WORD_UNITS // chars_per_word
      elif len(piece) <= _MAX_WORD_CHARS:
        yield piece, _WORD_UNITS
      else:
        for char in piece:
          yield char, _WORD_UNITS // _LONG_WORD_DIVISOR
