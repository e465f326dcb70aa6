"""Finds the final answer in a text that has no answer tags.

  boxed    the last \\boxed{} of the text
  stated   the last \\boxed{}, '#### 42', 'The answer is 42', or the last number

Each takes time linear in the length of the text.
"""

import re
import unicodedata

# A box or another brace that opens; a box of one word without braces; a brace
# that closes; an escaped character.
_BRACE = re.compile(
  r'(?P<open>(?P<box>\\(?:boxed|fbox)\s*)?\{)'
  r'|\\(?:boxed|fbox)\s+(?P<bare>[-+\w.,/]*\w)|\\.|(?P<close>\})',
  re.DOTALL,
)


def boxed(text: str) -> str | None:
  """Returns the content of the last complete \\boxed{}; None without one.

  '\\boxed{7}, no, \\boxed{42}' → '42', '\\boxed 42' → '42', '\\boxed{42' → None
  """
  # Start of the content of each open brace; −1 if the brace is not a box's.
  opened: list[int] = []
  last = slice(-1, -1)  # The content that begins last.
  for mark in _BRACE.finditer(text):
    if mark['open']:
      opened.append(mark.end() if mark['box'] else -1)
    elif mark['bare']:
      last = slice(*mark.span('bare'))
    elif mark['close'] and opened:
      start = opened.pop()
      if start > last.start:
        last = slice(start, mark.start())
  return text[last].strip() if last.start >= 0 else None


def stated(text: str) -> str | None:
  """Returns the answer that a text states without tags; None without one.

  A text that was cut off in its only box has no answer. Otherwise the first of
  these rules that finds something decides, with the last match of it in the
  text:

    1. a box                          \\boxed{42}
    2. GSM8K's marks                  #### 42 | A: 42
    3. a statement                    The answer is 42. | **Answer:** 42 | 答案是42
    4. a program in a fence           all of the text, for the grader of programs
    5. a line that begins with it     (1, 2) | x = 42 | 18 dollars
    6. the last formula or number     So she pays $\\frac{3}{4}$ of it.
    7. a line without a number        Paris

  Beside a program, a statement must hold a number.
  """
  text = _TAG.sub('', text).strip()
  answer = boxed(text)
  if answer is not None or '\\boxed{' in text:
    return answer or None
  prose = _FENCED.sub(_PROGRAM, text)
  answer = _marked(prose)
  if answer is None:
    answer = _statement(prose)
  if prose != text:
    return answer if answer and _values(answer) else text
  one_line = '\n' not in text
  if answer is None and one_line and not _BEGINS_WITH_WORD.match(text):
    answer = _cleaned(text) if num_words(text) <= 2 else None
  if answer is None:
    answer = last_value(text)
  if answer is None and one_line:
    answer = _cleaned(text)
  return answer or None


_TAG = re.compile(r'</?(?:answer|summary|final_answer)>')
_BEGINS_WITH_WORD = re.compile(
  r'\W*(?:[^\W\d_]{2}|[^\W\d_A-Za-z\u00aa-\u03ff])'
)
_FENCED = re.compile(r'```.*?(?:```|\Z)', re.DOTALL)
_PROGRAM = '\0'  # Stands for a program where statements are looked for.
_MAX_TRIES = 50  # Statements that are tried, from the last one on.
_MARKED = re.compile(r'^[ \t]*(####|A:)[ \t]*(\S.*)$', re.MULTILINE)


def _marked(text: str) -> str | None:
  """Returns what follows '####' or 'A:' in GSM8K's answers.

  '#### Step 2: add' is a heading, and 'A: 7' above other lines is a choice.
  """
  for match in list(_MARKED.finditer(text))[: -_MAX_TRIES - 1 : -1]:
    mark, value = match[1], match[2].strip()
    is_last_line = not text[match.end() :].strip()
    is_bare = mark == '####' and not num_words(value)
    if not _NOUN.search(value) and (is_last_line or is_bare):
      return _cleaned(value)
  return None


# Words for an answer, and the words or marks that join it to its value.
_NOUN = re.compile(
  r'\b(?:answers?|respuesta|resposta|r[eé]ponse|risposta|antwort|ответ)\b'
  r'|答案|答え|解答|정답|답은|الإجابة|الجواب|คำตอบ|đáp án',
  re.IGNORECASE,
)
_JOIN = re.compile(
  r'(?:\b(?:is|are|was|be|equals|es|é|est|è|ist|sind|равен|равно|là)\b'
  r'|[:：=]|[—–] |是|为|為|は|هي|هو|คือ|답은)'
  r'(?:[ \t]*[:：=])?'
)
_MAX_JOIN_CHARS = 60  # Between the noun and its verb.
# Words that say something about an answer rather than give it.
_NO_VALUE = re.compile(
  r'(?:in)?(?:correct|right|wrong|not|found|given|obtained|shown|below|as'
  r' follows|therefore|thus|clear|unique|valid|reasonable|consistent|what)\b',
  re.IGNORECASE,
)


def _statement(text: str) -> str | None:
  """Returns the value of the last statement such as 'The answer is 42'."""
  for noun in list(_NOUN.finditer(text))[: -_MAX_TRIES - 1 : -1]:
    line_end = text.find('\n', noun.end())
    line_end = len(text) if line_end < 0 else line_end
    line = text[noun.end() : line_end]
    join = _JOIN.search(line, 0, _MAX_JOIN_CHARS)
    if join:
      value = line[join.end() :]
    elif noun[0] == '답은' or not line.strip(' \t*_#`'):
      value = line.strip(' \t*_#`')
    else:
      continue
    if not value.strip(' \t*_:：`'):  # A heading, with its value below.
      below = text[line_end : line_end + _TAIL_CHARS].strip()
      formula = _FORMULA.match(below)
      value = formula[0] if formula else below.partition('\n')[0]
    value = _first_sentence(_cleaned(value[:_TAIL_CHARS]))
    if value and not _NO_VALUE.match(value):
      return _value(value)
  return None


# A letter that is neither Latin nor Greek.
_FOREIGN = re.compile(r'[^\W\d_A-Za-z\u00aa-\u03ff]')


def _value(sentence: str) -> str:
  """Returns the only number or formula of a sentence, or all of a short text.

  The grader knows units in English; after '42 元' or '42 บาท' the number is
  taken, as among more than two words.
  """
  sentence = _ASIDE.sub('', _HEDGE.sub('', sentence))
  values = _values(sentence)
  if len(values) == 1 and (
    num_words(sentence) > 2
    or _FOREIGN.search(sentence)
    or _NUMBER.fullmatch(sentence)
  ):
    return values[0]
  return _ascii(sentence)


_HEDGE = re.compile(
  r'^(?:approximately|about|roughly|exactly|equal to|simply|just|indeed)\s+',
  re.IGNORECASE,
)
# A remark in brackets behind an answer; '(mod 7)' is part of it.
_ASIDE = re.compile(r'(?<=\S)\s+\((?!mod\b)[^()]*[^\W\d_]{2}[^()]*\)$')
_SENTENCE_END = re.compile(
  r'(?<!\bMr)(?<!\bMs)(?<!\bMrs)(?<!\bDr)(?<!\bSt)[.!?](?=\s)|[。！？]'
)
_COPULA = re.compile(r'(?:です|である|입니다|이다)$')


def _first_sentence(text: str) -> str:
  """Returns a text up to the end of its first sentence, formulas kept whole."""
  hidden = _FORMULA.sub(lambda m: '$' * len(m[0]), text)
  end = _SENTENCE_END.search(hidden)
  text = _cleaned(text[: end.start()] if end else text)
  return _cleaned(_COPULA.sub('', text)).strip('"“”')


_TAIL_CHARS = 2000  # Characters that are searched for formulas and numbers.
_FORMULA = re.compile(
  r'\$\$(?P<a>.+?)\$\$|\$(?P<b>[^$\n]+)\$|\\\((?P<c>.+?)\\\)'
  r'|\\\[(?P<d>.+?)\\\]',
  re.DOTALL,
)
_DIGITS = r'\d+(?:,\d{3})*(?:\.\d+)?'
_NUMBER = re.compile(
  r'(?<![A-Za-z\u00aa-\u03ff\d_.^/])[-−+]?[$€£¥₹]?'
  rf'(?:{_DIGITS}|\.\d+)(?::\d\d)*'
  r'(?:\s?[x×*]\s?10\^\{?[-−]?\d+\}?|\^[-−]?\d+|\s?/\s?\d+(?:\.\d+)?)?'
  r'(?:\\?%)?'
)


def last_value(text: str) -> str | None:
  """Returns the last formula or number of a text; None without one.

  'It is $\\frac{1}{2}$.' → '\\frac{1}{2}', '3 apples, 1,250 pears' → '1,250',
  'half, so 1/2 of it' → '1/2', 'it costs $5' → '5'
  """
  values = _values(text)
  return values[-1] if values else None


def _values(text: str) -> list[str]:
  """Returns the formulas and numbers at the end of a text in their order."""
  found: list[tuple[int, str]] = []

  def take(match: re.Match) -> str:
    content = next(filter(None, match.groups())).strip()
    # '$5 and $10' is two prices rather than a formula.
    if num_words(content) or not re.search(r'\w', content):
      return match[0]
    found.append((match.start(), content))
    return ' ' * len(match[0])

  rest = _FORMULA.sub(take, text[-_TAIL_CHARS:])
  for match in _NUMBER.finditer(rest):
    number = match[0].replace('−', '-').lstrip('+')
    found.append((match.start(), re.sub('[$€£¥₹]', '', _ascii(number))))
  return [value for _, value in sorted(found)]


def _ascii(number: str) -> str:
  """Writes the decimal digits of any script as 0 to 9."""
  return ''.join(
    str(unicodedata.decimal(c)) if c.isdecimal() else c for c in number
  )


_COMMAND = re.compile(r'\\(?:text|mathrm|mbox)\s*\{[^{}]*\}|\\[a-zA-Z]+')
_WORD = re.compile(r'[^\W\d_]{2,}')


def num_words(text: str) -> int:
  """Returns the number of words of a text, without those of LaTeX."""
  return len(_WORD.findall(_COMMAND.sub(' ', text)))


def _cleaned(text: str) -> str:
  """Removes Markdown emphasis, a final stop and the dollars of one formula."""
  text = text.strip(' \t\n*`').strip()
  text = re.sub(r'(?<![.\\])[.。,;]$', '', text).rstrip(' *`')
  whole = _FORMULA.fullmatch(text) if len(text) <= _TAIL_CHARS else None
  if whole:
    text = next(filter(None, whole.groups())).strip()
  return text
