"""Teachers, reward models and critics whose tokens are not the run's."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from r1jax.checkpoints import convert
from r1jax.checkpoints.storage import encode_metadata
from r1jax.config.keys import flatten
from r1jax.data.text import tokenizer
from r1jax.errors import UserError
from r1jax.stages.build.tokenizers import check_same_tokens, shared_token_ids
from r1jax.stages.initial import SHIPPED_BASE
from tests.configs import small
from tests.conftest import run_config


def _weights(tmp_path, **config):
  """Weights whose metadata hold these keys of the config that made them."""
  path = tmp_path / 'model.safetensors'
  save_file(
    {'x': np.zeros(1)}, path, metadata=encode_metadata({'config': config})
  )
  return path


def _check(path):
  config = run_config(small.get_config())
  check_same_tokens(
    'sft.teacher_model', path, config, tokenizer.load(config.tokenizer.source)
  )


def test_other_tokens_are_refused_with_the_first_that_differs(tmp_path):
  recorded = flatten(small.get_config().to_dict())
  _check(_weights(tmp_path, **recorded))
  recorded['tokenizer.source'] = 'bilingual'
  with pytest.raises(
    UserError,
    match='^sft.teacher_model: .*model.safetensors has '
    'the tokenizer bilingual, this model character: .*',
  ):
    _check(_weights(tmp_path, **recorded))


def test_without_a_tokenizer_the_size_must_be_ours(tmp_path, caplog):
  size = small.get_config().model.vocab_size
  _check(_weights(tmp_path, **{'model.vocab_size': size}))
  assert 'has no tokenizer to compare with ours' in caplog.text
  with pytest.raises(
    UserError,
    match=f'^sft.teacher_model: .* has a vocabulary of 7, this model {size}, '
    'and no tokenizer to compare; put its tokenizer.json',
  ):
    _check(_weights(tmp_path, **{'model.vocab_size': 7}))


def _beside(tmp_path, rows: int, change=lambda tokens: None):
  """A teacher of so many rows, with a changed character tokenizer beside it."""
  core = json.loads(tokenizer.load('character').to_json())
  change(core)
  (tmp_path / 'tokenizer.json').write_text(json.dumps(core))
  (tmp_path / 'tokenizer_config.json').write_text('{"eos_token": "<eos>"}')
  return _weights(tmp_path, **{'model.vocab_size': rows})


def _shared(path):
  config = run_config(small.get_config())
  ours = tokenizer.load(config.tokenizer.source)
  return ours, shared_token_ids('sft.teacher_model', path, config, ours)


def _reversed(core):
  vocab = core['model']['vocab']
  core['model']['vocab'] = {
    token: len(vocab) - 1 - id_ for token, id_ in vocab.items()
  }
  for token in core['added_tokens']:
    token['id'] = len(vocab) - 1 - token['id']


def _swapped(core):
  vocab = core['model']['vocab']
  vocab['3'], vocab['4'] = vocab['4'], vocab['3']


def _renamed(core):
  vocab = core['model']['vocab']
  vocab['é'] = vocab.pop('7')


def _more(core):
  vocab = core['model']['vocab']
  vocab['é'] = len(vocab)


def _fewer(core):
  """Removes the newline, whose id is a gap then."""
  del core['model']['vocab']['\n']


@pytest.mark.parametrize('rows', [107, 128, 4096])
def test_rows_of_an_embedding_say_nothing(tmp_path, rows):
  """152,064 and 151,936 rows are one tokenizer of Qwen2.5."""
  ours, shared = _shared(_beside(tmp_path, rows))
  assert shared.tolist() == list(range(ours.vocab_size))
  ours, shared = _shared(_beside(tmp_path, rows, _more))
  assert shared.tolist() == list(range(ours.vocab_size))


@pytest.mark.parametrize('change', [_reversed, _swapped, _renamed])
def test_other_meanings_of_ids_are_refused(tmp_path, change):
  size = small.get_config().model.vocab_size
  path = _beside(tmp_path, size, change)
  with pytest.raises(UserError, match='^sft.teacher_model: .* there$'):
    _shared(path)
  with pytest.raises(UserError, match='^sft.teacher_model: '):
    _check(path)


def test_what_the_teacher_lacks_is_left_out_and_said(tmp_path, caplog):
  path = _beside(tmp_path, 128, _fewer)
  ours, shared = _shared(path)
  missing = ours.token_id('\n')
  assert shared.tolist() == [i for i in range(ours.vocab_size) if i != missing]
  assert 'what it makes of the others is chance' in caplog.text
  with pytest.raises(UserError, match='is no token there'):
    _check(path)
  with pytest.raises(UserError, match='too few for the'):
    _shared(_beside(tmp_path, 50))


def test_a_folder_of_hugging_face_has_its_tokenizer_beside_it(tmp_path):
  convert.export_hf(SHIPPED_BASE, tmp_path / 'hf')
  ours, shared = _shared(tmp_path / 'hf')
  assert len(shared) == ours.vocab_size
  _check(tmp_path / 'hf')
