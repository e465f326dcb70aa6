"""Monte-Carlo tree search over reasoning steps; host policy only.

A node is a partial completion; its children are next steps that the policy
sampled. A simulation descends by PUCT,

  argmax over children  W / N + c_puct · P · √(N of the parent) / (1 + N),

to a node where fewer than expansion_width · N^α next steps have been sampled,
samples `expansion_width` more, and backs the value of each new child up to the
root (AlphaGo Zero, Methods). P is the share of the parent's samples that gave
the step, since a sampler knows no other prior. The exponent α widens nodes
that are visited often (progressive widening, Coulom 2007), so that no step is
missed for ever. A terminal node backs its value up again each time that it is
reached.

Many problems are searched at once: one iteration samples for all of them in
one call and evaluates them in one call. Samples from a node depend only on its
tokens and the key, so a problem's tree is the same whatever else is searched.

DeepSeek-R1 reports this as an unsuccessful attempt (first version, section
4.2): the space of next steps is far larger than the moves of a game, so that
the search must be cut off and gets stuck in local optima; and everything
depends on the value model.
"""

from collections.abc import Callable, Sequence
import dataclasses

import jax

from r1jax.config.schema.rollout import MCTSConfig
from r1jax.data.text.steps import StepSplitter
from r1jax.errors import UserError
from r1jax.rollout import continuation
from r1jax.rollout.continuation import Prefix
from r1jax.rollout.sampling import SamplingParams
from r1jax.rollout.scheduler import Completion, Request
from r1jax.rollout.search_tree import Answer, Node, Tree

_ROLLOUT_KEY, _FINISH_KEY = 1, 2  # Further streams of the key, beside steps.
LEAF_VALUES = STEP, ROLLOUT = 'step', 'rollout'
ANSWER_SELECTIONS = VISITS, VALUE = 'visits', 'value'


GenerateFn = Callable[[Sequence[Request]], Sequence[Completion]]
# From pairs (index of the problem, completion tokens) to values in [0, 1].
ValueFn = Callable[[Sequence[tuple[int, tuple[int, ...]]]], Sequence[float]]
# From the completions of each problem to the numbers of their final answers;
# equal answers have one number, and completions without an answer None.
CandidatesFn = Callable[
  [Sequence[Sequence[tuple[int, ...]]]], Sequence[Sequence[int | None]]
]


def min_budget_tokens(config: MCTSConfig, max_new_tokens: int) -> int:
  """Returns the smallest budget: the cost of one sample and the reserve."""
  sample = config.max_step_tokens
  if config.leaf_value == ROLLOUT:
    sample = max_new_tokens
  return sample + config.answer_reserve_tokens


class MCTS:
  """Searches several problems together.

  Args:
    config: Settings of each problem's search.
    sampling_params: Sampling parameters of steps; max_new_tokens is the
      maximum of a whole completion.
    splitter: Splits completions into steps.
    generate: Completes requests.
    evaluate: Returns the values of partial or whole completions.
    candidates: Says which completions give the same final answer, so that
      their visits count together; by default each completion is an answer of
      its own.

  Raises:
    UserError: the budget is below the cost of one step.
  """

  def __init__(
    self,
    config: MCTSConfig,
    sampling_params: SamplingParams,
    splitter: StepSplitter,
    generate: GenerateFn,
    evaluate: ValueFn,
    candidates: CandidatesFn | None = None,
  ):
    needed = min_budget_tokens(config, sampling_params.max_new_tokens)
    if config.budget_tokens < needed:
      raise UserError(
        f'search: budget_tokens = {config.budget_tokens} is below one step: '
        f'it needs {needed}'
      )
    self._config, self._params = config, sampling_params
    self._splitter = splitter
    self._generate, self._evaluate = generate, evaluate
    self._candidates = candidates

  def run(self, prompts: Sequence[Prefix], key: jax.Array) -> list[Tree]:
    """Searches all problems; returns their trees, each with its answer.

    Args:
      prompts: The problems, as prefixes without completion tokens.
      key: PRNG key.
    """
    trees = [Tree(prompt=prompt) for prompt in prompts]
    live = list(range(len(trees)))
    while leaves := [
      (p, *leaf) for p in live for leaf in self._select_leaves(trees[p])
    ]:
      live = sorted({p for p, _, _ in leaves})
      self._expand(trees, leaves, key)
    self._answer_unfinished(trees, key)
    self._select_answers(trees)
    return trees

  def _select_leaves(self, tree: Tree) -> list[tuple[Node, int]]:
    """Selects the nodes to expand in one iteration.

    Returns:
      Each node, with the number of samples that the budget allows there.
    """
    leaves: list[tuple[Node, int]] = []
    c, reserved = self._config, 0
    while (
      len(leaves) < c.leaf_batch_size
      and tree.num_simulations < c.num_simulations
    ):
      node = tree.root
      while node.children and not self._is_expandable(node):
        node = node.select_child(c.c_puct)
      if node.terminal:
        node.backpropagate()
        tree.num_simulations += 1
        continue
      if node.pending:  # Selected again, so no other node is worth expanding.
        break
      cost = self._max_sample_tokens(node)
      num_samples = min(
        c.expansion_width, (self._spendable_tokens(tree) - reserved) // cost
      )
      if num_samples < 1:
        break
      reserved += num_samples * cost
      tree.num_simulations += 1
      for ancestor in node.path():
        ancestor.pending += 1
      leaves.append((node, num_samples))
    return leaves

  def _is_expandable(self, node: Node) -> bool:
    """Whether progressive widening asks for more samples at this node."""
    c = self._config
    limit = c.expansion_width * node.visit_count**c.widening_alpha
    return node.num_samples < limit

  def _max_sample_tokens(self, node: Node) -> int:
    """Maximum cost in tokens of one sample at a node, its rollout included."""
    room = self._params.max_new_tokens - len(node.tokens)
    if self._config.leaf_value == ROLLOUT:
      return room
    return min(self._config.max_step_tokens, room)

  def _spendable_tokens(self, tree: Tree) -> int:
    """Tokens that expansions of a tree may still use."""
    answered = tree.answer_nodes or tree.rollout_answers
    reserve = 0 if answered else self._config.answer_reserve_tokens
    return self._config.budget_tokens - tree.used_tokens - reserve

  def _expand(
    self,
    trees: Sequence[Tree],
    leaves: Sequence[tuple[int, Node, int]],
    key: jax.Array,
  ):
    """Samples next steps of all leaves and backs up the new nodes' values.

    Args:
      trees: The trees of all problems.
      leaves: Index of the problem, node, and number of samples there.
      key: PRNG key.
    """
    width = self._config.expansion_width
    requests = continuation.build_requests(
      [trees[p].prefix(node.tokens) for p, node, _ in leaves],
      [self._step_params(node) for _, node, _ in leaves],
      width,
      key,
      [node.num_expansions for _, node, _ in leaves],
    )
    requests = [
      request
      for i, (_, _, num_samples) in enumerate(leaves)
      for request in requests[i * width : i * width + num_samples]
    ]
    completions = iter(self._generate(requests))
    new_nodes: list[tuple[int, Node]] = []
    for p, node, num_samples in leaves:
      for ancestor in node.path():
        ancestor.pending -= 1
      samples = [next(completions) for _ in range(num_samples)]
      trees[p].used_tokens += sum(len(c.tokens) for c in samples)
      children = self._add_children(node, samples)
      new_nodes += [(p, child) for child in children]
      trees[p].answer_nodes += filter(self._is_answer, children)
    self._evaluate_nodes(trees, new_nodes, key)
    for _, node in new_nodes:
      node.backpropagate()

  def _step_params(self, node: Node) -> SamplingParams:
    """Sampling parameters of the next step, or of the answer after it.

    Once the reasoning is closed, no delimiter ends the step.
    """
    room = self._params.max_new_tokens - len(node.tokens)
    return dataclasses.replace(
      self._params,
      max_new_tokens=min(self._config.max_step_tokens, room),
      stop_strings=()
      if self._splitter.reasoning_ended(node.tokens)
      else self._splitter.stop_strings,
    )

  def _add_children(
    self, node: Node, samples: Sequence[Completion]
  ) -> list[Node]:
    """Adds a child for each distinct step; returns the new ones."""
    known = {child.tokens: child for child in node.children}
    num_before = len(node.children)
    for completion in samples:
      tokens = node.tokens + tuple(completion.tokens)
      if tokens in known:
        known[tokens].num_sampled += 1
        continue
      known[tokens] = Node(
        tokens=tokens,
        parent=node,
        terminal=(
          tokens[-1] in self._params.stop_token_ids
          or len(tokens) >= self._params.max_new_tokens
        ),
      )
      node.children.append(known[tokens])
    node.num_samples += len(samples)
    node.num_expansions += 1
    return node.children[num_before:]

  def _is_answer(self, node: Node) -> bool:
    """Whether a node is a complete completion, and not a truncated one."""
    return node.terminal and node.tokens[-1] in self._params.stop_token_ids

  def _evaluate_nodes(
    self,
    trees: Sequence[Tree],
    new_nodes: Sequence[tuple[int, Node]],
    key: jax.Array,
  ):
    """Sets the values of new nodes; truncated completions keep value 0."""
    nodes = [
      (p, node)
      for p, node in new_nodes
      if not node.terminal or self._is_answer(node)
    ]
    evaluated_tokens = (
      self._roll_out(trees, nodes, key)
      if self._config.leaf_value == ROLLOUT
      else [node.tokens for _, node in nodes]
    )
    known = [
      (p, node, tokens)
      for (p, node), tokens in zip(nodes, evaluated_tokens)
      if tokens
    ]
    values = self._evaluate([(p, tokens) for p, _, tokens in known])
    for (p, node, tokens), value in zip(known, values, strict=True):
      node.value = float(value)
      if self._config.leaf_value == ROLLOUT and not node.terminal:
        trees[p].rollout_answers.append(Answer(tokens, node.value, 1))

  def _roll_out(
    self,
    trees: Sequence[Tree],
    nodes: Sequence[tuple[int, Node]],
    key: jax.Array,
  ) -> list[tuple[int, ...] | None]:
    """Returns one completion of each node; None where it was truncated."""
    partial = [(p, node) for p, node in nodes if not node.terminal]
    completed = iter(
      self._complete(trees, partial, jax.random.fold_in(key, _ROLLOUT_KEY))
    )
    return [
      node.tokens if node.terminal else next(completed) for _, node in nodes
    ]

  def _complete(
    self,
    trees: Sequence[Tree],
    nodes: Sequence[tuple[int, Node]],
    key: jax.Array,
  ) -> list[tuple[int, ...] | None]:
    """Completes each node once, as far as its room and the budget allow.

    Returns:
      All completion tokens for each node; None where they were truncated.
    """
    params = [
      dataclasses.replace(
        self._params,
        max_new_tokens=min(
          self._params.max_new_tokens - len(node.tokens),
          self._config.budget_tokens - trees[p].used_tokens,
        ),
      )
      for p, node in nodes
    ]
    prefixes = [trees[p].prefix(node.tokens) for p, node in nodes]
    completions = self._generate(
      continuation.build_requests(prefixes, params, 1, key)
    )
    completed: list[tuple[int, ...] | None] = []
    for (p, node), completion in zip(nodes, completions):
      trees[p].used_tokens += len(completion.tokens)
      whole = completion.tokens[-1] in self._params.stop_token_ids
      completed.append(
        node.tokens + tuple(completion.tokens) if whole else None
      )
    return completed

  def _answer_unfinished(self, trees: Sequence[Tree], key: jax.Array):
    """Completes the most visited path of each problem without an answer."""
    nodes = []
    for p, tree in enumerate(trees):
      spare = self._config.budget_tokens - tree.used_tokens
      if spare < 1 or tree.answer_nodes or tree.rollout_answers:
        continue
      node = tree.root
      while node.children:
        node = max(
          node.children,
          key=lambda c: (c.visit_count, c.value_sum / c.visit_count),
        )
      if not node.terminal:
        nodes.append((p, node))
    if not nodes:
      return
    completed = self._complete(
      trees, nodes, jax.random.fold_in(key, _FINISH_KEY)
    )
    answers = [
      (p, tokens) for (p, _), tokens in zip(nodes, completed) if tokens
    ]
    for (p, tokens), value in zip(
      answers, self._evaluate(answers), strict=True
    ):
      trees[p].rollout_answers.append(Answer(tokens, float(value), 1))

  def _select_answers(self, trees: Sequence[Tree]):
    """Selects among the answers in each tree, or else those of rollouts.

    Selection by value considers the two together. Selection by visits elects
    the final answer of most visits, and then its completion of most visits.
    """
    in_trees = [
      [Answer(n.tokens, n.value, n.visit_count) for n in tree.answer_nodes]
      for tree in trees
    ]
    if self._config.answer_selection == VALUE:
      for tree, in_tree in zip(trees, in_trees):
        tree.answer = max(
          in_tree + tree.rollout_answers, key=lambda a: a.value, default=None
        )
      return
    answers_P = [
      in_tree or tree.rollout_answers for tree, in_tree in zip(trees, in_trees)
    ]
    candidates_P: Sequence[Sequence[int | None]] = [
      list(range(len(answers))) for answers in answers_P
    ]
    if self._candidates:
      candidates_P = self._candidates(
        [[answer.tokens for answer in answers] for answers in answers_P]
      )
    for tree, answers, candidates in zip(trees, answers_P, candidates_P):
      tree.answer = elect(answers, candidates)


def elect(
  answers: Sequence[Answer], candidates: Sequence[int | None]
) -> Answer | None:
  """Returns the most visited completion of the most visited final answer.

  Equal numbers of visits are decided by value, and then by order.

  Args:
    answers: Complete completions.
    candidates: Number of the final answer of each; None for one without an
      answer, which is elected only where no other has one.
  """
  visits: dict[int, tuple[int, float]] = {}
  for answer, candidate in zip(answers, candidates, strict=True):
    if candidate is not None:
      count, value = visits.get(candidate, (0, 0.0))
      visits[candidate] = (count + answer.visit_count, max(value, answer.value))
  elected = max(visits, key=lambda each: visits[each], default=None)
  return max(
    (a for a, candidate in zip(answers, candidates) if candidate == elected),
    key=lambda a: (a.visit_count, a.value),
    default=None,
  )
