"""How processes share the prompts of a dataset, and join what they make."""

import dataclasses
import json

import numpy as np
import pytest

from r1jax import buckets, processes
from r1jax.rollout import replicas
from r1jax.rollout.replicas import Replicas
from r1jax.rollout.scheduler import Completion
from r1jax.stages import dataset_stage
from r1jax.stages.build import parts as build
from r1jax.stages.dataset_stage import PromptRows
from r1jax.stages.label_steps import LabelSteps
from r1jax.stages.rejection_sampling import RejectionSampler
from tests.configs import small_process
from tests.conftest import one_device, run_config

_STAGES = {'rejection_sampling': RejectionSampler, 'label_steps': LabelSteps}


@pytest.fixture(autouse=True)
def alone(monkeypatch):
  """One device, in this process."""
  monkeypatch.setattr(
    build.replicas, 'training_layout', lambda *_: one_device()
  )


class _Session:
  """Completes a request with tokens that depend on its key alone."""

  def __init__(self, tokenizer):
    self._tokenizer = tokenizer

  def submit(self, request):
    rng = np.random.default_rng(request.key)
    text = ' '.join(rng.choice(list('0123456789'), rng.integers(1, 4)))
    tokens = self._tokenizer.encode(text)
    return Completion(
      request=request,
      tokens=[*tokens, self._tokenizer.stop_ids[0]],
      finish_reason='stop',
    )

  def __iter__(self):
    return iter(())


def _stage(name: str):
  config = small_process.get_config()['labels']
  config.stages, config.init = (name,), 'random'
  config.rejection_sampling.update(
    num_prompts=12, require_correct=False, require_format=False
  )
  config = run_config(config)
  parts = build.parts(config)
  return _STAGES[name](config, parts), _Session(parts.tokenizer)


def _replicas(*members) -> Replicas:
  layout = one_device()
  return Replicas((layout,) * len(members), members, layout)


@pytest.mark.parametrize('name', _STAGES)
@pytest.mark.parametrize(
  'members', [[(0, 1)], [(0,), (1,)], [(0,), (1,), (2,)], [(0, 1), (2, 3)]]
)
def test_shares_join_to_what_one_process_makes(monkeypatch, name, members):
  """Also where a prompt occurs again, which gets other samples."""
  stage, session = _stage(name)
  prompts = [stage.prompts[i] for i in (0, 1, 0, 2, 3, 1, 0)]
  everything = range(len(prompts))
  want = stage.make_rows(
    prompts, stage.sample(session, prompts, everything), everything
  )
  found: dict[int, PromptRows] = {}
  for process in sum(members, ()):
    monkeypatch.setattr(replicas.jax, 'process_index', lambda: process)
    sampled_here, graded_here = dataset_stage._shares(
      prompts, _replicas(*members)
    )
    assert len(graded_here) < len(prompts) and not found.keys() & graded_here
    sampled = stage.sample(session, prompts, sampled_here)
    rows = stage.make_rows(prompts, sampled, graded_here)
    found |= zip(graded_here, rows, strict=True)
  assert [found[i] for i in everything] == want
  assert sum(len(each.rows) for each in want) > len(prompts)
  told = json.loads(json.dumps([vars(each) for each in want]))
  assert stage.join_rows([PromptRows(**each) for each in told], []) == (
    stage.join_rows(want, [])
  )


def test_what_was_kept_before_is_dropped_wherever_it_was_sampled():
  """Between prompts, and between chunks; then at most one of a prompt stays."""
  stage, _ = _stage('rejection_sampling')
  row = lambda response: {'question': '1+1', 'response': response}
  found = [
    PromptRows([row('a'), row('b')], {'truncated': 1}),
    PromptRows([row('b'), row('c'), row('d')], {'truncated': 2}),
  ]
  rows, counts = stage.join_rows(found, [row('a')])
  assert rows == [row('b'), row('c')]
  assert counts == {'truncated': 3, 'deduplicate': 2, 'max_per_prompt': 1}


@pytest.fixture
def second(monkeypatch):
  """This process is the first of two; the other one says what a test sets."""
  said: list[dict] = []
  monkeypatch.setattr(processes, 'several', lambda: True)
  monkeypatch.setattr(
    processes,
    'all_gather',
    lambda message: [message, json.dumps(said.pop(0)).encode()],
  )
  return said


def test_rows_come_in_the_order_of_the_prompts(monkeypatch, second):
  rows = [PromptRows([{'id': i}], {'kept': i}) for i in range(5)]
  second += [{1: vars(rows[1])}, {3: vars(rows[3])}, {}]
  monkeypatch.setattr(dataset_stage, '_PROMPTS_AT_ONCE', 2)
  own = {i: rows[i] for i in (0, 2, 4)}
  assert dataset_stage._gather(own, 5) == rows
  assert not second  # Each message has the prompts of one part alone.


def test_rows_that_are_kept_go_to_the_bucket_however_it_ends(
  tmp_path, monkeypatch
):
  pushed = []
  monkeypatch.setattr(buckets, 'push', lambda folder: pushed.append(folder))
  stage, session = _stage('rejection_sampling')
  stage.engine = dataclasses.make_dataclass(
    'Engine', ['prepare_params', 'session', 'replicas']
  )(lambda params: params, lambda params: session, _replicas((0,)))
  stage.prompts_per_chunk = 4
  make_rows = stage.make_rows

  def end(prompts, sampled, indices):
    if prompts[0].id == stage.prompts[4].id:
      raise KeyboardInterrupt
    return make_rows(prompts, sampled, indices)

  monkeypatch.setattr(stage, 'make_rows', end)
  with pytest.raises(KeyboardInterrupt):
    stage.run(tmp_path, None, {})
  assert pushed == [tmp_path]
  assert '"done": 4' in (tmp_path / 'partial.jsonl').read_text()
  monkeypatch.setattr(stage, 'make_rows', make_rows)
  stage.run(tmp_path, None, {})
  assert pushed == [tmp_path]  # A finished run pushes its dataset last.
