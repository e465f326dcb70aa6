"""Completions read back, form by form, with the errors of their form."""

import time

import pytest

from r1jax import registry
from r1jax.data.text.response_formats import ResponseParser
from r1jax.errors import UserError


@pytest.mark.parametrize(
  'completion,thought,answer,well_formed',
  [
    ('<think>a</think><answer>7</answer>', 'a', '7', True),
    (' <think>a\nb</think>\n<answer> 7 </answer>\n', 'a\nb', '7', True),
    ('<think></think><answer>7</answer>', '', '7', False),
    ('<think>a</think><answer> </answer>', 'a', '', False),
    ('<think>a</think><answer>7', 'a', None, False),
    ('a</think><answer>7</answer>', None, '7', False),
    ('<think>a</think> so <answer>7</answer>', 'a', '7', False),
    ('<think>a</think><answer>7</answer> done', 'a', '7', False),
    ('<think>a</think><answer>6</answer><answer>7</answer>', 'a', '7', False),
    ('<think>a<think>b</think><answer>7</answer>', 'b', '7', False),
    ('<answer>7</answer><think>a</think>', 'a', '7', False),
    ('', None, None, False),
    ('</answer><answer>', None, None, False),
    # An answer within the reasoning is none.
    ('<think>a <answer>7</answer>', None, None, False),
    (
      '<think>a <answer>7</answer></think>',
      'a <answer>7</answer>',
      None,
      False,
    ),
    (
      '<think>a <answer>6</answer></think><answer>7</answer>',
      'a <answer>6</answer>',
      '7',
      False,
    ),
    (
      '<think>a</think><answer>6</answer><think>b<answer>7</answer>',
      'a',
      '6',
      False,
    ),
    ('<answer>7<think>b</answer>', None, None, False),
    (
      '<think>a</think><answer>7</answer></think>',
      'a</think><answer>7</answer>',
      '7',
      False,
    ),
    ('<think>a<think>b<answer>7</answer>', None, None, False),
    # An id that is no token is an error of form wherever it stands.
    ('<think>a\ufffd</think><answer>7</answer>', 'a\ufffd', '7', False),
  ],
)
def test_completions_are_read_back(completion, thought, answer, well_formed):
  got = ResponseParser().parse(completion)
  assert (got.reasoning, got.answer, got.well_formed) == (
    thought,
    answer,
    well_formed,
  )


def test_a_template_that_opened_the_thought_is_known():
  rest = 'a</think><answer>7</answer>'
  assert ResponseParser(prompt_opens_think=True).parse(rest).well_formed
  assert not ResponseParser().parse(rest).well_formed
  open_thought = ResponseParser(prompt_opens_think=True)
  assert open_thought.parse('a <answer>7</answer>').answer is None
  assert (
    not ResponseParser(prompt_opens_think=True)
    .parse('<think>' + rest)
    .well_formed
  )


def test_a_hostile_completion_is_read_in_linear_time():
  def hostile(n):
    return '<think>' + '</think><answer>' * n + '</answer>' * n + 'x'

  def secs(n):
    text = hostile(n)
    began = time.process_time()
    for _ in range(5):
      assert not ResponseParser().parse(text).well_formed
    return time.process_time() - began

  assert secs(40000) < 50 * secs(4000) + 0.1  # Quadratic would be 100 times.


@pytest.mark.parametrize(
  'completion,errors',
  [
    ('<think>a</think><answer>7</answer>', 0),
    ('<think>a</think><answer>7', 1),
    ('a</think>', 3),
    ('', 4),
    ('7', 4),
    ('x<think>a</think>y<answer>7</answer>z', 3),
    ('<think> </think><answer></answer>', 2),
    ('<answer>7</answer><think>a</think>', 1),
    ('<think>a</think><think>b</think><answer>7</answer>', 2),
    ('<think>' * 50, 10),
  ],
)
def test_errors_of_the_form_are_counted(completion, errors):
  assert ResponseParser().parse(completion).errors == errors


@pytest.mark.parametrize(
  'name,completion,want',
  [
    ('think', '<think>a</think>\n7', ('a', '7', 0)),
    ('think', '<think>a </think> tag</think> 7', ('a </think> tag', '7', 1)),
    ('think', '<think>a</think>', ('a', None, 1)),
    ('think', '<think>a', (None, None, 1)),
    (
      'reasoning_summary',
      '<reasoning_process>a</reasoning_process><summary>7</summary>',
      ('a', '7', 0),
    ),
    (
      'reasoning_summary',
      '<think>a</think><answer>7</answer>',
      (None, None, 4),
    ),
    ('special_token', '|special_token|a|special_token|7', ('a', '7', 0)),
    ('special_token', 'x|special_token|a|special_token|7', ('a', '7', 1)),
    ('special_token', '|special_token|a', (None, None, 1)),
  ],
)
def test_every_form_is_read(name, completion, want):
  got = ResponseParser(registry.response_format.get(name)).parse(completion)
  assert (got.reasoning, got.answer, got.errors) == want
  if completion.startswith('<think>') and name == 'think':
    opened = ResponseParser(
      registry.response_format.get(name), prompt_opens_think=True
    )
    assert opened.parse(completion.removeprefix('<think>')) == got


@pytest.mark.parametrize(
  'name,completion,want',
  [
    ('boxed', 'so \\boxed{42}', (None, '42', 0)),
    ('boxed', 'The answer is 42', (None, None, 1)),
    ('boxed', '<think>\\boxed{7}</think>\\boxed{42}', ('\\boxed{7}', '42', 0)),
    ('boxed', 'a \\boxed{7}</think>\\boxed{42}', ('a \\boxed{7}', '42', 0)),
    ('boxed', '<think>\\boxed{42}', ('\\boxed{42}', None, 1)),
    ('boxed', '<think>\\boxed{42}</think>', ('\\boxed{42}', None, 1)),
    ('boxed', '\\boxed{7} <think>\\boxed{42}', ('\\boxed{42}', None, 1)),
    ('boxed', '\\boxed{}', (None, '', 1)),
    ('boxed', '\\boxed{4\ufffd2}', (None, '4\ufffd2', 1)),
    ('plain', 'The answer is 42.', (None, '42', 0)),
    (
      'plain',
      '<think>is it 7?</think>The answer is 42.',
      ('is it 7?', '42', 0),
    ),
    ('plain', '<think>The answer is 7', ('The answer is 7', None, 1)),
    ('plain', 'I see\nnothing', (None, None, 1)),
    ('plain', '', (None, None, 1)),
    ('think', '<think>a</think>7<think>\\boxed{42}', ('a', '7', 1)),
  ],
)
def test_a_plain_model_is_read_without_tags(name, completion, want):
  got = ResponseParser(registry.response_format.get(name)).parse(completion)
  assert (got.reasoning, got.answer, got.errors) == want


def test_a_thought_that_the_prompt_opened_is_no_plain_answer():
  parser = ResponseParser(
    registry.response_format.get('plain'), prompt_opens_think=True
  )
  assert parser.parse('The answer is 7').answer is None
  assert parser.parse('is it 7?</think>The answer is 42').answer == '42'


def test_all_of_a_plain_text_is_the_response():
  """A model of helpfulness reads a poem, not the last number in it."""
  poem = 'Two roads,\nand 1 of them taken'
  for name, completion in (
    ('plain', poem),
    ('boxed', f'<think>a</think>{poem}'),
    ('think', f'<think>a</think>{poem}'),
    ('think_answer', f'<think>a</think><answer>{poem}</answer>'),
  ):
    parser = ResponseParser(registry.response_format.get(name))
    assert parser.parse(completion).response == poem


def test_an_unknown_form_is_named():
  with pytest.raises(UserError, match="unknown 'thnk'; did you mean 'think'"):
    registry.response_format.get('thnk')
