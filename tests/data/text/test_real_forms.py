"""Tokenizers in the form of published ones give the ids of transformers.

real_forms.py wrote transformers_ids.json with transformers 5.24 itself.
"""

import json

import pytest

from r1jax.config.schema.data import DataConfig, TokenizerConfig
from r1jax.data.text import (
  chat,
  conversation,
  openings,
  prompting,
  responses,
  tokenizer,
)
from r1jax.records import Message
from tests.data.text import real_forms

_IDS = json.loads(real_forms.IDS.read_text())
# transformers 5 rebuilds the class LlamaTokenizer of the model type llama with
# another pre-tokeniser than tokenizer.json has: spaces that follow the beginning
# or a special token are one fewer there.
_REBUILT = {'llama2': (1, 3), 'tinyllama': (1, 3)}


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp('forms')


@pytest.mark.parametrize('name', real_forms.forms())
def test_chat_and_plain_text_have_the_ids_of_transformers(folder, name):
  text = tokenizer.load(str(real_forms.write(folder, name)))
  for i, (line, ids) in enumerate(zip(real_forms.PLAIN, _IDS[name]['plain'])):
    if i not in _REBUILT.get(name, ()):
      assert text.encode_prompt(line) == ids, line
  made = chat.load_template('chat', text)
  in_chats = text.for_chat(made.bos_in_turns())
  for turns, ids in zip(real_forms.CHATS, _IDS[name]['chat'], strict=True):
    prompt = conversation.render(made, '', [Message(**turn) for turn in turns])
    assert in_chats.encode_prompt(prompt) == ids, turns


# Templates that drop thoughts: of such an answer, the thought is learnt as well.
_DROP_THOUGHTS = ('qwen3', 'deepseek-v3', 'r1-distill-qwen', 'r1-distill-llama')


@pytest.mark.parametrize('name', real_forms.forms())
def test_a_demonstration_has_the_ids_of_its_whole_conversation(folder, name):
  text = tokenizer.load(str(real_forms.write(folder / 'whole', name)))
  made, text = prompting.template_and_tokenizer(
    text, DataConfig(template='chat'), TokenizerConfig()
  )
  for answer in range(len(real_forms.ANSWERS)):
    _assert_whole(name, text, made, answer)


def _assert_whole(name, text, made, answer: int):
  opening = openings.of_template(made)
  response = real_forms.ANSWERS[answer]
  thinks = '<think>' in response
  if opening.is_open and not thinks:
    with pytest.raises(ValueError, match='has no </think>'):
      opening.rest_of(response)
    return
  for turns, wholes in zip(real_forms.CHATS, _IDS[name]['whole'], strict=True):
    messages = tuple(Message(**turn) for turn in turns)
    prompt = conversation.render(made, '', messages)
    learnt = responses.as_written(
      made, prompt, opening.rest_of(response), '', messages
    )
    ids = [*text.encode_response(prompt, learnt), text.stop_ids[0]]
    whole = wholes[answer][
      : len(wholes[answer]) - _after_stop(text, wholes[answer])
    ]
    if name in _REBUILT or (thinks and name in _DROP_THOUGHTS):
      assert ''.join(response.split()).endswith(''.join(learnt.split()))
      assert whole[-2:] == ids[-2:]
    elif name.startswith('mistral') and turns[0]['role'] == 'system':
      # The system message is left out once the assistant has answered.
      assert whole[-len(ids) :] == ids
    else:
      assert [*text.encode_prompt(prompt), *ids] == whole, (turns, learnt)


def _after_stop(text, ids) -> int:
  """The number of tokens that a template writes after the end of a turn."""
  return ids[::-1].index(text.stop_ids[0])


@pytest.mark.parametrize(
  'name, end',
  [
    ('qwen2.5-base', '<|im_end|>'),
    ('llama3-base', '<|eot_id|>'),
    ('gemma2', '<end_of_turn>'),
    ('smollm', '<|im_end|>'),
    ('phi3', '<|end|>'),
    ('mistral-v0.3', '</s>'),
    ('deepseek-v3', '<｜end▁of▁sentence｜>'),
  ],
)
def test_the_token_that_ends_a_turn_is_found(folder, name, end):
  place = folder / 'ends'
  text = tokenizer.load(str(real_forms.write(place, name)))
  made = chat.load_template('chat', text)
  id_ = text.encode(made.end_of_turn().lstrip())[0]
  assert text.token_text(id_) == end and text.is_special(id_)


def test_a_response_prefix_stands_where_the_answer_does(folder):
  """The space of Mistral's template is in the prompt, before the prefix."""
  text = tokenizer.load(
    str(real_forms.write(folder / 'prefix', 'mistral-nemo'))
  )
  plain = chat.load_template('chat', text)
  prefixed = chat.load_template('chat', text, response_prefix='<think>\n')
  assert prefixed.render('q') == plain.render('q') + ' <think>\n'
  for made, response in ((plain, 'a'), (prefixed, 'a</think>b')):
    prompt = made.render('q')
    learnt = responses.as_written(made, prompt, response, 'q')
    held = made.response_prefix
    turns = [Message('user', 'q'), Message('assistant', held + response)]
    assert f'{prompt}{learnt}</s>' == plain.conversation(turns)
    assert responses.as_content(made, learnt) == response


def test_the_reference_is_of_these_forms():
  assert _IDS.keys() == real_forms.forms().keys() and len(_IDS) >= 20
