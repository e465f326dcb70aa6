"""Template, stop tokens and BOS of a run, and what its parser expects."""

import json
import logging

import pytest

from r1jax import registry
from r1jax.config import base
from r1jax.config.schema.data import DataConfig, TokenizerConfig
from r1jax.data.text import chat, prompting, tokenizer
from r1jax.data.text.response_formats import ResponseParser
from r1jax.errors import UserError
from tests.conftest import run_config
from tests.data.text import real_forms


@pytest.fixture(scope='module')
def load(tmp_path_factory):
  """Returns the tokenizer in the form of a published one."""
  folder = tmp_path_factory.mktemp('forms')

  def load(name):
    if not (folder / name).exists():
      real_forms.write(folder, name)
    return tokenizer.load(str(folder / name))

  return load


def _made(text, template='chat', stops=(), bos=False, **data):
  return prompting.template_and_tokenizer(
    text,
    DataConfig(template=template, **data),
    TokenizerConfig(stop_tokens=stops, add_bos_token=bos),
  )


@pytest.mark.parametrize(
  'form, template, stops, names, said',
  [
    ('qwen2.5-base', 'chat', (), ['<|im_end|>', '<|endoftext|>'], True),
    ('llama3-base', 'chat', (), ['<|eot_id|>', '<|end_of_text|>'], True),
    ('gemma2', 'chat', (), ['<end_of_turn>', '<eos>'], True),
    ('qwen2.5', 'chat', (), ['<|im_end|>'], False),
    ('qwen2.5-base', 'r1_zero', (), ['<|endoftext|>'], False),
    (
      'qwen2.5-base',
      'r1_zero',
      ('<|im_end|>',),
      ['<|im_end|>', '<|endoftext|>'],
      False,
    ),
    (
      'qwen2.5-base',
      'chat',
      ('<|im_start|>', '</think>'),
      ['<|im_start|>', '</think>', '<|endoftext|>'],
      False,
    ),
    ('smollm', 'chat', ('<|im_end|>',), ['<|im_end|>'], False),
  ],
)
def test_what_ends_a_completion(
  load, form, template, stops, names, said, caplog
):
  caplog.set_level(logging.WARNING, 'r1jax')
  _, text = _made(load(form), template, stops)
  assert [text.token_text(id_) for id_ in text.stop_ids] == names
  assert ('ends the turns of data.template' in caplog.text) == said
  # The template is given the tokenizer's own EOS all the same.
  assert text.eos_id == load(form).eos_id


def test_a_token_for_unknown_words_ends_no_turn(tmp_path, caplog):
  """The tokenizer lacks the words that end turns: they read as padding."""
  words = ['<pad>', '<eos>', 'one', 'two']
  special = [
    dict(id=i, content=word, special=True, normalized=False)
    | dict.fromkeys(('single_word', 'lstrip', 'rstrip'), False)
    for i, word in enumerate(words[:2])
  ]
  model = dict(
    type='WordLevel',
    vocab={word: i for i, word in enumerate(words)},
    unk_token='<pad>',
  )
  (tmp_path / 'tokenizer.json').write_text(
    json.dumps(
      dict(
        version='1.0',
        added_tokens=special,
        pre_tokenizer=dict(type='WhitespaceSplit'),
        model=model,
      )
    )
  )
  (tmp_path / 'tokenizer_config.json').write_text(
    json.dumps(dict(pad_token='<pad>', eos_token='<eos>'))
  )
  template = tmp_path / 'template.jinja'
  template.write_text(
    "{% for m in messages %}{{ m['content'] }} END{% endfor %}"
  )
  text = tokenizer.load(str(tmp_path))
  assert text.encode('END') == [0]
  _, text = _made(text, str(template))
  assert text.stop_ids == (1,) and not caplog.text


def test_a_stop_token_must_be_one_token(load):
  with pytest.raises(UserError, match="'<|im_end|>x' is no token of"):
    _made(load('qwen2.5'), stops=('<|im_end|>x',))


def test_bos_of_plain_text_is_added_on_demand(load, caplog):
  deepseek = load('deepseek-v3')
  line = 'User:1+1'
  caplog.set_level(logging.WARNING, 'r1jax')
  _, text = _made(deepseek, 'r1_zero')
  assert text.encode_prompt(line) == text.encode(line)
  assert 'asks for BOS in tokenizer_config.json' in caplog.text
  _, text = _made(deepseek, 'r1_zero', bos=True)
  assert text.encode_prompt(line) == [text.bos_id, *text.encode(line)]
  template, text = _made(deepseek, 'chat', bos=True)
  assert text.encode_prompt(template.render('1')).count(text.bos_id) == 1
  with pytest.raises(UserError, match='names no bos_token'):
    _made(load('qwen3'), 'r1_zero', bos=True)


def test_chat_prompts_have_the_special_tokens_of_the_template_alone(load):
  template, text = _made(load('tinyllama'))
  assert text.bos_id not in text.encode_prompt(template.render('1'))
  template, text = _made(load('llama3'))
  ids = text.encode_prompt(template.render('1'))
  assert ids[0] == text.bos_id and ids.count(text.bos_id) == 1


def test_a_thought_that_the_prompt_closes_is_parsed(load):
  template, _ = _made(
    load('qwen3'),
    response_format='think',
    template_args={'enable_thinking': False},
  )
  assert template.render('1').endswith('<think>\n\n</think>\n\n')
  assert not template.prompt_opens_think
  form = registry.response_format.get('think')
  parsed = ResponseParser(form, prompt_start='<think>\n\n</think>\n\n').parse(
    '42'
  )
  assert (parsed.answer, parsed.errors) == ('42', 0)
  assert (
    not ResponseParser(form, prompt_start='<think></think>').parse('').answer
  )


@pytest.mark.parametrize(
  'source, args, text',
  [
    ('{{ m }}{{ messages[0].content }}', {'m': 'x'}, 'xq'),
    ('{{ a.b[1] }}{{ messages[0].content }}', {'a': {'b': [1, 2]}}, '2q'),
    (
      '{% if t is defined and t is false %}n{% endif %}{{ messages[0].content }}',
      {'t': False},
      'nq',
    ),
    ('{{ eos_token }}{{ messages[0].content }}', {'eos_token': 'E'}, 'Eq'),
    (
      "{%- set d = d or 'x' %}{{ d }}{{ messages[0].content }}",
      {'d': '1 Jan'},
      '1 Janq',
    ),
  ],
)
def test_variables_of_the_template(source, args, text):
  assert chat.ChatTemplate(source, template_args=args).render('q') == text


@pytest.mark.parametrize(
  'args, message',
  [
    ({'thinking': False}, "reads no variable 'thinking'; it reads day, think"),
    ({'namespace': 1}, "reads no variable 'namespace'"),
  ],
)
def test_a_variable_that_does_nothing_is_refused(args, message):
  source = (
    '{% set n = namespace(a=1) %}{{ think }}{{ day }}{{ messages[0].content }}'
  )
  with pytest.raises(UserError, match=f'data.template_args: .*{message}'):
    chat.ChatTemplate(source, template_args=args)
  with pytest.raises(UserError, match="'r1_zero' takes no data.template_args"):
    chat.load_template(
      'r1_zero', tokenizer.load('character'), template_args={'a': 1}
    )


def test_the_config_takes_variables():
  config = base.get_config()
  config.data.template_args.enable_thinking = False
  config.data.template_args['date_string'] = '1 Jan 2025'
  config.tokenizer.stop_tokens = ('<eos>',)
  made = run_config(config)
  assert made.data.template_args == {
    'enable_thinking': False,
    'date_string': '1 Jan 2025',
  }
  assert made.tokenizer.stop_tokens == ('<eos>',)
  config.data.template_args.messages = []
  with pytest.raises(
    UserError, match="template_args .* may not set 'messages'"
  ):
    run_config(config)


@pytest.mark.parametrize(
  'source, text',
  [
    ('{{ messages[0] | tojson }}', '{"role": "user", "content": "é<b>\'"}'),
    (
      "{{ messages[0] | tojson(ensure_ascii=true) }}é<b>'",
      '{"role": "user", "content": "\\u00e9<b>\'"}é<b>\'',
    ),
    (
      "{{ messages[0] | tojson(separators=(',', ':')) }}",
      '{"role":"user","content":"é<b>\'"}',
    ),
    (
      '{{ messages[0] | tojson(sort_keys=true) }}',
      '{"content": "é<b>\'", "role": "user"}',
    ),
    (
      '{{ messages[0] | tojson(indent=1) }}',
      '{\n "role": "user",\n "content": "é<b>\'"\n}',
    ),
    (
      'a{% generation %}{% set x = 1 %}{{ messages[0].content }}'
      '{% endgeneration %}{{ x }}',
      "aé<b>'",
    ),
    (
      '{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}'
      "{{ m.content }}{% endfor %}{{ strftime_now('%Y-%m-%d %H:%M') }}",
      "é<b>'2024-07-26 00:00",
    ),
    ('{{ messages[0].content }}{{ pad_token }}|{{ unk_token }}', "é<b>'<p>|"),
  ],
)
def test_functions_and_filters_of_transformers(source, text):
  source = source.replace('{{ messages[0] |', '{{ messages[-1] |')
  made = chat.ChatTemplate(
    # The question has to be seen at construction, in JSON as well.
    source,
    special_tokens={'pad_token': '<p>'},
  )
  assert made.render("é<b>'") == text


@pytest.mark.parametrize(
  'source',
  [
    'no question',
    "{% if messages[0].role == 'system' %}{{ messages[0].content }}{% endif %}",
    '{{ messages | length }}',
    '{{ messages[0].content[:3] }}',
    "{{ messages[0]['text'] }}",
  ],
)
def test_a_template_without_the_question_is_refused(source):
  with pytest.raises(UserError, match='the question does not appear'):
    chat.ChatTemplate(source)


@pytest.mark.parametrize(
  'source',
  [
    '{{ messages[-1].content }}',
    "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}",
    "{% for m in messages if m.role != 'system' %}{{ m.content }}{% endfor %}",
  ],
)
def test_a_template_without_the_system_message_is_refused(source):
  chat.ChatTemplate(source)
  with pytest.raises(UserError, match='the system message does not appear'):
    chat.ChatTemplate(source, system='Be brief.')


@pytest.mark.parametrize(
  'names, reasoning',
  [
    ({'reasoning_content': 'r'}, 'r|r'),
    ({'thinking': 'r'}, 'r|r'),
    ({'reasoning': 'r'}, 'r|r'),
    ({'reasoning': None}, '|'),
    ({}, '|'),
  ],
)
def test_reasoning_has_the_names_that_templates_read(names, reasoning):
  from r1jax.data.text import conversation

  made = chat.ChatTemplate(
    '{% for m in messages %}{{ m.content }}{{ m.reasoning_content }}|'
    '{{ m.thinking }}{% endfor %}'
  )
  turns = conversation.parse(
    [
      {'role': 'assistant', 'content': 'a'} | names,
      {'role': 'user', 'content': 'u'},
    ]
  )
  assert conversation.render(made, '', turns) == f'a{reasoning}u|'
