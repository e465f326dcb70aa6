"""Splits English text into sentences and words, as evaluations count them.

IFEval counts the sentences of Punkt (Kiss and Strunk 2006, Computational
Linguistics 32) and the words in capitals of the Penn Treebank tokenizer. Here
are rules of the same kind without their data: a sentence ends at . ? or ! before
a space, but not behind a common abbreviation, an ellipsis or an initial, unless a
word that often opens a sentence follows.
"""

import re

# Abbreviations that Punkt learned from news. It did not learn e.g., i.e. and
# etc., which end a sentence for it, and so they do here.
_ABBREVIATIONS = frozenset(
  'mr mrs ms dr prof st gen col lt sen rep maj vs sr jr inc ltd co corp bros ph.d'
  ' u.s u.k u.n d.c a.m p.m jan feb aug sep sept oct nov dec ft ave'.split()
)
# Words that open a sentence behind an abbreviation or an ellipsis, and further
# ones that do so behind a single letter, which else is an initial: J. Smith.
_OPENERS = frozenset(
  'the he it they i this these there in but so if when however her here yes'.split()
)
_COMMON = _OPENERS | frozenset(
  'she we you that those on at and a an his their our my what who how why now then'
  ' as after for no'.split()
)
_CLOSERS = '"\'”’)]}_'
# A sentence ends before an asterisk, so that a last '**' is one of its own.
_MARK = re.compile(r'(?<=[.?!])\*')
_OPENING = '"\'“‘([{*_'
_INITIAL = re.compile(r'[^\W\d_]')


def num_sentences(text: str) -> int:
  """Returns the number of sentences of a text; 0 for a blank one."""
  tokens = _MARK.sub(' *', text).split()
  ends = sum(map(_ends_sentence, tokens, tokens[1:]))
  return ends + bool(tokens)


def _ends_sentence(token: str, following: str) -> bool:
  bare = token.rstrip(_CLOSERS)
  if not bare or bare[-1] not in '.?!':
    return False
  if bare[-1] != '.':
    return True
  word = bare[:-1].lstrip(_OPENING).lower()
  following = following.strip(_OPENING + ',')
  if not (bare.endswith('..') or word in _ABBREVIATIONS):
    names = _COMMON if _INITIAL.fullmatch(word) else None
  else:
    names = _OPENERS
  if names is None:
    return True
  return following[:1].isupper() and following.lower() in names


def words(text: str) -> list[str]:
  """Returns the tokens of a text by the rules of the Penn Treebank.

  "DON'T stop, R&D." → DO N'T stop , R & D .
  """
  for pattern, replacement in _SPLITS:
    text = pattern.sub(replacement, text)
  return text.split()


_SPLITS = tuple(
  (re.compile(pattern, re.IGNORECASE), replacement)
  for pattern, replacement in (
    (r'["“”„«»‘`]|\'\'', r' \g<0> '),
    (r'([:,])(?!\d)', r' \1 '),
    (r'\.{2,}|--+|[;@#$%&?!()\[\]{}<>…]', r' \g<0> '),
    (r'\.(?=[\])}>"\'”’\s]*(?:\s+[A-Z0-9"“(]|\s*$))', r' . '),
    (r"(?<=\w)(n't|'(?:s|m|d|ll|re|ve))(?!\w)", r' \1 '),
    (r"(?<=\w)'(?!\w)|(?<!\w)'(?=\s)", r" ' "),
    (r'\b(can)(not)\b|\b(gim|lem)(me)\b', r' \1\3 \2\4 '),
    (r'\b(gon|wan)(na)\b|\b(got)(ta)\b', r' \1\3 \2\4 '),
  )
)
