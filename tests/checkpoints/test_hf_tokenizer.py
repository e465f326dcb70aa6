"""An exported checkpoint has its tokenizer, chat template and stop tokens."""

import json
import logging
from pathlib import Path
import shutil

import jinja2
import pytest
from safetensors.numpy import load_file, save_file

from r1jax import registry
from r1jax.checkpoints import convert
from r1jax.checkpoints.storage import SafetensorsReader, encode_metadata
from r1jax.data.text import jinja_environment, tokenizer
from r1jax.errors import UserError
from r1jax.stages.initial import SHIPPED_BASE
from tests.data.text import real_forms


def _json(folder: Path, name: str) -> dict:
  return json.loads((folder / name).read_text())


def _hub(shared, folder: Path, form: str, **config) -> Path:
  """A Hugging Face checkpoint with a tokenizer in the form of a published one."""
  place = real_forms.write(folder, form)
  source = shared / 'oracle' / 'llama3'
  shutil.copy(source / 'model.safetensors', place)
  values = _json(source, 'config.json') | config
  (place / 'config.json').write_text(json.dumps(values))
  return place


def _run(folder: Path, imported: Path, **recorded) -> Path:
  """Weights as a run leaves them, which only record their tokenizer."""
  folder.mkdir()
  file = folder / 'weights.safetensors'
  recorded = {key.replace('__', '.'): value for key, value in recorded.items()}
  config = SafetensorsReader(imported).metadata['config'] | recorded
  config |= {'tokenizer.source': str(imported)}
  tensors = load_file(imported / 'model.safetensors')
  save_file(tensors, file, metadata=encode_metadata({'config': config}))
  return file


def _prompt(folder: Path, **args) -> str:
  """Returns the prompt that apply_chat_template of an exported folder renders."""
  settings = _json(folder, 'tokenizer_config.json')
  source = (folder / 'chat_template.jinja').read_text()
  assert settings['chat_template'] == source
  named = {k: settings.get(k) or '' for k in ('bos_token', 'eos_token')}
  return jinja_environment.ENVIRONMENT.from_string(source).render(
    messages=[{'role': 'user', 'content': '2+2?'}],
    add_generation_prompt=True,
    **named | args,
  )


def test_a_built_in_tokenizer_and_its_template(tmp_path):
  convert.export_hf(SHIPPED_BASE, tmp_path / 'hf')
  ours, theirs = (
    tokenizer.load('character'),
    tokenizer.load(str(tmp_path / 'hf')),
  )
  line = 'User:7+5Assistant:<think>7+5=12</think><answer>12</answer>'
  assert theirs.encode_prompt(line) == ours.encode_prompt(line)
  assert (theirs.stop_ids, theirs.pad_id) == (ours.stop_ids, ours.pad_id)
  brief = registry.template.get('r1_zero_brief')
  assert _prompt(tmp_path / 'hf') == brief.render('2+2?')
  config = _json(tmp_path / 'hf', 'config.json')
  assert (config['dtype'], config['torch_dtype']) == ('bfloat16', 'bfloat16')
  generation = _json(tmp_path / 'hf', 'generation_config.json')
  for values in (config, generation):
    assert (values['eos_token_id'], values['pad_token_id']) == (2, 0)
  convert.export_hf(SHIPPED_BASE, tmp_path / 'wide', 'float32')
  assert _json(tmp_path / 'wide', 'config.json')['dtype'] == 'float32'


@pytest.mark.parametrize(
  'form', ['llama3', 'smollm2', 'gemma2', 'mistral-v0.3']
)
def test_an_imported_tokenizer_comes_back_as_it_was(shared, tmp_path, form):
  hub = _hub(shared, tmp_path / 'hub', form, eos_token_id=[7, 9])
  (hub / 'generation_config.json').write_text('{"temperature": 0.6}')
  (hub / 'additional_chat_templates').mkdir()
  (hub / 'additional_chat_templates/rag.jinja').write_text('{{ documents }}')
  (hub / 'chat_template.jinja').write_text('{{ messages[0].content }}')
  assert convert.import_hf(hub, tmp_path / 'r1jax')
  stops = _json(tmp_path / 'r1jax', 'generation_config.json')
  assert stops == {'temperature': 0.6, 'eos_token_id': [7, 9]}
  text = tokenizer.load(str(tmp_path / 'r1jax'))
  assert text.stop_ids == (text.eos_id, 7, 9)
  convert.export_hf(tmp_path / 'r1jax', tmp_path / 'out')
  out = tmp_path / 'out'
  assert (out / 'tokenizer.json').read_text() == (
    hub / 'tokenizer.json'
  ).read_text()
  for key, value in _json(hub, 'tokenizer_config.json').items():
    if key != 'chat_template':
      assert _json(out, 'tokenizer_config.json')[key] == value, key
  assert tokenizer.load(str(out)).chat_templates == {
    'default': '{{ messages[0].content }}',
    'rag': '{{ documents }}',
  }
  generation = _json(out, 'generation_config.json')
  assert generation['temperature'] == 0.6
  assert generation['eos_token_id'] == [text.eos_id, 7, 9]
  assert _json(out, 'config.json')['eos_token_id'] == [text.eos_id, 7, 9]
  again = tokenizer.load(str(out))
  assert again.stop_ids == text.stop_ids and again.bos_id == text.bos_id


@pytest.mark.parametrize(
  'form, recorded, prompt, stops',
  [
    (
      'qwen2.5-base',
      {'data__template': 'chat'},
      '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n'
      '<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n',
      ['<|im_end|>', '<|endoftext|>'],
    ),
    (
      'qwen3',
      {
        'data__template': 'chat',
        'data__system': 'Be "brief"\n{{ x }}',
        'data__template_args__enable_thinking': False,
      },
      '<|im_start|>system\nBe "brief"\n{{ x }}<|im_end|>\n'
      '<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n'
      '<think>\n\n</think>\n\n',
      ['<|im_end|>'],
    ),
    (
      'smollm',
      {'data__template': 'chat', 'data__response_prefix': '<think>\n'},
      '<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n<think>\n',
      ['<|im_end|>'],
    ),
    (
      'llama3',
      {
        'data__template': 'r1_zero_brief',
        'tokenizer__stop_tokens': ['<|eot_id|>', '<|end_of_text|>'],
      },
      '<|begin_of_text|>User:2+2?Assistant:',
      ['<|eot_id|>', '<|end_of_text|>'],
    ),
    (
      'deepseek-v3',
      {'data__template': 'r1_zero_open', 'tokenizer__add_bos_token': True},
      '<｜begin▁of▁sentence｜>'
      + registry.template.get('r1_zero_open').render('2+2?'),
      ['<｜end▁of▁sentence｜>'],
    ),
  ],
)
def test_a_run_exports_the_prompts_that_it_saw(
  shared, tmp_path, form, recorded, prompt, stops
):
  convert.import_hf(_hub(shared, tmp_path / 'hub', form), tmp_path / 'r1jax')
  file = _run(tmp_path / 'run', tmp_path / 'r1jax', **recorded)
  convert.export_hf(file, tmp_path / 'out')
  assert _prompt(tmp_path / 'out') == prompt
  text = tokenizer.load(str(tmp_path / 'out'))
  ids = _json(tmp_path / 'out', 'generation_config.json')['eos_token_id']
  ids = ids if isinstance(ids, list) else [ids]
  assert [text.token_text(id_) for id_ in ids[: len(stops)]] == stops
  # Plain text begins as in the run too.
  assert text.encode_prompt('2')[0] == (
    text.bos_id if 'begin' in prompt else text.encode('2')[0]
  )


def test_fixed_text_as_a_chat_template_has_answers_too(tmp_path):
  convert.export_hf(SHIPPED_BASE, tmp_path / 'hf')
  source = (tmp_path / 'hf' / 'chat_template.jinja').read_text()
  turns = [('user', '1+1'), ('assistant', '2'), ('user', '2+2')]
  made = jinja_environment.ENVIRONMENT.from_string(source)
  render = lambda turns: made.render(
    messages=[{'role': role, 'content': content} for role, content in turns]
  )
  assert render(turns) == 'User:1+1Assistant:2<eos>User:2+2Assistant:'
  with pytest.raises(jinja2.TemplateError, match='no role system'):
    render([('system', 's')])


def test_a_tokenizer_that_is_not_there_is_named(shared, tmp_path, caplog):
  convert.import_hf(shared / 'oracle' / 'llama3', tmp_path / 'r1jax')
  caplog.set_level(logging.WARNING, 'r1jax')
  convert.export_hf(tmp_path / 'r1jax', tmp_path / 'bare')
  assert 'names no tokenizer and has none beside it' in caplog.text
  file = _run(tmp_path / 'run', tmp_path / 'r1jax')
  with pytest.raises(UserError, match='export-hf: .*--tokenizer=FOLDER'):
    convert.export_hf(file, tmp_path / 'out')
  assert not (tmp_path / 'out').exists()
  given = real_forms.write(tmp_path / 'forms', 'llama3')
  convert.export_hf(file, tmp_path / 'out', tokenizer=str(given))
  assert tokenizer.load(str(tmp_path / 'out')).bos_id is not None
  with pytest.raises(UserError, match='no nowhere'):
    convert.export_hf(file, tmp_path / 'out2', tokenizer='nowhere')


def test_transformers_reads_what_is_written(shared, tmp_path):
  """If it is installed, it loads, tokenises, stops and has the dtype."""
  transformers = pytest.importorskip('transformers')
  convert.export_hf(SHIPPED_BASE, tmp_path / 'hf')
  text = transformers.AutoTokenizer.from_pretrained(tmp_path / 'hf')
  ids = text.apply_chat_template(
    [{'role': 'user', 'content': '2+2?'}],
    add_generation_prompt=True,
    return_dict=False,
  )
  ours = tokenizer.load('character')
  assert ids == ours.encode('User:2+2?Assistant:')
  settings = transformers.GenerationConfig.from_pretrained(tmp_path / 'hf')
  assert settings.eos_token_id == ours.eos_id
  config = transformers.AutoConfig.from_pretrained(tmp_path / 'hf')
  assert str(config.dtype) in ('bfloat16', 'torch.bfloat16')
