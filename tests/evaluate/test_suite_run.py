"""Suites are sampled once, kept as they come, and go on after an end."""

import types

import jax
import numpy as np
import pytest

from r1jax.data.text import tokenizer
from r1jax.data.text.response_formats import ResponseParser
from r1jax.errors import UserError
from r1jax.evaluate import stored, suite_run, suites
from r1jax.records import Prompt
from r1jax.rewards.parts import RewardOptions
from r1jax.rewards.reward_manager import RewardManager
from r1jax.rollout.sampling import SamplingParams
from r1jax.rollout.scheduler import Completion

_TEXT = tokenizer.load('character')
_SAMPLING = SamplingParams(max_new_tokens=64, stop_token_ids=_TEXT.stop_ids)


class FakeEngine:
  """Completes requests by a function of (prompt, sample), two at a time."""

  shares_work = False

  def __init__(self, text, text_tokenizer=_TEXT, end_after=10**9):
    self._text, self._tokenizer = text, text_tokenizer
    self._end_after, self.sampled = end_after, []

  def session(self, params):
    del params
    waiting, device_secs = [], 0.0
    outer = self

    class _Session(types.SimpleNamespace):
      def submit(self, request):
        waiting.append(request)

      def __iter__(self):
        # The last ones end first, as with completions of unequal lengths.
        while waiting:
          some = [waiting.pop() for _ in range(min(2, len(waiting)))]
          yield [outer._completed(request) for request in some]

    return _Session(device_secs=device_secs)

  def _completed(self, request):
    if len(self.sampled) >= self._end_after:
      raise KeyboardInterrupt
    self.sampled.append(request.name)
    tokens = self._tokenizer.encode(self._text(request))
    return Completion(
      request,
      tokens=[*tokens, self._tokenizer.stop_ids[0]],
      finish_reason='stop',
    )


def _problems(name='arithmetic', count=5, k=3):
  prompts = [
    Prompt(
      id=f'{name}-{i}',
      text=f'{i}+1=',
      question=f'{i}+1',
      answer=str(i + 1),
      source='arithmetic',
    )
    for i in range(count)
  ]
  return suite_run.Problems(suites.Suite(name, name, k), prompts, k, count)


def _reader():
  parser = ResponseParser()
  reward = RewardManager({}, {}, parser, RewardOptions(64, 0, 4, 1.0))
  return suite_run.Reader(_TEXT, parser, reward, _SAMPLING)


def _answer(request) -> str:
  """Sample 0 of each problem is right; the others repeat its number."""
  _, p, g = request.name
  return f'<think>1</think> <answer>{p + (g == 0)}</answer>'


def _run(folder, engine, problems, seed=0):
  return suite_run.SuiteRun(
    engine, problems, _reader(), folder, jax.random.key(seed)
  )


def test_every_completion_is_graded_and_kept(tmp_path):
  two = [_problems(), _problems('other', 4, 2)]
  run = _run(tmp_path, FakeEngine(_answer), two)
  assert (run.total, run.done) == (15 + 8, 0)
  speed = run.run(None)
  assert speed.completions == 23 and speed.tokens > 23
  for each in two:
    records = stored.load(tmp_path / each.suite.name)
    assert len(records) == each.num_completions
    for r in records:
      assert r['id'] == each.prompts[r['problem']].id
      assert r['gold'] == str(r['problem'] + 1)
      assert (r['verdict'] == 'correct') == (r['sample'] == 0)
      assert r['answer'] == str(r['problem'] + (r['sample'] == 0))
      assert r['completion'].startswith('<think>1</think>')


def test_an_ended_run_goes_on_to_the_same_completions(tmp_path):
  whole = tmp_path / 'whole'
  _run(whole, FakeEngine(_answer), [_problems()]).run(None)
  part = tmp_path / 'part'
  with pytest.raises(KeyboardInterrupt):
    _run(part, FakeEngine(_answer, end_after=6), [_problems()]).run(None)
  kept = stored.keys(part / 'arithmetic')
  assert 0 < len(kept) <= 6
  engine = FakeEngine(_answer)
  again = _run(part, engine, [_problems()])
  assert again.done == len(kept)
  again.run(None)
  assert {name[1:] for name in engine.sampled} | kept == {
    (p, g) for p in range(5) for g in range(3)
  }
  assert not {name[1:] for name in engine.sampled} & kept
  for folder in (whole, part):
    stored.join(folder / 'arithmetic')
  files = [f / 'arithmetic' / stored.WHOLE for f in (whole, part)]
  assert files[0].read_bytes() == files[1].read_bytes()


def test_more_samples_are_other_ones_and_the_first_stay(tmp_path):
  seen = {}

  def answer(request):
    seen[request.name] = np.asarray(request.key).tolist()
    return _answer(request)

  _run(tmp_path, FakeEngine(answer), [_problems(k=2)]).run(None)
  first = dict(seen)
  _run(tmp_path, FakeEngine(answer), [_problems(k=4)]).run(None)
  assert len(seen) == 20 and len(set(map(str, seen.values()))) == 20
  assert {name: seen[name] for name in first} == first
  assert len(stored.keys(tmp_path / 'arithmetic')) == 20


def test_an_error_of_a_grader_ends_the_run_and_keeps_the_rest(
  tmp_path, monkeypatch
):
  reader = _reader()
  score, calls = reader.reward.score, []

  def failing(*args):
    calls.append(args)
    if len(calls) == 2:
      raise UserError('the grader fails')
    return score(*args)

  monkeypatch.setattr(reader.reward, 'score', failing)
  run = suite_run.SuiteRun(
    FakeEngine(_answer), [_problems()], reader, tmp_path, jax.random.key(0)
  )
  with pytest.raises(UserError, match='the grader fails'):
    run.run(None)
  assert stored.keys(tmp_path / 'arithmetic')
