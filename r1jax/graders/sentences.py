"""Splits English text into sentences and words, as evaluations count them.

IFEval counts the sentences of Punkt (Kiss and Strunk 2006, Computational
Linguistics 32) and the words in capitals of the Penn Treebank tokenizer. Here
are rules of the same kind without their data: a sentence ends at . ? or ! before
a space, but not behind a common abbreviation or an initial, unless a word that
often opens a sentence follows.
"""

import re

# Titles, which stand before a name, and abbreviations that may end a sentence.
_TITLES = frozenset(
  'mr mrs ms dr prof st gen col capt cpt lt sgt rev hon gov maj vs e.g i.e cf'
  ' approx vol fig mt'.split()
)
_ABBREVIATIONS = frozenset(
  'sr jr inc ltd co corp bros etc al ca dept est ph.d m.d b.a m.a u.s u.k u.n d.c'
  ' a.m p.m jan feb mar apr jun jul aug sep sept oct nov dec ft ave blvd rd'.split()
)
# Words behind an abbreviation that are more likely to open a sentence.
_OPENERS = frozenset(
  'the he she it they we i you this that these those there in on at but and so if'
  ' when however a an his her their our my what who how why'.split()
)
_TOKEN = re.compile(r'\S+')
_CLOSERS = '"\'”’)]}*_'
_INITIAL = re.compile(r'[^\W\d_]')


def num_sentences(text: str) -> int:
  """Returns the number of sentences of a text; 0 for a blank one."""
  tokens = _TOKEN.findall(text)
  ends = sum(map(_ends_sentence, tokens, tokens[1:]))
  return ends + bool(tokens)


def _ends_sentence(token: str, following: str) -> bool:
  bare = token.rstrip(_CLOSERS)
  if not bare or bare[-1] not in '.?!':
    return False
  if bare[-1] != '.':
    return True
  opens = following.lstrip('"\'“‘([{*_')[:1].isupper()
  word = bare[:-1].lstrip('"\'“‘([{*_').lower()
  if bare.endswith('..'):  # An ellipsis goes on before a small letter.
    return opens
  if word in _TITLES or (_INITIAL.fullmatch(word) and word != 'i'):  # J. Smith
    return False
  if word in _ABBREVIATIONS:
    return opens and following.strip('"\'“‘([{,.').lower() in _OPENERS
  return True


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
