"""Metrics of a step with samples that no grader could grade."""

import json

import numpy as np
import pytest

from r1jax.evaluate import evaluator
from r1jax.records import Prompt, Rollout, ScoredRollout
from r1jax.stages import rl_metrics


def _scored(*verdicts: str) -> ScoredRollout:
  score = {'correct': 1, 'wrong': 0}
  accuracy_B = np.array([score.get(each, np.nan) for each in verdicts])
  ok_B = np.isfinite(accuracy_B)
  return ScoredRollout(
    reward_B=np.where(ok_B, accuracy_B, 0),
    scorable_B=ok_B,
    parts={'accuracy': accuracy_B, 'format': np.ones(len(verdicts))},
    verdicts=list(verdicts),
    texts=[''] * len(verdicts),
  )


def _metrics(scored: ScoredRollout) -> dict:
  rows = len(scored.texts)
  ones = np.ones((rows, 2), np.int32)
  return rl_metrics.of_rollout(
    scored,
    Rollout(
      tokens_BT=ones,
      valid_BT=ones,
      mask_BT=ones.astype(bool),
      logp_BT=ones,
      model_logp_BT=ones,
      staleness_BT=0 * ones,
      finish_B=ones[:, 0],
      length_B=ones[:, 0],
      group_B=0 * ones[:, 0],
    ),
    '</think>',
  )


def test_they_count_in_the_shares_and_in_no_mean():
  metrics = _metrics(_scored('correct', 'timeout', 'wrong', 'crash'))
  assert metrics['verdict/timeout'] == metrics['verdict/crash'] == 0.25
  assert (
    sum(value for name, value in metrics.items() if name.startswith('verdict/'))
    == 1
  )
  assert metrics['rewards/accuracy/mean'] == metrics['reward'] == 0.5
  assert metrics['reward_std'] == 0.5


@pytest.mark.filterwarnings('error')
def test_a_step_without_a_single_grade_has_no_mean():
  assert np.isnan(_metrics(_scored('timeout', 'crash'))['reward'])


def test_their_rows_are_json_without_an_accuracy():
  prompt = Prompt(id='a', text='', question='', answer='7', source='math')
  rows = evaluator.sample_records(
    [prompt], _scored('correct', 'crash'), np.ones(2), np.ones(2)
  )
  assert [
    (row['accuracy'], row['verdict'])
    for row in json.loads(json.dumps(rows, allow_nan=False))
  ] == [(1.0, 'correct'), (None, 'crash')]
