"""The page of an evaluation holds its completions and nothing breaks out of it."""

import json
import re

from r1jax.evaluate import suite_page
from tests.evaluate.test_stored import record

_ROWS = [('suite', 'pass@1'), ('s<1>', '0.500')]


def _data(page: str) -> dict:
  [found] = re.findall(r'^const data = (.*);$', page, re.MULTILINE)
  return json.loads(found)


def test_wrong_completions_and_hard_problems_come_first():
  records = [
    record(0, 0),
    record(0, 1, verdict='wrong'),
    record(1, 0, verdict='wrong'),
    record(1, 1, verdict='unparsable'),
  ]
  page = suite_page.page({'policy': 'runs/a', 'seed': 0}, _ROWS, {'s': records})
  hard, easy = _data(page)['s']
  assert (hard['id'], hard['right'], hard['samples']) == ('p1', 0, 2)
  assert [c['verdict'] for c in easy['completions']] == ['wrong', 'correct']
  assert easy['completions'][1]['thought'] == '<think></think>'
  assert easy['completions'][1]['rest'] == ' 2'
  assert '<td>s&lt;1&gt;</td>' in page and 'All completions' in page


def test_no_text_ends_the_script_or_the_page():
  evil = '</script><script>alert(1)</script><!--'
  page = suite_page.page(
    {'policy': evil}, _ROWS, {'s': [record(0, 0, completion=evil)]}
  )
  assert page.count('</script>') == 1 and page.count('<script>') == 1
  assert evil in _data(page)['s'][0]['completions'][0]['rest']


def test_a_thought_that_was_cut_off_is_all_thought():
  cut = record(0, 0, completion='let me see', truncated=True)
  [problem] = _data(suite_page.page({}, _ROWS, {'s': [cut]}))['s']
  assert problem['completions'][0]['thought'] == 'let me see'


def test_a_large_evaluation_says_what_it_leaves_out():
  records = [record(0, g, completion='x' * 1000) for g in range(8)]
  page = suite_page.page({}, _ROWS, {'s': records}, max_chars=2500)
  [problem] = _data(page)['s']
  assert len(problem['completions']) == 2 and problem['samples'] == 8
  assert '2 of 8 completions of each problem are shown' in page


def test_the_middle_of_a_long_completion_is_said_to_be_cut():
  long = 'a' * 30_000
  [problem] = _data(
    suite_page.page({}, _ROWS, {'s': [record(0, 0, completion=long)]})
  )['s']
  assert '[… 6000 characters …]' in problem['completions'][0]['rest']
