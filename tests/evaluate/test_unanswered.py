"""Warnings of completions that hold no answer, or were cut off."""

import logging

import pytest

from r1jax import registry
from r1jax.data.text.response_formats import ResponseParser
from r1jax.evaluate import unanswered
from r1jax.graders import dispatch

_LIMIT = unanswered.Limit(64)


def _parser(name='think_answer', opens=False):
  return ResponseParser(registry.response_format.get(name), opens)


def _records(parser, *completions, cut=0, source='arithmetic'):
  answers = [parser.parse(text).answer for text in completions]
  verdicts = (
    ['general'] * len(answers)
    if source == 'general'
    else dispatch.verdicts([(answer, '42', source) for answer in answers])
  )
  return [
    {
      'id': f'p{i}',
      'completion': text,
      'source': source,
      'verdict': str(verdict),
      'tokens': 64 if i < cut else 9,
      'truncated': float(i < cut),
    }
    for i, (text, verdict) in enumerate(zip(completions, verdicts))
  ]


def _warning(caplog, records, parser, limit=_LIMIT) -> str:
  caplog.clear()
  logger = logging.getLogger('r1jax')
  logger.addHandler(caplog.handler)
  try:
    unanswered.warn('the evaluation', records, parser, limit)
  finally:
    logger.removeHandler(caplog.handler)
  return '\n'.join(dict.fromkeys(r.getMessage() for r in caplog.records))


_BOXED = '<think>a</think>So it is \\boxed{42}.'
_GOOD = '<think>a</think><answer>42</answer>'


@pytest.mark.parametrize(
  'name,completion,advice',
  [
    ('think_answer', _BOXED, "to 'think', which reads an answer in 100%"),
    ('think_answer', 'It is \\boxed{42}.', "to 'boxed'"),
    ('think_answer', 'The answer is 42.', "to 'plain'"),
    ('think', _BOXED.removeprefix('<think>a</think>'), "to 'boxed'"),
    ('boxed', 'The answer is 42.', "to 'plain'"),
    ('boxed', '<summary>42</summary>', "to 'plain'"),
    (
      'think',
      '<reasoning_process>a</reasoning_process><summary>42</summary>',
      "to 'reasoning_summary'",
    ),
    ('plain', 'I see\nnothing', 'or the prompt by --config.data.template'),
  ],
)
def test_most_without_an_answer_name_the_form_to_change(
  caplog, name, completion, advice
):
  parser = _parser(name)
  records = _records(parser, *[completion] * 5, _GOOD)
  text = _warning(caplog, records, parser)
  assert 'the evaluation: WARNING: of 6 completions' in text
  assert f'hold no answer in the form data.response_format = {name!r}' in text
  assert '--config.data.response_format' in text and advice in text
  assert text.count('\n') == 3  # Three of the completions.
  assert all(f'p{i}, 9 tokens, ended: ' in text for i in range(3))


def test_most_that_are_cut_off_name_the_limit(caplog):
  parser = _parser()
  records = _records(parser, *['<think>' + 'so ' * 90] * 4, _GOOD, cut=4)
  text = _warning(caplog, records, parser)
  assert (
    '80% were cut off at rl.max_new_tokens = 64; raise '
    '--config.rl.max_new_tokens' in text
  )
  assert 'most of these were cut off' in text and 'response_format =' in text
  assert text.count("64 tokens, cut off: '…") == 3
  limit = unanswered.Limit(99, 'eval.search.budget_tokens')
  assert '--config.eval.search.budget_tokens' in _warning(
    caplog, records, parser, limit
  )


def test_half_is_not_over_half(caplog):
  parser = _parser()
  records = _records(parser, 'no', 'no', _GOOD, _GOOD)
  assert not _warning(caplog, records, parser)
  records = _records(parser, *[_GOOD] * 4, cut=2)
  assert not _warning(caplog, records, parser)
  wrong = _records(parser, *['<think>a</think><answer>7</answer>'] * 4)
  assert not _warning(caplog, wrong, parser)  # Wrong is not unparsable.


def test_general_answers_are_missing_where_nothing_can_be_shown(caplog):
  plain, think = _parser('plain'), _parser('think')
  poem = 'Two roads\nin a wood'
  records = _records(plain, *[poem] * 3, source='general')
  assert not _warning(caplog, records, plain)
  records = _records(think, *[poem] * 3, source='general')
  assert 'hold no answer' in _warning(caplog, records, think)


def test_steps_are_warned_of_less_and_less(monkeypatch):
  parser, warned = _parser(), []
  monkeypatch.setattr(
    unanswered, 'warn', lambda where, *_: warned.append(where)
  )
  watch = unanswered.StepWatch(parser, _LIMIT)
  bad, good = _records(parser, 'no', 'no'), _records(parser, _GOOD, _GOOD)
  for step in range(1, 11):
    watch.see(step, bad)
  watch.see(11, good)
  watch.see(12, bad)
  assert warned == [f'step {n}' for n in (1, 2, 4, 8, 12)]
