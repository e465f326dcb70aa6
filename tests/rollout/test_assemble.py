"""Completions and episodes become the arrays that training reads."""

import numpy as np

from r1jax.episode import Episode, Turn
from r1jax.records import Prompt, PromptBatch
from r1jax.rollout import assemble


def test_tokens_that_the_policy_did_not_sample_are_not_trained_on():
  """Two turns of the policy around a tool's output, beside a single turn."""
  prompt = Prompt(id='p', text='', question='', answer='', source='general')
  batch = PromptBatch(
    tokens_PT=np.array([[0, 7, 8]]),
    valid_PT=np.array([[False, True, True]]),
    id_P=np.array([3]),
  )
  first = Turn([4, 5], True, 'a', [-0.5, -0.25], [-0.6, -0.3], [2, 2])
  tool = Turn([9, 9, 9], False, 'tool')
  last = Turn([6, 1], True, 'b', [-1.0, -2.0], [-1.5, -2.5], [3, 3])
  two = Episode(prompt, (first, tool, last), 'stop')
  one = Episode(prompt, (first,), 'length')
  assert two.text == 'b' and one.text == 'a'
  rollout = assemble.build_rollout(
    batch, 2, [two, one], policy_version=4, width=8
  )
  np.testing.assert_array_equal(
    rollout.tokens_BT,
    [[0, 7, 8, 4, 5, 9, 9, 9, 6, 1, 0], [0, 7, 8, 4, 5, 0, 0, 0, 0, 0, 0]],
  )
  np.testing.assert_array_equal(
    rollout.valid_BT,
    [[0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0], [0, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0]],
  )
  np.testing.assert_array_equal(
    rollout.mask_BT,
    [[0, 0, 0, 1, 1, 0, 0, 0, 1, 1, 0], [0, 0, 0, 1, 1, 0, 0, 0, 0, 0, 0]],
  )
  np.testing.assert_array_equal(
    rollout.logp_BT[0], [0, 0, 0, -0.5, -0.25, 0, 0, 0, -1, -2, 0]
  )
  np.testing.assert_array_equal(
    rollout.staleness_BT[0], [0, 0, 0, 2, 2, 0, 0, 0, 1, 1, 0]
  )
  assert not np.any(rollout.model_logp_BT[~rollout.mask_BT])
  assert rollout.mask_BT.dtype == bool and rollout.length_B.tolist() == [7, 2]
  assert rollout.finish_B.tolist() == [1, 0]
  narrow = assemble.build_rollout(batch, 2, [two, one])
  np.testing.assert_array_equal(narrow.tokens_BT, rollout.tokens_BT[:, :-1])
