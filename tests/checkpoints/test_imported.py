"""A Hugging Face folder can be used as it is, or imported."""

import json

import jax
import numpy as np
import pytest

from r1jax.checkpoints import convert, weights
from r1jax.configs import imported
from r1jax.data.text import tokenizer
from r1jax.errors import UserError
from r1jax.model.transformer import Transformer
from r1jax.sharding import Layout, make_mesh
from r1jax.stages import initial
from tests.conftest import from_dict
from tests.stages.conftest import run


def _write_hf_folder(folder):
  """Writes the shipped base as a Hugging Face folder with its tokenizer."""
  convert.export_hf(initial.SHIPPED_BASE, folder)
  core = tokenizer.load('character')._core
  (folder / 'tokenizer.json').write_text(core.to_str())
  (folder / 'tokenizer_config.json').write_text(
    json.dumps({'eos_token': '<eos>', 'pad_token': '<pad>'})
  )
  (folder / 'generation_config.json').write_text(
    json.dumps(
      {
        'eos_token_id': [
          core.token_to_id('</answer>'),
          core.token_to_id('<eos>'),
        ]
      }
    )
  )


def test_a_hugging_face_folder_loads_as_its_imported_copy(tmp_path):
  _write_hf_folder(tmp_path / 'hf')
  assert convert.import_hf(tmp_path / 'hf', tmp_path / 'r1jax')
  with pytest.raises(
    UserError, match='hf is a Hugging Face checkpoint already'
  ):
    convert.export_hf(tmp_path / 'hf', tmp_path / 'again')
  params = []
  for name in ('hf', 'r1jax'):
    config = imported.get_config(str(tmp_path / name))
    # Two devices that hold four experts each.
    layout = Layout(make_mesh(dict(expert=2), jax.devices()[:2]))
    model = Transformer(from_dict(config.model.to_dict()), layout)
    params.append(weights.load(tmp_path / name, model))
    text = tokenizer.load(config.tokenizer.source)
    assert [text.token_text(stop) for stop in text.stop_ids] == [
      '<eos>',
      '</answer>',
    ]
  jax.tree.map(np.testing.assert_array_equal, *params)


_CHATML = (
  "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}"
  '<|im_end|>\n{% endfor %}{% if add_generation_prompt %}'
  '<|im_start|>assistant\n'
)


@pytest.mark.parametrize(
  'template,form',
  [
    (None, 'think_answer'),  # R1-Zero's template asks for its own form.
    (_CHATML + '{% endif %}', 'plain'),
    ('Answer in <answer> tags. ' + _CHATML + '{% endif %}', 'think_answer'),
    (_CHATML + '<think>\n{% endif %}', 'think'),
    (_CHATML + '<think>{% endif %}', 'think'),
    (_CHATML + '<think>\n\n</think>\n\n{% endif %}', 'plain'),
    (
      "{{ bos_token }}{% for m in messages %}{{ m['content'].split('</think>')"
      '[-1] }}{% endfor %}<｜Assistant｜>',
      'plain',
    ),
  ],
)
def test_the_response_format_follows_the_chat_template(
  tmp_path, template, form
):
  _write_hf_folder(tmp_path)
  (tmp_path / 'chat_template.jinja').unlink()
  settings = tmp_path / 'tokenizer_config.json'
  if template:
    settings.write_text(
      json.dumps(json.loads(settings.read_text()) | {'chat_template': template})
    )
  data = imported.get_config(str(tmp_path)).data
  assert data.response_format == form
  assert data.template == ('chat' if template else 'r1_zero')


@pytest.mark.slow
def test_sample_reads_a_hugging_face_folder(environment, tmp_path):
  """Greedy samples equal those of the base, up to its own stop token."""
  _write_hf_folder(tmp_path / 'hf')
  prompt_flags = '--prompt=7+5', '--prompt=9-4', '--temperature=0'
  printed = run(
    environment,
    'sample',
    f'--config=imported:{tmp_path}/hf',
    '--config.data.template=r1_zero_brief',
    *prompt_flags,
  ).stdout
  want = run(
    environment, 'sample', '--config=r1_zero_tiny', *prompt_flags
  ).stdout
  blocks = lambda text: [block.split('\n')[:2] for block in text.split('\n\n')]
  assert [
    (heading, text + '</answer>') for heading, text, *_ in blocks(printed)[:2]
  ] == [(heading, text) for heading, text, *_ in blocks(want)[:2]]


@pytest.mark.slow
def test_the_config_names_what_it_lacks(environment, tmp_path):
  done = run(environment, 'sample', '--config=imported', '--prompt=1', code=2)
  assert 'name the folder: --config=imported:FOLDER' in done.stderr
  done = run(
    environment, 'sample', f'--config=imported:{tmp_path}', '--prompt=1', code=2
  )
  assert 'has neither model.safetensors nor' in done.stderr
  convert.export_hf(initial.SHIPPED_BASE, tmp_path / 'bare')
  (tmp_path / 'bare' / 'tokenizer.json').unlink()
  done = run(
    environment,
    'sample',
    f'--config=imported:{tmp_path}/bare',
    '--prompt=1',
    code=2,
  )
  assert f'no tokenizer.json in {tmp_path}/bare' in done.stderr
