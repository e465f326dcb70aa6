"""Grader processes that all tests of a file share."""

import pytest

from r1jax.graders import dispatch
from r1jax.graders.verdict import Verdict


@pytest.fixture(scope='module')
def graders():
  """Starts the graders of mathematics, which takes a while on a busy machine."""
  with dispatch.shutdown_on_exit():
    for _ in range(5):
      if dispatch.verdicts([('x', 'y', 'math')]) == [Verdict.WRONG]:
        break
    yield
