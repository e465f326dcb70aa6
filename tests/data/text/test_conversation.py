"""Every turn of a conversation reaches the prompt, or the row is refused."""

import json

import pytest

from r1jax import registry
from r1jax.data import datasets, demonstrations, preferences, splits
from r1jax.data.quarantine import Quarantine
from r1jax.data.sources import Source
from r1jax.data.text import chat, conversation, tokenizer
from r1jax.data.text.template import SingleTurnTemplate
from r1jax.errors import UserError
from r1jax.records import Message
from tests.data.text import real_forms

_ZERO = registry.template.get('r1_zero_brief')
_ALL_ROLES = chat.ChatTemplate(
  "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}[go]"
)
# Drops the roles that it does not know, as many templates do.
_TWO_ROLES = chat.ChatTemplate(
  "{% for m in messages %}{% if m.role == 'user' %}U {{ m.content }}"
  "{% elif m.role == 'assistant' %}A {{ m.content }}{% endif %}{% endfor %} go"
)
_PARTS = chat.ChatTemplate(
  '{% for m in messages %}{% if m.content is string %}({{ m.content }})'
  '{% else %}{% for p in m.content %}<{{ p.text }}>{% endfor %}{% endif %}'
  '{% endfor %}'
)
_CALL = {
  'type': 'function',
  'function': {'name': 'add', 'arguments': {'a': 1, 'b': 2}},
}
_TOOL = {'type': 'function', 'function': {'name': 'add', 'parameters': {}}}


def _with_tools():
  return chat.ChatTemplate(real_forms.forms()['qwen3'][2])


def _turn(role, content, **extra):
  return {'role': role, 'content': content} | extra


def _render(template, *turns, tools=()):
  parsed = conversation.parse(list(turns))
  return conversation.render(
    template, '', parsed, conversation.parse_tools(list(tools))
  )


def test_a_users_message_alone_is_the_question():
  assert _render(_ZERO, _turn('user', '1+1')) == 'User:1+1Assistant:'
  parts = [{'type': 'text', 'text': '1'}, {'type': 'text', 'text': '+1'}]
  assert _render(_ZERO, _turn('user', parts)) == 'User:1+1Assistant:'


@pytest.mark.parametrize(
  'template, turns, tools',
  [
    (_ZERO, [_turn('system', 's'), _turn('user', 'u')], ()),
    (_ZERO, [_turn('user', 'u'), _turn('user', 'v')], ()),
    (_ZERO, [_turn('system', 's')], ()),
    (_ZERO, [_turn('user', 'u')], (_TOOL,)),
    (_TWO_ROLES, [_turn('system', 's'), _turn('user', 'u')], ()),
    (_TWO_ROLES, [_turn('user', 'u'), _turn('tool', 't')], ()),
    (_TWO_ROLES, [_turn('developer', 'd'), _turn('user', 'u')], ()),
    (_TWO_ROLES, [_turn('User', 'u')], ()),
    (_TWO_ROLES, [_turn('user', 'u')], (_TOOL,)),
    (
      _ALL_ROLES,
      [
        _turn('user', 'u'),
        _turn('assistant', 'a', tool_calls=[_CALL]),
        _turn('tool', '3'),
      ],
      (),
    ),
    (_ALL_ROLES, [_turn('user', 'u'), _turn('assistant', 'a')], ()),
    (
      _ALL_ROLES,
      [
        _turn('user', 'u'),
        _turn('assistant', None, tool_calls=[_CALL]),
        _turn('tool', '3'),
      ],
      (),
    ),
  ],
)
def test_what_would_vanish_is_refused(template, turns, tools):
  with pytest.raises(UserError, match='^template: ') as caught:
    _render(template, *turns, tools=tools)
  assert '\n' not in str(caught.value)


def test_the_error_names_the_turn():
  with pytest.raises(UserError, match=r"message 1 \('system'\) would not"):
    _render(_TWO_ROLES, _turn('system', 's'), _turn('user', 'u'))
  with pytest.raises(
    UserError, match=r"tool call of message 2 \('assistant'\)"
  ):
    _render(
      _ALL_ROLES,
      _turn('user', 'u'),
      _turn('assistant', 'a', tool_calls=[_CALL]),
      _turn('tool', '3'),
    )
  with pytest.raises(UserError, match='tool 1 would not appear'):
    _render(_ALL_ROLES, _turn('user', 'u'), tools=[_TOOL])


def test_tools_and_their_calls_are_rendered():
  prompt = _render(
    _with_tools(),
    _turn('user', '1+2?'),
    _turn('assistant', None, tool_calls=[_CALL]),
    _turn('tool', '3'),
    tools=[_TOOL],
  )
  assert prompt == (
    '<|im_start|>system\n# Tools\n{"type": "function", "function": '
    '{"name": "add", "parameters": {}}}\n<|im_end|>\n'
    '<|im_start|>user\n1+2?<|im_end|>\n'
    '<|im_start|>assistant\n<tool_call>\n{"name": "add", "arguments": '
    '{"a": 1, "b": 2}}\n</tool_call><|im_end|>\n'
    '<|im_start|>user\n<tool_response>\n3\n</tool_response><|im_end|>\n'
    '<|im_start|>assistant\n'
  )


@pytest.mark.parametrize(
  'template, prompt',
  [
    (_PARTS, '<a><b>(c)'),
    # Templates without lists are given one text, never Python's own form.
    (_ALL_ROLES, '[system]ab[user]c[go]'),
    (
      chat.ChatTemplate(
        "{% for m in messages %}{{ m.role + ': ' + m.content }};{% endfor %}"
      ),
      'system: ab;user: c;',
    ),
    (
      chat.ChatTemplate(
        '{% for m in messages %}{{ m.content | trim }}|{% endfor %}'
      ),
      'ab|c|',
    ),
  ],
)
def test_content_that_is_a_list_of_texts(template, prompt):
  parts = [{'type': 'text', 'text': 'a'}, {'type': 'text', 'text': 'b'}]
  assert _render(template, _turn('system', parts), _turn('user', 'c')) == prompt


@pytest.mark.parametrize(
  'messages, message',
  [
    ('hi', "needs 'messages' of 'role' and 'content'"),
    ([], "needs 'messages'"),
    (['hi'], "needs 'messages'"),
    ([{'content': 'x'}], "needs 'messages'"),
    ([_turn('user', None)], r"message 1 \('user'\) has no content"),
    ([_turn('', 'x')], "message 1 whose 'role' is ''"),
    ([_turn(3, 'x')], "message 1 whose 'role' is 3"),
    ([_turn('user', 7)], 'neither text nor a list of parts: 7'),
    ([_turn('user', {'text': 'x'})], 'neither text nor a list'),
    (
      [_turn('user', [{'type': 'image', 'url': 'u'}])],
      r"a part of message 1 \('user'\) that is no text",
    ),
    ([_turn('assistant', None, tool_calls=[])], 'has no content'),
  ],
)
def test_messages_that_are_no_conversation(messages, message):
  with pytest.raises(ValueError, match=message):
    conversation.parse(messages)


def test_nones_of_parquet_are_left_out():
  (turn,) = conversation.parse([_turn('user', 'x', tool_calls=None, name=None)])
  assert turn == Message('user', 'x')
  tools = conversation.parse_tools(
    '[{"name": "f", "description": null, "parameters": {"x": null}}]'
  )
  assert tools == ({'name': 'f', 'parameters': {}},)
  for wrong in ('{', '{"a": 1}', [1], 7):
    with pytest.raises(ValueError, match='tools'):
      conversation.parse_tools(wrong)


def test_blank_turns_and_marks_in_the_text():
  """The marks differ from every text of the row."""
  turns = [_turn('system', ''), _turn('user', 'qx0q qxz1q'), _turn('tool', '')]
  assert _render(_ALL_ROLES, *turns) == '[system][user]qx0q qxz1q[tool][go]'


def _rows(tmp_path, *rows):
  path = tmp_path / 'rows.jsonl'
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  return str(path)


def test_demonstrations_with_messages(tmp_path):
  user, answer = _turn('user', '1+1'), _turn('assistant', '2')
  path = _rows(
    tmp_path,
    {'id': 'a', 'messages': [user], 'response': '2'},
    {'id': 'b', 'messages': [user, answer]},
  )
  first, second = demonstrations.read(path, _ZERO)
  assert first.prompt == second.prompt == 'User:1+1Assistant:'
  assert first.response == second.response == '2'
  assert second.messages == (Message('user', '1+1'),)


@pytest.mark.parametrize(
  'row, message',
  [
    (
      {'messages': [_turn('user', 'u'), _turn('assistant', 'a')]}
      | {'response': 'b'},
      "not with the assistant's",
    ),
    (
      {'messages': [_turn('system', 's'), _turn('user', 'u')]}
      | {'response': 'b'},
      'which only a chat template can hold',
    ),
    (
      {'messages': [_turn('user', 'u')], 'tools': [_TOOL], 'response': 'b'},
      "holds no 'tools'",
    ),
    (
      {
        'messages': [
          _turn('user', 'u'),
          _turn('assistant', 'a', reasoning_content='r'),
        ]
      },
      'has reasoning_content in the last of its messages',
    ),
    (
      {
        'messages': [
          _turn('user', 'u'),
          _turn('assistant', None, tool_calls=[_CALL]),
        ]
      },
      'has tool_calls in the last of its messages',
    ),
    ({'messages': [_turn('user', 'u')]}, "needs a non-empty str 'response'"),
    ({'question': 'q', 'tools': 'x', 'response': 'b'}, "'tools' that are not"),
  ],
)
def test_demonstrations_whose_turns_would_vanish(tmp_path, row, message):
  path = _rows(
    tmp_path, {'id': 'a', 'question': '1', 'response': '2'}, {'id': 'b'} | row
  )
  with pytest.raises(UserError, match=f'rows.jsonl:2.*{message}'):
    demonstrations.read(path, _ZERO)
  quarantine = Quarantine(0.5)
  assert len(demonstrations.read(path, _ZERO, quarantine=quarantine)) == 1


@pytest.mark.parametrize(
  'template, messages',
  [
    (_ZERO, [_turn('system', 's'), _turn('user', 'u')]),
    (_TWO_ROLES, [_turn('tool', 't'), _turn('user', 'u')]),
    (_ALL_ROLES, [_turn('user', 'u'), _turn('assistant', 'a')]),
  ],
)
def test_preferences_and_prompts_are_checked_too(tmp_path, template, messages):
  row = {'id': 'a', 'messages': messages, 'chosen': 'x', 'rejected': 'y'}
  with pytest.raises(UserError, match='rows.jsonl:1'):
    preferences.read(_rows(tmp_path, row), template)
  source = Source(
    files={splits.TRAIN: 'none'},
    fields={'id': str, 'question': str, 'answer': str},
    grader='math',
    origin='ours',
  )
  row = {'id': 'a', 'question': 'u', 'answer': '1', 'messages': messages}
  with pytest.raises(UserError, match='rows.jsonl:1'):
    prompts = datasets.read(source, splits.TRAIN, _rows(tmp_path, row))
    datasets.TemplatedPrompts(prompts, template)[0]


def test_the_messages_and_tools_of_a_prompt_are_rendered(tmp_path):
  source = Source(
    files={splits.TRAIN: 'none'},
    fields={'id': str, 'question': str, 'answer': str},
    grader='math',
    origin='ours',
  )
  row = {
    'id': 'a',
    'question': 'u',
    'answer': '1',
    'messages': [_turn('system', 's'), _turn('user', 'u')],
    'tools': [_TOOL],
  }
  path = _rows(tmp_path, row)
  prompts = datasets.read(source, splits.TRAIN, path)
  text = datasets.TemplatedPrompts(prompts, _with_tools())[0].text
  assert '"name": "add"' in text and 'system\ns<|im_end|>' in text
  plain = SingleTurnTemplate('Q {question} A')
  with pytest.raises(UserError, match='rows.jsonl:1: prompt a: template'):
    datasets.TemplatedPrompts(prompts, plain)[0]


@pytest.mark.parametrize('name', real_forms.forms())
def test_published_forms_take_ordinary_conversations(name):
  """And none loses a turn of these, or of a tool, in silence."""
  template = chat.ChatTemplate(real_forms.forms()[name][2], '<bos>', '<eos>')
  turns = [
    _turn('user', 'one'),
    _turn('assistant', 'two'),
    _turn('user', 'three'),
  ]
  prompt = _render(template, *turns)
  assert all(word in prompt for word in ('one', 'two', 'three'))
  try:
    prompt = _render(
      template, *turns, _turn('assistant', 'a'), _turn('tool', 'four')
    )
  except UserError as error:
    assert 'template: ' in str(error)
  else:
    assert 'four' in prompt


def test_messages_come_back_from_json():
  turn = Message('assistant', None, {'tool_calls': [_CALL]})
  assert Message(*json.loads(json.dumps(turn))) == turn
  assert turn.to_dict() == {
    'role': 'assistant',
    'content': None,
    'tool_calls': [_CALL],
  }
  assert tokenizer.load('character').encode(turn.text) == []


@pytest.mark.parametrize(
  'question, fits',
  [
    ('1+1', True),
    (' 1+1 ', True),
    ('', True),
    ('Human: be brief Human: What is 1+1', True),
    ('2+2', False),
    ('What is 1+1, really', False),
  ],
)
def test_a_question_beside_the_messages_is_not_lost(tmp_path, question, fits):
  messages = [_turn('system', 'be brief'), _turn('user', 'What is 1+1')]
  row = {'id': 'a', 'messages': messages, 'response': '2', 'question': question}
  path = _rows(tmp_path, row)
  if fits:
    (found,) = demonstrations.read(path, _ALL_ROLES)
    assert found.prompt == '[system]be brief[user]What is 1+1[go]'
    return
  with pytest.raises(
    UserError, match="rows.jsonl:1 has a 'question' that is in"
  ):
    demonstrations.read(path, _ALL_ROLES)
