"""Held-out evaluation with more than one sample an answer: the best of n, and
tree search, each with the tokens that it cost.

Gold answers are read to say what was right, never to choose; but for the two
numbers that are bounds, and say so: 'oracle', and a search valued by 'rule'.
"""

from collections.abc import Sequence
import dataclasses
from functools import partial

import jax
import numpy as np

from r1jax.algos import prm as process
from r1jax.data import batching
from r1jax.data.datasets import GENERAL
from r1jax.data.text.response_formats import ResponseParser
from r1jax.data.text.tokenizer import Tokenizer
from r1jax.errors import UserError
from r1jax.evaluate import evaluator
from r1jax.evaluate.evaluator import Report
from r1jax.graders import dispatch
from r1jax.graders.verdict import Verdict
from r1jax.records import FINISH_LENGTH, FINISH_STOP, Prompt
from r1jax.rewards.prm import ProcessRewardModel
from r1jax.rewards.reward_manager import RewardManager
from r1jax.rollout import assemble, continuation, search
from r1jax.rollout.continuation import Context
from r1jax.rollout.engine import Engine
from r1jax.rollout.sampling import Sampling


@dataclasses.dataclass(frozen=True)
class Asked:
  """What is asked, and how its answers are read.

  Attributes:
    prompts: Problems that a rule can verify.
    tokenizer, parser: Of their text.
    reward: By rules alone.
    width_tokens: Of the longest prompt.
    how: Completions are drawn.
  """

  prompts: Sequence[Prompt]
  tokenizer: Tokenizer
  parser: ResponseParser
  reward: RewardManager
  width_tokens: int
  how: Sampling

  def __post_init__(self):
    if any(prompt.source == GENERAL for prompt in self.prompts):
      raise UserError(
        'eval.search: general problems have no right answer to search for'
      )

  def batch(self):
    return batching.pad_prompts(
      list(self.prompts), self.tokenizer, self.width_tokens
    )

  def ids(self) -> list[list[int]]:
    return [
      self.tokenizer.encode_prompt(prompt.text) for prompt in self.prompts
    ]


class BestOf:
  """Draws k samples a problem; for every n up to k, a power of two, picks one
  of each n by their majority and by the process reward model."""

  def __init__(
    self, engine: Engine, asked: Asked, k: int, model: ProcessRewardModel | None
  ):
    self._engine, self._asked, self._k = engine, asked, k
    self._model = model

  def run(self, params, key: jax.Array) -> Report:
    asked, k = self._asked, self._k
    made = self._engine.run(
      params, assemble.requests(asked.batch(), k, asked.how, key)
    )
    texts = assemble.texts(made, asked.tokenizer.decode_batch)
    length_B = np.array([len(c.tokens) for c in made])
    scored = asked.reward.score(texts, list(asked.prompts), length_B)
    rows = evaluator.sample_rows(
      list(asked.prompts),
      scored,
      length_B,
      [FINISH_STOP if c.finish == 'stop' else FINISH_LENGTH for c in made],
    )
    chances = None
    if self._model:
      ids = asked.ids()
      chances = self._model.step_scores(
        [ids[b // k] for b in range(len(made))], [c.tokens for c in made]
      )
      for row, chance in zip(rows, chances):
        row['chances'] = [round(float(x), 4) for x in chance]
    metrics = {}
    for n in _powers(k):
      metrics |= {
        f'eval/n={n}/{name}': value
        for name, value in self._of(n, rows, chances).items()
      }
    return Report(metrics, rows)

  def _of(self, n: int, rows: list[dict], chances) -> dict[str, float]:
    """Each problem's samples in blocks of n; a problem's mean over blocks."""
    k, num = self._k, len(self._asked.prompts)
    blocks = [
      range(p * k + b * n, p * k + (b + 1) * n)
      for p in range(num)
      for b in range(k // n)
    ]
    right_B = np.array([row['verdict'] == Verdict.CORRECT for row in rows])
    found = {
      'tokens': n * float(np.mean([row['tokens'] for row in rows])),
      'oracle': float(np.mean([right_B[list(of)].any() for of in blocks])),
      'vote': float(
        np.mean(
          evaluator.majority(
            [[rows[b] for b in of] for of in blocks], self._asked.parser
          )
        )
      ),
    }
    if n == 1:
      return {'tokens': found['tokens'], 'pass': found['vote']}
    if chances is not None:
      for how in process.AGGREGATES:
        score_B = np.array([process.aggregate(c, how) for c in chances])
        picked = [of[int(np.argmax(score_B[list(of)]))] for of in blocks]
        found[f'best/{how}'] = float(right_B[picked].mean())
    return found


def _powers(k: int) -> list[int]:
  """1, 2, 4, … up to k."""
  return [1 << i for i in range(k.bit_length())]


class TreeSearch:
  """Searches every problem, all of them together."""

  def __init__(
    self,
    engine: Engine,
    asked: Asked,
    options: search.Options,
    splitter,
    model: ProcessRewardModel | None,
  ):
    """Args:
    engine: Draws.
    asked: What.
    options: Of the search.
    splitter: Of steps.
    model: Values what was drawn; None: whether its answer is right, of
      completions alone.
    """
    self._engine, self._asked, self._options = engine, asked, options
    self._splitter, self._model = splitter, model
    self._search(lambda _: [])  # Raises what a run would.

  def _search(self, draw, ids=()) -> search.Search:
    judge = self._ruled if self._model is None else partial(self._judged, ids)
    return search.Search(
      self._options, self._asked.how, self._splitter, draw, judge
    )

  def run(self, params, key: jax.Array) -> Report:
    asked, ids = self._asked, self._asked.ids()
    session = self._engine.session(params)
    searched = self._search(partial(continuation.draw, session), ids)
    trees = searched.run(
      [
        Context(int(id_), np.array(prompt, np.int32))
        for id_, prompt in zip(asked.batch().id_P, ids)
      ],
      key,
    )
    said = [
      self._splitter.without_stop_token(tree.answer.tokens)
      if tree.answer
      else ()
      for tree in trees
    ]
    texts = asked.tokenizer.decode_batch(said)
    used = np.array([tree.used_tokens for tree in trees])
    scored = asked.reward.score(texts, list(asked.prompts), used)
    rows = evaluator.sample_rows(
      list(asked.prompts),
      scored,
      used,
      [FINISH_STOP if tree.answer else FINISH_LENGTH for tree in trees],
    )
    nodes = [list(tree.nodes()) for tree in trees]
    for row, tree, held in zip(rows, trees, nodes):
      row |= {'nodes': len(held), 'simulations': tree.simulations}
      if tree.answer:
        row |= {'value': tree.answer.value, 'visits': tree.answer.visits}
    right = np.array([row['verdict'] == Verdict.CORRECT for row in rows])
    return Report(
      {
        'eval/pass': float(right.mean()),
        'eval/pass_stderr': float(right.std(ddof=1) / np.sqrt(len(right)))
        if len(right) > 1
        else 0.0,
        'eval/tokens': float(used.mean()),
        'eval/tokens_max': float(used.max()),
        'eval/answered': float(np.mean([bool(t.answer) for t in trees])),
        'eval/nodes': float(np.mean([len(held) for held in nodes])),
        'eval/simulations': float(np.mean([t.simulations for t in trees])),
        'eval/answers': float(
          np.mean(
            [
              len(
                {t.tokens for t in tree.ends} | {a.tokens for a in tree.rolled}
              )
              for tree in trees
            ]
          )
        ),
      },
      rows,
    )

  def _judged(self, ids: Sequence[Sequence[int]], asked) -> list[float]:
    """The chance after the last token of each."""
    rows = [
      [*ids[p], *self._splitter.without_stop_token(tokens)]
      for p, tokens in asked
    ]
    found = self._model.scores_at(rows, [[len(row) - 1] for row in rows])
    return [float(chance[0]) for chance in found]

  def _ruled(self, asked) -> list[float]:
    """Whether each completion is right."""
    texts = self._asked.tokenizer.decode_batch(
      [self._splitter.without_stop_token(tokens) for _, tokens in asked]
    )
    verdicts = dispatch.verdicts(
      [
        (self._asked.parser.parse(text).answer, prompt.answer, prompt.source)
        for (p, _), text in zip(asked, texts)
        for prompt in [self._asked.prompts[p]]
      ]
    )
    return [float(verdict is Verdict.CORRECT) for verdict in verdicts]
