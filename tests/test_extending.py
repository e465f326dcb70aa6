"""Every example of docs/extending.md is a plugin that registers what it says."""

import re

import pytest

from r1jax import registry
from tests.conftest import ROOT

_TEXT = (ROOT / 'docs/extending.md').read_text()
EXAMPLES = dict(
  re.findall(
    r'^<!-- plugin: (\S+\.py) -->\n```python\n(.*?)^```$', _TEXT, re.M | re.S
  )
)


def test_every_python_block_is_an_example():
  assert len(EXAMPLES) == len(re.findall(r'^```python$', _TEXT, re.M))


@pytest.mark.parametrize('name', EXAMPLES)
def test_an_example_registers_names(name, tmp_path):
  path = tmp_path / name
  path.write_text(EXAMPLES[name])
  try:
    registry.load_plugins([str(path)])
    registered = [
      (kind.kind, key)
      for kind in registry.KINDS
      for key in kind
      if kind.origin(key).file == str(path.resolve())
    ]
    assert registered
    for _, key in registered:
      assert f"'{key}'" in EXAMPLES[name]
  finally:
    for kind in registry.KINDS:
      kind.forget(str(path.resolve()))
