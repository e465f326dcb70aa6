"""Tokenizers and templates."""

import pytest
import tokenizers
from tokenizers import decoders, models

from r1jax import registry
from r1jax.data.text import tokenizer
from r1jax.data.text.response_formats import ResponseParser
from r1jax.errors import UserError


def test_characters_round_trip_and_tags_are_single_tokens():
  text = tokenizer.load('character')
  line = 'User:3+4Assistant:<think>3+4=7</think>\n<answer>7</answer>'
  ids = text.encode(line)
  assert text.decode(ids) == line
  assert text.decode_batch([ids, ids[:3]]) == [line, 'User:3+']
  assert len(text.encode('<think>7</think>')) == 3
  assert text.vocab_size <= 112
  assert text.pad_id not in text.stop_ids


def test_an_unknown_character_is_named():
  with pytest.raises(UserError, match="no 'é'"):
    tokenizer.load('character').encode('cafés')
  with pytest.raises(UserError, match='half a character'):
    tokenizer.load('character').encode('1+1\ud83d')


@pytest.mark.parametrize(
  'name,size,bos', [('qwen2.5', 151665, False), ('deepseek-r1', 128815, True)]
)
def test_real_tokenizers_load(shared, name, size, bos):
  text = tokenizer.load(str(shared / 'data' / 'tokenizer' / name))
  assert text.vocab_size == size
  line = 'What is 2+2? <think> four </think>'
  ids = text.encode_prompt(line)
  assert (ids[0] == text.bos_id) == bos
  again = text.encode_prompt(text.decode(ids))
  assert again.count(text.bos_id) == (1 if bos else 0)
  assert text.decode(ids).endswith(line)
  assert len(text.stop_ids) == 1


def test_a_folder_without_a_tokenizer_is_named(tmp_path):
  with pytest.raises(UserError, match='no tokenizer.json'):
    tokenizer.load(str(tmp_path))
  (tmp_path / 'tokenizer.json').write_text('{')
  with pytest.raises(UserError, match='cannot read'):
    tokenizer.load(str(tmp_path))


def test_r1_zero_template_is_the_published_one(shared):
  seed = next((shared / 'seeds').glob('001*')).read_text()
  words = ' '.join(seed.split())
  text = registry.template.get('r1_zero').text
  assert text.replace('{question}', 'prompt.') in words


def test_unknown_template_is_named():
  with pytest.raises(UserError, match="unknown 'r2'"):
    registry.template.get('r2')


def test_an_id_beyond_the_tokenizer_is_seen_in_the_text():
  text = tokenizer.load('character')
  ids = text.encode('<think>a</think><answer>7</answer>')
  assert ResponseParser().parse(text.decode(ids)).well_formed
  for at in range(len(ids) + 1):
    junk = text.decode([*ids[:at], 111, *ids[at:]])
    assert not ResponseParser().parse(junk).well_formed


@pytest.mark.parametrize('name', ['character', 'qwen2.5', 'deepseek-r1'])
def test_an_id_beyond_the_tokenizer_stays_where_it_was(request, name):
  if name == 'character':
    text = tokenizer.load(name)
  else:
    folder = request.getfixturevalue('shared') / 'data' / 'tokenizer' / name
    text = tokenizer.load(str(folder))
  size = text.vocab_size
  for line in ('so \\boxed{42}', ' a b  c', '4', '<think>x</think>\n\n7'):
    ids = text.encode(line)
    for at in range(len(ids) + 1):
      before, after = ids[:at], ids[at:]
      assert text.decode([*before, size, *after]) == '\ufffd'.join(
        text.decode_batch([before, after])
      )
    whole, junk = text.decode_batch([ids, [size + 9, *ids, size, -1]])
    assert whole == line and junk == f'\ufffd{line}\ufffd\ufffd'


def test_a_gap_of_the_vocabulary_and_leading_spaces_are_kept():
  """A decoder that strips the first space does so once, not after each gap."""
  core = tokenizers.Tokenizer(
    models.WordLevel({'▁a': 0, '▁b': 1, '<eos>': 5}, unk_token='<eos>')
  )
  core.decoder = decoders.Metaspace()
  text = tokenizer.Tokenizer(core, 'mine', 5, None, [5])
  assert text.decode([0, 1, 0]) == 'a b a'
  assert text.decode([0, 3, 1]) == 'a\ufffd b'
  assert text.decode([4, 0, 1]).startswith('\ufffd')
