"""Monte-Carlo tree search over the steps of a thought: host policy alone.

A node is what has been said so far; its children are next steps that the
policy drew. A simulation descends by PUCT,

  argmax over children  W/N + c · P · √(N of the parent) / (1 + N),

to a node where fewer than `width` · N^α next steps were drawn, draws `width`
more, and backs up the value of each new one to the root (AlphaGo Zero, methods;
P is the share of the draws that made the step, for a sampler knows no other
prior). So what is reached often is widened (Coulom 2007), and no step is missed
for ever. A node that is an answer backs its value up once more each time it is
reached.

Many problems search at once: all that a turn needs is drawn in one call, and
valued in one. What is drawn from a node depends on its tokens and the key, so
a problem's tree is the same whatever else is searched.

DeepSeek-R1 tried this and gave it up (section 4.2 of the first version):
next steps are far more than the moves of a game, so that the search must cut
them and is caught in local optima; and all hangs on the value model.
"""

from collections.abc import Callable, Iterator, Sequence
import dataclasses
import math
from typing import NamedTuple

import jax

from r1jax.data.text.steps import StepSplitter
from r1jax.errors import UserError
from r1jax.rollout import continuation
from r1jax.rollout.continuation import Context
from r1jax.rollout.sampling import Sampling
from r1jax.rollout.scheduler import Completion, Request

_ROLL, _FINISH = 1, 2  # What else than steps is drawn from the key.
VALUES = AT_STEP, AT_END = 'step', 'end'
CHOICES = VISITS, VALUE = 'visits', 'value'


@dataclasses.dataclass(frozen=True)
class Options:
  """How one problem is searched.

  Attributes:
    budget_tokens: Drawn for it, at most.
    step_tokens: Of a step, at most; a longer one goes on in the next.
    finish_tokens: Of the budget, kept to finish a thought with as long as
      there is no answer.
    width: Next steps that are drawn at a node; those that are alike are one.
    exploration: c.
    widening: α, within [0, 1); 0: every node is drawn at once.
    leaves: Nodes of a tree that one turn expands; beyond the first they are
      chosen as if those before were worth nothing.
    simulations: At most: a tree that is all searched draws no more tokens.
    value: 'step': of what has been said so far; 'end': of one completion of
      it, which costs tokens.
    choose: The answer of most 'visits', or of the best 'value'.
  """

  budget_tokens: int
  step_tokens: int
  finish_tokens: int
  width: int = 4
  exploration: float = 1.0
  widening: float = 0.5
  leaves: int = 1
  simulations: int = 256
  value: str = AT_STEP
  choose: str = VISITS

  def __post_init__(self):
    for field in ('step_tokens', 'width', 'leaves', 'simulations'):
      if getattr(self, field) < 1:
        raise UserError(
          f'search: {field} must be at least 1, got {getattr(self, field)}'
        )
    if self.finish_tokens < 0 or self.exploration < 0:
      raise UserError(
        'search: finish_tokens and exploration must not be below '
        f'0, got {self.finish_tokens} and {self.exploration}'
      )
    if not 0 <= self.widening < 1:
      raise UserError(
        f'search: widening must lie within [0, 1), got {self.widening}'
      )
    for field, known in (('value', VALUES), ('choose', CHOICES)):
      if getattr(self, field) not in known:
        raise UserError(
          f'search: {field} must be one of {known}, got '
          f'{getattr(self, field)!r}'
        )

  def least_tokens(self, max_new_tokens: int) -> int:
    """The least budget: one step, or its completion, beside what is kept."""
    step = max_new_tokens if self.value == AT_END else self.step_tokens
    return step + self.finish_tokens


@dataclasses.dataclass(eq=False)
class Node:
  """What has been said so far, and what came of it.

  Attributes:
    tokens: Of the completion.
    parent: None of the root.
    drawn: How many of the parent's draws made it.
    ended: It is a whole completion, or all that there is room for.
    value: Of itself.
    visits: N, values that were backed up through it, its own among them.
    total: W, their sum.
    pending: Expansions at or below it that this turn has begun.
    draws: Next steps that were drawn here.
    turns: Expansions.
    children: Those that differ, in the order in which they were first drawn.
  """

  tokens: tuple[int, ...] = ()
  parent: 'Node | None' = None
  drawn: int = 1
  ended: bool = False
  value: float = 0.0
  visits: int = 0
  total: float = 0.0
  pending: int = 0
  draws: int = 0
  turns: int = 0
  children: list['Node'] = dataclasses.field(default_factory=list)

  @property
  def prior(self) -> float:
    """P, as far as draws can say."""
    return self.drawn / self.parent.draws

  def path(self) -> Iterator['Node']:
    """Itself, and those above it up to the root."""
    node = self
    while node is not None:
      yield node
      node = node.parent

  def back_up(self):
    """Its value once, to the root."""
    for node in self.path():
      node.visits += 1
      node.total += self.value

  def best(self, exploration: float) -> 'Node':
    """The child that PUCT chooses; of equals the first."""
    root = math.sqrt(self.visits + self.pending)

    def upper(child: Node) -> float:
      seen = child.visits + child.pending
      prior = exploration * child.prior
      return child.total / seen + prior * root / (1 + seen)

    return max(self.children, key=upper)


class Answer(NamedTuple):
  """A completion that was found, and how good it is held to be."""

  tokens: tuple[int, ...]
  value: float
  visits: int


@dataclasses.dataclass(eq=False)
class Tree:
  """The search of one problem.

  Attributes:
    start: Its prompt.
    root: What is known.
    used_tokens: Drawn.
    simulations: Made.
    ends: Nodes that are answers, in the order in which they were drawn.
    rolled: Answers beside the tree: of completions that valued a node.
    answer: What it comes to; None where nothing was finished.
  """

  start: Context
  root: Node = dataclasses.field(default_factory=Node)
  used_tokens: int = 0
  simulations: int = 0
  ends: list[Node] = dataclasses.field(default_factory=list)
  rolled: list[Answer] = dataclasses.field(default_factory=list)
  answer: Answer | None = None

  def context(self, tokens: tuple[int, ...]) -> Context:
    return self.start._replace(tokens=tokens)

  def nodes(self) -> Iterator[Node]:
    """Parents before their children."""
    stack = [self.root]
    while stack:
      node = stack.pop()
      yield node
      stack += reversed(node.children)


Draw = Callable[[Sequence[Request]], Sequence[Completion]]
# Chances of (index of the problem, tokens): of a step's, or of a whole
# completion's.
Judge = Callable[[Sequence[tuple[int, tuple[int, ...]]]], Sequence[float]]


class Search:
  """Searches problems together.

  Args:
    options: For each of them.
    how: Draws steps; its max_new_tokens are a whole completion's.
    splitter: Says where a step ends.
    draw: Completes requests, all of them.
    judge: Values what was drawn.

  Raises:
    UserError: the budget is below one step.
  """

  def __init__(
    self,
    options: Options,
    how: Sampling,
    splitter: StepSplitter,
    draw: Draw,
    judge: Judge,
  ):
    least = options.least_tokens(how.max_new_tokens)
    if options.budget_tokens < least:
      raise UserError(
        f'search: budget_tokens = {options.budget_tokens} is below one step: '
        f'it needs {least}'
      )
    self._options, self._how, self._splitter = options, how, splitter
    self._draw, self._judge = draw, judge

  def run(self, problems: Sequence[Context], key: jax.Array) -> list[Tree]:
    """The trees of the problems, each with its answer."""
    trees = [Tree(start=problem) for problem in problems]
    live = range(len(trees))
    while chosen := [
      (p, *found) for p in live for found in self._select(trees[p])
    ]:
      live = sorted({p for p, _, _ in chosen})
      self._expand(trees, chosen, key)
    self._finish(trees, key)
    for tree in trees:
      tree.answer = self._chosen(tree)
    return trees

  def _select(self, tree: Tree) -> list[tuple[Node, int]]:
    """Nodes to expand in this turn, and how many draws each can pay for."""
    o, found, promised = self._options, [], 0
    while len(found) < o.leaves and tree.simulations < o.simulations:
      node = tree.root
      while node.children and not self._narrow(node):
        node = node.best(o.exploration)
      if node.ended:
        node.back_up()
        tree.simulations += 1
        continue
      if node.pending:  # It is chosen again: there is nothing better to do.
        break
      each = self._most_tokens(node)
      draws = min(o.width, (self._left(tree) - promised) // each)
      if draws < 1:
        break
      promised += draws * each
      tree.simulations += 1
      for above in node.path():
        above.pending += 1
      found.append((node, draws))
    return found

  def _narrow(self, node: Node) -> bool:
    """Were there too few draws here for so many visits?"""
    o = self._options
    return node.draws < o.width * node.visits**o.widening

  def _most_tokens(self, node: Node) -> int:
    """What one draw at a node may cost, with what its value costs."""
    room = self._how.max_new_tokens - len(node.tokens)
    if self._options.value == AT_END:
      return room
    return min(self._options.step_tokens, room)

  def _left(self, tree: Tree) -> int:
    """Tokens that a search may still use."""
    kept = 0 if tree.ends or tree.rolled else self._options.finish_tokens
    return self._options.budget_tokens - tree.used_tokens - kept

  def _expand(
    self,
    trees: Sequence[Tree],
    chosen: Sequence[tuple[int, Node, int]],
    key: jax.Array,
  ):
    """Draws next steps of all that were chosen, and backs their values up."""
    asked = continuation.requests(
      [trees[p].context(node.tokens) for p, node, _ in chosen],
      [self._step(node) for _, node, _ in chosen],
      self._options.width,
      key,
      [node.turns for _, node, _ in chosen],
    )
    width = self._options.width
    asked = [
      request
      for c, (_, _, draws) in enumerate(chosen)
      for request in asked[c * width : c * width + draws]
    ]
    made = iter(self._draw(asked))
    fresh: list[tuple[int, Node]] = []
    for p, node, draws in chosen:
      for above in node.path():
        above.pending -= 1
      drawn = [next(made) for _ in range(draws)]
      trees[p].used_tokens += sum(len(c.tokens) for c in drawn)
      grown = self._grow(node, drawn)
      fresh += [(p, child) for child in grown]
      trees[p].ends += filter(self._complete, grown)
    self._value(trees, fresh, key)
    for _, node in fresh:
      node.back_up()

  def _step(self, node: Node) -> Sampling:
    """A step of the thought; after it, the answer."""
    room = self._how.max_new_tokens - len(node.tokens)
    return dataclasses.replace(
      self._how,
      max_new_tokens=min(self._options.step_tokens, room),
      stop_strings=()
      if self._splitter.reasoning_ended(node.tokens)
      else self._splitter.stop_strings,
    )

  def _grow(self, node: Node, drawn: Sequence[Completion]) -> list[Node]:
    """A child for each step that differs; those that are new."""
    known = {child.tokens: child for child in node.children}
    before = len(node.children)
    for completion in drawn:
      tokens = node.tokens + tuple(completion.tokens)
      if tokens in known:
        known[tokens].drawn += 1
        continue
      known[tokens] = Node(
        tokens=tokens,
        parent=node,
        ended=(
          tokens[-1] in self._how.stop_ids
          or len(tokens) >= self._how.max_new_tokens
        ),
      )
      node.children.append(known[tokens])
    node.draws += len(drawn)
    node.turns += 1
    return node.children[before:]

  def _complete(self, node: Node) -> bool:
    """Is it an answer, and not a completion that was cut off?"""
    return node.ended and node.tokens[-1] in self._how.stop_ids

  def _value(
    self,
    trees: Sequence[Tree],
    fresh: Sequence[tuple[int, Node]],
    key: jax.Array,
  ):
    """Values of new nodes: 0 of what was cut off."""
    asked = [
      (p, node) for p, node in fresh if not node.ended or self._complete(node)
    ]
    ends = [node.tokens for _, node in asked]
    if self._options.value == AT_END:
      ends = self._rolled(trees, asked, key)
    known = [
      (p, node, tokens) for (p, node), tokens in zip(asked, ends) if tokens
    ]
    values = self._judge([(p, tokens) for p, _, tokens in known])
    for (p, node, tokens), value in zip(known, values, strict=True):
      node.value = float(value)
      if self._options.value == AT_END and not node.ended:
        trees[p].rolled.append(Answer(tokens, node.value, 1))

  def _rolled(
    self,
    trees: Sequence[Tree],
    asked: Sequence[tuple[int, Node]],
    key: jax.Array,
  ) -> list[tuple[int, ...] | None]:
    """Each node's completion; None where it was cut off."""
    open_ = [(p, node) for p, node in asked if not node.ended]
    made = iter(self._completed(trees, open_, jax.random.fold_in(key, _ROLL)))
    return [node.tokens if node.ended else next(made) for _, node in asked]

  def _completed(
    self,
    trees: Sequence[Tree],
    open_: Sequence[tuple[int, Node]],
    key: jax.Array,
  ) -> list[tuple[int, ...] | None]:
    """One completion from each node, as far as room and budget go."""
    hows = [
      dataclasses.replace(
        self._how,
        max_new_tokens=min(
          self._how.max_new_tokens - len(node.tokens),
          self._options.budget_tokens - trees[p].used_tokens,
        ),
      )
      for p, node in open_
    ]
    made = self._draw(
      continuation.requests(
        [trees[p].context(node.tokens) for p, node in open_], hows, 1, key
      )
    )
    found: list[tuple[int, ...] | None] = []
    for (p, node), completion in zip(open_, made):
      trees[p].used_tokens += len(completion.tokens)
      whole = completion.tokens[-1] in self._how.stop_ids
      found.append(node.tokens + tuple(completion.tokens) if whole else None)
    return found

  def _finish(self, trees: Sequence[Tree], key: jax.Array):
    """Completes the likeliest thought of a problem that has no answer."""
    open_ = []
    for p, tree in enumerate(trees):
      spare = self._options.budget_tokens - tree.used_tokens
      if spare < 1 or tree.ends or tree.rolled:
        continue
      node = tree.root
      while node.children:
        node = max(node.children, key=lambda c: (c.visits, c.total / c.visits))
      if not node.ended:
        open_.append((p, node))
    if not open_:
      return
    ends = self._completed(trees, open_, jax.random.fold_in(key, _FINISH))
    whole = [(p, tokens) for (p, _), tokens in zip(open_, ends) if tokens]
    for (p, tokens), value in zip(whole, self._judge(whole), strict=True):
      trees[p].rolled.append(Answer(tokens, float(value), 1))

  def _chosen(self, tree: Tree) -> Answer | None:
    """Of the answers that the tree holds, or else of those beside it."""
    held = [Answer(node.tokens, node.value, node.visits) for node in tree.ends]
    if self._options.choose == VALUE:
      return max(held + tree.rolled, key=lambda a: a.value, default=None)
    return max(
      held or tree.rolled, key=lambda a: (a.visits, a.value), default=None
    )
