"""Finds the program in an answer of a model.

An answer is Markdown: prose around fenced blocks, of which one is the program
and others show its use, its output or a part of it. This is done by lines, in
linear time, and runs nothing: the sandbox says whether it is a program at all.
"""

from collections.abc import Iterator, Sequence
import re
import textwrap
from typing import NamedTuple

_FENCE = re.compile(r'(`{3,}|~{3,})')
_PYTHON = re.compile(r'(i?python|pypy|py|cpython)[\d.]*')
_MARKDOWN = ('markdown', 'md')
# The tags that some models write instead of fences.
_TAGS = re.compile(r'\[PYTHON\]\n?(.*?)(?:\[/PYTHON\]|\Z)', re.DOTALL)
_TOKEN = re.compile(
  r"""'{3}|"{3}|\#[^\n]*|'(?:\\.|[^'\\\n])*'|"(?:\\.|[^"\\\n])*"|\\.""",
  re.DOTALL,
)
# A line at the margin that begins a statement of a program.
_STATEMENT = re.compile(
  r"""
  (import|from)\s+[\w.]+(\s+import\b.*|\s+as\s+\w+|(\s*,\s*[\w.]+)*)\s*([\#;].*)?$
  | (async\s+)?def\s+\w+\s*[\[(]
  | class\s+\w+\s*[:(\[]
  | @\w[\w.]*(\(.*)?$
  | (if|elif|while|with|for|async|match|except)\b.*:
  | (else|try|finally)\s*:
  | (raise|assert|del|global|pass)\b
  | [\[(*]*[A-Za-z_][\w.]*(\[[^=]*\])?[\])]*   # A target, and maybe others.
    (\s*,\s*[\[(*]*[A-Za-z_][\w.]*(\[[^=]*\])?[\])]*)*\s*,?
    (\s*:[^=]+)?\s*([-+*/%&|^@]|//|\*\*|>>|<<)?=[^=]
  | [A-Za-z_][\w.]*(\[[^\]]*\])*\((.*[)(\[{,\\;"'])?\s*(\#.*)?$   # A call.
  | [)\]}]+
  | (?:[rRuUbB]?(?:"{3}|'{3}))
  | \#
  """,
  re.VERBOSE,
)
# A line that a program may begin with.
_START = re.compile(
  r'(import|from)\s+[\w.]|(async\s+)?def\s+\w|class\s+\w|@\w|#!|'
  r'(if|while|for|with|try)\b.*:\s*(#.*)?$|'
  r'[A-Za-z_]\w*(\s*,\s*[A-Za-z_]\w*)*\s*=[^=]|print\('
)
# A line at the margin, no statement, that is prose: words, or a list's item.
_PROSE = re.compile(
  r"\W*\w[\w'’.,-]*[ \t]+\w[\w'’.,-]*([ \t]+\w|[.:!?]*\s*$)"
  r'|\W*\w+[.:!?]+\s*$|\*\*|[-*>+•][ \t]|\d+[.)][ \t]'
)
_READS = re.compile(r'\binput\(|\bstdin\b|\bopen\(0|\bread\(0|\bfileinput\b')
_WRITES = re.compile(r'\bprint\(|\bstdout\b|\bwrite\(1')


class Block(NamedTuple):
  """A fenced block.

  Attributes:
    language: Its language in lower case, '' for none.
    text: Its lines.
  """

  language: str
  text: str


def find_program(answer: str | None, entry: str = '') -> str | None:
  """Returns the program in an answer.

  Args:
    answer: The answer.
    entry: Name of the function or class that the program must define; '' for a
      program that reads its input and prints.

  Returns:
    The last block of Python that defines `entry`, or reads and prints; else the
    last one. Blocks without a language count if none is marked as Python. An
    answer without blocks is the program itself, without prose around it. A block
    that never closes extends to the end of the answer. None for no answer.
  """
  if answer is None:
    return None
  programs = _programs(answer)
  if not programs:
    programs = _TAGS.findall(answer)
  if not programs:
    return _without_prose(answer)
  for program in reversed(programs):
    if _fits(program, entry):
      return program
  return programs[-1]


def _programs(answer: str) -> list[str]:
  """Returns the blocks that may be programs, without common indentation."""
  blocks = list(_blocks(answer))
  for block in blocks:
    if block.language in _MARKDOWN and _FENCE.search(block.text):
      blocks += _blocks(block.text)
  programs = [b.text for b in blocks if _PYTHON.fullmatch(b.language)]
  programs = programs or [b.text for b in blocks if not b.language]
  return [_dedented(text) for text in programs]


def _fits(program: str, entry: str) -> bool:
  """Whether a program defines a name, or without one, reads and writes."""
  if not entry:
    return bool(_READS.search(program) and _WRITES.search(program))
  name = re.escape(entry)
  return bool(
    re.search(
      rf'^[ \t]*((async[ \t]+)?def|class)[ \t]+{name}\b'
      rf'|^{name}[ \t]*(:[^=\n]+)?=[^=]'
      rf'|^(from[ \t].*)?import[ \t].*\b{name}\b',
      program,
      re.MULTILINE,
    )
  )


# --- Fences ------------------------------------------------------------------


def _blocks(answer: str) -> Iterator[Block]:
  """Yields the fenced blocks of an answer.

  A fence inside a string of triple quotes belongs to the program, unless the
  string never closes.
  """
  lines = _Lines(answer.splitlines(keepends=True))
  start = 0
  while opening := _opening(lines, start):
    end, last = _closing(lines, opening)
    body = [
      _without_indent(line, opening.indent)
      for line in [*lines[opening.number + 1 : end], last]
    ]
    yield Block(opening.language, ''.join(body))
    # A fence with a language opens a block, although the last one did not close.
    reopens = end < len(lines) and not last and _language(lines[end])
    start = end if reopens else end + 1


class _Fence(NamedTuple):
  """An opening fence.

  Attributes:
    number: Number of its line.
    text: The fence itself.
    language: Its language in lower case, '' for none.
    indent: Indentation of its line, in characters.
  """

  number: int
  text: str
  language: str
  indent: int


def _opening(lines: '_Lines', start: int) -> _Fence | None:
  """Finds the next opening fence, from a line on.

  Prose may precede the fence on its line, but no other fence follows it.
  """
  quotes, in_code = _Quotes(lines), False
  for number in range(start, len(lines)):
    line = lines[number]
    found = None if quotes.is_open else _FENCE.search(line)
    if found and not _FENCE.search(line, found.end()):
      return _Fence(
        number,
        found[0],
        _language(line[found.start() :]),
        len(line) - len(line.lstrip()),
      )
    in_code = in_code or bool(_START.match(line))
    if in_code:  # Prose has quotation marks of its own.
      quotes.feed(number)
  return None


def _closing(lines: '_Lines', opening: _Fence) -> tuple[int, str]:
  """Finds the end of a block.

  Returns:
    The number of the line that ends it, and what the block has of this line.
  """
  is_code = not opening.language or _PYTHON.fullmatch(opening.language)
  quotes = _Quotes(lines)
  for number in range(opening.number + 1, len(lines)):
    line = lines[number].strip()
    if not quotes.is_open:
      if line.startswith(opening.text):
        return number, ''
      if len(opening.text) == 3 and line.endswith(opening.text):
        return number, lines[number].rstrip().removesuffix(opening.text) + '\n'
    if is_code:
      quotes.feed(number)
  return len(lines), ''


def _language(fence_line: str) -> str:
  """Returns the language of an info string.

  '```py3' → 'py3', '```{.python .x}' → 'python', '```Python 3' → 'python',
  '```title="a.py"' → 'py'
  """
  info = fence_line.strip().lstrip('`~').strip().lower()
  if info.endswith(('`', '~')):
    return ''
  if title := re.match(r'\w+="[^"]*\.(\w+)"', info):
    return title[1]
  found = re.match(r'[{.\s]*([a-z][\w+#.-]*)(?!\s*=)', info)
  return found[1] if found else ''


def _without_indent(line: str, indent: int) -> str:
  """Removes up to `indent` characters of white space, those of the fence."""
  return line[min(indent, len(line) - len(line.lstrip(' \t'))) :]


def _dedented(program: str) -> str:
  """Removes indentation that all lines have, since it would be an error."""
  return textwrap.dedent(program) if program[:1] in ' \t' else program


class _Lines(list[str]):
  """The lines of an answer.

  Attributes:
    last: Number of the last line that has triple quotes, of either kind.
  """

  def __init__(self, lines: Sequence[str]):
    super().__init__(lines)
    self.last = {
      quotes: max((i for i, x in enumerate(lines) if quotes in x), default=-1)
      for quotes in ('"""', "'''")
    }


class _Quotes:
  """Follows strings of triple quotes through the lines of a program.

  A string that never closes is none.

  Attributes:
    is_open: Whether the line fed last ends inside such a string.
  """

  def __init__(self, lines: _Lines):
    self._lines, self._open = lines, ''

  @property
  def is_open(self) -> bool:
    return bool(self._open)

  def feed(self, number: int) -> str:
    """Reads a line; returns it without strings and comments."""
    line, code, position = self._lines[number], '', 0
    while position < len(line):
      if self._open:
        end = line.find(self._open, position)
        if end < 0:
          break
        position, self._open = end + 3, ''
      token = _TOKEN.search(line, position)
      code += line[position : token.start() if token else len(line)]
      position = token.end() if token else len(line)
      if token and token[0] in self._lines.last:
        self._open = token[0]
    if self._open and number >= self._lines.last[self._open]:
      self._open = ''
    return code


# --- Prose -------------------------------------------------------------------


def _without_prose(answer: str) -> str:
  """Returns the program in an answer without fences.

  If a line at the margin is prose, only statements and the lines that belong to
  them are kept: indented ones, and those inside brackets or a string.
  """
  lines = _Lines(answer.splitlines(keepends=True))
  quotes, depth = _Quotes(lines), 0
  kept: list[str] = []
  in_code = has_prose = False
  for number, line in enumerate(lines):
    if quotes.is_open or depth > 0:
      belongs = True
    elif not line.strip() or line[0] in ' \t':
      belongs = in_code
    else:
      statement = bool(_STATEMENT.match(line))
      in_code = belongs = statement and bool(kept or _START.match(line))
      has_prose = has_prose or (not statement and bool(_PROSE.match(line)))
    if belongs:
      kept.append(line)
      code = quotes.feed(number)
      opened = sum(map(code.count, '([{')) - sum(map(code.count, ')]}'))
      depth = max(0, depth + opened)
  return ''.join(kept) if has_prose and kept else answer
