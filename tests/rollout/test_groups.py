"""Partial rollouts: groups that outlive a step, and their checkpoints."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from r1jax.model import model_flops
from r1jax.records import Message, Prompt, PromptBatch
from r1jax.rollout import assemble, groups
from r1jax.rollout.engine import Engine
from r1jax.rollout.sampling import SamplingParams
from r1jax.rollout.sizes import EngineConfig
from tests.conftest import make, small_config

_HOW = SamplingParams(max_new_tokens=12, stop_token_ids=(2, 5))
_IDS = {f'p{n}': [3 + n, 9, 4] for n in range(6)}


def _open(names, seed: int = 0):
  prompts = [
    Prompt(
      id=n,
      text=n,
      question=n,
      answer='',
      source='math',
      messages=(Message('user', n),),
    )
    for n in names
  ]
  tokens = np.array([_IDS[n] for n in names], np.int32)
  batch = PromptBatch(
    tokens_PT=tokens,
    valid_PT=np.ones(tokens.shape, bool),
    id_P=np.array([int(n[1:]) for n in names], np.uint32),
  )
  return groups.start_groups(
    prompts, assemble.build_requests(batch, 2, _HOW, jax.random.key(seed)), 2
  ), batch


@pytest.fixture(scope='module')
def small():
  model, params = make(small_config())
  engine = Engine(
    model,
    EngineConfig(
      max_num_seqs=12, max_model_len=16, block_size=4, decode_steps=2
    ),
    record_routing=True,
  )
  return params, jax.tree.map(lambda x: x * 1.2, params), engine


def _tokens(some):
  return [c.tokens for group in some for c in group.completions]


def test_groups_that_an_old_policy_began_are_dropped():
  opened, _ = _open(['p0', 'p1', 'p2'])
  for group, version in zip(opened, (3, 5)):  # The third has drawn nothing.
    group.completions[1].policy_version = [version, 7]
  for most, left in ((0, [0, 1, 2]), (2, [1, 2]), (4, [0, 1, 2])):
    kept, dropped = groups.drop_stale(opened, 7, most)
    assert kept == [opened[i] for i in left] and dropped == 3 - len(left)


def test_model_flops_count_the_tokens_that_the_engine_computes(small):
  """Of groups that begin and that go on; a partial block is computed again."""
  params, moved, engine = small
  open_groups = _open(_IDS)[0]
  for version, policy, num_complete in ((1, params, 2), (2, moved, 4)):
    session = engine.session(policy, version)
    before = [[len(t) for t in _tokens([group])] for group in open_groups]
    steps = [[c.decode_steps for c in g.completions] for g in open_groups]
    complete, rest = groups.complete_groups(session, open_groups, num_complete)
    counts = model_flops.total(
      model_flops.counts_of_samples(3, zip(lengths, map(len, _tokens([group]))))
      for group, lengths in zip(open_groups, before)
    )
    decoded = sum(
      completion.decode_steps - earlier
      for group, each in zip(open_groups, steps)
      for completion, earlier in zip(group.completions, each)
    )
    assert counts.predicted_tokens == decoded
    computed = session.prefilled_tokens + decoded
    # A prompt's last tokens, less than a block, are read by each completion.
    most = computed - counts.tokens
    assert 0 <= most <= len(open_groups) * engine.config.block_size
    assert 0 < session.device_secs
    open_groups = rest


def test_a_step_ends_when_enough_groups_are_complete(small):
  params, _, engine = small
  everything, _ = groups.complete_groups(
    engine.session(params, 1), _open(_IDS)[0], 6
  )
  complete, rest = groups.complete_groups(
    engine.session(params, 1), _open(_IDS)[0], 2
  )
  assert len(complete) == 2 and len(rest) == 4
  assert all(group.complete for group in complete)
  assert not all(group.complete for group in rest)
  lengths = [max(map(len, _tokens([group]))) for group in complete]
  others = [
    max(map(len, _tokens([group])))
    for group in everything
    if group.prompt.id not in {g.prompt.id for g in complete}
  ]
  assert max(lengths) <= min(others) + 1  # The shortest, to a chunk of two.
  # What was drawn is what would have been drawn.
  by_name = {g.prompt.id: _tokens([g]) for g in everything}
  for group in complete + rest:
    for got, want in zip(_tokens([group]), by_name[group.prompt.id]):
      assert got == want[: len(got)]


def test_groups_in_progress_go_on_with_new_weights(small):
  """The samples are those of a step that ends there, and a next one."""
  params, moved, engine = small
  first, rest = groups.complete_groups(
    engine.session(params, 1), _open(_IDS)[0], 2
  )
  groups.complete_groups(engine.session(moved, 2), rest, len(rest))
  want = {group.prompt.id: group for group in first + rest}
  renewals = []

  def newer():
    renewals.append(1)
    return engine.session(moved, 2)

  got, none = groups.complete_groups(
    engine.session(params, 1),
    _open(_IDS)[0],
    6,
    renewal=groups.Renewal(2 / 6, newer),
  )
  assert len(got) == 6 and not none and renewals == [1]
  versions = set()
  for group in got:
    for ours, theirs in zip(
      group.completions, want[group.prompt.id].completions
    ):
      assert ours.tokens == theirs.tokens
      assert ours.policy_version == theirs.policy_version
      versions.add(tuple(dict.fromkeys(ours.policy_version)))
  assert (1, 2) in versions


def test_a_checkpoint_of_groups_goes_on_as_the_groups_do(small):
  """Through JSON, and under another policy: equal in every number."""
  params, moved, engine = small
  complete, rest = groups.complete_groups(
    engine.session(params, 1), _open(_IDS)[0], 1
  )
  saved = json.loads(json.dumps(groups.serialize_groups(rest)))
  again = groups.deserialize_groups(
    saved, _HOW, lambda prompt: _IDS[prompt.text]
  )
  want, none = groups.complete_groups(engine.session(moved, 2), rest, 5)
  got, _ = groups.complete_groups(engine.session(moved, 2), again, 5)
  assert len(want) == 5 and not none
  assert {
    version
    for group in want
    for c in group.completions
    for version in c.policy_version
  } == {1, 2}
  for a, b in zip(got, want):
    assert a.prompt == b.prompt
    for x, y in zip(a.completions, b.completions):
      for field in dataclasses.fields(x):
        if field.name != 'request':
          np.testing.assert_array_equal(
            getattr(x, field.name), getattr(y, field.name), field.name
          )
      np.testing.assert_array_equal(x.request.key, y.request.key)


def test_ages_count_from_the_policy_of_the_step(small):
  params, moved, engine = small
  opened, batch = _open(_IDS)
  _, rest = groups.complete_groups(engine.session(params, 4), opened, 1)
  complete, _ = groups.complete_groups(engine.session(moved, 6), rest, 5)
  made = [c for group in complete for c in group.completions]
  some = jax.tree.map(lambda x: x[:5], batch)
  rollout = assemble.build_rollout(some, 2, made, policy_version=6)
  ages = rollout.staleness_BT[rollout.mask_BT]
  assert ages.tolist() == [6 - v for c in made for v in c.policy_version]
  assert set(ages.tolist()) == {0, 2}
  assert not rollout.staleness_BT[~rollout.mask_BT].any()
