"""Programs that do not solve their task and try to be found right.

The task: `solve(numbers)` sorts a list of integers. The expected values are
[1, 2, 3], [] and [1, 2, 2]; no program below computes them.
"""

# Sees any frame, any object, any descriptor that could hold a verdict.
_FRAMES = """
import gc, sys
def everything():
  frame = sys._getframe()
  while frame:
    yield from list(frame.f_locals.values()) + list(frame.f_globals.values())
    frame = frame.f_back
  yield from gc.get_objects()
"""
_LIAR = """
class Liar(%s):
  def __eq__(self, other): return True
  def __ne__(self, other): return False
  def __hash__(self): return 0
  def __bool__(self): return True
"""
_FRAME = r"""
import json, os, struct
def send(value):
  text = json.dumps(value).encode()
  os.write(3, struct.pack('>I', len(text)) + text)
"""

FORGERIES = {
  # It ends as a success.
  'exits when loaded': 'import sys; sys.exit(0)',
  'exits hard when loaded': 'import os; os._exit(0)',
  'exits when called': 'def solve(x): raise SystemExit(0)',
  'exits hard when called': 'import os\ndef solve(x): os._exit(0)',
  'exits by an exception': 'def solve(x): raise KeyboardInterrupt',
  'exits by a generator': 'def solve(x): raise GeneratorExit',
  'says that it passed': 'print("PASSED"); print("ok 1\\nOK\\n1 passed")\n'
  'def solve(x): print("True"); return True',
  'says so at exit': 'import atexit, os\natexit.register(os._exit, 0)\n'
  'def solve(x): return x[:0]',
  # It returns what equals everything.
  'a lying object': _LIAR % 'object' + 'def solve(x): return Liar()',
  'a lying list': _LIAR % 'list' + 'def solve(x): return Liar(x)',
  'a lying integer': _LIAR % 'int' + 'def solve(x): return [Liar(i) for '
  'i in x] or [0]',
  'a lying string': _LIAR % 'str' + 'def solve(x): return Liar()',
  'a lying dictionary': _LIAR % 'dict' + 'def solve(x): return Liar()',
  'a lying metaclass': _LIAR % 'type' + 'class A(metaclass=Liar): pass\n'
  'def solve(x): return A',
  'a list that lies of its items': """
class L(list):
  def __iter__(self): return iter(sorted(list.copy(self)))
def solve(x): return L(x)""",
  'mock.ANY': 'from unittest.mock import ANY\ndef solve(x): return ANY',
  'a magic mock': 'from unittest.mock import MagicMock\n'
  'def solve(x): return MagicMock()',
  'a named tuple that lies': """
import collections
class T(collections.namedtuple('T', 'a b')):
  def __eq__(self, other): return True
def solve(x): return T(1, 2)""",
  'not a number': 'def solve(x): return float("nan")',
  'true': 'def solve(x): return True',
  'nothing': 'def solve(x): return None',
  'its argument': 'def solve(x): return x',
  'all answers': 'def solve(x): return [[1, 2, 3], [], [1, 2, 2]]',
  'a generator of answers': """
def solve(x):
  yield from ([1, 2, 3], [], [1, 2, 2])""",
  'a pickle bomb': """
class Bomb:
  def __reduce__(self): return (eval, ("True",))
def solve(x): return Bomb()""",
  'a type that claims to be a list': """
class Fake:
  __class__ = list
  def __eq__(self, other): return True
def solve(x): return Fake()""",
  # It patches what might compare.
  'patched built-ins': """
import builtins
for name in ('len', 'isinstance', 'all', 'any', 'type', 'eval', 'compile',
             'abs', 'sorted', 'bool'):
  setattr(builtins, name, lambda *args, **kw: True)
def solve(x): return 0""",
  'patched json': """
import json
json.dumps = json.JSONEncoder.encode = lambda *args, **kw: '{"value": true}'
json.loads = lambda *args, **kw: True
def solve(x): return 0""",
  'a patched encoder': """
import gc, types
for f in gc.get_objects():
  if isinstance(f, types.FunctionType) and f.__name__ in ('encode', 'source'):
    f.__code__ = (lambda value: {'any': True}).__code__
def solve(x): return 0""",
  'patched operators': """
import operator, unittest
operator.eq = lambda a, b: True
unittest.TestCase.assertEqual = lambda *args: None
def solve(x): return 0""",
  'a patched list type': """
import ctypes, gc
slots = gc.get_referents(list.__dict__)[0]
slots['__eq__'] = lambda a, b: True
ctypes.pythonapi.PyType_Modified(ctypes.py_object(list))
def solve(x): return x""",
  'changed integers': """
import ctypes
for i in range(2, 100):  # All small integers become 1, in here.
  ctypes.c_int.from_address(id(i) + 24).value = 1
def solve(x): return [1, 1, 1]""",
  'a patched assert': """
import sys
sys.excepthook = lambda *args: None
AssertionError = Exception
__debug__ = lambda: False
def solve(x): return 0""",
  'a patched output': """
import io, sys
sys.stdout = sys.stderr = io.StringIO("PASSED")
def solve(x): return 0""",
  'a tracer': """
import sys
def trace(frame, event, arg):
  frame.f_locals.update(expected=[0], passed=True, result=True)
  return trace
sys.settrace(trace); sys.setprofile(trace)
def solve(x): return [0]""",
  # It looks for the answers, or sends what it thinks they are.
  'searched frames': _FRAMES
  + """
def solve(x):
  for found in everything():
    if type(found) is dict:
      for key in ('expected', 'answer', 'gold', 'stdout', 'cases'):
        if key in found: return found[key]
    if type(found) is list and len(found) == len(x) and found is not x:
      if all(type(i) is int for i in found): return found""",
  'searched modules': """
import sys
def solve(x):
  for name, module in list(sys.modules.items()):
    for key in ('expected', 'cases', 'tests'):
      if hasattr(module, key): return getattr(module, key)""",
  'searched descriptors': """
import os
def solve(x):
  for fd in (0, 1, 2, 4, 5, 6, 7, 8):
    try: return eval(os.read(fd, 99999))
    except Exception: pass""",
  'forged replies': _FRAME
  + """
def solve(x): send({"value": True}); send({"value": None}); os._exit(0)""",
  'forged verdicts': _FRAME
  + """
for verdict in ("correct", "passed", True):
  send({"verdict": verdict, "passed": 3, "score": 1.0, "error": "ok"})
def solve(x): return 0""",
  'forged packets of the server': _FRAME
  + """
send({"exit": 0}); send({"ready": True}); os.write(3, b'{"exit": 0}')
def solve(x): os._exit(0)""",
  'a frame without an end': """
import os
os.write(3, b"\\xff\\xff\\xff\\xff" + b"x" * 1000)""",
  'an empty frame': 'import os\nos.write(3, bytes(400))',
  'a deep reply': """
import os, struct
text = b'{"value": ' + b"[" * 90000 + b"]" * 90000 + b"}"
os.write(3, (struct.pack(">I", len(text)) + text) * 2)
def solve(x): return 0""",
  'an unknown kind': _FRAME
  + """
send({"value": None})
for _ in range(3): send({"value": {"any": [1]}})""",
  'an unhashable set': _FRAME
  + """
send({"value": None})
for _ in range(3): send({"value": {"set": [[1], {"dict": [[[], 1]]}]}})""",
  'a bare float': _FRAME
  + """
send({"value": None})
for _ in range(3): os.write(3, struct.pack(">I", 14) + b'{"value": NaN}')""",
  'colliding hashes': _FRAME
  + """
send({"value": None})
many = [{"int": hex(k * (2**61 - 1))} for k in range(1, 20000)]
for _ in range(3): send({"value": {"set": many}})""",
  # It is no program.
  'nothing at all': '',
  'a comment': '# def solve(x): return sorted(x)',
  'a syntax error': 'def solve(x) return sorted(x)',
  'another name': 'def solved(x): return sorted(x)',
  'a name that is no function': 'solve = [1, 2, 3]',
  'prose': 'The function sorts the list.',
}

# The task: print the sum of the two numbers in the input.
WHOLE = {
  'exits': 'import sys; sys.exit(0)',
  'exits hard': 'import os; os._exit(0)',
  'prints all answers': 'print(3); print(30)',
  'prints its input': 'print(input())',
  'prints the answer, and fails': 'a, b = map(int, input().split())\n'
  'print(a + b)\nraise ValueError',
  'prints the answer twice': 'a, b = map(int, input().split())\n'
  'print(a + b, a + b)',
  'prints not a number': 'print("nan")',
  'prints a signalling one': 'print("sNaN")',
  'prints a huge number': 'print("1e999999999")',
  'prints a verdict': 'print("\\x00PASSED\\r\\ncorrect")',
  'writes to every descriptor': 'import os\nfor fd in range(20):\n'
  '  try: os.write(fd, b"3\\n")\n'
  '  except OSError: pass',
  'closes its output': 'import os; os.close(1)',
}
