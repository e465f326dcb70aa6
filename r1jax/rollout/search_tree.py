"""The tree that Monte-Carlo tree search grows for one problem."""

from collections.abc import Iterator
import dataclasses
import math
from typing import NamedTuple

from r1jax.rollout.continuation import Prefix


@dataclasses.dataclass(eq=False)
class Node:
  """A partial completion and the statistics of the simulations through it.

  Attributes:
    tokens: Completion tokens from the root to here.
    parent: The node that it extends; None for the root.
    num_sampled: How many of the parent's samples gave this step.
    terminal: Whether the completion cannot be extended: it ends in a stop
      token or has no room left.
    value: Value of the node itself, as it was evaluated when it was added.
    visit_count: N, the number of values backed up through the node, its own
      among them.
    value_sum: W, the sum of these values.
    pending: Expansions at or below the node that the current iteration has
      begun (virtual visits).
    num_samples: Number of next steps sampled here.
    num_expansions: Number of times that it was expanded.
    children: The distinct next steps, in the order in which they were first
      sampled.
  """

  tokens: tuple[int, ...] = ()
  parent: 'Node | None' = None
  num_sampled: int = 1
  terminal: bool = False
  value: float = 0.0
  visit_count: int = 0
  value_sum: float = 0.0
  pending: int = 0
  num_samples: int = 0
  num_expansions: int = 0
  children: list['Node'] = dataclasses.field(default_factory=list)

  @property
  def prior(self) -> float:
    """P, the share of the parent's samples that gave this step."""
    assert self.parent is not None  # The root is never selected.
    return self.num_sampled / self.parent.num_samples

  def path(self) -> Iterator['Node']:
    """Iterates over the node and its ancestors up to the root."""
    node: Node | None = self
    while node is not None:
      yield node
      node = node.parent

  def backpropagate(self):
    """Adds the node's value to every node on the path to the root."""
    for node in self.path():
      node.visit_count += 1
      node.value_sum += self.value

  def select_child(self, c_puct: float) -> 'Node':
    """Returns the child of the highest PUCT score, the first of equals.

    Pending expansions count as visits of value 0 (a virtual loss), so that
    the leaves of one iteration differ.
    """
    sqrt_visits = math.sqrt(self.visit_count + self.pending)

    def score(child: Node) -> float:
      visits = child.visit_count + child.pending
      prior = c_puct * child.prior
      return child.value_sum / visits + prior * sqrt_visits / (1 + visits)

    return max(self.children, key=score)


class Answer(NamedTuple):
  """A complete completion, its value and how often search has visited it."""

  tokens: tuple[int, ...]
  value: float
  visit_count: int


@dataclasses.dataclass(eq=False)
class Tree:
  """The search tree of one problem and what the search has spent on it.

  Attributes:
    prompt: The problem's prompt, as a Prefix without completion tokens.
    root: The root node.
    used_tokens: Tokens generated so far.
    num_simulations: Simulations so far.
    answer_nodes: Terminal nodes that are answers, in the order in which they
      were sampled.
    rollout_answers: Answers outside of the tree, from rollouts that completed
      a node.
    answer: The selected answer; None where no completion was finished.
  """

  prompt: Prefix
  root: Node = dataclasses.field(default_factory=Node)
  used_tokens: int = 0
  num_simulations: int = 0
  answer_nodes: list[Node] = dataclasses.field(default_factory=list)
  rollout_answers: list[Answer] = dataclasses.field(default_factory=list)
  answer: Answer | None = None

  def prefix(self, tokens: tuple[int, ...]) -> Prefix:
    """Returns the prompt followed by these completion tokens."""
    return self.prompt._replace(tokens=tokens)

  def nodes(self) -> Iterator[Node]:
    """Iterates over all nodes, parents before their children."""
    stack = [self.root]
    while stack:
      node = stack.pop()
      yield node
      stack += reversed(node.children)
