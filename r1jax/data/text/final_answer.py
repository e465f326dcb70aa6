"""Finds the final answer in a text, for response formats and graders alike.

  boxed    what is in the last \\boxed{}, or in several that are one answer
  stated   that, '#### 42', 'The answer is 42', or the last formula or number

Both leave an answer that they found as it is, so that a whole text is graded as
its extracted answer: stated(stated(text)) == stated(text). Each takes time linear
in the length of the text.
"""

import re

from r1jax.data.text import boxes, prose


def boxed(text: str) -> str | None:
  """Returns the boxed answer of a text; None without one.

  What a text names as the final answer behind all boxes counts before them. A
  boxed sentence that holds numbers keeps its box, since graders would take the
  last of its numbers without it.

  '\\boxed{7}, no, \\boxed{42}' → '42', '\\boxed 42' → '42', '\\boxed{42' → None,
  '\\boxed{1} and \\boxed{2}' → '1 \\text{ and } 2'
  """
  text = _untagged(text)
  found = boxes.find(text)
  if not found:
    return None
  behind = text[found[-1].end :]
  if _FINAL.search(behind):
    sentence = statement(behind)
    if sentence and _DIGIT.search(sentence):
      return _fixed(sentence)
  answer = boxes.joined(text, found)
  return answer if _fixed(answer) == answer else f'\\boxed{{{answer}}}'


def unboxed(answer: str) -> str:
  """Returns an answer that `boxed` returned without the box that it may keep."""
  found = boxes.find(answer)
  return found[0].content if found else answer


def stated(text: str) -> str | None:
  """Returns the answer that a text states without tags; None without one.

  A text that was cut off in its only box has no answer. Otherwise the first of
  these rules that finds something decides, with the last match of it in the
  text:

    1. a box                          \\boxed{42}
    2. GSM8K's marks                  #### 42 | A: 42
    3. a statement                    The answer is 42. | **Answer:** 42 | 答案是42
    4. a program in a fence           all of the text, for the grader of programs
    5. a formula or a short line      (1, 2) | x = 42 | 18 dollars | June 20
    6. the last formula or number     So she pays $\\frac{3}{4}$ of it.
    7. a line without a number        Paris

  Beside a program, a statement must hold a number.
  """
  text = _untagged(text)
  answer = boxed(text)
  if answer is not None:
    return answer or None
  if _BOX.search(text):
    return None
  return _fixed(text) or None


_DIGIT = re.compile(r'\d')
_FINAL = re.compile(r'\bfinal answer\b', re.IGNORECASE)
_BOX = re.compile(r'\\(?:boxed|fbox)\s*\{')
_TAG_NAMES = ('answer', 'summary', 'final_answer')
_TAG = re.compile(rf'</?(?:{"|".join(_TAG_NAMES)})>')
_REASONING_END = '</think>'
_CALCULATOR = re.compile(r'<<[-+*/().,\d\s%$]*=[-+.,\d\s]*>>')  # GSM8K's notes.


def _untagged(text: str) -> str:
  """Returns what stands behind the reasoning and within the last answer tags."""
  text = text.rpartition(_REASONING_END)[2]
  for name in _TAG_NAMES:
    end = text.rfind(f'</{name}>')
    start = text.rfind(f'<{name}>', 0, max(end, 0))
    if 0 <= start < end:
      text = text[start + len(name) + 2 : end]
  return _CALCULATOR.sub('', _TAG.sub('', text)).strip()


def _fixed(text: str) -> str:
  """Reduces a text without boxes until nothing is left to leave out."""
  for _ in range(_MAX_ROUNDS):
    before, text = text, _reduced(text)
    if text == before:
      break
  return text


_MAX_ROUNDS = 6


def _reduced(text: str) -> str:
  """Returns the answer of a text without boxes, or a shorter text around it."""
  if '```' in text:
    plain = _FENCED.sub(_PROGRAM, text)
    answer = _named(plain)
    return answer if answer and prose.values(answer) else text
  end = text[-_TEXT_CHARS:]
  if len(end) < len(text) and not _SPACE.search(end):
    return text
  answer = _named(end)
  if answer is None and '\n' in end and not prose.is_formula(end):
    return prose.last_value(end) or ''
  return _phrase(end if answer is None else answer)


def _named(text: str) -> str | None:
  """Returns what a text marks or names as its answer."""
  answer = _marked(text)
  return statement(text) if answer is None else answer


_TEXT_CHARS = 20_000  # The end of a longer text is searched.
_SPACE = re.compile(r'\s')
_FENCED = re.compile(r'```.*?(?:```|\Z)', re.DOTALL)
_PROGRAM = '\0'  # Stands for a program where statements are looked for.


def _phrase(text: str) -> str:
  """Returns the last value of a long sentence, and a short text as it is."""
  text = prose.cleaned(text)
  while filler := _FILLER.match(text):
    text = prose.cleaned(text[filler.end() :])
  aside = _ASIDE.search(text)
  if aside and prose.is_prose(aside[0]) and _is_short(text[: aside.start()]):
    text = text[: aside.start()]
  if number := prose.number(text):
    return number
  return text if _is_short(text) else prose.last_value(text) or text


def _is_short(text: str) -> bool:
  """Whether a text is read whole, and no value is taken from it."""
  if prose.is_foreign(text) or prose.num_words(text) > MAX_WORDS:
    return False
  return not (prose.is_prose(text) and _CONCLUDES.search(text))


# What is no phrase but a sentence that comes to a value, or several sentences.
_CONCLUDES = re.compile(
  r'\b(?:so|then|thus|hence|therefore|since|because|gives?|have|get|note)\b'
  r'|[^\W\d_$\\)][.?!]\s+\S|\$[.?!]\s+\S',
  re.IGNORECASE,
)
MAX_WORDS = 3  # Words of a text that is read whole, such as 'June 20'.
# Words before an answer that say nothing of it.
_FILLER = re.compile(
  r'(?:therefore|thus|hence|so|then|finally|approximately|about|roughly|exactly'
  r'|equal to|simply|just|indeed|(?:it|that|this|which) (?:is|was)|they are'
  r'|we (?:get|have|find)|not [^,;.\n]{1,40},? but(?: rather)?)(?:,\s*|\s+)(?=\S)',
  re.IGNORECASE,
)
# A remark in brackets, or a reason, behind an answer; '(mod 7)' is part of it.
_ASIDE = re.compile(
  r'(?<=\S)\s+\([^()]*\)$'
  r'|(?<=\S),?\s+(?:because|since)\s(?:(?![.?!]\s).)*$'
)
_MARKED = re.compile(r'^[ \t]*(####|A:)[ \t]*(\S.*)$', re.MULTILINE)


def _marked(text: str) -> str | None:
  """Returns what follows '####' or 'A:' in GSM8K's answers.

  '#### Step 2: add' is a heading, and 'A: 7' above other lines is a choice.
  """
  for match in list(_MARKED.finditer(text))[: -_MAX_TRIES - 1 : -1]:
    mark, value = match[1], match[2].strip()
    is_last_line = not text[match.end() :].strip()
    is_bare = mark == '####' and not prose.num_words(value)
    if not _NOUN.search(value) and (is_last_line or is_bare):
      return prose.cleaned(value)
  return None


_MAX_TRIES = 50  # Statements that are tried, from the last one on.
# Words for an answer, and the words or marks that join it to its value.
_NOUN = re.compile(
  r'(?<![-\w])(?<!\bto )(?:answers?(?! by\b)|respuesta|resposta|r[eé]ponse'
  r'|risposta|antwort|ответ)\b'
  r'|答案|答え|解答|정답|답은|الإجابة|الجواب|คำตอบ|đáp án',
  re.IGNORECASE,
)
_JOIN = re.compile(
  r'(?:\b(?:is|are|was|be|equals|es|é|est|è|ist|sind|равен|равно|là)\b'
  r'|[:：=]|[—–] |是|为|為|は|هي|هو|คือ|답은)'
  r'(?:[ \t]*[:：=])?'
)
_MAX_JOIN_CHARS = 60  # Between the noun and its verb, in one sentence.
# What may not stand between them: an end of a sentence, or one side of 5 = 3.
_STOP = re.compile(r'[.?!]\s|[\d$\\][^:：]*=\Z')
# Words that say something about an answer rather than give it.
_NO_VALUE = re.compile(
  r'(?:in)?(?:correct|right|wrong|not|found|given|obtained|shown|below|as'
  r' follows|therefore|thus|clear|unique|valid|reasonable|consistent|what)\b',
  re.IGNORECASE,
)


def statement(text: str) -> str | None:
  """Returns the sentence of the last statement such as 'The answer is 42'.

  'I think the answer is C, not D. It is so.' → 'C, not D'
  """
  for noun in list(_NOUN.finditer(text))[: -_MAX_TRIES - 1 : -1]:
    line_end = text.find('\n', noun.end())
    line_end = len(text) if line_end < 0 else line_end
    line = text[noun.end() : line_end]
    join = _JOIN.search(line, 0, _MAX_JOIN_CHARS)
    if join and not _STOP.search(line[: join.end()].rstrip()):
      value = line[join.end() :].lstrip(' }')  # \\text{Answer: } 42
    elif noun[0] == '답은' or not line.strip(' \t*_#`'):
      value = line.strip(' \t*_#`')
    else:
      continue
    if not value.strip(' \t*_:：`$[\\'):  # A heading, with its value below.
      below = text[line_end - len(value) :][: prose.TAIL_CHARS].strip(
        ' \t\n*_:：`'
      )
      formula = prose.FORMULA.match(below)
      value = formula[0] if formula else below.partition('\n')[0]
    if '\\begin{' in value and '\\end{' not in value:
      continue  # The formula of several lines that leads to the answer.
    value = prose.first_sentence(prose.cleaned(value[: prose.TAIL_CHARS]))
    if value and not _NO_VALUE.match(value):
      return value
  return None
