"""Tokenizers and templates."""

import json
import logging
from pathlib import Path

import pytest
import tokenizers
from tokenizers import decoders, models

from r1jax import registry
from r1jax.data.text import tokenizer, tokenizer_files
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
  # Neither tokenizer.json adds a BOS, as transformers says too.
  assert text.encode_prompt(line) == text.encode(line)
  assert len(text.stop_ids) == 1
  if not bos:
    with pytest.raises(UserError, match='names no bos_token'):
      text.with_bos()
    return
  text = text.with_bos()
  ids = text.encode_prompt(line)
  assert ids[0] == text.bos_id
  assert text.encode_prompt(text.decode(ids)) == ids
  assert text.decode(ids).endswith(line)


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


def _folder(tmp_path, settings=None, files=None, change=None):
  """The character tokenizer as a folder of the hub, changed."""
  core = json.loads(tokenizer.load('character')._core.to_str())
  if change:
    change(core)
  settings = {'eos_token': '<eos>', 'pad_token': '<pad>'} | (settings or {})
  contents = {'tokenizer.json': core, 'tokenizer_config.json': settings}
  for name, content in (contents | (files or {})).items():
    (tmp_path / name).write_text(json.dumps(content))
  return str(tmp_path)


@pytest.mark.parametrize(
  'settings',
  [
    {
      'truncation': {
        'direction': 'Right',
        'max_length': 16,
        'strategy': 'LongestFirst',
        'stride': 0,
      }
    },
    {
      'truncation': {
        'direction': 'Left',
        'max_length': 1,
        'strategy': 'OnlyFirst',
        'stride': 0,
      }
    },
    {
      'padding': {
        'strategy': {'Fixed': 64},
        'direction': 'Left',
        'pad_to_multiple_of': None,
        'pad_id': 0,
        'pad_type_id': 0,
        'pad_token': '<pad>',
      }
    },
    {
      'padding': {
        'strategy': 'BatchLongest',
        'direction': 'Right',
        'pad_to_multiple_of': 32,
        'pad_id': 0,
        'pad_type_id': 0,
        'pad_token': '<pad>',
      }
    },
  ],
  ids=['cuts right', 'cuts left', 'pads to 64', 'pads to a multiple'],
)
def test_a_tokenizer_neither_cuts_nor_pads(tmp_path, settings):
  text = tokenizer.load(
    _folder(tmp_path, change=lambda core: core.update(settings))
  )
  line = 'User:' + '3+4=' * 20
  assert text.encode_prompt(line) == tokenizer.load('character').encode(line)
  assert text.decode(text.encode(line)) == line


def _template(*pieces) -> dict:
  named = {'A': {'Sequence': {'id': 'A', 'type_id': 0}}}
  ids = {'<bos>': 1, '<eos>': 2}
  return {
    'type': 'TemplateProcessing',
    'single': [
      named.get(piece, {'SpecialToken': {'id': piece, 'type_id': 0}})
      for piece in pieces
    ],
    'pair': [named['A'], {'Sequence': {'id': 'B', 'type_id': 1}}],
    'special_tokens': {
      token: {'id': token, 'ids': [ids[token]], 'tokens': [token]}
      for token in pieces
      if token in ids
    },
  }


@pytest.mark.parametrize(
  'pieces, settings, begins',
  [
    (('<bos>', 'A'), {'bos_token': '<bos>'}, [1]),
    # The settings count for nothing beside the post-processor.
    (('<bos>', 'A'), {'bos_token': '<bos>', 'add_bos_token': False}, [1]),
    (('A',), {'bos_token': '<bos>', 'add_bos_token': True}, []),
    ((), {'bos_token': '<bos>'}, []),
    ((), {'bos_token': None}, []),
    (('<bos>', 'A', '<eos>'), {'bos_token': '<bos>'}, [1]),
    (('A', '<eos>'), {'bos_token': '<bos>'}, []),
  ],
)
def test_the_post_processor_says_what_a_prompt_begins_with(
  tmp_path, pieces, settings, begins, caplog
):
  def change(core):
    core['post_processor'] = _template(*pieces) if pieces else None

  caplog.set_level(logging.WARNING, 'r1jax')
  text = tokenizer.load(_folder(tmp_path, settings, change=change))
  assert text.encode_prompt('3+4') == begins + text.encode('3+4')
  # A template that writes BOS, or a row, gives one all the same.
  if text.bos_id is not None:
    assert text.encode_prompt('<bos>3') == [1, *text.encode('3')]
  warned = 'ends every text with <eos>' in caplog.text
  assert warned == ('<eos>' in pieces)


@pytest.mark.parametrize('inside', ['User:', '<think>', '<answer>'])
def test_a_bos_that_begins_turns_is_no_error(tmp_path, inside):
  text = tokenizer.load(_folder(tmp_path, {'bos_token': inside}))
  line = f'{inside}3{inside}4'
  assert text.encode_prompt(line) == text.encode(line)
  assert text.encode_prompt('3+4') == text.encode('3+4')
  with pytest.raises(UserError, match='stands inside the prompt'):
    text.with_bos().encode_prompt(line)


@pytest.mark.parametrize(
  'generation, config, stops',
  [
    (None, None, ['<eos>']),
    (None, {'eos_token_id': 6}, ['<eos>', '</answer>']),
    ({'eos_token_id': 2}, {'eos_token_id': [6, 2]}, ['<eos>', '</answer>']),
    ({'eos_token_id': [6, 4]}, {}, ['<eos>', '</answer>', '</think>']),
    (
      {'eos_token_id': [4, 2]},
      {'eos_token_id': [6]},
      ['<eos>', '</think>', '</answer>'],
    ),
    ({'temperature': 0.6}, {'eos_token_id': None}, ['<eos>']),
    ({'eos_token_id': []}, {'eos_token_id': 4}, ['<eos>', '</think>']),
  ],
)
def test_every_file_that_names_stop_tokens_counts(
  tmp_path, generation, config, stops
):
  files = {'generation_config.json': generation, 'config.json': config}
  files = {name: content for name, content in files.items() if content}
  text = tokenizer.load(_folder(tmp_path, files=files))
  assert [text.token_text(id_) for id_ in text.stop_ids] == stops


@pytest.mark.parametrize('wrong', ['<eos>', -1, 1.5, [2, None], {'a': 1}, True])
def test_stop_tokens_that_are_no_ids_are_named(tmp_path, wrong):
  files = {'generation_config.json': {'eos_token_id': wrong}}
  with pytest.raises(
    UserError, match='generation_config.json has eos_token_id'
  ):
    tokenizer.load(_folder(tmp_path, files=files))


def test_tokens_and_names_beside_tokenizer_json(tmp_path):
  """Added tokens of the settings, and special tokens of the older file."""
  token = {'content': '<|im_end|>', 'special': True, 'normalized': False}
  older = {'eos_token': {'content': '<|im_end|>'}, 'bos_token': '<bos>'}
  source = _folder(
    tmp_path,
    {
      'added_tokens_decoder': {'200': token},
      'additional_special_tokens': ['<|a|>', {'content': '<|b|>'}],
    },
    {'special_tokens_map.json': older},
  )
  settings = json.loads((tmp_path / 'tokenizer_config.json').read_text())
  del settings['eos_token']
  (tmp_path / 'tokenizer_config.json').write_text(json.dumps(settings))
  text = tokenizer.load(source)
  assert text.token_text(text.eos_id) == '<|im_end|>'
  assert text.token_text(text.bos_id) == '<bos>'
  for token in ('<|im_end|>', '<|a|>', '<|b|>'):
    assert text.encode(token) == [text.token_id(token)]
    assert text.is_special(text.token_id(token))
  assert not text.is_special(text.token_id('7'))


def test_stop_tokens_are_put_first_and_must_exist():
  text = tokenizer.load('character')
  more = text.with_stop_tokens([text.token_id('</answer>')])
  assert [text.token_text(i) for i in more.stop_ids] == ['</answer>', '<eos>']
  assert more.eos_id == text.eos_id == text.stop_ids[0]
  with pytest.raises(UserError, match="'</end>' is no token of character"):
    text.token_id('</end>')


def test_several_chat_templates_are_known_by_name(tmp_path):
  settings = {'chat_template': [{'name': 'rag', 'template': 'x'}]}
  text = tokenizer.load(_folder(tmp_path, settings))
  assert text.chat_templates == {'rag': 'x'}


def test_files_of_chat_templates_replace_those_of_the_settings(tmp_path):
  """As in transformers: a default, and more of them in a folder."""
  settings = {'chat_template': [{'name': 'rag', 'template': 'x'}]}
  folder = Path(_folder(tmp_path, settings))
  (folder / 'chat_template.jinja').write_text('one')
  assert tokenizer.load(str(folder)).chat_templates == {'default': 'one'}
  more = folder / 'additional_chat_templates'
  more.mkdir()
  (more / 'tool_use.jinja').write_text('two')
  (more / 'README.md').write_text('no template')
  assert tokenizer.load(str(folder)).chat_templates == {
    'default': 'one',
    'tool_use': 'two',
  }
  names = tokenizer_files.present(folder)
  assert names[-1] == 'additional_chat_templates/tool_use.jinja'
  assert 'chat_template.jinja' in names and len(names) == 4


@pytest.mark.parametrize(
  'settings, message',
  [
    ({'eos_token': None}, 'names no eos_token'),
    ({'eos_token': '<stop>'}, "'<stop>', which is no token"),
  ],
)
def test_a_tokenizer_needs_an_eos(tmp_path, settings, message):
  with pytest.raises(UserError, match=message):
    tokenizer.load(_folder(tmp_path, settings))
