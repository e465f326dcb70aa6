"""The arithmetic of pass@k and self-corrections, and a whole evaluation."""

import itertools
import logging
import types

import jax
import numpy as np
import pytest

from r1jax import registry
from r1jax.config.schema.rollout import MCTSConfig
from r1jax.data.text import steps, tokenizer
from r1jax.data.text.response_formats import ResponseParser
from r1jax.evaluate import evaluator, search
from r1jax.records import Prompt
from r1jax.rewards.parts import RewardOptions
from r1jax.rewards.reward_manager import RewardManager
from r1jax.rollout.sampling import SamplingParams
from r1jax.rollout.scheduler import Completion


@pytest.mark.parametrize(
  'n,c', [(1, 0), (1, 1), (4, 1), (6, 2), (7, 5), (8, 8)]
)
def test_pass_at_k_is_the_mean_over_all_choices_of_k(n, c):
  right = [True] * c + [False] * (n - c)
  for k in range(1, n + 1):
    drawn = [any(some) for some in itertools.combinations(right, k)]
    assert evaluator.pass_at_k(n, c, k) == pytest.approx(np.mean(drawn))


def test_pass_at_k_is_refused_beyond_the_samples():
  for k in (0, 5):
    with pytest.raises(ValueError, match=f'pass@{k} needs'):
      evaluator.pass_at_k(4, 1, k)


def test_pass_at_k_is_exact_for_many_samples():
  """A product of floats loses what is left of 1 here."""
  assert evaluator.pass_at_k(1024, 1, 512) == 0.5
  assert evaluator.pass_at_k(10_000, 1, 1) == 1e-4


def test_metrics_of_pass_at_k_are_means_over_problems():
  correct_PG = np.array([[1, 0, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0]], bool)
  assert evaluator.pass_at_k_metrics(correct_PG, [1, 2, 4]) == {
    'eval/pass@1': pytest.approx(5 / 12),
    'eval/pass@2': pytest.approx(0.5),
    'eval/pass@4': pytest.approx(2 / 3),
  }
  assert evaluator.divisors(8) == (1, 2, 4, 8)
  assert evaluator.divisors(6) == (1, 2, 3, 6)


@pytest.mark.parametrize(
  'text,corrects',
  [
    ('<think>3 wait 4</think>', True),
    ('<think>Wait, no</think>', True),
    ('<think>the waiter came</think>', False),
    ('<think>3</think>wait', False),
    ('', False),
  ],
)
def test_a_self_correction_is_a_word_of_the_reasoning(text, corrects):
  assert evaluator.self_corrects(text, '</think>') == corrects


_TEXT = tokenizer.load('character')
_SAMPLING = SamplingParams(max_new_tokens=64, stop_token_ids=_TEXT.stop_ids)


class _Engine:
  """Gives completions that are known beforehand; '…' marks those cut off."""

  def __init__(self, texts: list[str]):
    self._texts = texts

  def speculative_metrics(self, completions) -> dict[str, float]:
    return {}

  def run(self, params, requests) -> list[Completion]:
    completions = []
    for request, text in zip(requests, self._texts, strict=True):
      tokens = _TEXT.encode(text.removesuffix('…'))
      finish = 'length' if text.endswith('…') else 'stop'
      if finish == 'stop':
        tokens.append(_TEXT.stop_ids[0])
      n = [0.0] * len(tokens)
      completions.append(
        Completion(
          request,
          tokens=tokens,
          logp=n,
          model_logp=n,
          policy_version=[0] * len(tokens),
          finish_reason=finish,
        )
      )
    return completions


def _evaluate(kind: str, form: str, groups: dict[str, list[str]], caplog):
  """Evaluates known completions of problems, given by their gold answers."""
  prompts = [
    Prompt(id=f'p{i}', text=f'q{i}', question='q', answer=gold, source='math')
    for i, gold in enumerate(groups)
  ]
  parser = ResponseParser(registry.response_format.get(form))
  reward = RewardManager({}, {}, parser, RewardOptions(64, 8, 4, 1.0))
  texts = [text for group in groups.values() for text in group]
  engine, k = _Engine(texts), len(texts) // len(groups)
  if kind == 'none':
    made = evaluator.Evaluator(
      engine, prompts, _TEXT, reward, parser, 8, k, _SAMPLING
    )
  else:
    problems = search.EvalProblems(prompts, _TEXT, parser, reward, 8, _SAMPLING)
    made = search.BestOfN(engine, problems, k, None)
  logger = logging.getLogger('r1jax')
  logger.addHandler(caplog.handler)
  try:
    metrics = made.run(None, jax.random.key(0)).metrics
  finally:
    logger.removeHandler(caplog.handler)
  return metrics, '\n'.join(record.getMessage() for record in caplog.records)


_GROUPS = {
  '42': ['7', '\\boxed{42}', 'so it is \\boxed{42}', 'x = 42'],
  '1/2': ['2', '2', '0.5', '\\boxed{\\frac{1}{2}}'],
  '3': ['1', '2', '4', '5'],
}


@pytest.mark.usefixtures('graders')
@pytest.mark.parametrize('kind', ['none', 'vote'])
def test_an_evaluation_votes_on_final_answers(caplog, kind):
  groups = {
    gold: [f'<think>a</think>{text}' for text in texts]
    for gold, texts in _GROUPS.items()
  }
  groups['1/2'][1] = '<think>a</think>\\boxed{1/2}'
  metrics, warned = _evaluate(kind, 'think', groups, caplog)
  assert metrics['eval/cons@4'] == pytest.approx(2 / 3)
  assert metrics['eval/pass@1'] == pytest.approx((3 / 4 + 3 / 4) / 3)
  assert (
    metrics['eval/pass@2'] == metrics['eval/pass@4'] == pytest.approx(2 / 3)
  )
  assert not warned


@pytest.mark.parametrize('kind', ['none', 'vote'])
def test_an_evaluation_in_the_wrong_form_says_so(caplog, kind):
  metrics, warned = _evaluate(kind, 'think_answer', _GROUPS, caplog)
  assert metrics['eval/pass@1'] == metrics['eval/cons@4'] == 0
  assert 'the evaluation: WARNING: of 12 completions 100% hold no' in warned
  assert "--config.data.response_format to 'plain'" in warned
  assert warned.count('ended: ') >= 3


def test_an_evaluation_that_is_cut_off_says_so(caplog):
  cut = {gold: ['<think>so ' + '…'] * 4 for gold in _GROUPS}
  metrics, warned = _evaluate('none', 'think', cut, caplog)
  assert metrics['eval/completions/clipped_ratio'] == 1
  assert metrics['eval/unparsable'] == 1
  assert 'raise --config.rl.max_new_tokens' in warned


@pytest.mark.usefixtures('graders')
def test_a_tree_search_counts_visits_by_final_answer():
  """Leaves that say one thing in other words are one answer."""
  parser = ResponseParser(registry.response_format.get('think'))
  prompts = [
    Prompt(id=gold, text='q', question='q', answer=gold, source='math')
    for gold in ('42', '1/2')
  ]
  reward = RewardManager({}, {}, parser, RewardOptions(64, 8, 4, 1.0))
  problems = search.EvalProblems(prompts, _TEXT, parser, reward, 8, _SAMPLING)
  options = MCTSConfig(
    budget_tokens=99, max_step_tokens=9, answer_reserve_tokens=9
  )
  splitter = steps.make_splitter(' ', parser, _TEXT)
  engine = types.SimpleNamespace(session=lambda params: None)
  tree_search = search.TreeSearch(engine, problems, options, splitter, None)
  ids = lambda text: (*_TEXT.encode('<think>a</think>' + text), *_TEXT.stop_ids)
  assert tree_search._candidates(
    [
      [ids('\\boxed{7}'), ids('so \\boxed{42}'), ids('42'), ids('')],
      [ids('0.5'), ids('\\boxed{\\frac12}'), tuple(_TEXT.encode('<think>'))],
    ]
  ) == [[1, 0, 0, None], [0, 0, None]]
