"""The program of an answer is found, whatever surrounds it."""

import textwrap
import time

import pytest

from r1jax.data.code import sources as code_sources
from r1jax.graders import code_runner
from r1jax.graders.code_extract import find_program

F = 'def f(x):\n  return x\n'
DOCSTRING = (
  'def f(x):\n  """Doc.\n\n  ```%s\n  f(1)\n  ```\n  """\n  return x\n'
)
READS = 'n = int(input())\nprint(n)\n'


@pytest.mark.parametrize(
  'answer,program',
  [
    ('```python\nx = 1\n```', 'x = 1\n'),
    ('so\n```python\nx = 1\n```\nor\n```python\nx = 2\n```\ndone', 'x = 2\n'),
    ('so: ```python\nx = 1\n``` done', 'x = 1\n'),
    ('```\nx = 1\n```', 'x = 1\n'),
    ('```py\nx = 1\n```', 'x = 1\n'),
    ('```python\nx = 1\n```\n```\noutput: 1\n```', 'x = 1\n'),
    ('```python\nx = 1\n', 'x = 1\n'),
    ('x = 1', 'x = 1'),
    ('```Python\r\nx = 1\r\n```', 'x = 1\r\n'),
    ('', ''),
    (None, None),
    # A fence that its line does not begin, or that its line does not end.
    ('```python\nx = 1```', 'x = 1\n'),
    ('Run ```f``` first.\n```python\nx = 1\n```', 'x = 1\n'),
    ('~~~python\nx = 1\n~~~', 'x = 1\n'),
    ('````python\nx = "```"\n````', 'x = "```"\n'),
    ('````markdown\n```python\nx = 1\n```\n````', 'x = 1\n'),
    ('```python\nx = 1\n\n```python\ny = 2\n```', 'y = 2\n'),
    ('[PYTHON]\nx = 1\n[/PYTHON]', 'x = 1\n'),
  ],
)
def test_the_last_python_block_is_the_program(answer, program):
  assert find_program(answer) == program


@pytest.mark.parametrize(
  'info',
  [
    'python',
    'Python',
    'py',
    'py3',
    'python3',
    'python3.11',
    'Python 3',
    'pypy3',
    'ipython',
    'python title="solution.py"',
    'title="solution.py"',
    'python:solution.py',
    'python {linenos=true}',
    'python,linenos',
    '{.python .numberLines}',
    '{python}',
    ' python ',
  ],
)
def test_info_strings_name_the_language(info):
  answer = f'First.\n```{info}\n{F}```\nThen run\n```bash\npython a.py\n```'
  assert find_program(answer) == F


@pytest.mark.parametrize('indent', [' ', '   ', '    ', '\t', '      '])
@pytest.mark.parametrize('info', ['python', ''])
def test_a_fence_in_a_list_is_indented(indent, info):
  block = textwrap.indent(f'```{info}\n{F}\n{F}```\n', indent)
  assert find_program(f'1. Write:\n\n{block}\n2. Run it.') == f'{F}\n{F}'


def test_a_block_that_is_indented_alone():
  assert (
    find_program('```python\n    x = 1\n    y = 2\n```') == 'x = 1\ny = 2\n'
  )


@pytest.mark.parametrize(
  'other',
  [
    'print(f(3))\n# 3\n',
    'assert f(1) == 1\n',
    '>>> f(1)\n1\n',
    'return x\n',
    'from solution import g\n\nprint(g(1))\n',
    'import unittest\nclass Test(unittest.TestCase):\n  pass\n',
  ],
)
def test_the_block_that_defines_the_function_is_the_program(other):
  answer = f'```python\n{F}```\nFor example:\n```python\n{other}```'
  assert find_program(answer, 'f') == F
  assert find_program(f'```\n{F}```\nUse:\n```\n{other}```', 'f') == F
  assert find_program(f'```python\n{other}```\n```python\n{F}```', 'f') == F
  tests = code_sources.mbpp({'id': 'a', 'test_list': ['assert f(1) == 1']})
  assert code_runner.extract_program(answer, tests) == F


@pytest.mark.parametrize(
  'definition',
  [
    'class Solution:\n  pass\n',
    'class Solution(object):\n  pass\n',
    'Solution = object\n',
    'async def Solution(): pass\n',
    'from a import Solution\n',
  ],
)
def test_a_program_may_define_a_class_or_a_name(definition):
  answer = f'```python\n{definition}```\n```python\nSolution().f(1)\n```'
  assert find_program(answer, 'Solution') == definition


@pytest.mark.parametrize(
  'other',
  ['# Input: 3\n# Output: 3\n', 'print(3)\n', 'n = 3\n', 'n = int(input())\n'],
)
def test_a_script_is_the_block_that_reads_and_prints(other):
  answer = f'```python\n{READS}```\nExample:\n```python\n{other}```'
  assert find_program(answer) == READS
  for reads in ('import sys\nx = sys.stdin.read()\n', 'x = open(0).read()\n'):
    program = reads + 'print(x)\n'
    answer = f'```python\n{program}```\nExample:\n```python\n{other}```'
    assert find_program(answer) == program


@pytest.mark.parametrize('info', ['', 'python', 'text'])
def test_a_fence_in_a_docstring_is_part_of_the_program(info):
  program = DOCSTRING % info
  assert find_program(f'So:\n```python\n{program}```\nDone.', 'f') == program
  assert find_program(f'```\n{program}```', 'f') == program
  assert find_program(program, 'f') == program
  single = program.replace('"""', "'''")
  assert find_program(f'```python\n{single}```', 'f') == single


def test_a_string_that_never_closes_hides_no_fence():
  answer = '```python\nx = """\n```\nor\n```python\ny = 2\n```'
  assert find_program(answer) == 'y = 2\n'


@pytest.mark.parametrize(
  'answer,program',
  [
    (f'Here is the function:\n\n{F}', F),
    (f'{F}\nThis returns its argument.', F),
    (f"Sure! Let's do it.\n{F}\n\nIt's simple:\n- It is fast.\n  - Very.", F),
    (f'Solution:\n{F}\nTime complexity = O(n) at most.', F),
    (f'I define f.\n{F}\n1. It takes x.\n2. It returns x.', F),
    (f'The answer is below.\n# The identity.\n{F}', F),
    (
      f'First some imports.\nimport sys\nThen the function.\n{F}',
      f'import sys\n{F}',
    ),
    (
      f'We read the input:\n{READS}for i in range(n):\n  print(i)\nDone with it.',
      f'{READS}for i in range(n):\n  print(i)\n',
    ),
    (
      'We use a table of values.\ntable = [\n1, 2,\n3\n]\nprint(table)\nBye now.',
      'table = [\n1, 2,\n3\n]\nprint(table)\n',
    ),
  ],
)
def test_code_without_fences_is_found_in_prose(answer, program):
  assert find_program(answer).strip() == program.strip()


@pytest.mark.parametrize(
  'program',
  [
    F,
    READS,
    '[print(i) for i in range(3)]\n',
    '"""Two words here."""\nimport sys\n',
    'n, *a = map(int, open(0).read().split())\n(b, c) = a\nprint(b if c else n)\n',
    'if (\n  1\n):\n  print(1)\nelse:\n  print(2)\n',
    'x = {\n"a b c d": 1,\n}\n@cache\ndef f(): pass\n',
    'print("This is a text. It has words.")\n',
    'text = """\nThis is prose in a string.\n"""\nprint(text)\n',
    'print(1) if input() else print(2)\n',
  ],
)
def test_a_program_alone_stays_as_it_is(program):
  assert find_program(program) == program


@pytest.mark.parametrize(
  'text',
  [
    '```python\n',
    '"""\n',
    'def f():\nx = """\n',
    '`',
    'a = ',
    'import a.',
    '(x',
    'a, ',
    'f[a]',
    '[[[[',
    'print(',
    '\\',
    "'",
    '```a ```\n',
    '[PYTHON]',
    '```python\n"""\n```\n',
  ],
)
def test_no_answer_takes_long(text):
  start = time.process_time()
  find_program(text * (100_000 // len(text)), 'f')
  assert (
    time.process_time() - start < 60
  )  # A quadratic search takes far longer.
