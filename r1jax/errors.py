"""UserError, the one exception for input that a user can correct."""

from collections.abc import Iterable
import difflib


class UserError(Exception):
  """Invalid input of a user: a config, a file, a request.

  Its message is one line that names the key or file and the correction. The
  command line prints it without a traceback and exits with `exit_code`.
  """

  exit_code = 2


class Diverged(UserError):
  """Training has come to nothing: its updates are not finite."""

  exit_code = 4


class TooManySkipped(Diverged):
  """A large share of the updates of the last steps was skipped."""

  exit_code = 8


class DiskFull(UserError):
  """There is no room to write to."""

  exit_code = 5


def named(prefix: str, error: UserError) -> UserError:
  """Returns an error of the same exit code with a prefix to its message."""
  renamed = UserError(f'{prefix}: {error}')
  renamed.exit_code = error.exit_code
  return renamed


def unknown(kind: str, name: str, known: Iterable[str]) -> UserError:
  """Builds the error for an unknown name; it suggests the most similar one.

  Args:
    kind: Kind of thing that was looked up, such as 'reward'.
    name: The unknown name.
    known: All known names.
  """
  known = sorted(known)
  near = difflib.get_close_matches(str(name), known, 1)
  hint = f' did you mean {near[0]!r}?' if near else ''
  return UserError(f'{kind}: unknown {name!r};{hint} there are {known}')
