"""Completions of every form, whole and cut short."""

import time

import pytest

from r1jax.data.text import reasoning


@pytest.mark.parametrize(
  'completion,want',
  [
    # R1-Zero's form.
    ('<think> r </think> <answer> 7 </answer>', ('r', '7')),
    ('<think>r</think>\nSo:\n<answer>7</answer> done', ('r', '7')),
    ('<think>r</think><answer>6</answer><answer>7</answer>', ('r', '7')),
    (
      '<think>r <answer>6</answer></think><answer>7</answer>',
      ('r <answer>6</answer>', '7'),
    ),
    # R1's own.
    ('<think>\nr\n</think>\n\nIt is 7.', ('r', 'It is 7.')),
    ('<think>\n\n</think>\n\n7', ('', '7')),
    (
      '<think>I close with </think>, then go on.</think>7',
      ('I close with </think>, then go on.', '7'),
    ),
    # The articles' forms.
    (
      '<reasoning_process> r </reasoning_process>\n<summary> 7 </summary>',
      ('r', '7'),
    ),
    (
      '<reasoning_process>r</reasoning_process>\n<answer>7</answer>',
      ('r', '7'),
    ),
    ('|special_token|r|special_token|7', ('r', '7')),
    (
      '|special_token|<reasoning_process>|special_token|<summary>',
      ('<reasoning_process>', None),
    ),
    ('|special_token| r |special_token|<summary>7</summary>', ('r', '7')),
    # Cut short.
    ('<think> r so', ('r so', None)),
    ('<think>r <answer>7</answer>', ('r <answer>7</answer>', None)),
    ('<reasoning_process> r so', ('r so', None)),
    ('|special_token|r so', ('r so', None)),
    ('<think>r</think> <answer> 7', ('r', None)),
    ('<think>r</think> <answer>6</answer> <answer> 7', ('r', '6')),
    ('<reasoning_process>r</reasoning_process><summary>7', ('r', None)),
    ('<think>r</think>', ('r', None)),
    ('<think>', ('', None)),
    ('Sure. <think> r <answer>7</answer>', ('r <answer>7</answer>', None)),
    ('<answer>7</answer><think>r', ('r', None)),
    # Never reasoned.
    ('It is 7.', (None, 'It is 7.')),
    ('<answer>7</answer>', (None, '7')),
    ('', (None, None)),
  ],
)
def test_a_completion_is_split(completion, want):
  assert reasoning.split(completion) == want


@pytest.mark.parametrize(
  'completion,want',
  [
    ('r </think> 7', ('r', '7')),
    ('\nr</think><answer>7</answer>', ('r', '7')),
    ('r and then', ('r and then', None)),
    ('<think>r</think>7', ('r', '7')),  # It opened the thought once more.
    ('', ('', None)),
  ],
)
def test_a_thought_that_the_prompt_opened(completion, want):
  assert reasoning.split(completion, prompt_opens_think=True) == want


def test_every_prefix_of_a_completion_is_read():
  """A stream shows reasoning first, and an answer only behind it."""
  whole = '<think>abc</think><answer>7</answer>'
  seen = [reasoning.split(whole[:end]) for end in range(7, len(whole) + 1)]
  assert all('abc'.startswith((read.reasoning or '')[:3]) for read in seen)
  assert seen[-1] == ('abc', '7')
  assert all(read.answer is None for read in seen[: len('abc</think') + 1])


def test_a_hostile_completion_is_split_in_linear_time():
  def secs(n):
    text = (
      '<think>' + '</think><answer>' * n + '</answer>' * n + '<summary>' * n
    )
    began = time.process_time()
    for _ in range(20):
      reasoning.split(text)
    return time.process_time() - began

  assert secs(40000) < 50 * secs(4000) + 0.1  # Quadratic would be 100 times.
