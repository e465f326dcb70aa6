"""Language consistency: the share of a thought's words that are in the target
language (DeepSeek-R1, section 2.3.2).

Code, formulas and addresses are no words. A word of another script is not in
the target language; where several languages share the target's script, an
identifier reads the text by the sentence, and a sentence that it is sure is in
another language counts with none of its words.
"""

from functools import cache, lru_cache
import re
import unicodedata

from r1jax.errors import UserError

_LATIN = tuple('en de fr es it pt nl sv da no fi pl cs ro hu tr id vi'.split())
_CYRILLIC = tuple('ru uk bg sr'.split())
_ARABIC = tuple('ar fa ur'.split())
_DEVANAGARI = tuple('hi mr ne'.split())
_HAN, _KANA, _HANGUL = ('CJK',), ('HIRAGANA', 'KATAKANA'), ('HANGUL',)

# The scripts of each language, and the languages that share them.
_SCRIPTS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
  **{code: (('LATIN',), _LATIN) for code in _LATIN},
  **{code: (('CYRILLIC',), _CYRILLIC) for code in _CYRILLIC},
  **{code: (('ARABIC',), _ARABIC) for code in _ARABIC},
  **{code: (('DEVANAGARI',), _DEVANAGARI) for code in _DEVANAGARI},
  'zh': (_HAN, ('zh',)),
  'ja': (_HAN + _KANA, ('ja',)),
  'ko': (_HANGUL, ('ko',)),
  'el': (('GREEK',), ('el',)),
  'he': (('HEBREW',), ('he',)),
  'th': (('THAI',), ('th',)),
}
LANGUAGES = tuple(sorted(_SCRIPTS))

SURE = 0.9  # Of the identifier, before it takes words away.
LEAST_WORDS = 4  # Of a sentence that it is asked about.
# Scripts without spaces: so many characters are about a word.
_CHARACTERS_A_WORD = {script: 2 for script in (*_HAN, *_KANA, 'THAI')}

_CLOSING = {
  '```': '```',
  '`': '`',
  '$$': '$$',
  '$': '$',
  '\\[': '\\]',
  '\\(': '\\)',
}
_IN_A_LINE = ('`', '$')
_OPENING = re.compile('|'.join(map(re.escape, _CLOSING)))
_NO_WORDS = re.compile(r'\\[a-zA-Z]+|https?://\S+|</?\w{1,20}>')
_SENTENCE = re.compile(r'[.!?。！？؟।\n]+')
_LETTERS = re.compile(r'[^\W\d_]+')


def check(language: str):
  """Raises UserError for a language that is not known."""
  if language not in _SCRIPTS:
    raise UserError(
      f'language: unknown {language!r}; there are {", ".join(LANGUAGES)}'
    )


def consistency(text: str, language: str) -> float:
  """Words of the language over all words, within [0, 1]; 1 without words.

  'First add 3 and 4' → 1, 'First 加上 3 and 4' → 3/4: two characters are one
  word. A single letter, the name of a variable, is no word of a script that
  has spaces.
  """
  scripts, rivals = _SCRIPTS[language]
  target = total = 0.0
  for sentence in _SENTENCE.split(_NO_WORDS.sub(' ', _prose(text))):
    own, others = _count(sentence, scripts)
    total += own + others
    if own >= LEAST_WORDS and len(rivals) > 1:
      found, chance = _identify(sentence, rivals)
      if found != language and chance >= SURE:
        own = 0.0
    target += own
  return target / total if total else 1.0


def _prose(text: str) -> str:
  """Without code and formulas; linear in the text, whatever it opens."""
  kept, at = [], 0
  absent: set[str] = set()  # What is not closed any more.
  line_end = -1
  while opening := _OPENING.search(text, at):
    mark = opening.group()
    kept.append(text[at : opening.start()])
    at, closing = opening.end(), _CLOSING[mark]
    end = -1 if mark in absent else text.find(closing, at)
    if end < 0:
      absent.add(mark)
      if mark == '```':  # Cut off in the middle of its code.
        at = len(text)
    elif mark in _IN_A_LINE:
      if line_end < at:
        line_end = text.find('\n', at)
        line_end = len(text) if line_end < 0 else line_end
      if end < line_end:
        at = end + len(closing)
    else:
      at = end + len(closing)
  return ' '.join([*kept, text[at:]])


def _count(sentence: str, scripts: tuple[str, ...]) -> tuple[float, float]:
  """Words in these scripts, and in others."""
  own = others = 0.0
  for match in _LETTERS.finditer(sentence):
    for script, length in _runs(match.group()):
      size = _CHARACTERS_A_WORD.get(script)
      words = length / size if size else float(length > 1)
      if script in scripts:
        own += words
      else:
        others += words
  return own, others


def _runs(letters: str):
  """(script, characters) of each stretch in one script."""
  last, length = '', 0
  for letter in letters:
    script = _script(letter)
    if script != last and length:
      yield last, length
      length = 0
    last, length = script, length + 1
  yield last, length


@lru_cache(maxsize=1 << 16)
def _script(letter: str) -> str:
  """'LATIN', 'CJK', …: the first word of its name in Unicode."""
  return unicodedata.name(letter, 'UNKNOWN').split()[0]


@cache
def _identifier(languages: tuple[str, ...]):
  from py3langid.langid import MODEL_FILE, LanguageIdentifier

  made = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
  made.set_languages(languages)
  return made


def _identify(sentence: str, languages: tuple[str, ...]) -> tuple[str, float]:
  return _identifier(languages).classify(sentence)
