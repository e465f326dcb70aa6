"""The end of a prompt is there once, whoever writes it."""

import json

import pytest

from r1jax import registry
from r1jax.data import demonstrations, preferences
from r1jax.data.text import chat, openings
from r1jax.data.text.openings import Opening
from r1jax.data.text.template import SingleTurnTemplate
from r1jax.errors import UserError

_TAGS = [
  ('<think>', '</think>'),
  ('<reasoning_process>', '</reasoning_process>'),
  ('|special_token|', '|special_token|'),
]


def _chat(end: str, prefix: str = ''):
  return chat.ChatTemplate(
    "{{ messages[0].content }}{{ 'A:END' }}".replace(
      'END', end.replace('\n', '\\n')
    ),
    response_prefix=prefix,
  )


def _fixed(end: str, prefix: str = ''):
  return SingleTurnTemplate('{question}A:' + end, prefix)


@pytest.mark.parametrize('make', [_chat, _fixed])
@pytest.mark.parametrize('tag', [tag for tag, _ in _TAGS])
@pytest.mark.parametrize(
  'end, prefix, whole',
  [
    ('T\n', 'T\n', 'T\n'),
    ('T', 'T\n', 'T\n'),
    ('T\n', 'T', 'T\n'),
    ('T\n', '', 'T\n'),
    ('', 'T\n', 'T\n'),
    ('T\n\n', 'T\n', 'T\n\n'),
    ('T\n', 'T\n\n', 'T\n\n'),
    ('T\n', 'T\nOkay', 'T\nOkay'),
    ('T', ' T', 'T'),
    (' ', 'T', ' T'),
  ],
)
def test_template_and_prefix_open_the_thought_once(
  make, tag, end, prefix, whole
):
  made = make(end.replace('T', tag), prefix.replace('T', tag))
  assert made.render('q') == 'qA:' + whole.replace('T', tag)


def _read(tmp_path, template, response):
  path = tmp_path / 'rows.jsonl'
  path.write_text(
    json.dumps({'id': 'a', 'question': 'q', 'response': response})
  )
  (row,) = demonstrations.read(str(path), template)
  return row.prompt + row.response


@pytest.mark.parametrize('make', [_chat, _fixed])
@pytest.mark.parametrize('tag, close', _TAGS)
@pytest.mark.parametrize(
  'end, prefix', [('T\n', ''), ('T\n', 'T\n'), ('', 'T\n'), ('T', 'T\n')]
)
@pytest.mark.parametrize(
  'response, taught',
  [
    ('T\nabcCd', 'T\nabcCd'),
    ('TabcCd', 'T\nabcCd'),
    ('abcCd', 'T\nabcCd'),
    ('T\n\nabcCd', 'T\n\nabcCd'),
    ('\nT\nabcCd', 'T\nabcCd'),
    ('T\nCd', 'T\nCd'),
  ],
)
def test_rows_are_taught_once_too(
  tmp_path, make, tag, close, end, prefix, response, taught
):
  fill = lambda text: text.replace('T', tag).replace('C', close)
  made = make(fill(end), fill(prefix))
  assert _read(tmp_path, made, fill(response)) == 'qA:' + fill(taught)


@pytest.mark.parametrize('make', [_chat, _fixed])
@pytest.mark.parametrize('tag, close', _TAGS)
@pytest.mark.parametrize(
  'response', ['4', 'The answer is 4.', '\n4', '<answer>4</answer>', '**4**']
)
def test_an_answer_is_not_taught_inside_an_open_thought(
  tmp_path, make, tag, close, response
):
  for template in (make(f'{tag}\n'), make('', f'{tag}\n')):
    with pytest.raises(UserError, match='rows.jsonl:1 has no .*prompts open'):
      _read(tmp_path, template, response)
  # An empty thought is one; and so is none where nothing opens it.
  assert _read(tmp_path, make(f'{tag}\n'), f'{close}4').endswith(f'{close}4')
  assert _read(tmp_path, make(''), response).endswith(response)


def test_preferences_are_read_alike(tmp_path):
  path = tmp_path / 'rows.jsonl'
  row = {'id': 'a', 'question': 'q', 'chosen': '<think>\nb</think>c'}
  path.write_text(json.dumps(row | {'rejected': 'd</think>e'}))
  (pair,) = preferences.read(str(path), _chat('<think>\n'))
  assert (pair.chosen, pair.rejected) == ('b</think>c', 'd</think>e')
  path.write_text(json.dumps(row | {'rejected': 'e'}))
  with pytest.raises(UserError, match='rows.jsonl:1 has no </think>'):
    preferences.read(str(path), _chat('<think>\n'))


@pytest.mark.parametrize(
  'response, rest',
  [
    ('4', '4'),
    ('<think>\n\n</think>\n\n4', '4'),
    ('<think></think>4', '4'),
    ('<think>\n</think>\n\n4', '4'),
  ],
)
def test_a_thought_that_the_prompt_closes(tmp_path, response, rest):
  closed = _chat('<think>\n\n</think>\n\n')
  assert (
    _read(tmp_path, closed, response) == f'qA:<think>\n\n</think>\n\n{rest}'
  )
  with pytest.raises(UserError, match='contradict each other'):
    _read(tmp_path, closed, '<think>\nabc\n</think>\n\n4')
  with pytest.raises(UserError, match='closes the reasoning'):
    _chat('<think>\n\n</think>\n\n', '<think>\n')


def test_a_response_that_begins_otherwise_is_refused(tmp_path):
  with pytest.raises(UserError, match='contradict each other'):
    _read(tmp_path, _chat('', '<think>\nOkay'), '<think>\nHm.</think>4')
  taught = _read(
    tmp_path, _chat('', '<think>\nOkay'), '<think>\nOkay, so</think>4'
  )
  assert taught == 'qA:<think>\nOkay, so</think>4'


def test_a_prefix_without_a_tag_is_not_repeated_either(tmp_path):
  assert _read(tmp_path, _chat('', 'Well, '), 'Well, 4') == 'qA:Well, 4'
  assert _read(tmp_path, _chat('', 'Well, '), '4') == 'qA:Well, 4'


def test_tags_in_a_question_open_nothing():
  for template in (_chat(''), _fixed(''), registry.template.get('r1_zero')):
    assert openings.of_template(template) == openings.NONE
    assert '<think></think><think>' not in template.render('<think>')
  made = _chat('', '<think>\n')
  assert made.render('what is <think>').endswith('<think>A:<think>\n')
  assert openings.of_template(made) == Opening(
    '<think>\n', '<think>', '</think>', False
  )
