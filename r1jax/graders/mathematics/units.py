"""Units, nouns and words: what may stand behind a value, and what is text."""

from collections.abc import Sequence
from fractions import Fraction
import re

from r1jax.graders.mathematics.lexer import Token
from r1jax.graders.mathematics.nodes import Node

# Short words that are units of measure. Longer words are nouns, whatever they say.
UNITS = frozenset(
  'cm mm km dm nm um m kg mg g lb lbs oz ft in yd mi hr hrs h min mins s sec secs '
  'ms mph kph kmh L mL ml cl N J kJ W kW MW V A Hz kHz MHz GHz Pa kPa K C F cc sq '
  'rad deg am pm AM PM kWh eV keV MeV GeV mol atm T nT G Gyr Myr yr yrs au AU pc '
  'kpc Mpc sr dB ohm GPa MPa cal kcal erg dyn ergs AA units unit ha gal qt pt '
  'hours bps kb KB MB GB'.split()
)
# Units that may stand right behind a number, since they are no product.
_JOINED_UNITS = frozenset(
  'cm mm km kg mg ft lb lbs hr hrs min mins sec mph kph mL ml kW Hz oz yd'.split()
)
_GLUE = ('per', '/', '^', 'cdot', '*', '-', 'of', 'a', '{', '}', '(', ')')
# Runs of letters that are products although a noun could be spelled so.
_PRODUCT = re.compile(r'[a-d]{2,4}|[w-z]{2,4}|[p-s]{2,4}|[m-o]{2,4}|[ijk]{2,3}')


def is_noun(word: str) -> bool:
  """Whether a run of letters behind a value is a unit or a noun."""
  if word in UNITS and len(word) > 1:
    return True
  return (
    len(word) >= 3
    and not _PRODUCT.fullmatch(word)
    and bool(re.search('[aeiouyAEIOUY]', word))
    and word[1:].islower()
  )


def end(tokens: Sequence[Token], position: int, left: Node) -> int | None:
  """Returns where a unit that begins at a position ends; None if none does.

  A unit is a word or several, with powers: cm^2, km per hour, people. It must
  be the last thing of an item.
  """
  first = _at(tokens, position)
  if not _begins(first):
    return None
  index = position
  while True:
    token = _at(tokens, index)
    if token.kind in ('word', 'text'):
      if token.text.strip() in ('and', 'or', 'and/or', 'mod'):
        break
      if token.kind == 'word' and not (
        is_noun(token.text)
        or token.text in UNITS
        or token.text in _GLUE
        or (token.spaced and len(token.text) > 1)
      ):
        return None
      index += 1
    elif token.text in _GLUE and _is_glue(tokens, index):
      index += 1
    elif token.kind == 'number' and _at(tokens, index - 1).text in '^{-':
      index += 1
    else:
      break
  return index if _ends_item(_at(tokens, index)) else None


def _begins(token: Token) -> bool:
  if token.kind == 'text':
    return token.text.strip(' ,;').lower() not in ('and', 'or', '', 'and/or')
  if token.kind != 'word':
    return False
  return is_noun(token.text) if token.spaced else token.text in _JOINED_UNITS


def _is_glue(tokens: Sequence[Token], index: int) -> bool:
  """Whether a sign joins parts of a unit and does not end its brackets."""
  token = _at(tokens, index)
  if token.text == '(':
    return any(t.text == ')' for t in tokens[index:])
  if token.text in (')', '}'):
    opening = {')': '(', '}': '{'}[token.text]
    start = index
    while start and tokens[start].text != opening:
      if tokens[start].kind == 'number' and opening == '(':
        return False
      start -= 1
    return _at(tokens, start - 1).text == '^' or (
      opening == '(' and _at(tokens, start - 1).kind in ('text', 'word')
    )
  if token.text == '{':
    return _at(tokens, index - 1).text == '^'
  return True


def _ends_item(token: Token) -> bool:
  if token.kind == 'end':
    return True
  if token.kind == 'sign':
    return token.text in (',', ';', ';;', ')', ']', '}', '\\}', '=', '\\\\')
  if token.kind == 'command':
    return token.text in ('approx', 'and', 'or', 'end')
  return token.kind in ('word', 'text')


def _at(tokens: Sequence[Token], index: int) -> Token:
  return tokens[index] if 0 <= index < len(tokens) else Token('end', '')


def is_prose(tokens: Sequence[Token], position: int) -> bool:
  """Whether the run of letters at a position is a word of a sentence."""
  word = tokens[position].text
  if len(word) == 1:
    return False
  if word in _STOP_WORDS or (
    len(word) > 3 and _is_word(word) and not (_PRODUCT.fullmatch(word))
  ):
    return True
  return any(
    neighbour.kind == 'word' and len(neighbour.text) > 1 and later.spaced
    for neighbour, later in (
      (_at(tokens, position - 1), _at(tokens, position)),
      (_at(tokens, position + 1), _at(tokens, position + 1)),
    )
  )


_STOP_WORDS = frozenset(
  'is are the it to of by at on not for was so we as be can you has had'.split()
)
_TEXT = re.compile(r'\\text\s*\{([^{}]*)\}')
_WORD = re.compile(r"[^\W\d_]+(?:[-'][^\W\d_]+)*")
# Words of plain text that are mathematics.
_MATHEMATICS = re.compile(
  r'[=^_\\|<>+*/\[\]{}]|\d|\b(?:pi|sin|cos|tan|log|ln|sqrt|infinity|inf|exp)\b'
)


def words(text: str) -> str | None:
  """Returns a normalized answer in lower case if it is made of words alone.

  'Monday' → 'monday', '\\text{no solution}' → 'no solution', 'ab' → None
  """
  plain = _TEXT.sub(r' \1 ', text)
  if _MATHEMATICS.search(plain):
    return None
  found = _WORD.findall(plain)
  if not found or not _WORD.search(plain):
    return None
  in_text = '\\text' in text and not _TEXT.sub('', text).strip(' ().,;')
  if not in_text and not any(map(_is_word, found)):
    return None
  if not in_text and not all(
    _is_word(word) or len(word) <= 3 for word in found
  ):
    return None
  return ' '.join(plain.replace('(', ' ').replace(')', ' ').lower().split())


def _is_word(word: str) -> bool:
  """Whether a run of letters is a word and not a product of variables."""
  if not word.isascii():
    return True
  if word in (
    'yes',
    'no',
    'Yes',
    'No',
    'YES',
    'NO',
    'odd',
    'none',
    'one',
    'DNE',
    'dne',
  ):
    return True
  return (
    len(word) >= 4
    or (len(word) == 3 and word[0].isupper() and word[1:].islower())
  ) and bool(re.search('[aeiouyAEIOUY]', word))


# Kind and size of units that a careless answer confuses.
_SCALES = {
  'mm': ('length', Fraction(1, 1000)),
  'cm': ('length', Fraction(1, 100)),
  'm': ('length', Fraction(1)),
  'km': ('length', Fraction(1000)),
  'in': ('length', Fraction(254, 10_000)),
  'ft': ('length', Fraction(3048, 10_000)),
  'yd': ('length', Fraction(9144, 10_000)),
  'mi': ('length', Fraction(1_609_344, 1000)),
  'mg': ('mass', Fraction(1, 1000)),
  'g': ('mass', Fraction(1)),
  'kg': ('mass', Fraction(1000)),
  's': ('time', Fraction(1)),
  'min': ('time', Fraction(60)),
  'h': ('time', Fraction(3600)),
  'day': ('time', Fraction(86_400)),
  'mL': ('volume', Fraction(1, 1000)),
  'L': ('volume', Fraction(1)),
  'cent': ('money', Fraction(1, 100)),
  'dollar': ('money', Fraction(1)),
}
_LONG_UNITS = {
  'millimeter': 'mm',
  'centimeter': 'cm',
  'meter': 'm',
  'metre': 'm',
  'kilometer': 'km',
  'inch': 'in',
  'inche': 'in',
  'foot': 'ft',
  'feet': 'ft',
  'yard': 'yd',
  'mile': 'mi',
  'milligram': 'mg',
  'gram': 'g',
  'kilogram': 'kg',
  'second': 's',
  'sec': 's',
  'minute': 'min',
  'hour': 'h',
  'hr': 'h',
  'liter': 'L',
  'litre': 'L',
  'milliliter': 'mL',
}


def scale(unit: str) -> tuple[str, Fraction] | None:
  """Returns what a unit measures and its size; None for other units and nouns.

  'cm' → ('length', 1/100); 'minutes' → ('time', 60)
  """
  for name in (unit, unit.removesuffix('s')):
    name = _LONG_UNITS.get(name, name)
    if name in _SCALES:
      return _SCALES[name]
  return None


def are_compatible(a: str, b: str) -> bool:
  """Whether two units may stand for one: not cm^2 and cm^3, nor a.m. and p.m.

  Nouns are compatible: 7 students are 7 pupils.
  """
  letters = [re.sub(r'[^A-Za-z/]', '', unit) for unit in (a, b)]
  digits = [re.findall(r'\d', unit) for unit in (a, b)]
  if letters[0] == letters[1]:
    return digits[0] == digits[1]
  return all(scale(unit) for unit in (a, b)) or not all(
    len(name) <= 2 for name in letters
  )


_ONES = (
  'zero one two three four five six seven eight nine ten eleven twelve thirteen '
  'fourteen fifteen sixteen seventeen eighteen nineteen'
).split()
_TENS = 'twenty thirty forty fifty sixty seventy eighty ninety'.split()


def cardinal(text: str) -> int | None:
  """Returns the number below 100 that words spell: 'twenty-four' → 24."""
  words = text.lower().replace('-', ' ').split()
  if len(words) == 1 and words[0] in _ONES:
    return _ONES.index(words[0])
  if not words or words[0] not in _TENS or len(words) > 2:
    return None
  tens = 20 + 10 * _TENS.index(words[0])
  if len(words) == 1:
    return tens
  one = _ONES.index(words[1]) if words[1] in _ONES else 0
  return tens + one if 0 < one < 10 else None
