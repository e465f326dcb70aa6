"""The one exception for input that a person can mend."""


class UserError(Exception):
  """Bad input. Its text is one line that names the thing and the fix.

  The command line prints it without a traceback and exits with code 2.
  """
