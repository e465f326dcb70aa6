"""How groups are shared out, and that samples are the same on other meshes."""

import dataclasses

import jax
import numpy as np
import pytest

from r1jax.rollout import hosts, replicas, saved_completions
from r1jax.rollout.engine import Engine
from r1jax.rollout.sampling import SamplingParams
from r1jax.rollout.scheduler import Completion, Request
from tests.conftest import make, small_config
from tests.rollout.conftest import SIZES


@pytest.mark.parametrize(
  'expected, count, loads',
  [
    ([5, 4, 3, 2], 2, [7, 7]),
    ([9, 1, 1, 1], 2, [10, 2]),  # Two groups each: a host is never idle.
    ([1, 1, 1], 4, [1, 1, 1, 0]),
    ([], 3, [0, 0, 0]),
  ],
)
def test_groups_are_shared_out_by_their_lengths(expected, count, loads):
  host_of = hosts.share_out(expected, count)
  assert len(host_of) == len(expected)
  found = [
    sum(length for length, host in zip(expected, host_of) if host == h)
    for h in range(count)
  ]
  assert sorted(found, reverse=True) == loads


@pytest.mark.parametrize('groups', [0, 1, 5, 8, 13])
@pytest.mark.parametrize('count', [1, 2, 3, 4])
def test_quotas_add_up_and_no_host_has_more_than_its_groups(groups, count):
  host_of = hosts.share_out([1.0] * groups, count)
  for wanted in range(groups + 1):
    parts = hosts.quotas(host_of, count, wanted)
    assert sum(parts) == wanted
    for host, part in enumerate(parts):
      assert 0 <= part <= host_of.count(host)
    # Shares differ by as much as the numbers of groups do.
    assert max(parts) - min(parts) <= 2


def test_the_length_history_is_that_of_the_latest_samples():
  history = hosts.LengthHistory()
  assert history.expected('a') == 1
  history.see('a', 10.0)
  history.see('b', 30.0)
  history.see('a', 20.0)
  assert history.expected('a') == 20 and history.expected('c') == 25
  again = hosts.LengthHistory()
  again.set_state(history.get_state())
  assert again.get_state() == history.get_state()
  assert again.expected('b') == 30


def test_the_length_history_forgets_the_oldest_prompt(monkeypatch):
  monkeypatch.setattr(hosts, '_MAX_KNOWN', 2)
  history = hosts.LengthHistory()
  for name in ('a', 'b', 'a', 'c'):
    history.see(name, 1.0)
  assert [name for name, _ in history.get_state()] == ['a', 'c']


def _samples(shape: dict, **division) -> list[Completion]:
  """Samples of the model on the first four devices, which train."""
  config = dataclasses.replace(SIZES, **division)
  devices = jax.devices()[: 4 + config.sampling_devices]
  layout = replicas.training_layout(shape, config.sampling_devices, devices)
  model, params = make(small_config(), layout)
  engine = Engine(model, config)
  keys = jax.random.key_data(jax.random.split(jax.random.key(3), 6))
  requests = [
    Request(
      name=(i, 0),
      prompt=np.arange(1, 3 + i),
      sampling_params=SamplingParams(max_new_tokens=8, stop_token_ids=(0,)),
      key=np.asarray(key),
    )
    for i, key in enumerate(keys)
  ]
  return engine.run(params, requests)


@pytest.mark.slow
@pytest.mark.parametrize(
  'division', [dict(scope='host'), dict(sampling_devices=4)]
)
def test_samples_of_other_meshes_are_those_of_the_training_mesh(division):
  shape = dict(data=1, fsdp=2, expert=2)
  for ours, theirs in zip(_samples(shape, **division), _samples(shape)):
    assert ours.tokens == theirs.tokens
    np.testing.assert_allclose(ours.logp, theirs.logp, atol=1e-5)


def test_a_completion_survives_json():
  (whole, *_) = _samples(dict(data=4))
  other = Completion(whole.request)
  saved_completions.restore(other, saved_completions.to_json(whole))
  for field in dataclasses.fields(Completion):
    assert getattr(other, field.name) == getattr(whole, field.name) or (
      field.name in ('logp', 'model_logp')
    )
  np.testing.assert_array_equal(np.float32(other.logp), np.float32(whole.logp))
  whole.top_logprobs = [[(1, -0.5)]]
  with pytest.raises(ValueError, match='not kept'):
    saved_completions.to_json(whole)
