"""Tree search: its invariants, and toy problems with a known optimum.

A thought of the toy has three steps, each a digit below three: '2 0 1)'. Its
answer is a '='. The policy draws digits alike; rewards of the 27 thoughts are
known, and so is the value of every beginning.
"""

import itertools

import jax
import numpy as np
import pytest

from r1jax.data.text.steps import StepSplitter
from r1jax.errors import UserError
from r1jax.rollout import mcts, search_tree
from r1jax.rollout.continuation import Prefix
from r1jax.rollout.sampling import SamplingParams
from r1jax.rollout.scheduler import Completion

_STOP, _DEPTH, _DIGITS = 0, 3, 3
_SPLIT = StepSplitter(' ', ')', lambda ids: ''.join(map(chr, ids)), (_STOP,))
_WHOLE = 2 * _DEPTH + 2  # Tokens of a completion.
_HOW = SamplingParams(max_new_tokens=_WHOLE, stop_token_ids=(_STOP,))
_LEAVES = list(itertools.product(range(_DIGITS), repeat=_DEPTH))


def _digits(tokens) -> tuple[int, ...]:
  return tuple(int(c) for c in map(chr, tokens) if c.isdigit())


def _draw(asked):
  """What an engine would do: one token after the other, as the key says."""
  made = []
  for request in asked:
    completion = Completion(request)
    said, how = list(request.prompt), request.sampling_params
    for nth in range(how.max_new_tokens):
      seed = [*map(int, request.key), nth]
      token = _next(said[1:], np.random.default_rng(seed))
      said.append(token)
      completion.tokens.append(token)
      text = ''.join(map(chr, completion.tokens))
      completion.finish_reason = 'length'
      if token == _STOP or any(s in text for s in how.stop_strings):
        completion.finish_reason = 'stop'
        break
    made.append(completion)
  return made


def _next(said: list[int], rng) -> int:
  if not said or said[-1] == ord(' '):
    return ord(str(rng.integers(_DIGITS)))
  if said[-1] == ord(')'):
    return ord('=')
  if said[-1] == ord('='):
    return _STOP
  return ord(')' if len(_digits(said)) == _DEPTH else ' ')


def _rewards(problem: int) -> dict[tuple[int, ...], float]:
  rng = np.random.default_rng(problem)
  last = len(_LEAVES) - 1
  return dict(zip(_LEAVES, (rng.permutation(last + 1) / last) ** 8))


def _oracle(asked):
  """The best that a beginning can come to, by enumeration."""
  return [
    max(
      value
      for leaf, value in _rewards(p).items()
      if leaf[: len(_digits(tokens))] == _digits(tokens)
    )
    for p, tokens in asked
  ]


def _run(
  problems=1,
  budget=2000,
  draw=_draw,
  judge=_oracle,
  seed=0,
  how=_HOW,
  **changes,
) -> list[search_tree.Tree]:
  options = mcts.MCTSConfig(
    **dict(
      budget_tokens=budget,
      max_step_tokens=4,
      answer_reserve_tokens=_WHOLE,
      expansion_width=6,
      num_simulations=100,
    )
    | changes
  )
  start = [Prefix(7 + p, np.array([1], np.int32)) for p in range(problems)]
  return mcts.MCTS(options, how, _SPLIT, draw, judge).run(
    start, jax.random.key(seed)
  )


@pytest.mark.parametrize('choose', mcts.ANSWER_SELECTIONS)
@pytest.mark.parametrize('value', mcts.LEAF_VALUES)
def test_it_finds_what_enumeration_finds(value, choose):
  for p, tree in enumerate(
    _run(problems=3, leaf_value=value, answer_selection=choose, budget=9000)
  ):
    best = max(_LEAVES, key=_rewards(p).get)
    if value == 'step' or choose == 'value':
      assert _digits(tree.answer.tokens) == best
    assert tree.answer.tokens[-1] == _STOP
    assert tree.answer.value == _rewards(p)[_digits(tree.answer.tokens)]


@pytest.mark.parametrize(
  'leaves,value', [(1, 'step'), (3, 'step'), (2, 'rollout')]
)
def test_visits_and_values_add_up(leaves, value):
  """To the root, everything that was ever backed up."""
  for tree in _run(problems=2, leaf_batch_size=leaves, leaf_value=value):
    for node in tree.nodes():
      below = sum(child.visit_count for child in node.children)
      own = node.visit_count - below
      assert node.pending == 0
      assert own == 0 if node is tree.root else own >= 1
      assert own <= 1 or node.terminal
      assert node.value_sum == pytest.approx(
        own * node.value + sum(child.value_sum for child in node.children)
      )
      assert sum(child.prior for child in node.children) == pytest.approx(
        1.0 if node.children else 0.0
      )
    backed = [
      (node.visit_count - sum(c.visit_count for c in node.children), node.value)
      for node in tree.nodes()
    ]
    assert tree.root.value_sum / tree.root.visit_count == pytest.approx(
      np.average([value for _, value in backed], weights=[n for n, _ in backed])
    )


@pytest.mark.parametrize('budget', [12, 13, 25, 40, 77, 200])
@pytest.mark.parametrize(
  'value,leaves', [('step', 1), ('step', 4), ('rollout', 2)]
)
def test_the_budget_is_never_exceeded(budget, value, leaves):
  drawn = []

  def counted(asked):
    made = _draw(asked)
    drawn.extend(len(c.tokens) for c in made)
    return made

  if value == 'rollout':
    budget += _WHOLE
  (tree,) = _run(
    budget=budget, leaf_value=value, leaf_batch_size=leaves, draw=counted
  )
  assert sum(drawn) == tree.used_tokens <= budget
  assert tree.answer  # What was kept is enough to finish one thought.


def test_a_tree_is_the_same_whatever_else_is_searched():
  alone, together = _run(1)[0], _run(3)[0]
  shape = lambda tree: [
    (n.tokens, n.visit_count, n.value_sum) for n in tree.nodes()
  ]
  assert shape(alone) == shape(together)
  assert shape(alone) != shape(_run(1, seed=1)[0])


def test_all_that_a_turn_needs_is_drawn_in_one_call():
  sizes = []

  def counted(asked):
    sizes.append(len(asked))
    return _draw(asked)

  trees = _run(problems=4, leaf_batch_size=2, draw=counted, num_simulations=6)
  assert sizes[0] == 4 * 6 < max(sizes) <= 4 * 2 * 6 and min(sizes)
  assert len(sizes) <= 6 + 1  # One to finish with.
  assert all(tree.num_simulations <= 6 for tree in trees)


def test_a_step_that_is_cut_goes_on_and_a_thought_that_is_cut_has_no_answer():
  (tree,) = _run(max_step_tokens=1)
  assert {len(n.tokens) for n in tree.nodes()} == set(range(_WHOLE + 1))
  short = SamplingParams(max_new_tokens=4, stop_token_ids=(_STOP,))
  (tree,) = _run(how=short, answer_reserve_tokens=4)
  assert tree.answer is None and max(len(n.tokens) for n in tree.nodes()) == 4
  assert all(n.value == 0 for n in tree.nodes() if n.terminal)


def test_what_is_reached_often_is_widened():
  """Else a step that no first draw made is missed for ever."""
  narrow, wide = (
    _run(expansion_width=1, widening_alpha=widening, budget=4000)[0]
    for widening in (0.0, 0.5)
  )
  assert all(len(n.children) <= 1 for n in narrow.nodes())
  assert len(wide.root.children) == _DIGITS
  assert (
    wide.root.num_samples
    == wide.root.num_expansions
    <= wide.root.visit_count**0.5 + 1
  )


def test_exploration_is_what_puct_says():
  root = search_tree.Node(visit_count=9, num_samples=4)
  root.children = [
    search_tree.Node(num_sampled=3, visit_count=6, value_sum=3.0, parent=root),
    search_tree.Node(num_sampled=1, visit_count=3, value_sum=1.8, parent=root),
  ]
  upper = lambda c: [0.5 + c * 0.75 * 3 / 7, 0.6 + c * 0.25 * 3 / 4]
  for c in (0.0, 0.5, 1.0, 4.0):
    assert root.select_child(c) is root.children[int(np.argmax(upper(c)))]


@pytest.mark.parametrize(
  'candidates,want',
  [
    ((0, 1, 2, 3), 0),  # Every completion is an answer of its own.
    ((0, 1, 1, 2), 1),  # Wording splits an answer of 5 visits into 3 and 2.
    ((0, 1, 2, 1), 0),  # 4 and 4 visits: the value decides.
    ((0, 1, 1, 1), 1),
    ((None, 1, 2, 3), 1),  # What has no answer is not elected.
    ((None, None, None, 3), 3),
    ((None,) * 4, 0),
  ],
)
def test_visits_of_equal_answers_count_together(candidates, want):
  answers = [
    search_tree.Answer((i,), value, visits)
    for i, (value, visits) in enumerate(
      [(0.9, 4), (0.1, 3), (0.2, 2), (0.3, 1)]
    )
  ]
  assert mcts.elect(answers, candidates) is answers[want]


def test_ties_of_visits_go_to_the_value_and_then_to_the_first():
  answers = [
    search_tree.Answer((i,), v, 2) for i, v in enumerate([0.1, 0.5, 0.5])
  ]
  assert mcts.elect(answers, (0, 1, 2)) is answers[1]
  assert mcts.elect(answers, (0, 0, 1)) is answers[1]
  assert mcts.elect([], ()) is None


@pytest.mark.parametrize(
  'changes,message',
  [
    (dict(budget=11), 'budget_tokens = 11 is below one step: it needs 12'),
    (dict(leaf_value='rollout', budget=15), 'it needs 16'),
    (dict(expansion_width=0), 'expansion_width = 0 must be at least 1'),
    (dict(max_step_tokens=0), 'max_step_tokens = 0 must be at least 1'),
    (
      dict(widening_alpha=1.0),
      'widening_alpha = 1.0 must be at least 0 and below 1',
    ),
    (
      dict(answer_reserve_tokens=-1),
      'answer_reserve_tokens = -1 must be at least 0',
    ),
    (dict(leaf_value='leaf'), "leaf_value = 'leaf' must be one of 'step', "),
    (
      dict(answer_selection='mean'),
      "answer_selection = 'mean' must be one of 'visits', ",
    ),
  ],
)
def test_what_cannot_be_searched_is_refused(changes, message):
  with pytest.raises(UserError, match=message):
    _run(**changes)
