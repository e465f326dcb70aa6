"""Tokenizers and templates."""

import time

import pytest

from r1jax.data import template, tokenizer
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


@pytest.mark.parametrize('name,size,bos', [
    ('qwen2.5', 151665, False), ('deepseek-r1', 128815, True)])
def test_real_tokenizers_load(shared, name, size, bos):
  text = tokenizer.load(str(shared / 'data' / 'tokenizer' / name))
  assert text.vocab_size == size
  line = 'What is 2+2? <think> four </think>'
  ids = text.prompt(line)
  assert (ids[0] == text.bos_id) == bos
  again = text.prompt(text.decode(ids))
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
  text = template.get('r1_zero').text
  assert text.replace('{question}', 'prompt.') in words


def test_unknown_template_is_named():
  with pytest.raises(UserError, match="unknown 'r2'"):
    template.get('r2')


@pytest.mark.parametrize('completion,thought,answer,well_formed', [
    ('<think>a</think><answer>7</answer>', 'a', '7', True),
    (' <think>a\nb</think>\n<answer> 7 </answer>\n', 'a\nb', '7', True),
    ('<think></think><answer>7</answer>', '', '7', False),
    ('<think>a</think><answer> </answer>', 'a', '', False),
    ('<think>a</think><answer>7', 'a', None, False),
    ('a</think><answer>7</answer>', None, '7', False),
    ('<think>a</think> so <answer>7</answer>', 'a', '7', False),
    ('<think>a</think><answer>7</answer> done', 'a', '7', False),
    ('<think>a</think><answer>6</answer><answer>7</answer>', 'a', '7', False),
    ('<think>a<think>b</think><answer>7</answer>', 'b', '7', False),
    ('<answer>7</answer><think>a</think>', 'a', '7', False),
    ('', None, None, False),
    ('</answer><answer>', None, None, False),
])
def test_completions_are_read_back(completion, thought, answer, well_formed):
  got = template.parse(completion)
  assert (got.thought, got.answer, got.well_formed) == (
      thought, answer, well_formed)


def test_a_template_that_opened_the_thought_is_known():
  rest = 'a</think><answer>7</answer>'
  assert template.parse(rest, opens_think=True).well_formed
  assert not template.parse(rest).well_formed
  assert not template.parse('<think>' + rest, opens_think=True).well_formed


def test_a_hostile_completion_is_read_in_linear_time():
  def hostile(n):
    return ('<think>' + '</think><answer>' * n + '</answer>' * n + 'x')

  def secs(n):
    text = hostile(n)
    began = time.process_time()
    for _ in range(5):
      assert not template.parse(text).well_formed
    return time.process_time() - began

  assert secs(40000) < 50 * secs(4000) + 0.1  # Quadratic would be 100 times.


def test_an_id_beyond_the_tokenizer_is_seen_in_the_text():
  text = tokenizer.load('character')
  ids = text.encode('<think>a</think><answer>7</answer>')
  assert template.parse(text.decode(ids)).well_formed
  assert not template.parse(text.decode(ids + [111])).well_formed
