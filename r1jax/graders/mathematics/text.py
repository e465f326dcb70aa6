"""Normalises the notation of a mathematical answer: one form for each thing.

Unicode, plain text and LaTeX spell the same answer in many ways: ½, 1/2,
\\tfrac12; √2, sqrt(2), \\sqrt{2}; 1,250, 1{,}250, 1\\,250. `normalize` rewrites
them before texts are compared and parsed. It removes nothing that has a
meaning but currency signs, delimiters of formulas and the sizes of brackets.
"""

import functools
import re
import unicodedata

_SUPERSCRIPTS = dict(zip('⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ', '0123456789+-n'))
_SUBSCRIPTS = dict(zip('₀₁₂₃₄₅₆₇₈₉', '0123456789'))
_FRACTIONS = {
  '½': (1, 2),
  '⅓': (1, 3),
  '⅔': (2, 3),
  '¼': (1, 4),
  '¾': (3, 4),
  '⅕': (1, 5),
  '⅖': (2, 5),
  '⅗': (3, 5),
  '⅘': (4, 5),
  '⅙': (1, 6),
  '⅚': (5, 6),
  '⅛': (1, 8),
  '⅜': (3, 8),
  '⅝': (5, 8),
  '⅞': (7, 8),
}
_CHARACTERS = {
  '−': '-',
  '–': '-',
  '—': '-',
  '×': '\\times ',
  '⋅': '\\cdot ',
  '·': '\\cdot ',
  '∙': '\\cdot ',
  '÷': '/',
  '∕': '/',
  '⁄': '/',
  '√': '\\sqrt ',
  '∞': '\\infty ',
  '≤': '\\le ',
  '⩽': '\\le ',
  '≥': '\\ge ',
  '⩾': '\\ge ',
  '≠': '\\ne ',
  '≈': '\\approx ',
  '≡': '\\equiv ',
  '∈': '\\in ',
  '∪': '\\cup ',
  '∩': '\\cap ',
  '∅': '\\emptyset ',
  'Ø': '\\emptyset ',
  'ℝ': '\\mathbb{R}',
  'ℤ': '\\mathbb{Z}',
  'ℕ': '\\mathbb{N}',
  'ℚ': '\\mathbb{Q}',
  '±': '\\pm ',
  '∓': '\\mp ',
  '°': '\\degree ',
  'º': '\\degree ',
  '⟨': '\\langle ',
  '⟩': '\\rangle ',
  '→': '\\to ',
  '⌊': '\\lfloor ',
  '⌋': '\\rfloor ',
  '⌈': '\\lceil ',
  '⌉': '\\rceil ',
  '…': '\\ldots ',
  '′': "'",
  '’': "'",
  '“': '"',
  '”': '"',
  '，': ',',
  '、': ',',
  '；': ';',
  '：': ':',
  '。': '.',
  'μ': '\\mu ',
  'µ': '\\mu ',
}
_GREEK = (
  'alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi '
  'omicron pi rho _ sigma tau upsilon phi chi psi omega'
).split()
_CHARACTERS |= {
  chr(0x3B1 + i): f'\\{name} ' for i, name in enumerate(_GREEK) if name != '_'
}
_CHARACTERS |= {
  chr(0x391 + i): f'\\{name.capitalize()} '
  for i, name in enumerate(_GREEK)
  if name in ('gamma delta theta lambda xi pi sigma phi psi omega'.split())
}

# Commands that change nothing but the look.
_LOOK = re.compile(
  r'\\(?:left|right|middle|[bB]igg?[lrm]?|displaystyle|textstyle|scriptstyle'
  r'|limits|nolimits|rm|bf|it|hfill|protect|strut|phantom(?:\{[^{}]*\})?)'
  r'(?![a-zA-Z])\s*\.?'
)
_EMPTY_BRACKET = re.compile(r'\\(?:left|right)\s*\.')
_SPACE = re.compile(
  r'(?<!\\)\\[,;:!> ]|~|\\(?:enspace|thinspace|hspace\{[^{}]*\})'
)
_QUAD = re.compile(r'\\q?quad|(?<!\\)\\(?=\s)')
_SYNONYMS = {
  'dfrac': 'frac',
  'tfrac': 'frac',
  'cfrac': 'frac',
  'dbinom': 'binom',
  'tbinom': 'binom',
  'leq': 'le',
  'leqslant': 'le',
  'leqq': 'le',
  'geq': 'ge',
  'geqslant': 'ge',
  'geqq': 'ge',
  'neq': 'ne',
  'lt': '<',
  'gt': '>',
  'lbrace': '{',
  'rbrace': '}',
  'lbrack': '[',
  'rbrack': ']',
  'lvert': 'vert',
  'rvert': 'vert',
  'varnothing': 'emptyset',
  'dots': 'ldots',
  'cdots': 'ldots',
  'dotsc': 'ldots',
  'dotsm': 'ldots',
  'dotsb': 'ldots',
  'vdots': 'ldots',
  'to': 'to',
  'rightarrow': 'to',
  'ast': 'cdot',
  'star': 'cdot',
  'div': '/',
  'colon': ':',
  'slash': '/',
  'infin': 'infty',
  'infinity': 'infty',
  'varepsilon': 'epsilon',
  'vartheta': 'theta',
  'varphi': 'phi',
  'varrho': 'rho',
  'arcctg': 'arccot',
  'arctg': 'arctan',
  'tg': 'tan',
  'ctg': 'cot',
  'land': 'and',
  'lor': 'or',
  'wedge': 'and',
  'vee': 'or',
  'backslash': 'setminus',
  'textdollar': '$',
  'texteuro': '€',
  'pounds': '£',
  'textdegree': 'degree',
  'percent': '%',
  'textpercent': '%',
  'lim_': 'lim_',
}
_PUNCTUATION = {'{', '}', '%', '$'}  # Synonyms that stay escaped.
_BARE = {'<', '>', '[', ']', '/', ':', '€', '£'}
_COMMAND = re.compile(r'\\([a-zA-Z]+)')
_DEGREE = re.compile(
  r'\^\s*(?:\{\s*(?:\\(?:circ|degree|prime)|\*)\s*\}|\\(?:circ|degree)'
  r'(?![a-zA-Z]))|\\degree(?![a-zA-Z])|\\textdegree'
)
_FONT = re.compile(
  r'\\(?:mathrm|mathbf|mathit|mathsf|mathtt|mathnormal|boldsymbol|bm|pmb'
  r'|operatorname\*?|text|textbf|textit|textrm|textnormal|textsf|texttt|mbox'
  r'|hbox|emph|underline|mathop|mathcal|mathscr|mathfrak)\s*'
  r'(?:\{([^{}]*)\}|([A-Za-z0-9])(?![A-Za-z]))'
)
_ARRAY = re.compile(
  r'\\(begin|end)\s*\{(?:[pbvV]?matrix\*?|smallmatrix|array|aligned|align\*?|'
  r'cases|split|gathered)\}(?:\s*(?<=\})\s*(?:\[[a-z]\])?\{[lcr|@{}\s]*\})?'
)
_CASES = re.compile(r'\\\{\s*\\begin(?=\{matrix\})|\\bullet(?![a-zA-Z])')
_BOX = re.compile(r'\\(?:boxed|fbox)(?![a-zA-Z])\s*')
_BOLD = re.compile(
  r'(?<![\w)}\]*])\*\*(?=[^\s*])([^*]+?)(?<=\S)\*\*(?![\w({*])'
)
_DELIMITER = re.compile(r'(?<!\\)\\[()\[\]]|\\?\$')
_CURRENCY = re.compile(
  r'[€£¥₹₽₩]|\b(?:USD|EUR|GBP|RMB)\b|(?<![A-Za-z])US(?=\s*\d)'
)
# 5,\!525 and 5{,}525 and 5\,525: nothing else has three digits behind these.
_GROUP = re.compile(
  r'(?<=\d)(?:\s*\{,\s*\}\s*|,\s*\\!\s*|\\!,\s*|\s*\\[,!;:]\s*|\\ )(?=\d{3}(?!\d))'
)
_SPACED_GROUPS = re.compile(
  r'(?<![\d.,/^_{] )(?<![\d.,/^_])\d{1,3}(?: \d{3})+(?![\d/])'
)
_WORD_OPERATORS = (
  (re.compile(r'<=|=<|≦'), '\\\\le '),
  (re.compile(r'>=|=>|≧'), '\\\\ge '),
  (re.compile(r'!=|<>|/='), '\\\\ne '),
  (re.compile(r'==+|:='), '='),
  (re.compile(r'\*\*'), '^'),
  (re.compile(r'\.{3,}|\. \. \.'), '\\\\ldots '),
  (re.compile(r'\\text\{\s*(?:percent|pct|per cent|percentage)s?\s*\}'), '%'),
  (re.compile(r'(?<=[\d}\s])\s*(?:percent|pct|percentage|per cent)\b'), '%'),
  (re.compile(r'(?<=[\d}])\s*degrees?\b'), '\\\\degree '),
  (re.compile(r'\\text\{\s*degrees?\s*\}'), '\\\\degree '),
)
# Text that was escaped once too often; a line break has no such name behind it.
_TWICE_ESCAPED = re.compile(
  r'(?<!\\)\\\\(?=(?:[dtc]?frac|left|right|text|sqrt|boxed|pi|infty|le|ge|leq|geq'
  r'|cup|cap|begin|end|cdot|times|in|pm|circ|mathrm|mathbb|theta)(?![a-zA-Z]))'
)
_ORDINAL = re.compile(
  r'(?<![\w.])(\d+)\s*(?:\^\s*\{?)?\s*(?:\\text\{\s*)?(?:st|nd|rd|th)\b\s*\}?\}?'
)
_TO = re.compile(r'^\s*(\d+)\s+to\s+(\d+)\s*$')
_END = re.compile(r'(?:(?<![\\.])[.,;:?]|(?<=\d)\.|\\\\)\s*$')


@functools.lru_cache(256)  # An answer is compared as text, then parsed.
def normalize(text: str) -> str:
  """Rewrites an answer to the notation that parser.py reads.

  '\\dfrac12.' → '\\frac12', 'x²' → 'x^{2}', '$5{,}525$' → '5525'
  """
  text = _TWICE_ESCAPED.sub(r'\\', _unicode(text))
  text = _GROUP.sub('', text)
  text = _BOLD.sub(r'\1', text).replace('`', '')
  text = _EMPTY_BRACKET.sub('', text)
  text = _DELIMITER.sub(' ', text)
  text = _BOX.sub('', text)
  text = _LOOK.sub('', text)
  text = _ARRAY.sub(r' \\\1{matrix} ', text)
  text = _CASES.sub(_without_brace, text)
  text = _SPACE.sub(' ', text)
  text = _DEGREE.sub('\\\\degree ', text)
  text = _COMMAND.sub(_synonym, text)
  text = _FONT.sub(_font, text)
  text = _FONT.sub(_font, text)  # Fonts may be inside fonts.
  text = _QUAD.sub(' ;; ', text)
  text = _CURRENCY.sub('', text)
  for pattern, new in _WORD_OPERATORS:
    text = pattern.sub(new, text)
  text = _ORDINAL.sub(r'\1', text.replace('\\%', '%'))
  text = _TO.sub(r'\1:\2', text)
  text = re.sub(r'^\s*\\(?:cdot|approx)(?![a-zA-Z])', '', text)
  quoted = re.fullmatch(r'\s*"([^"]*)"[.,]?\s*', text)
  text = quoted[1] if quoted else text
  previous = None
  while text != previous:
    previous, text = text, _END.sub('', text.strip())
  return _SPACED_GROUPS.sub(lambda match: match[0].replace(' ', ''), text)


def compact(text: str) -> str:
  """Returns a normalized answer without what cannot change its meaning.

  Equal results mean equal answers; different ones mean nothing.
  """
  text = re.sub(r'\\text\{([^{}]*)\}', r'\1', text)
  text = re.sub(r'(\\[a-zA-Z]+)\s+(?=[a-zA-Z])', r'\1 ', text)
  return re.sub(r'(?<!\\[a-zA-Z])(?<![a-zA-Z])\s+|\s+(?![a-zA-Z])', '', text)


def _unicode(text: str) -> str:
  if text.isascii():
    return _CONTROL.sub(' ', text)
  out: list[str] = []
  script = ''  # The kind of script that is open.
  for char in text:
    kind = '^' if char in _SUPERSCRIPTS else '_' if char in _SUBSCRIPTS else ''
    if script and kind != script:
      out.append('}')
    if kind and kind != script:
      out.append(kind + '{')
    script = kind
    if kind:
      out.append((_SUPERSCRIPTS | _SUBSCRIPTS)[char])
    elif char in _FRACTIONS:
      out.append('\\frac{%d}{%d}' % _FRACTIONS[char])
    elif char in _CHARACTERS:
      out.append(_CHARACTERS[char])
    elif ord(char) < 128:
      out.append(char if char >= ' ' else ' ')
    elif not 0xD800 <= ord(char) < 0xE000:  # A lone surrogate is no text.
      out.append(unicodedata.normalize('NFKC', char))
  if script:
    out.append('}')
  return ''.join(out)


_CONTROL = re.compile(r'[\x00-\x1f]')


def _synonym(match: re.Match) -> str:
  name = _SYNONYMS.get(match[1], match[1])
  if name in _BARE:
    return name + ' '
  return '\\' + name


_QUANTITY = re.compile(r'[-+]?[\d.,]+(?:\s|$)')


def _without_brace(match: re.Match) -> str:
  return '\\begin' if 'begin' in match[0] else '\\cdot '


def _font(match: re.Match) -> str:
  """Unwraps the letters of formulas and keeps words as \\text."""
  content = match[1] if match[2] is None else match[2]
  inner = content.strip()
  if not re.search(r'[a-zA-Z]', inner) or _QUANTITY.match(inner):
    return f' {inner} '  # A number, or a number with its noun.
  single = re.fullmatch(r"[A-Za-z]'?", inner)
  if single and not re.match(r'\\(?:text|mbox|hbox)', match[0]):
    if match[0].startswith('\\mathrm') and inner in _SINGLE_UNITS:
      return f'\\text{{{content}}}'
    return f' {inner} '
  if inner in ('mod', 'bmod'):
    return '\\mod '
  if inner in _FUNCTION_WORDS or (
    inner in _OPERATOR_WORDS and match[0].startswith('\\operatorname')
  ):
    return f'\\{inner} '
  if match[0].startswith('\\operatorname') and inner.isalpha():
    return f'\\operatorname{{{inner}}}'
  return f'\\text{{{content}}}'


_SINGLE_UNITS = frozenset('mgshnz')
_FUNCTION_WORDS = frozenset(
  'sin cos tan cot csc arcsin arccos arctan arccot sinh cosh tanh log ln lg exp '
  'sqrt'.split()
)
_OPERATOR_WORDS = frozenset(
  'sec gcd lcm min max det sgn floor ceil abs'.split()
)
