"""Rows of files: every form reads alike, and a bad row is named or dropped."""

import gzip
import json

import pytest

from r1jax import registry
from r1jax.data import datasets, readers, splits
from r1jax.data.quarantine import Quarantine
from r1jax.errors import UserError

_MATH = registry.dataset.get('math')
_ROWS = [
  {'id': f'r{i}', 'question': f'{i}+1?', 'answer': str(i + 1)} for i in range(7)
]


def _read(path, source=_MATH, **kwargs):
  return datasets.read(source, splits.TRAIN, str(path), **kwargs)


def _lines(rows) -> str:
  return ''.join(json.dumps(row) + '\n' for row in rows)


def _jsonl(folder):
  (folder / 'rows.jsonl').write_text(_lines(_ROWS))
  return folder / 'rows.jsonl'


def _no_suffix(folder):
  return _jsonl(folder).with_suffix('')


def _packed(folder):
  with gzip.open(folder / 'rows.jsonl.gz', 'wt') as file:
    file.write(_lines(_ROWS))
  return folder / 'rows'


def _json_shards(folder):
  (folder / 'part-0.jsonl').write_text(_lines(_ROWS[:3]))
  (folder / 'part-1.jsonl').write_text(_lines(_ROWS[3:]))
  return folder


def _hub_shards(folder):
  """As a repository of the hub: data/<split>-00000-of-00002.parquet."""
  pyarrow = pytest.importorskip('pyarrow')
  from pyarrow import parquet

  (folder / 'data').mkdir()
  for name, rows in (
    ('train-00000-of-00002', _ROWS[:4]),
    ('train-00001-of-00002', _ROWS[4:]),
    ('test-00000-of-00001', _ROWS[:1]),
  ):
    parquet.write_table(
      pyarrow.Table.from_pylist(rows), folder / f'data/{name}.parquet'
    )
  return folder / 'data' / 'train-*'


def _saved_to_disk(folder):
  """What `datasets.Dataset.save_to_disk` writes: a stream a file."""
  pyarrow = pytest.importorskip('pyarrow')
  names = []
  for i, rows in enumerate((_ROWS[:5], _ROWS[5:])):
    names.append(f'data-0000{i}-of-00002.arrow')
    table = pyarrow.Table.from_pylist(rows)
    with pyarrow.ipc.new_stream(folder / names[-1], table.schema) as stream:
      stream.write_table(table, max_chunksize=2)
  (folder / 'state.json').write_text(
    json.dumps({'_data_files': [{'filename': name} for name in names]})
  )
  return folder


@pytest.mark.parametrize(
  'write',
  [_jsonl, _no_suffix, _packed, _json_shards, _hub_shards, _saved_to_disk],
)
def test_every_form_reads_alike(tmp_path, write):
  prompts = _read(write(tmp_path))
  assert [(p.id, p.question, p.answer) for p in prompts] == [
    tuple(row.values()) for row in _ROWS
  ]
  assert {p.source for p in prompts} == {'math'}
  file, number = prompts[-1].where.rsplit(':', 1)
  assert file.startswith(str(tmp_path)) and int(number) in (2, 3, 4, 7)


@pytest.mark.parametrize('name', ['rows.parquet', 'rows.arrow'])
def test_a_broken_binary_file_is_named(tmp_path, name):
  pytest.importorskip('pyarrow')
  (tmp_path / name).write_bytes(b'PAR1 and nothing more')
  with pytest.raises(UserError, match=f'cannot read .*{name} after row 0'):
    _read(tmp_path / name)


def test_a_folder_that_could_mean_several_things_is_refused(tmp_path):
  for split in ('train', 'test'):
    (tmp_path / split).mkdir()
    (tmp_path / split / 'state.json').write_text('{}')
    (tmp_path / f'{split}.jsonl').write_text(_lines(_ROWS))
  with pytest.raises(UserError, match="mixes .'test', 'train'."):
    readers.files(str(tmp_path))
  (tmp_path / 'dataset_dict.json').write_text('{}')
  with pytest.raises(UserError, match="splits .'test', 'train'.; name one"):
    readers.files(str(tmp_path))
  with pytest.raises(UserError, match='cannot read .*state.json'):
    readers.files(str(tmp_path / 'train'))
  (tmp_path / 'empty').mkdir()
  with pytest.raises(UserError, match='holds no rows'):
    readers.files(str(tmp_path / 'empty'))
  with pytest.raises(UserError, match='no file matches'):
    readers.files(str(tmp_path / 'none-*.jsonl'))


# A line, and what is said of it.
_POISON = {
  'broken': ('{', 'is not JSON'),
  'deep': ('[' * 100_000, 'is not JSON'),
  'list': ('[1]', 'is not a JSON object'),
  'missing': ('{"id": "x", "question": "q"}', "str 'answer', got None"),
  'empty': ('{"id": "x", "question": " ", "answer": "1"}', "'question'"),
  'type': (
    '{"id": "x", "question": "q", "answer": true}',
    "'answer', got True",
  ),
  'language': (
    '{"id": "x", "question": "q", "answer": "3", "language": 4}',
    "str 'language', got 4",
  ),
  'twice': (
    '{"id": "r0", "question": "q", "answer": "1"}',
    "repeats the id 'r0' of ",
  ),
  'nul': (
    '{"id": "x", "question": "q\\u0000", "answer": "1"}',
    "a NUL in 'question'",
  ),
  'half': (
    '{"id": "x", "question": "\\ud800", "answer": "1"}',
    "half a character .* in 'question'",
  ),
  'long': (
    json.dumps({'id': 'x', 'question': 'q' * 1_000_000, 'answer': '1'}),
    '1000000 characters',
  ),
  'gold': (
    '{"id": "x", "question": "q", "answer": "{{"}',
    'has a gold answer that does not parse',
  ),
}


def _bad_gold(answer: str) -> str:
  return 'does not parse' if answer == '{{' else ''


@pytest.mark.parametrize('line,message', _POISON.values(), ids=_POISON)
def test_a_bad_row_is_an_error_that_names_it(tmp_path, line, message):
  path = tmp_path / 'bad.jsonl'
  path.write_text(_lines(_ROWS[:1]) + line + '\n' + _lines(_ROWS[1:]))
  with pytest.raises(UserError, match=f'bad.jsonl:2 .*{message}') as caught:
    _read(path, gold_answer_problem=_bad_gold)
  assert len(str(caught.value)) <= 400 and '\n' not in str(caught.value)


def test_bytes_that_are_not_text_and_numbers_that_are_not_are_named(tmp_path):
  path = tmp_path / 'bad.jsonl'
  path.write_bytes(b'{"id": "a", "question": "\xff", "answer": "1"}')
  with pytest.raises(UserError, match='bad.jsonl:1 is not JSON'):
    _read(path)
  for numbers, target, message in (
    ('[1, "x"]', '3', "integers in 'nums'"),
    ('[]', '3', "list 'nums'"),
    ('[1, 2]', 'true', "int 'target', got True"),
  ):
    path.write_text(
      '{"id": "a", "question": "q", "nums": %s, "target": %s}'
      % (numbers, target)
    )
    with pytest.raises(UserError, match=message):
      _read(path, registry.dataset.get('countdown_file'))


def test_quarantine_drops_what_it_may_and_tells_each_row(tmp_path):
  path = tmp_path / 'bad.jsonl'
  path.write_text(
    _lines(_ROWS[:3])
    + ''.join(line + '\n' for line, _ in _POISON.values())
    + _lines(_ROWS[3:])
  )
  quarantine = Quarantine(0.7)
  prompts = _read(path, quarantine=quarantine, gold_answer_problem=_bad_gold)
  assert [p.id for p in prompts] == [row['id'] for row in _ROWS]
  total = len(_ROWS) + len(_POISON)
  message = quarantine.finish('mine', total)
  assert message.startswith('data: quarantined 12 of 19 rows of mine: ')
  assert '2 × is not JSON' in message
  assert f'\n  {path}:4 is not JSON' in message  # Each with its line.
  assert len(message) < 5000  # Though one of them has a million characters.
  with pytest.raises(
    UserError,
    match='12 of 19 rows of mine are bad, more '
    'than config.data.max_bad_row_share = 0.5 allows; the first: ',
  ):
    strict = Quarantine(0.5)
    strict.dropped = quarantine.dropped
    strict.finish('mine', total)
  assert Quarantine(0.1).finish('mine', 5) == ''


def test_a_missing_or_empty_file_is_named(tmp_path, monkeypatch):
  monkeypatch.delenv('R1JAX_DATA', raising=False)
  with pytest.raises(UserError, match='no math/none.jsonl; set R1JAX_DATA'):
    _read('math/none.jsonl')
  with pytest.raises(
    UserError,
    match='no math/math500; set R1JAX_DATA.*get it '
    'from .*prm800k.* as rows of id, question, answer',
  ):
    datasets.read(_MATH, splits.HELD_OUT)
  (tmp_path / 'empty.jsonl').write_text('')
  monkeypatch.setenv('R1JAX_DATA', str(tmp_path))
  with pytest.raises(UserError, match='has no rows'):
    _read('empty')
  with pytest.raises(UserError, match='is for evaluation only'):
    datasets.read(registry.dataset.get('aime24'), splits.TRAIN)
  with pytest.raises(UserError, match="'gsm8k_'; did you mean 'gsm8k'"):
    registry.dataset.get('gsm8k_')


@pytest.mark.parametrize(
  'name,split,count,first,answer',
  [
    ('gsm8k', 'train', 7473, 'gsm8k-train-00000', '72'),
    ('gsm8k', 'held_out', 1319, 'gsm8k-test-00000', '18'),
    ('math', 'train', 11998, 'math12k-train-00000', '0'),
    ('math500', 'held_out', 500, 'math500-test-precalculus-807', '\\left( 3'),
    ('aime24', 'held_out', 30, 'aime24-I-01', '204'),
    ('amc23', 'held_out', 40, 'amc23-00', '27'),
    (
      'countdown_file',
      'train',
      10240,
      'countdown-train-00000',
      '{"numbers": [44, 19, 35], "target": 98}',
    ),
    ('humaneval', 'held_out', 164, 'HumanEval-0', '{"id": "HumanEval-0"'),
    ('mbpp', 'train', 374, 'mbpp-601', '{"id": "mbpp-601"'),
    ('mbpp', 'held_out', 500, 'mbpp-11', '{"id": "mbpp-11"'),
    ('hh_helpful', 'held_out', 2348, 'hh_helpful_base_test-0000', '{"chosen"'),
    (
      'hh_harmless',
      'held_out',
      2308,
      'hh_harmless_base_test-0000',
      '{"chosen"',
    ),
  ],
)
def test_the_real_datasets_are_read_whole(
  shared, monkeypatch, name, split, count, first, answer
):
  monkeypatch.setenv('R1JAX_DATA', str(shared / 'data'))
  prompts = datasets.read(registry.dataset.get(name), split)
  assert len(prompts) == count  # None of their rows is bad.
  assert prompts[0].id == first and prompts[0].answer.startswith(answer)
  assert prompts[0].language == 'en'
  if name.startswith('hh'):
    for prompt in prompts:
      roles = [turn.role for turn in prompt.messages]
      assert roles == ['user', 'assistant'] * (len(roles) // 2) + ['user']
