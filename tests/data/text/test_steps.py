"""Steps of a thought: where they end, to the token."""

import pytest

from r1jax import registry
from r1jax.data.text import steps, tokenizer
from r1jax.data.text.response_formats import ResponseParser
from r1jax.errors import UserError

_TEXT = tokenizer.load('character')


def _split(
  text: str, delimiter: str = ' ', response_format: str = 'think_answer'
):
  """The texts of a completion's steps."""
  ids = _TEXT.encode(text)
  made = steps.make_splitter(
    delimiter,
    ResponseParser(registry.response_format.get(response_format)),
    _TEXT,
  )
  ends = made.step_ends([*ids, _TEXT.stop_ids[0]])
  assert ends == made.step_ends(ids)  # The stop token is of no step.
  return [_TEXT.decode(ids[a:b]) for a, b in zip([0, *ends], ends)]


@pytest.mark.parametrize(
  'text,found',
  [
    (
      '<think>7+5=12 12-3=9</think><answer>9</answer>',
      ['<think>7+5=12 ', '12-3=9</think>', '<answer>9</answer>'],
    ),
    (
      '<think>9</think><answer>9 or 8</answer>',
      ['<think>9</think>', '<answer>9 or 8</answer>'],
    ),
    ('<think>1  2 ', ['<think>1 ', ' ', '2 ']),
    ('<think>1 2', ['<think>1 ', '2']),  # Cut off.
    ('<think>1</think>', ['<think>1</think>']),
    ('9', ['9']),
    ('', []),
  ],
)
def test_a_step_ends_with_its_delimiter_or_with_the_thought(text, found):
  assert _split(text) == found


def test_a_delimiter_may_be_longer_than_a_token():
  assert _split('<think>a\nb\n\nc</think>d', '\n\n', 'think') == [
    '<think>a\nb\n\n',
    'c</think>',
    'd',
  ]


def test_the_example_of_the_module():
  made = steps.make_splitter(' ', ResponseParser(), _TEXT)
  ids = _TEXT.encode('<think>7+5=12 12-3=9</think><answer>9</answer>')
  assert made.step_ends([*ids, _TEXT.stop_ids[0]]) == [8, 15, 18]
  assert made.has_delimiter(ids) and not made.has_delimiter(ids[:4])
  assert made.reasoning_ended(ids) and not made.reasoning_ended(ids[:14])


def test_a_step_of_many_tokens_a_character_ends_where_a_sampler_stops(shared):
  """Where a token holds more than the delimiter, it ends the step whole."""
  folders = sorted(shared.glob('**/tokenizer.json*'))
  if not folders:
    pytest.skip('needs a real tokenizer')
  text = tokenizer.load(str(folders[0].parent))
  ids = text.encode('First, 2 + 2 = 4.\n\nThen é 4 + 1 = 5.\n\n\nSo</think>5')
  made = steps.make_splitter(
    '\n\n', ResponseParser(registry.response_format.get('think')), text
  )
  ends = made.step_ends(ids)
  assert ends[-1] == len(ids) and len(ends) == 4
  for begin, end in zip([0, *ends], ends[:-1]):
    held = [
      any(string in text.decode(ids[begin:n]) for string in made.stop_strings)
      for n in range(begin + 1, end)
    ]
    assert not any(held) and any(
      string in text.decode(ids[begin:end]) for string in made.stop_strings
    )


@pytest.mark.parametrize(
  'delimiter,response_format,error',
  [
    ('', 'think', 'step_delimiter is empty'),
    ('→', 'think', "step_delimiter: tokenizer: .* has no '→'"),
    (' ', 'special_token', 'both opens and closes the reasoning'),
  ],
)
def test_what_cannot_split_is_refused(delimiter, response_format, error):
  with pytest.raises(UserError, match=error):
    steps.make_splitter(
      delimiter,
      ResponseParser(registry.response_format.get(response_format)),
      _TEXT,
    )
