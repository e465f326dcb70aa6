"""Says loudly that most completions hold no answer, and which key to change."""

from collections.abc import Sequence
import dataclasses
import logging

import jax

from r1jax import registry
from r1jax.data.datasets import GENERAL
from r1jax.data.text.response_formats import ResponseFormat, ResponseParser
from r1jax.graders.verdict import Verdict

MAX_SHARE = 0.5  # Beyond it a share of completions is worth a warning.
_NUM_SAMPLES = 3
_MAX_CHARS = 160  # Characters that are shown of the end of a completion.
_NUM_TRIED = 64  # Completions that other response formats are tried on.
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Limit:
  """The key that bounds the length of a completion.

  Attributes:
    value: Its value, in tokens.
    key: Its name.
  """

  value: int
  key: str = 'rl.max_new_tokens'


def warn(
  where: str, records: Sequence[dict], parser: ResponseParser, limit: Limit
):
  """Logs a warning if over half of the completions are cut off or unparsable.

  It names the key to change and shows three of the completions.

  Args:
    where: Their origin: 'the evaluation', 'step 7'.
    records: Sample records; see evaluator.sample_records.
    parser: The parser of the run.
    limit: The limit that cut completions off.
  """
  cut, unread = _cut_off(records), _unread(records, parser)
  reasons = []
  if len(cut) > MAX_SHARE * len(records):
    reasons.append(
      f'{_share(cut, records)} were cut off at {limit.key} = {limit.value}; '
      f'raise --config.{limit.key}'
    )
  if len(unread) > MAX_SHARE * len(records):
    reasons.append(
      f'{_share(unread, records)} hold no answer in the form '
      f'data.response_format = {_name(parser.format)!r}; '
      + _advice(unread, parser, limit)
    )
  if reasons and jax.process_index() == 0:
    shown = (unread if len(unread) > len(cut) else cut)[:_NUM_SAMPLES]
    _log.warning(
      '%s: WARNING: of %d completions %s%s',
      where,
      len(records),
      '; and '.join(reasons),
      ''.join(map(_described, shown)),
    )


class StepWatch:
  """Warns of training steps, the less often the longer the state lasts.

  The 1st, 2nd, 4th, 8th and so on of consecutive steps with a reason to warn
  are reported.
  """

  def __init__(self, parser: ResponseParser, limit: Limit):
    self._parser, self._limit = parser, limit
    self._num_steps = 0  # Consecutive ones with a reason.

  def see(self, step: int, records: Sequence[dict]):
    """Reads the sample records of a step."""
    most = max(len(_cut_off(records)), len(_unread(records, self._parser)))
    if most <= MAX_SHARE * len(records):
      self._num_steps = 0
      return
    self._num_steps += 1
    if self._num_steps & (self._num_steps - 1) == 0:
      warn(f'step {step}', records, self._parser, self._limit)


def _cut_off(records: Sequence[dict]) -> list[dict]:
  return [record for record in records if record['truncated']]


def _unread(records: Sequence[dict], parser: ResponseParser) -> list[dict]:
  """Returns the records without anything to grade, or to show of an answer."""
  return [
    record
    for record in records
    if (
      not parser.parse(record['completion']).response
      if record['source'] == GENERAL
      else record['verdict'] == Verdict.UNPARSABLE
    )
  ]


def _advice(
  unread: Sequence[dict], parser: ResponseParser, limit: Limit
) -> str:
  """Returns the key to change, for completions that hold no answer."""
  finished = [record for record in unread if not record['truncated']]
  if len(finished) < len(unread) / 2:
    return f'most of these were cut off: raise --config.{limit.key}'
  tried = [record['completion'] for record in finished[:_NUM_TRIED]]
  num_read = {
    name: sum(
      bool(ResponseParser(tags, parser.prompt_opens_think).parse(t).answer)
      for t in tried
    )
    for name, tags in registry.response_format.items()
    if isinstance(tags, ResponseFormat) and tags != parser.format
  }
  name = max(num_read, key=lambda each: num_read[each])
  advice = 'change --config.data.response_format'
  if num_read[name] > MAX_SHARE * len(tried):
    advice += (
      f" to '{name}', which reads an answer in {num_read[name] / len(tried):.0%}"
      ' of these'
    )
  return f'{advice}, or the prompt by --config.data.template'


def _share(some: Sequence[dict], records: Sequence[dict]) -> str:
  return f'{len(some) / len(records):.0%}'


def _name(tags: ResponseFormat) -> str:
  """Returns the name under which a response format is registered."""
  names = (n for n, each in registry.response_format.items() if each == tags)
  return next(names, str(tags.tags))


def _described(record: dict) -> str:
  text = record['completion']
  end = '…' * (len(text) > _MAX_CHARS) + text[-_MAX_CHARS:]
  how = 'cut off' if record['truncated'] else 'ended'
  return f'\n  {record["id"]}, {record["tokens"]} tokens, {how}: {end!r}'
