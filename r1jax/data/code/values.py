"""Encodes Python values, such as a call returns, as JSON that keeps their types.

  None, True, 'a'     null, true, "a"
  7, 10**30           7, {"int": "0xc9f2c9cd04674edea40000000"}
  0.5                 {"float": "0x1.0000000000000p-1"}, exact; inf, nan too
  [1, 2]              [1, 2]
  (1, 2)              {"tuple": [1, 2]}
  {1, 2}              {"set": [1, 2]}
  {1: 'a'}            {"dict": [[1, "a"]]}, whose keys are of any kind
  b'a', 2j            {"bytes": "61"}, {"complex": […, …]}

Only built-in types are encoded, and types that equal one: a Counter, a named
tuple, a number of numpy, a sorted list of sortedcontainers. Other subclasses are refused, since a program may
define their __eq__. Decoded values are built-in ones, so == is Python's own.

This file's source also runs inside the sandbox, so it imports the standard
library only.
"""

import collections

# A program can make hashes collide, and a set then costs its size squared.
MAX_HASHED = 1024
_PLAIN = (type(None), bool, str)
_SMALL = 1 << 53
_DICTS = (
  dict,
  collections.Counter,
  collections.OrderedDict,
  collections.defaultdict,
)
# Types of packages that equal a built-in one.
_PACKAGE_TYPES = {
  'sortedcontainers.sortedlist.SortedList': list,
  'sortedcontainers.sortedlist.SortedKeyList': list,
  'sortedcontainers.sortedset.SortedSet': set,
  'sortedcontainers.sorteddict.SortedDict': dict,
}
_KEYS: type = type({}.keys())


def encode(value):
  """Encodes a value as JSON.

  Raises:
    TypeError: a part of it has an unsupported type.
    ValueError: a set or a dict has more than MAX_HASHED items.
    RecursionError: the value contains itself.
  """
  kind = type(value)
  if kind in _PLAIN or (kind is int and -_SMALL < value < _SMALL):
    return value
  if kind is list:
    return [encode(item) for item in value]
  if kind is int:
    return {'int': hex(value)}
  if kind is float:
    return {'float': value.hex()}
  if kind is complex:
    return {'complex': [value.real.hex(), value.imag.hex()]}
  if kind is bytes:
    return {'bytes': value.hex()}
  if kind is tuple or (kind.__base__ is tuple and hasattr(kind, '_fields')):
    return {'tuple': [encode(item) for item in tuple.__iter__(value)]}
  if kind in (set, frozenset, _KEYS):
    return {'set': [encode(item) for item in _hashed(value)]}
  if kind in _DICTS:
    return {
      'dict': [
        [encode(key), encode(item)] for key, item in _hashed(dict.items(value))
      ]
    }
  name = f'{kind.__module__}.{kind.__name__}'
  if kind.__module__ == 'numpy' and hasattr(kind, 'item') and not value.ndim:
    return encode(value.item())  # A number that numpy made equals Python's.
  if name in _PACKAGE_TYPES:
    return encode(_PACKAGE_TYPES[name](value))
  raise TypeError(f'a value of type {kind.__name__!r} is no test value')


def decode(encoded):
  """Decodes JSON from a sandbox, which is not trusted.

  Raises:
    ValueError: `encode` cannot have made it, or a set or a dict has more than
      MAX_HASHED items.
  """
  if isinstance(encoded, list):
    return [decode(item) for item in encoded]
  if not isinstance(encoded, dict):
    if isinstance(encoded, float):
      raise ValueError('a bare float')
    return encoded
  if len(encoded) != 1:
    raise ValueError('not one kind')
  ((kind, inner),) = encoded.items()
  if kind not in _DECODERS:
    raise ValueError(f'unknown kind {kind!r}')
  try:
    return _DECODERS[kind](inner)
  except (AttributeError, LookupError, OverflowError, TypeError) as error:
    raise ValueError(str(error)) from error


def _hashed(inner):
  """Returns the items of a set or a dict; raises ValueError for too many."""
  if len(inner) > MAX_HASHED:
    raise ValueError('a set or a dict of too many items')
  return inner


_DECODERS = {
  'int': lambda text: int(text, 16),
  'float': float.fromhex,
  'complex': lambda pair: complex(*map(float.fromhex, (pair[0], pair[1]))),
  'bytes': bytes.fromhex,
  'tuple': lambda items: tuple(decode(item) for item in items),
  'set': lambda items: {decode(item) for item in _hashed(items)},
  'dict': lambda items: {
    decode(key): decode(item) for key, item in _hashed(items)
  },
}


def to_source(value) -> str:
  """Returns a Python expression for a value; unlike repr, also for inf and nan.

  Raises:
    TypeError: a part of it has an unsupported type.
  """
  kind = type(value)
  if kind is float and (value != value or value in (1e999, -1e999)):
    return f"float('{value}')"
  if kind is list:
    return f'[{", ".join(map(to_source, value))}]'
  if kind is tuple:
    return f'({"".join(to_source(item) + ", " for item in value)})'
  if kind is set:
    return f'{{{", ".join(map(to_source, value))}}}' if value else 'set()'
  if kind is dict:
    return '{%s}' % ', '.join(
      f'{to_source(key)}: {to_source(item)}' for key, item in value.items()
    )
  encode(value)
  return hex(value) if kind is int and abs(value) >= _SMALL else repr(value)
