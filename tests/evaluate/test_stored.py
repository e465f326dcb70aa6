"""Completions on the disk: parts, one whole file, and broken ones."""

import pyarrow.parquet as pq
import pytest

from r1jax.errors import UserError
from r1jax.evaluate import stored


def record(problem: int, sample: int, **changes) -> dict:
  return {
    'problem': problem,
    'sample': sample,
    'id': f'p{problem}',
    'question': '1+1',
    'prompt': 'User: 1+1',
    'gold': '2',
    'source': 'math',
    'completion': '<think></think> 2',
    'answer': '2',
    'verdict': 'correct',
    'accuracy': 1.0,
    'format': 1.0,
    'tokens': 5,
    'truncated': False,
  } | changes


def test_parts_become_one_sorted_file(tmp_path):
  first, second = stored.Writer(tmp_path, 0), stored.Writer(tmp_path, 1)
  first.write([record(1, 0), record(0, 1)])
  second.write([record(0, 0, accuracy=None, verdict='crash')])
  first.write([record(1, 1)])
  assert stored.keys(tmp_path) == {(0, 0), (0, 1), (1, 0), (1, 1)}
  before = stored.load(tmp_path)
  stored.join(tmp_path)
  assert [p.name for p in tmp_path.iterdir()] == [stored.WHOLE]
  assert stored.load(tmp_path) == before
  assert [(r['problem'], r['sample']) for r in before] == [
    (0, 0),
    (0, 1),
    (1, 0),
    (1, 1),
  ]
  assert before[0]['accuracy'] is None
  assert [r['problem'] for r in stored.load(tmp_path, 1)] == [0, 1]
  assert pq.read_table(tmp_path / stored.WHOLE).num_rows == 4


def test_more_samples_join_those_that_are_there(tmp_path):
  stored.Writer(tmp_path, 0).write([record(0, 0)])
  stored.join(tmp_path)
  stored.Writer(tmp_path, 0).write([record(0, 1)])
  assert stored.keys(tmp_path) == {(0, 0), (0, 1)}
  stored.join(tmp_path)
  assert len(stored.load(tmp_path)) == 2


def test_a_writer_goes_on_after_the_parts_of_a_killed_one(tmp_path):
  stored.Writer(tmp_path, 0).write([record(0, 0)])
  stored.Writer(tmp_path, 0).write([record(0, 1)])
  assert len(stored.keys(tmp_path)) == 2


def test_a_torn_file_is_named(tmp_path):
  stored.Writer(tmp_path, 0).write([record(0, 0)])
  [part] = (tmp_path / stored.PARTS).iterdir()
  part.write_bytes(part.read_bytes()[:-9])
  with pytest.raises(UserError, match='0-000000.parquet is no whole file'):
    stored.keys(tmp_path)


def test_half_a_character_does_not_stop_it(tmp_path):
  stored.Writer(tmp_path, 0).write([record(0, 0, completion='a\ud800')])
  assert stored.load(tmp_path)[0]['completion'] == 'a?'
