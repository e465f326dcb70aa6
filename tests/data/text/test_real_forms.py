"""Tokenizers in the form of published ones give the ids of transformers.

real_forms.py wrote transformers_ids.json with transformers 5.24 itself.
"""

import json

import pytest

from r1jax.data.text import chat, conversation, tokenizer
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


def test_the_reference_is_of_these_forms():
  assert _IDS.keys() == real_forms.forms().keys() and len(_IDS) >= 20
