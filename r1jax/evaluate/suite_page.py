"""One HTML page of an evaluation: the table, and completions to read.

The page needs no network and no other file. Problems that are solved least often
come first, and wrong completions before right ones; thoughts are folded.
"""

from collections.abc import Mapping, Sequence
import html
import json
from pathlib import Path
from typing import Any

from r1jax import registry
from r1jax.graders.verdict import Verdict

_TEMPLATE = Path(__file__).parents[1] / 'assets' / 'suite_page.html'
MAX_CHARS = 20_000_000  # Characters of completions on a page.
_MAX_COMPLETION = 24_000  # Characters of one; the middle of a longer is cut.


def page(
  evaluation: Mapping[str, Any],
  rows: Sequence[Sequence[str]],
  suites: Mapping[str, Sequence[dict]],
  max_chars: int = MAX_CHARS,
) -> str:
  """Returns the page.

  Args:
    evaluation: The policy and the settings that it was measured with, by name.
    rows: The table of results, the names of its columns first.
    suites: The stored completions of each suite.
    max_chars: Characters of completions, at most; the page says how many
      completions of each problem it shows.
  """
  count = _completions_shown(suites, max_chars)
  data = {
    name: [_problem(group, count) for group in _by_problem(records)]
    for name, records in suites.items()
  }
  for problems in data.values():
    problems.sort(key=lambda problem: problem['right'] / problem['samples'])
  most = max(
    (problem['samples'] for own in data.values() for problem in own), default=0
  )
  shown = (
    f'{count} of {most} completions of each problem are shown, wrong ones '
    'first; the Parquet files have all.'
    if count < most
    else 'All completions are shown, wrong ones first.'
  )
  # '<' never occurs in the script, so that no text can end it.
  script = json.dumps(data, ensure_ascii=False).replace('<', '\\u003c')
  filled = _TEMPLATE.read_text()
  for name, text in (
    ('TITLE', html.escape(str(evaluation.get('policy', 'evaluation')))),
    ('FACTS', _facts(evaluation)),
    ('TABLE', _table(rows)),
    ('SHOWN', shown),
  ):
    filled = filled.replace(f'<!--{name}-->', text)
  return filled.replace('/*DATA*/', script)


def _completions_shown(
  suites: Mapping[str, Sequence[dict]], max_chars: int
) -> int:
  """Returns how many completions of a problem the page has room for."""
  most = max(
    (len(g) for records in suites.values() for g in _by_problem(records)),
    default=1,
  )
  total = sum(
    min(len(record['completion']), _MAX_COMPLETION)
    for records in suites.values()
    for record in records
  )
  return max(1, min(most, most * max_chars // max(total, 1)))


def _by_problem(records: Sequence[dict]) -> list[list[dict]]:
  groups: dict[int, list[dict]] = {}
  for record in records:
    groups.setdefault(record['problem'], []).append(record)
  return list(groups.values())


def _problem(group: Sequence[dict], count: int) -> dict:
  """Returns a problem with some of its completions, the wrong ones first."""
  is_right = lambda record: record['verdict'] == Verdict.CORRECT
  first = group[0]
  return {
    'id': first['id'],
    'question': first['question'],
    'gold': first['gold'],
    'right': sum(map(is_right, group)),
    'samples': len(group),
    'completions': [
      _completion(record) for record in sorted(group, key=is_right)[:count]
    ],
  }


def _completion(record: dict) -> dict:
  text, end = record['completion'], _thought_end(record['completion'])
  if record['truncated'] and not end:
    end = len(text)  # It was cut off within its thought.
  return {
    'sample': record['sample'],
    'verdict': record['verdict'],
    'tokens': record['tokens'],
    'cut': bool(record['truncated']),
    'answer': record['answer'],
    'thought': _shortened(text[:end]),
    'rest': _shortened(text[end:]),
  }


def _thought_end(text: str) -> int:
  """Returns where the reasoning ends, by the tags of any format; 0 for none."""
  return max(
    (
      text.rfind(tags.reasoning_end) + len(tags.reasoning_end)
      for _, tags in registry.response_format.items()
      if tags.reasoning_end in text
    ),
    default=0,
  )


def _shortened(text: str) -> str:
  half = _MAX_COMPLETION // 2
  if len(text) <= _MAX_COMPLETION:
    return text
  cut = len(text) - 2 * half
  return f'{text[:half]}\n[… {cut} characters …]\n{text[-half:]}'


def _facts(evaluation: Mapping[str, Any]) -> str:
  return ''.join(
    f'<dt>{html.escape(str(name))}</dt><dd>{html.escape(str(value))}</dd>'
    for name, value in evaluation.items()
    if value != ''
  )


def _table(rows: Sequence[Sequence[str]]) -> str:
  head, *body = rows
  cells = lambda row, tag: ''.join(
    f'<{tag}>{html.escape(cell)}</{tag}>' for cell in row
  )
  return (
    f'<thead><tr>{cells(head, "th")}</tr></thead><tbody>'
    + ''.join(f'<tr>{cells(row, "td")}</tr>' for row in body)
    + '</tbody>'
  )
