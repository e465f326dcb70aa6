"""Malformed rows: an error, or dropped, counted and reported."""

from collections import Counter

from r1jax.errors import UserError

_MAX_REPORTED = 20  # Rows that a report names.


class Quarantine:
  """Collects the malformed rows of one dataset, up to a share of its rows.

  Attributes:
    dropped: The location of each dropped row, and why it is malformed.
  """

  def __init__(self, max_share: float = 0.0):
    """Starts without any rows.

    Args:
      max_share: The largest share of the rows that may be dropped, within
        [0, 1). With 0, the first malformed row is an error.
    """
    if not 0 <= max_share < 1:
      raise UserError(
        f'data: max_bad_row_share is a share within [0, 1), got {max_share}'
      )
    self._max_share = max_share
    self.dropped: list[tuple[str, str]] = []

  def drop(self, where: str, reason: str):
    """Drops a malformed row.

    Args:
      where: 'path:line' of the row.
      reason: Why it is malformed, to follow `where` in a sentence.

    Raises:
      UserError: no row may be dropped.
    """
    if not self._max_share:
      raise UserError(f'data: {where} {reason}'[:400])
    self.dropped.append((where, reason[:200]))

  def finish(self, name: str, total: int) -> str:
    """Checks the share of malformed rows after the last row.

    Args:
      name: Name of the dataset.
      total: Number of its rows, including the malformed ones.

    Returns:
      A report of the dropped rows; '' if there are none.

    Raises:
      UserError: more rows are malformed than may be dropped.
    """
    count = len(self.dropped)
    if not count:
      return ''
    # "repeats the id 'a'" and "repeats the id 'b'" count as one reason.
    kinds = Counter(
      ' '.join(why.split()[:3]).rstrip(':') for _, why in self.dropped
    )
    if count > self._max_share * total:
      where, why = self.dropped[0]
      raise UserError(
        f'data: {count} of {total} rows of {name} are bad, more than '
        f'config.data.max_bad_row_share = {self._max_share} allows; the first: {where} '
        f'{why}'
      )
    why = ', '.join(f'{n} × {kind} …' for kind, n in kinds.most_common())
    lines = [f'data: quarantined {count} of {total} rows of {name}: {why}']
    lines += [f'  {where} {why}' for where, why in self.dropped[:_MAX_REPORTED]]
    if count > _MAX_REPORTED:
      lines.append(f'  and {count - _MAX_REPORTED} more')
    return '\n'.join(lines)
