"""From config.data to prompts: filtered, measured, mixed and reported."""

import itertools
import json
import logging

import pytest

from r1jax.cli import main
from r1jax.config import base
from r1jax.config.schema.data import DataConfig
from r1jax.data import batching, splits
from r1jax.data.text import chat, tokenizer
from r1jax.data.text.template import SingleTurnTemplate
from r1jax.errors import UserError
from r1jax.stages.build import parts, prompts
from tests.conftest import run_config


@pytest.fixture(autouse=True)
def information(caplog):
  """What a run tells is logged at this level."""
  caplog.set_level(logging.INFO, 'r1jax')


@pytest.fixture
def folder(tmp_path, monkeypatch):
  """Small files under the names of real datasets."""
  monkeypatch.setenv('R1JAX_DATA', str(tmp_path))
  (tmp_path / 'math').mkdir()
  words = ' '.join(f'word{i}' for i in range(12))
  _write(tmp_path / 'math/gsm8k_train.jsonl', 'g', [f'{i}+1' for i in range(8)])
  _write(
    tmp_path / 'math/math_train12k.jsonl',
    'm',
    [f'{i}+2' for i in range(4)] + [f'Now {words}.', '7 + 3'],
  )
  _write(tmp_path / 'math/math500.jsonl', 't', [words, '7+3', '9+9'])
  return tmp_path


def _write(path, name, questions):
  path.write_text(
    ''.join(
      json.dumps({'id': f'{name}{i}', 'question': question, 'answer': '1'})
      + '\n'
      for i, question in enumerate(questions)
    )
  )


def _config(**changes):
  config = base.get_config()
  config.data.update(
    dict(task='math', template='r1_zero_brief', max_prompt_tokens=120) | changes
  )
  config.eval.num_problems = 2
  return config


def _prompts(split: str = splits.TRAIN, **changes):
  config = run_config(_config(**changes))
  prompts.check(config.data)
  text = tokenizer.load('character')
  template = chat.load_template(config.data.template, text)
  return prompts.prompts(config, template, text, split)


def _ids(source, count: int) -> list[str]:
  data = batching.prompt_stream(source, 0, shuffle=True)
  return [prompt.id for prompt in itertools.islice(data, count)]


def test_a_dataset_by_name(folder):
  training = _prompts()
  assert len(training) == 6
  assert training[0].text == 'User:0+2Assistant:'
  held_out = _prompts(splits.HELD_OUT)
  assert [prompt.id for prompt in held_out] == ['t0', 't1']


def test_evaluation_questions_are_removed_and_counted(folder, caplog):
  left = _prompts(decontaminate=('math500',))
  assert sorted(_ids(left, 4)) == ['m0', 'm1', 'm2', 'm3']
  assert caplog.messages == [
    'data: math: 2 of 6 rows share 10 words with an evaluation and are not '
    'trained on (math500 2)'
  ]


def test_the_command_reports_each_match(folder, capsys):
  path = folder / 'config.py'
  path.write_text(
    'from r1jax.config import base\nget_config = base.get_config\n'
  )
  main.run(
    [
      'decontaminate',
      f'--config={path}',
      '--config.data.task=math',
      '--config.data.mixture=("math","gsm8k")',
      '--config.data.decontaminate=("math500",)',
      f'--out={folder}/report.json',
    ]
  )
  assert 'gsm8k: 0 of 8 rows' in capsys.readouterr().out
  reports = json.loads((folder / 'report.json').read_text())
  assert [report['removed'] for report in reports] == [2, 0]
  assert reports[0]['matches'][1] == {
    'train_id': 'm5',
    'evaluation': 'math500',
    'eval_id': 't1',
    'words': '7 3',
  }
  with pytest.raises(UserError, match='name the evaluation sets'):
    main.run(['decontaminate', f'--config={path}'])


def test_a_mixture_of_datasets_and_a_task(folder):
  mixed = _prompts(mixture=('gsm8k:1', 'math:1', 'arithmetic:2'))
  ids = _ids(mixed, 40)
  assert sum(id_.startswith('arithmetic-train') for id_ in ids) == 20
  assert sum(id_[0] == 'g' for id_ in ids) == 10
  by_size = _ids(_prompts(mixture=('gsm8k', 'math')), 70)
  assert sum(id_[0] == 'g' for id_ in by_size) == 40  # 8 : 6.
  with pytest.raises(UserError, match="every source a weight, as in 'arithm"):
    _prompts(mixture=('gsm8k', 'arithmetic'))
  with pytest.raises(UserError, match="path = 'other.jsonl' stands for the f"):
    _prompts(mixture=('gsm8k', 'math'), path='other.jsonl')


def test_pass_rates_choose_and_order(folder, caplog):
  (folder / 'rates.jsonl').write_text(
    ''.join(
      json.dumps({'id': f'm{i}', 'pass_rate': rate}) + '\n'
      for i, rate in enumerate((0.0, 0.25, 0.75, 0.5, 1.0))
    )
  )
  rated = dict(pass_rates='rates.jsonl', min_pass_rate=0.1, max_pass_rate=0.9)
  assert sorted(_ids(_prompts(**rated), 3)) == ['m1', 'm2', 'm3']
  assert '3 of 6 rows have a pass rate within [0.1, 0.9]; 1 were not' in (
    caplog.text
  )
  ordered = _prompts(sort_by_pass_rate=True, **rated)
  assert _ids(ordered, 6) == ['m2', 'm3', 'm1'] * 2
  with pytest.raises(UserError, match='no row of gsm8k is left'):
    _prompts(task='gsm8k', **rated)
  with pytest.raises(
    UserError, match='min_pass_rate = 0.9 must be at most max_pass_rate = 0.1'
  ):
    _prompts(pass_rates='rates.jsonl', min_pass_rate=0.9, max_pass_rate=0.1)


def test_bad_rows_and_prompts_are_dropped_in_training_alone(folder, caplog):
  path = folder / 'math/math_train12k.jsonl'
  path.write_text(
    path.read_text()
    + 'oops\n'
    + json.dumps({'id': 'é', 'question': 'é', 'answer': '1'})
    + '\n'
    + json.dumps({'id': 'long', 'question': '1' * 500, 'answer': '1'})
    + '\n'
  )
  with pytest.raises(UserError, match='math_train12k.jsonl:7 is not JSON'):
    _prompts()
  assert len(_prompts(max_bad_row_share=0.4)) == 6
  assert 'quarantined 3 of 9 rows of math' in caplog.text
  assert f'{path}:8 prompt é: tokenizer: the character tokenizer' in caplog.text
  assert f'{path}:9 prompt long has 502 tokens' in caplog.text
  with pytest.raises(UserError, match='max_bad_row_share = 0.3 allows'):
    _prompts(max_bad_row_share=0.3)
  (folder / 'math/math500.jsonl').write_text('oops\n')
  with pytest.raises(UserError, match='math500.jsonl:1 is not JSON'):
    _prompts(splits.HELD_OUT, max_bad_row_share=0.9)


@pytest.mark.parametrize(
  'form, end, completion, answer',
  [
    ('think', '<think>\n', 'a</think>7', '7'),
    ('think', '', '<think>a</think>7', '7'),
    ('think', '<think>\n\n</think>\n\n', '7', '7'),
    ('think_answer', '<think>', 'a</think><answer>7</answer>', '7'),
    (
      'reasoning_summary',
      '<reasoning_process>\n',
      'a</reasoning_process><summary>7</summary>',
      '7',
    ),
    ('special_token', '|special_token|', 'a|special_token|7', '7'),
  ],
)
def test_the_parser_knows_what_prompts_end_with(form, end, completion, answer):
  data = DataConfig(response_format=form, response_prefix=end)
  template = SingleTurnTemplate('{question}A:', end)
  parsed = parts.parser(data, template).parse(completion)
  assert (parsed.answer, parsed.errors) == (answer, 0)


@pytest.mark.parametrize(
  'form, end',
  [
    ('reasoning_summary', '<think>\n'),
    ('special_token', '<think>'),
    ('think', '<reasoning_process>'),
    ('think_answer', '|special_token|'),
  ],
)
def test_prompts_that_open_another_format_are_refused(form, end):
  with pytest.raises(UserError, match=f'data.response_format = {form!r}'):
    parts.parser(
      DataConfig(response_format=form), SingleTurnTemplate('{question}' + end)
    )
