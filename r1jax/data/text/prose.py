"""Tells prose from formulas, and finds formulas and numbers in prose.

Each function takes time linear in the length of the text.
"""

import re
import unicodedata

TAIL_CHARS = 2_000  # Characters that are searched for formulas and numbers.
FORMULA = re.compile(
  r'\$\$(?P<a>(?:[^$]|\$(?!\$))+)\$\$|(?<!\\)\$(?P<b>(?:[^$\n\\]|\\.)+)\$'
  r'|\\\((?P<c>(?:[^\\]|\\(?!\)))+)\\\)|\\\[(?P<d>(?:[^\\]|\\(?!\]))+)\\\]'
)
# Words in \\text are units; those of commands and environments are no words.
_COMMAND = re.compile(
  r'\\(?:text\w*|mbox|math\w+|operatorname|begin|end|overline)\s*\{[^{}]*\}'
  r'|\\[a-zA-Z]+'
)
_WORD = re.compile(r'[^\W\d_]{2,}')
_SHORT_WORDS = frozenset('is it to of so we by be as in on at he my'.split())
_MATHEMATICS = frozenset(
  'and or mod sin cos tan cot sec csc log ln exp sqrt pi max min gcd lcm lim det '
  'arcsin arccos arctan sinh cosh tanh alpha beta gamma theta lambda binom'.split()
)


def words(text: str) -> list[str]:
  """Returns the words that stand outside of the formulas of a text.

  Runs of letters such as 'xy' are no words, nor are names of functions. Only the
  end of a long text is searched.
  """
  plain = _COMMAND.sub(' ', text[-TAIL_CHARS:])
  # '$5 each, or $10' is no formula.
  plain = FORMULA.sub(lambda m: m[0] if _words(m[0]) else ' ', plain)
  return _words(plain)


def _words(text: str) -> list[str]:
  return [
    word
    for word in _WORD.findall(text)
    if word.lower() not in _MATHEMATICS
    and (
      not word.isascii()
      or word.lower() in _SHORT_WORDS
      or (len(word) > 2 and re.search('[aeiouyAEIOUY]', word))
    )
  ]


def num_words(text: str) -> int:
  """Returns the number of words outside of the formulas of a text."""
  return len(words(text))


def is_prose(text: str) -> bool:
  """Returns whether words stand outside of the formulas of a text."""
  return bool(words(text))


def is_formula(text: str) -> bool:
  """Returns whether a text of several lines is one formula.

  It is, if nothing but operators, separators and rows of a matrix are broken.
  """
  if FORMULA.fullmatch(text):
    return True
  return not is_prose(text) and all(
    _GOES_ON.search(text, max(0, end.start() - 20), end.start())
    or _CONTINUES.match(text, end.end())
    for end in re.finditer(r'\s*\n\s*', text)
  )


_GOES_ON = re.compile(r'(?:[-+*/=<>,;&({\[\\|]|\\begin\{\w+\}|\band|\bor)\Z')
_CONTINUES = re.compile(r'[-+*/=<>,;&)}\]]|\\end\b|\\\]|\\\)|and\b|or\b')
# A letter that is neither Latin nor Greek nor a symbol of mathematics.
_FOREIGN = re.compile(r'[^\W\d_A-Za-z\u00aa-\u03ff\u1d00-\u2bff]')


def is_foreign(text: str) -> bool:
  """Returns whether a text has letters that are neither Latin nor Greek."""
  return bool(_FOREIGN.search(text))


_DIGITS = r'\d+(?:,\d{3})*(?:\.\d+)?'
_NUMBER = re.compile(
  r'(?<![A-Za-z\u00aa-\u03ff\d_.^/])[-−+]?[$€£¥₹]?'
  rf'(?:{_DIGITS}|\.\d+)(?::\d\d)*'
  r'(?:\s?[x×*]\s?10\^\{?[-−]?\d+\}?|\^[-−]?\d+|\s?/\s?\d+(?:\.\d+)?)?'
  r'(?:\\?%)?'
)
# What may stand between two values of one list, at the end of a sentence.
_JOINT = re.compile(
  r'\s*,?\s*(?:\b(?:and|or|und|oder|et|ou)\b|和|或|と|または)\s*|,'
)


def last_value(text: str) -> str | None:
  """Returns the last formula or number of a text; None without one.

  Values that 'and' or 'or' joins are one: 'it is 3 or 5' → '3 or 5'.

  'It is $\\frac{1}{2}$.' → '\\frac{1}{2}', '3 apples, 1,250 pears' → '1,250',
  'half, so 1/2 of it' → '1/2', 'it costs $5' → '5'
  """
  found = values(text)
  return found[-1] if found else None


def values(text: str) -> list[str]:
  """Returns the formulas and numbers at the end of a text in their order.

  Values that 'and' or 'or' joins are one. Names of variables, points and
  angles, such as $n$, count only where nothing else does.
  """
  text = text[-TAIL_CHARS:]
  spans = _spans(text)
  spans = [span for span in spans if not _NAME.fullmatch(span[2])] or spans
  found: list[tuple[int, int, str]] = []
  for start, end, value in spans:
    if (
      found
      and _JOINT.fullmatch(text[found[-1][1] : start])
      and (_left_side(found[-1][2]) == _left_side(value))
    ):
      start = found.pop()[0]
      value = text[start:end]
    found.append((start, end, value))
  return [value for *_, value in found]


def _left_side(value: str) -> str:
  """Returns the side of an equation that is left of its first sign, or ''."""
  name, sign, _ = value.strip('$ ').partition('=')
  return name.strip() if sign else ''


_NAME = re.compile(
  r"(?:\\(?:triangle|angle|overline)\s*)?\{?[A-Za-z]{1,4}(?:_\{?\w+\}?)?'?\}?"
)


def number(text: str) -> str | None:
  """Returns the number that a text is, without its currency; None if it is none.

  '$18' → '18', '٤٢' → '42', '−5' → '-5'
  """
  return _plain(text) if _NUMBER.fullmatch(text) else None


def _plain(number: str) -> str:
  """Writes a number with ASCII digits and signs, and without a currency."""
  digits = ''.join(
    str(unicodedata.decimal(c)) if c.isdecimal() else c for c in number
  )
  return re.sub('[$€£¥₹]', '', digits.replace('−', '-').lstrip('+'))


def _spans(text: str) -> list[tuple[int, int, str]]:
  """Returns start, end and value of the formulas and numbers of a text."""
  found: list[tuple[int, int, str]] = []

  def take(match: re.Match) -> str:
    content = next(filter(None, match.groups())).strip()
    # '$5 and $10' is two prices rather than a formula.
    if is_prose(content) or _HALF.search(content):
      return match[0]
    if re.search(r'\w', content):
      found.append((*match.span(), content))
      return ' ' * len(match[0])
    return match[0]

  rest = FORMULA.sub(take, text)
  rest = _BREAK.sub(lambda match: '\n' * len(match[0]), rest)
  for run in _RUN.finditer(rest):
    found += _of_run(rest, *run.span())
  return sorted(found)


# What stands between two prices, such as '$5 and $10' and '$5 = $10'.
_HALF = re.compile(r'^(?:and|or)\b|\b(?:and|or)$|[-+*/=x×:]$')
# What begins or ends a formula without being a part of it.
_BREAK = re.compile(
  r'\\(?:begin|end)\s*\{\w+\*?\}|\\(?:Rightarrow|implies|qquad|quad)(?![a-zA-Z])'
)
# What may be a formula without delimiters: commands, numbers, signs, and letters
# that stand alone, but for the words a and A.
_RUN = re.compile(
  r'(?:\\(?:text|mathrm|mbox)\s*\{[^{}]*\}|\\[a-zA-Z]+|\\[{}%!,;$]'
  r'|[\d.,+\-−*/^=(){}\[\]<>%!|_ √π°²³½×$€£¥₹]'
  r'|(?<=\d):(?=\d)|(?<![^\W\d_])(?<![\x27\u2019])[b-zB-HJ-Z](?![^\W\d_]))+'
)
_RICH = re.compile(r'[a-zA-Z\\^√π([{]')
_ARITHMETIC = re.compile(r'[\d\s.,+\-−*/×x^()$€£¥₹%=]*')
# A number behind the last sign of an equation, with a currency or a unit.
_RESULT = re.compile(
  r'\s*[$€£¥₹]?\s?[-−]?\d[\d.,]*(?: \d{3})*%?\s?[a-z$€£¥]?[\s.,]*'
)


def _of_run(text: str, start: int, end: int) -> list[tuple[int, int, str]]:
  """Returns the one formula of a run, or else its numbers."""
  first, sign, last = text[start:end].rpartition('=')
  if sign and _RESULT.fullmatch(last):
    formula = last.strip(' .,$€£¥₹')
  elif _ARITHMETIC.fullmatch(first):
    formula = balanced(last.strip(' .,:;*+$'))
    formula = formula if _RICH.search(formula) else ''
  else:
    formula = balanced(text[start:end].strip(' .,:;*+='))
  if re.search(r'\d', formula):
    offset = text.rindex(formula, start, end)
    return [(offset, offset + len(formula), _plain(formula))]
  return [
    (*match.span(), _plain(match[0]))
    for match in _NUMBER.finditer(text, start, end)
  ]


def balanced(text: str) -> str:
  """Removes a bracket at either end that has no other."""
  text = text.lstrip(')]} =')
  for opening, closing in ('()', '[]', '{}'):
    surplus = text.count(opening) - text.count(closing)
    if surplus > 0 and text.startswith(opening):
      text = text[1:]
    elif surplus < 0 and text.endswith(closing):
      text = text[:-1]
  return text.strip(' .,:;=')


# A stop of a sentence, a character that ends one elsewhere, and the mark of a
# chat that begins another turn.
_SENTENCE_END = re.compile(
  r'(?<!\bMr)(?<!\bMs)(?<!\bMrs)(?<!\bDr)(?<!\bSt)[.?](?=["”]?\s)|[。！？]|<\|'
  r'|!(?=["”]?(?:\s+["“]?[A-Z]|\s*\Z))'
)
_COPULA = re.compile(r'(?:です|である|입니다|이다)$')


def first_sentence(text: str) -> str:
  """Returns a text up to the end of its first sentence, formulas kept whole."""
  text = text.replace('\\"', '"')
  hidden = FORMULA.sub(lambda m: '$' * len(m[0]), text)
  end = _SENTENCE_END.search(hidden)
  text = cleaned(text[: end.start()] if end else text)
  return cleaned(_COPULA.sub('', text)).strip('"“”')


def cleaned(text: str) -> str:
  """Removes Markdown emphasis, a final stop and the dollars of one formula."""
  text = text.strip(' \t\n*`').strip()
  text = re.sub(r'(?<![.\\])[.。,;]$', '', text).rstrip(' *`')
  whole = FORMULA.fullmatch(text) if len(text) <= TAIL_CHARS else None
  if whole:
    text = next(filter(None, whole.groups())).strip()
  return text
