"""Rows that cannot be used: an error, or dropped, counted and told."""

from collections import Counter

from r1jax.errors import UserError

_SHOWN = 20  # Rows that a report names; a broken file may have thousands.


class Quarantine:
  """Judges the rows of one dataset.

  Args:
    share: The largest share of the rows that may be dropped. 0: the first bad
      row is an error, which names it.
  """

  def __init__(self, share: float = 0.0):
    if not 0 <= share < 1:
      raise UserError(
        f'data: max_bad_row_share is a share within [0, 1), got {share}'
      )
    self._share = share
    self.dropped: list[tuple[str, str]] = []  # Where, and why.

  def drop(self, where: str, reason: str):
    """Notes a bad row.

    Raises:
      UserError: nothing may be dropped.
    """
    if not self._share:
      raise UserError(f'data: {where} {reason}'[:400])
    self.dropped.append((where, reason[:200]))

  def finish(self, name: str, total: int) -> str:
    """Counts the bad rows when all have been seen.

    Args:
      name: Of the dataset.
      total: Rows that it has, the bad ones among them.

    Returns:
      The report, '' where every row is good.

    Raises:
      UserError: more were bad than may be dropped.
    """
    count = len(self.dropped)
    if not count:
      return ''
    # "repeats the id 'a'" and "repeats the id 'b'" are one kind of reason.
    kinds = Counter(
      ' '.join(why.split()[:3]).rstrip(':') for _, why in self.dropped
    )
    if count > self._share * total:
      where, why = self.dropped[0]
      raise UserError(
        f'data: {count} of {total} rows of {name} are bad, more than '
        f'config.data.max_bad_row_share = {self._share} allows; the first: {where} '
        f'{why}'
      )
    why = ', '.join(f'{n} × {kind} …' for kind, n in kinds.most_common())
    lines = [f'data: quarantined {count} of {total} rows of {name}: {why}']
    lines += [f'  {where} {why}' for where, why in self.dropped[:_SHOWN]]
    if count > _SHOWN:
      lines.append(f'  and {count - _SHOWN} more')
    return '\n'.join(lines)
