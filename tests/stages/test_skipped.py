"""A run of which too many updates are skipped stops with a code of its own."""

import math

import pytest

from r1jax.config.schema.training import SkippedUpdatesConfig
from r1jax.errors import TooManySkipped
from r1jax.stages.skipped import SkippedWindow
from tests.stages.toy import train

_LIMIT = SkippedUpdatesConfig(max_frac=0.5, window_steps=4)


def _stops_at(skipped, limit=_LIMIT, updates_per_step=2) -> int | None:
  """Returns the step at which a run of these skipped updates stops."""
  window = SkippedWindow('rl', updates_per_step, limit)
  for step, count in enumerate(skipped, 1):
    try:
      window.add(step, {'loss': 1.0, 'skipped_updates': count})
    except TooManySkipped:
      return step
  return None


@pytest.mark.parametrize(
  'skipped, stops_at',
  [
    ([2, 2, 0, 0, 0, 0], None),  # A half is not above a half.
    ([2, 2, 1, 0], 4),
    ([2, 2, 2], None),  # The window is not full yet.
    ([0, 0, 0, 0, 2, 1, 1, 1], 8),  # 5 of 8 updates.
    ([1, 1, 1, 1, 1, 1], None),
  ],
)
def test_the_share_is_that_of_the_last_steps(skipped, stops_at):
  assert _stops_at(skipped) == stops_at


def test_no_limit_stops_nothing():
  free = SkippedUpdatesConfig(max_frac=1.0, window_steps=4)
  assert _stops_at([2] * 9, free) is None and _stops_at([2] * 9, None) is None


def test_the_worst_network_counts_and_so_does_a_loss_that_is_no_number():
  window = SkippedWindow('rl', 2, _LIMIT)
  for step, values in enumerate(
    [
      {'loss': 1.0, 'skipped_updates': 0.0, 'critic/skipped_updates': 2.0},
      {'loss': math.nan, 'skipped_updates': 0.0},
      {'loss': 1.0},
    ],
    1,
  ):
    window.add(step, values)
  assert window.get_state() == [1.0, 1.0, 0.0]
  with pytest.raises(TooManySkipped, match='of steps 1 to 4 62% were skipped'):
    window.add(4, {'loss': 1.0, 'skipped_updates': 1.0})


def test_a_run_stops_and_says_what_is_kept(tmp_path):
  """Every other update is lost, so no three steps in a row are."""
  limit = SkippedUpdatesConfig(max_frac=0.4, window_steps=4)
  cadences = dict(num_steps=8, save_steps=2, skipped=(1, 3, 5, 7))
  with pytest.raises(TooManySkipped) as error:
    train(tmp_path, skipped_limit=limit, **cadences)
  assert error.value.exit_code == 8
  text = str(error.value)
  assert text.startswith('toy: of the updates of steps 1 to 4 50% were skipped')
  assert '(the checkpoint of step 2 stands)' in text and '\n' not in text
  more = SkippedUpdatesConfig(max_frac=0.5, window_steps=4)
  stage, _ = train(tmp_path, skipped_limit=more, **cadences)
  assert stage.steps == [3, 4, 5, 6, 7, 8]  # With a higher limit it goes on.
