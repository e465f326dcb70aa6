"""The one exception for input that a person can mend."""

from collections.abc import Iterable
import difflib


class UserError(Exception):
  """Bad input. Its text is one line that names the thing and the fix.

  The command line prints it without a traceback and exits with code 2.
  """


def unknown(kind: str, name: str, known: Iterable[str]) -> UserError:
  """The error for a name that nothing has, with the one that is nearest."""
  known = sorted(known)
  near = difflib.get_close_matches(str(name), known, 1)
  hint = f' did you mean {near[0]!r}?' if near else ''
  return UserError(f'{kind}: unknown {name!r};{hint} there are {known}')
