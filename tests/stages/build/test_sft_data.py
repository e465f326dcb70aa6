"""Teachers, reward models and critics whose tokens are not the run's."""

import numpy as np
import pytest
from safetensors.numpy import save_file

from r1jax.checkpoints.storage import encode_metadata
from r1jax.config.keys import flatten
from r1jax.data.text import tokenizer
from r1jax.errors import UserError
from r1jax.stages.build.tokenizers import check_same_tokens
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


def test_of_an_imported_model_the_size_must_be_ours(tmp_path):
  size = small.get_config().model.vocab_size
  _check(_weights(tmp_path, **{'model.vocab_size': size}))
  with pytest.raises(
    UserError,
    match=f'^sft.teacher_model: .* has a vocabulary of 7, this model {size}',
  ):
    _check(_weights(tmp_path, **{'model.vocab_size': 7}))
