"""Returns the text that `r1jax sample` prints while a completion streams."""

import types

import jax
import numpy as np
import pytest

from r1jax.cli.commands.sample.completer import Completer
from r1jax.cli.commands.sample.questions import Question
from r1jax.data.text import tokenizer
from r1jax.data.text.response_formats import ResponseParser
from r1jax.rollout.sampling import SamplingParams
from r1jax.rollout.scheduler import Completion


class _Session:
  """Gives one completion, token by token."""

  def __init__(self, tokens: list[int]):
    self._tokens = tokens

  def submit(self, request) -> Completion:
    self._completion = Completion(request)
    return self._completion

  def __iter__(self):
    for number, token in enumerate(self._tokens, 1):
      self._completion.tokens.append(token)
      if number == len(self._tokens):
        self._completion.finish_reason = 'length'
      yield


_TEXT = tokenizer.load('character')
_JUNK = _TEXT.vocab_size + 5


@pytest.mark.parametrize(
  'pieces,shown',
  [
    (('\\boxed{4', _JUNK, '2}'), '\\boxed{4\ufffd2}'),
    ((_JUNK, 'a'), '\ufffda'),
    (('a', _JUNK), 'a\ufffd'),
    (('a', _JUNK, _JUNK, _JUNK), 'a\ufffd\ufffd\ufffd'),
    ((_JUNK,), '\ufffd'),
    (('a', _JUNK, 'b', _JUNK, 'c'), 'a\ufffdb\ufffdc'),
  ],
)
def test_ids_that_are_no_tokens_are_streamed_in_their_place(
  capsys, pieces, shown
):
  tokens = [
    id_
    for piece in pieces
    for id_ in ([piece] if isinstance(piece, int) else _TEXT.encode(piece))
  ]
  parts = types.SimpleNamespace(
    tokenizer=_TEXT,
    parser=ResponseParser(),
    template=types.SimpleNamespace(render=lambda question: question),
  )
  engine = types.SimpleNamespace(
    session=lambda params: _Session(tokens),
    config=types.SimpleNamespace(max_model_len=99),
  )
  sampling = SamplingParams(max_new_tokens=50, stop_token_ids=(_TEXT.stop_ids))
  completer = Completer(
    parts, engine, None, sampling, 1, jax.random.key(np.uint32(0))
  )
  assert completer.complete([Question('1+1', 'q')], show_questions=False)
  printed = capsys.readouterr().out
  assert printed.split('\n')[0] == shown
