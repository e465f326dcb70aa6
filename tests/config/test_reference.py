"""Every key is explained, on the command line and in the docs."""

from pathlib import Path

import pytest

from r1jax.config import reference
from r1jax.config.field import walk
from r1jax.config.schema.run import RunConfig
from r1jax.errors import UserError


def test_every_key_has_a_meaning():
  for key, _, spec, _ in walk(RunConfig()):
    assert spec.meaning.endswith('.'), key
    assert len(spec.meaning) > 12, key


def test_defaults_lie_within_their_ranges():
  for key, _, spec, value in walk(RunConfig()):
    assert not spec.problem(value), key


def test_a_key_is_described_by_type_default_range_and_meaning():
  text = reference.describe('rl.group_size')
  assert text.startswith('rl.group_size (int, default 16, at least 1)')
  assert 'completions of each prompt' in text
  section = reference.describe('rl.optimizer')
  assert 'rl.optimizer.learning_rate (float, default 3e-06' in section
  with pytest.raises(UserError, match="did you mean 'rl.group_size'"):
    reference.describe('rl.grupsize')


def test_the_page_of_the_docs_is_the_one_that_the_schema_writes():
  page = Path(__file__).parents[2] / 'docs' / 'config.md'
  assert page.read_text() == reference.page(), 'run: r1jax docs'
