"""Chat templates, against strings written by hand from their sources."""

import copy
import dataclasses
import json

import pytest

from r1jax import registry
from r1jax.data.text import chat, tokenizer
from r1jax.errors import UserError
from r1jax.records import Message, Prompt

_TURNS = (
  Message('system', 'Be brief.'),
  Message('user', 'a'),
  Message('assistant', '<think>x</think>b'),
  Message('user', 'c'),
)
_BOS = '<｜begin▁of▁sentence｜>'
_END = '<｜end▁of▁sentence｜>'
_QWEN_SYSTEM = (
  '<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. '
  'You are a helpful assistant.<|im_end|>\n'
)
# In Llama 3's form: the first turn carries the BOS, a day stands in it.
_LLAMA = """{%- set day = strftime_now('%d %b %Y') %}
{%- for message in messages %}
    {%- if message.role not in ['system', 'user', 'assistant'] %}
        {{- raise_exception('no role ' + message.role) }}
    {%- endif %}
    {%- if loop.first %}{{ bos_token }}{% endif %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
    {%- if message.role == 'system' %}
        {{- 'Today: ' + day + '\\n\\n' }}
    {%- endif %}
    {{- message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""


def _tokenizer(shared, name) -> tokenizer.Tokenizer:
  return tokenizer.load(str(shared / 'data/tokenizer' / name))


@pytest.fixture(scope='module')
def qwen(shared):
  return _tokenizer(shared, 'qwen2.5')


@pytest.fixture(scope='module')
def deepseek(shared):
  return _tokenizer(shared, 'deepseek-r1').with_bos()


def _file(shared, name) -> str:
  return str(shared / 'data/tokenizer/templates' / f'{name}.jinja')


_QWEN = 'Qwen-Qwen2.5-7B-Instruct'
_DISTILL = 'deepseek-ai-DeepSeek-R1-Distill-Qwen-32B'
_R1 = 'llama-cpp-deepseek-r1'


@pytest.mark.parametrize(
  'name,question,conversation',
  [
    (
      _QWEN,
      _QWEN_SYSTEM
      + '<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n',
      '<|im_start|>system\nBe brief.<|im_end|>\n'
      '<|im_start|>user\na<|im_end|>\n'
      '<|im_start|>assistant\n<think>x</think>b<|im_end|>\n'
      '<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n',
    ),
    # R1's templates drop the reasoning of earlier turns.
    (
      _DISTILL,
      f'{_BOS}<｜User｜>2+2?<｜Assistant｜><think>\n',
      f'{_BOS}Be brief.<｜User｜>a<｜Assistant｜>b{_END}<｜User｜>c'
      '<｜Assistant｜><think>\n',
    ),
    # This one ends the user's turns as well.
    (
      _R1,
      f'{_BOS}<｜User｜>2+2?{_END}<｜Assistant｜><think>\n',
      f'{_BOS}Be brief.<｜User｜>a{_END}<｜Assistant｜>b{_END}<｜User｜>c{_END}'
      '<｜Assistant｜><think>\n',
    ),
  ],
)
def test_the_published_templates(
  shared, deepseek, name, question, conversation
):
  made = chat.load_template(_file(shared, name), deepseek)
  assert made.render('2+2?') == question
  assert made.render('not read', _TURNS) == conversation
  assert made.prompt_opens_think == (name != _QWEN)


def test_the_tokenizers_own_templates(qwen, deepseek):
  own = chat.load_template('chat', qwen, system='Be brief.')
  assert own.render('2+2?') == (
    '<|im_start|>system\nBe brief.<|im_end|>\n'
    '<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n'
  )
  assert own.render('', _TURNS).count('Be brief.') == 1
  own = chat.load_template('chat', deepseek)
  assert own.render('2+2?') == f'{_BOS}<｜User｜>2+2?<｜Assistant｜>'
  assert not own.prompt_opens_think
  opened = chat.load_template('chat', deepseek, response_prefix='<think>\n')
  assert opened.prompt_opens_think
  assert opened.render('2+2?').endswith('<｜Assistant｜><think>\n')


def test_llamas_form_and_its_day_that_does_not_pass():
  made = chat.ChatTemplate(_LLAMA, bos_token='<s>', system='Be brief.')
  assert made.render(' 2+2? ') == (
    '<s><|start_header_id|>system<|end_header_id|>\n\nToday: 26 Jul 2024\n\n'
    'Be brief.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n'
    '2+2?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n'
  )
  with pytest.raises(UserError, match='refuses the conversation: no role tool'):
    made.render('', [Message('tool', 'x')])


@pytest.mark.parametrize(
  'name', ['r1_zero', 'r1_zero_brief', 'chat', _QWEN, _DISTILL, _R1]
)
def test_exactly_one_bos_whatever_template_and_tokenizer_do(
  shared, qwen, deepseek, name
):
  name = _file(shared, name) if '-' in name else name
  text = chat.load_template(name, deepseek).render('2+2?')
  for repeated in (text, _BOS + text, _BOS * 3 + text):
    ids = deepseek.encode_prompt(repeated)
    assert ids.count(deepseek.bos_id) == 1 and ids[0] == deepseek.bos_id
    assert deepseek.decode(ids) == _BOS + text.removeprefix(_BOS)
  with pytest.raises(UserError, match='stands inside the prompt'):
    deepseek.encode_prompt(text + _BOS + 'x')
  # Qwen has none; its pad and stop tokens do not open a prompt either.
  text = chat.load_template(name, qwen).render('2+2?')
  assert qwen.decode(qwen.encode_prompt(text)) == text and 'None' not in text
  # One that leaves the BOS to the template.
  quiet = tokenizer.Tokenizer(
    deepseek._core,
    'quiet',
    deepseek.pad_id,
    deepseek.bos_id,
    deepseek.stop_ids,
    adds_bos=False,
  )
  text = chat.load_template('chat', deepseek).render('2+2?')
  assert quiet.encode_prompt(_BOS + text) == deepseek.encode_prompt(text)
  assert quiet.encode_prompt('2+2?') == deepseek.encode('2+2?')


def test_a_prefill_opens_the_thought_of_any_template(deepseek):
  made = chat.load_template('r1_zero', deepseek, response_prefix=' <think>')
  assert made.render('2+2?') == registry.template.get('r1_zero_open').render(
    '2+2?'
  )
  assert (
    made.prompt_opens_think
    and registry.template.get('r1_zero_open').prompt_opens_think
  )
  assert not registry.template.get('r1_zero').prompt_opens_think


@pytest.mark.parametrize(
  'source',
  [
    '{% for %}',
    "{{ raise_exception('no') }}",
    '{{ messages[9].content }}',
    "{{ ''.__class__.__mro__ }}",
    '{% set _ = messages.append(1) %}',
    '{% for i in range(10 ** 9) %}{% endfor %}',
    '{{ 1 + messages }}',
  ],
)
def test_a_template_that_fails_or_attacks_is_refused(source):
  with pytest.raises(UserError, match='template: '):
    chat.ChatTemplate(source)


def test_a_template_may_stand_beside_the_settings(tmp_path):
  tokenizer.load('character')._core.save(str(tmp_path / 'tokenizer.json'))
  (tmp_path / 'tokenizer_config.json').write_text(
    json.dumps(
      {
        'eos_token': '<eos>',
        'chat_template': [
          {'name': 'tools', 'template': 'a'},
          {
            'name': 'default',
            'template': 'b{{ messages[0].content ~ eos_token }}',
          },
        ],
      }
    )
  )
  made = chat.load_template('chat', tokenizer.load(str(tmp_path)))
  assert made.render('x') == 'bx<eos>'
  (tmp_path / 'chat_template.jinja').write_text('c{{ messages[0].content }}')
  made = chat.load_template('chat', tokenizer.load(str(tmp_path)))
  assert made.render('x') == 'cx'


def _with_templates(**templates):
  text = copy.copy(tokenizer.load('character'))
  text.chat_templates = templates
  return text


_PLAIN = '\n  {{ messages[0].content }}\n'
_WITH_TOOLS = '\n{{ tools[0].name if tools }} {{ messages[0].content }}\n\n'


def test_a_chat_template_is_chosen_by_name_or_by_tools():
  """As transformers: tool_use for tools, else default, to the last space."""
  text = _with_templates(default=_PLAIN, tool_use=_WITH_TOOLS, rag='r' + _PLAIN)
  tools = [{'name': 'search'}]
  messages = [Message('user', 'q')]
  render = lambda template, *args: chat.ChatTemplate(template).render(
    'q', messages, *args
  )
  made = chat.load_template('chat', text)
  assert made.render('q') == render(_PLAIN) == '\n  q'
  assert made.render('q', messages, tools) == render(_WITH_TOOLS, tools)
  named = chat.load_template('chat', text, chat_template_name='rag')
  assert named.render('q', messages, tools) == 'r\n  q'
  only = _with_templates(rag=_PLAIN)
  assert chat.load_template('chat', only, chat_template_name='rag')
  with pytest.raises(UserError, match='rag, but none named default; choose'):
    chat.load_template('chat', only)
  with pytest.raises(
    UserError, match="name: unknown 'rga'; did you mean 'rag'"
  ):
    chat.load_template('chat', text, chat_template_name='rga')


def test_a_prompt_comes_back_from_json_with_its_messages():
  prompt = Prompt(
    id='a',
    text='t',
    question='q',
    answer='',
    source='math',
    language='zh',
    messages=_TURNS,
  )
  saved = json.loads(json.dumps(dataclasses.asdict(prompt)))
  assert Prompt(**saved) == prompt
  assert Prompt(**saved).messages[1].role == 'user'
