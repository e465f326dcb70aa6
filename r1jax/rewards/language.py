"""Language consistency: the share of a text's words in the target language.

DeepSeek-R1, section 2.3.2, rewards it for thoughts. Code, formulas and URLs do
not count as words, nor do names that every language writes in Latin letters:
single letters, short capitals (triangle ABC), functions and units (sin, cm). A
word in a script that the target language does not use is not in that language.
If several languages share a script, a language identifier classifies each
sentence; when it is confident that a sentence is in another language, none of
the words in that script count. So are Chinese and Japanese told apart.
"""

from collections import defaultdict
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
  'zh': (_HAN, ('ja', 'zh')),
  'ja': (_HAN + _KANA, ('ja', 'zh')),
  'ko': (_HANGUL, ('ko',)),
  'el': (('GREEK',), ('el',)),
  'he': (('HEBREW',), ('he',)),
  'th': (('THAI',), ('th',)),
}
LANGUAGES = tuple(sorted(_SCRIPTS))

MIN_CONFIDENCE = 0.9  # Below it the identifier's answer is ignored.
MIN_WORDS = 4  # Shorter sentences are not identified.
# Scripts without spaces: number of characters that count as one word, so that
# translations of a text have about as many.
_CHARACTERS_PER_WORD = {script: 2 for script in (*_HAN, *_KANA)} | {
  script: 4 for script in ('THAI', 'LAO', 'MYANMAR', 'KHMER')
}

_CLOSING = {
  '```': '```',
  '`': '`',
  '$$': '$$',
  '$': '$',
  '\\[': '\\]',
  '\\(': '\\)',
}
_WITHIN_LINE = ('`', '$')
_OPENING = re.compile('|'.join(map(re.escape, _CLOSING)))
_NO_WORDS = re.compile(
  r'\\(?:begin|end|mathrm|mathbf|mathit|operatorname)\*?\s*\{\w{0,20}\*?\}'
  r'|\\[a-zA-Z]+|https?://\S+|</?\w{1,20}>'
)
_SENTENCE = re.compile(r'[.!?。！？؟।\n]+')
# Vowel signs and other marks that belong to the letter before them.
_MARKS = ''.join(
  char
  for char in map(chr, range(0x300, 0x2000))
  if unicodedata.category(char) in ('Mn', 'Mc')
)
_LETTERS = re.compile(rf'[^\W\d_](?:[^\W\d_]|[{_MARKS}\u200c\u200d])*')
# Names of mathematics that are no words of English.
_NAMES = frozenset(
  'sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh log ln lg exp lim '
  'max min sup inf det gcd lcm mod deg dim mm cm dm km mg kg ml pi'.split()
)
_CAPITALS = re.compile('[A-Z]{1,4}')


def check(language: str):
  """Raises UserError for an unknown language code."""
  if language not in _SCRIPTS:
    raise UserError(
      f'language: unknown {language!r}; there are {", ".join(LANGUAGES)}'
    )


def consistency(text: str, language: str) -> float:
  """Returns the share of words in a language, within [0, 1]; 1 without words.

  'First add 3 and 4' → 1, 'First 加上 3 and 4' → 3/4: two Chinese characters
  count as one word. In scripts with spaces a single letter, such as the name of a
  variable, does not count as a word.
  """
  scripts, rivals = _SCRIPTS[language]
  shared = {script for rival in rivals for script in _SCRIPTS[rival][0]}
  target = total = 0.0
  for sentence in _SENTENCE.split(_NO_WORDS.sub(' ', _prose(text))):
    words = _count(sentence)
    own = sum(words[script] for script in scripts)
    total += sum(words.values())
    if sum(words[s] for s in shared) >= MIN_WORDS and len(rivals) > 1:
      identified, confidence = _identify(sentence, rivals)
      if identified != language and confidence >= MIN_CONFIDENCE:
        own = 0.0
    target += own
  return target / total if total else 1.0


def _prose(text: str) -> str:
  """Removes code and formulas, in linear time, however they are left open."""
  kept, at = [], 0
  absent: set[str] = set()  # Marks that no later mark closes.
  line_end = -1
  while opening := _OPENING.search(text, at):
    mark = opening.group()
    kept.append(text[at : opening.start()])
    at, closing = opening.end(), _CLOSING[mark]
    end = -1 if mark in absent else text.find(closing, at)
    if end < 0:
      absent.add(mark)
      if mark == '```':  # The text was cut off in its code.
        at = len(text)
    elif mark in _WITHIN_LINE:
      if line_end < at:
        line_end = text.find('\n', at)
        line_end = len(text) if line_end < 0 else line_end
      if end < line_end:
        at = end + len(closing)
    else:
      at = end + len(closing)
  return ' '.join([*kept, text[at:]])


def _count(sentence: str) -> dict[str, float]:
  """Counts the words of a sentence by their script."""
  words: dict[str, float] = defaultdict(float)
  for match in _LETTERS.finditer(sentence):
    for script, run in _runs(match.group()):
      size = _CHARACTERS_PER_WORD.get(script)
      if size:
        words[script] += len(run) / size
      elif len(run) > 1 and not _is_name(run):
        words[script] += 1
  return words


def _is_name(run: str) -> bool:
  """Returns whether a word is a name that every language writes alike."""
  return run in _NAMES or bool(_CAPITALS.fullmatch(run))


def _runs(letters: str):
  """Yields (script, letters) of each run of one script, marks included."""
  last, begin = '', 0
  for i, letter in enumerate(letters):
    script = _script(letter)
    if script != last and script:
      if last:
        yield last, letters[begin:i]
        begin = i
      last = script
  if last:
    yield last, letters[begin:]


# First words of names of letters, and the script that they are of; '' for marks
# that are of any script, and signs of mathematics that are of none.
_ALIASES = {
  'KATAKANA-HIRAGANA': 'KATAKANA',
  'IDEOGRAPHIC': 'CJK',
  'COMBINING': '',
  'ZERO': '',
  'MATHEMATICAL': '',
}


@lru_cache(maxsize=1 << 16)
def _script(letter: str) -> str:
  """Returns the script in a letter's Unicode name: 'LATIN', 'CJK', … or ''."""
  name = unicodedata.name(letter, 'UNKNOWN').split()
  if name[0] in ('HALFWIDTH', 'FULLWIDTH'):
    del name[0]
  return _ALIASES.get(name[0], name[0])


@cache
def _identifier(languages: tuple[str, ...]):
  """Returns a language identifier that knows only these languages."""
  from py3langid.langid import MODEL_FILE, LanguageIdentifier

  identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
  identifier.set_languages(languages)
  return identifier


def _identify(sentence: str, languages: tuple[str, ...]) -> tuple[str, float]:
  """Returns the most likely of the languages and its probability."""
  return _identifier(languages).classify(sentence)
