"""Looks at the processes of a sandbox from outside."""

import os
from pathlib import Path

SECS = 10  # What ends by itself ends long before that.


def descendants(pid: int) -> int:
  """Processes below one, the server itself not counted under bwrap."""
  parents = {}
  for entry in os.listdir('/proc'):
    if entry.isdigit():
      try:
        fields = Path(f'/proc/{entry}/stat').read_text().rpartition(')')[2]
      except OSError:
        continue
      parents[int(entry)] = int(fields.split()[1])
  found, last = {pid}, 0
  while len(found) != last:
    last = len(found)
    found |= {child for child, parent in parents.items() if parent in found}
  return len(found) - 1
