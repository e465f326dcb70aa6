"""Evaluates answers that several samples give together: voting, best of n and
tree search, with the tokens that each costs.

The right answers are used to grade a choice, never to make it. Two metrics are
bounds and are exceptions: 'eval/pass@n', and a search whose value is 'rule'.
"""

from collections.abc import Callable, Sequence
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
from r1jax.evaluate import unanswered, vote
from r1jax.evaluate.evaluator import (
  EvalResult,
  pass_at_k_metrics,
  sample_records,
  standard_error,
)
from r1jax.graders import dispatch
from r1jax.graders.verdict import Verdict
from r1jax.records import FINISH_LENGTH, FINISH_STOP, Prompt, PromptBatch
from r1jax.rewards.prm import ProcessRewardModel
from r1jax.rewards.reward_manager import RewardManager
from r1jax.rollout import assemble, continuation, mcts, search_tree
from r1jax.rollout.continuation import Prefix
from r1jax.rollout.engine import Engine
from r1jax.rollout.sampling import SamplingParams


@dataclasses.dataclass(frozen=True)
class EvalProblems:
  """Problems to solve, and how completions are sampled and read.

  Attributes:
    prompts: Problems with an answer that a rule can verify.
    tokenizer: Encodes prompts and decodes completions.
    parser: Finds the answer in a completion.
    reward: Grades by rules alone.
    max_prompt_tokens: Length that prompts are padded to.
    sampling: How tokens are sampled.
  """

  prompts: Sequence[Prompt]
  tokenizer: Tokenizer
  parser: ResponseParser
  reward: RewardManager
  max_prompt_tokens: int
  sampling: SamplingParams

  def __post_init__(self):
    if any(prompt.source == GENERAL for prompt in self.prompts):
      raise UserError(
        'eval.search: general problems have no right answer to search for'
      )

  def batch(self) -> PromptBatch:
    """The tokenised prompts, padded."""
    return batching.pad_prompts(
      list(self.prompts), self.tokenizer, self.max_prompt_tokens
    )

  def prompt_ids(self) -> list[list[int]]:
    """The token ids of each prompt."""
    return [
      self.tokenizer.encode_prompt(prompt.text) for prompt in self.prompts
    ]


class BestOfN:
  """Samples k completions a problem, and chooses one of every n of them.

  n is each power of two up to k. The choice is the majority's, and that of a
  process reward model if there is one.
  """

  def __init__(
    self,
    engine: Engine,
    problems: EvalProblems,
    k: int,
    model: ProcessRewardModel | None,
  ):
    """Builds the evaluation.

    Args:
      engine: The sampler.
      problems: The problems.
      k: Completions of each problem.
      model: Scores the steps of completions, or None.
    """
    self._engine, self._problems, self._k = engine, problems, k
    self._model = model

  def run(self, params, key: jax.Array) -> EvalResult:
    """Evaluates one policy; see Evaluator.run."""
    problems, k = self._problems, self._k
    completions = self._engine.run(
      params,
      assemble.build_requests(problems.batch(), k, problems.sampling, key),
    )
    texts = assemble.completion_texts(
      completions, problems.tokenizer.decode_batch
    )
    length_B = np.array([len(c.tokens) for c in completions])
    scored = problems.reward.score(
      texts, list(problems.prompts), length_B.tolist()
    )
    records = sample_records(
      list(problems.prompts),
      scored,
      length_B,
      [
        FINISH_STOP if c.finish_reason == 'stop' else FINISH_LENGTH
        for c in completions
      ],
    )
    step_probs = None
    if self._model:
      prompt_ids = problems.prompt_ids()
      step_probs = self._model.step_scores(
        [prompt_ids[b // k] for b in range(len(completions))],
        [c.tokens for c in completions],
      )
      for record, probs in zip(records, step_probs):
        record['step_probs'] = [round(float(x), 4) for x in probs]
    unanswered.warn(
      'the evaluation',
      records,
      problems.parser,
      unanswered.Limit(problems.sampling.max_new_tokens),
    )
    poll = vote.Poll(
      [records[b : b + k] for b in range(0, len(records), k)], problems.parser
    )
    metrics: dict[str, float] = {}
    for n in _powers_of_two(k):
      metrics |= self._metrics(n, records, poll, step_probs)
    return EvalResult(metrics, records)

  def _metrics(
    self,
    n: int,
    records: list[dict],
    poll: vote.Poll,
    step_probs: Sequence | None,
  ) -> dict[str, float]:
    """Computes the metrics of a choice among n samples.

    pass@n is the unbiased estimate from all k samples of a problem. The others
    are means over problems and over the k // n blocks of n samples of each.

    Args:
      n: Samples to choose from.
      records: Sample records of all completions.
      poll: The votes of all completions.
      step_probs: For each completion, the reward model's probability after
        each of its steps.
    """
    k, num_problems = self._k, len(self._problems.prompts)
    correct_B = np.array([r['verdict'] == Verdict.CORRECT for r in records])
    metrics = {
      f'eval/tokens@{n}': n * float(np.mean([r['tokens'] for r in records]))
    } | pass_at_k_metrics(correct_B.reshape(num_problems, k), [n])
    if n == 1:
      return metrics
    parts = [range(i * n, (i + 1) * n) for i in range(k // n)]
    metrics[f'eval/cons@{n}'] = float(
      np.mean(
        [
          poll.is_correct(p, part)
          for p in range(num_problems)
          for part in parts
        ]
      )
    )
    if step_probs is not None:
      blocks = [
        range(p * k + part.start, p * k + part.stop)
        for p in range(num_problems)
        for part in parts
      ]
      for aggregate in process.AGGREGATES:
        score_B = np.array(
          [process.aggregate(probs, aggregate) for probs in step_probs]
        )
        best = [block[int(np.argmax(score_B[list(block)]))] for block in blocks]
        metrics[f'eval/best@{n}/{aggregate}'] = float(correct_B[best].mean())
    return metrics


def _powers_of_two(limit: int) -> list[int]:
  """1, 2, 4, … up to a limit."""
  return [1 << i for i in range(limit.bit_length())]


class TreeSearch:
  """Searches the answers to all problems at once by Monte Carlo tree search."""

  def __init__(
    self,
    engine: Engine,
    problems: EvalProblems,
    options: mcts.MCTSConfig,
    splitter,
    model: ProcessRewardModel | None,
  ):
    """Builds the evaluation.

    Args:
    engine: The sampler.
    problems: The problems.
    options: Options of the search.
    splitter: Splits completions into steps.
    model: Values nodes. None: a completion's value is whether its answer is
      right, which is a bound on what a search can reach.
    """
    self._engine, self._problems, self._options = engine, problems, options
    self._splitter, self._model = splitter, model
    self._search(lambda _: [])  # Raises what `run` would.

  def _search(self, generate: Callable, prompt_ids=()) -> mcts.MCTS:
    value = (
      self._values_by_rule
      if self._model is None
      else partial(self._values_by_model, prompt_ids)
    )
    return mcts.MCTS(
      self._options,
      self._problems.sampling,
      self._splitter,
      generate,
      value,
      self._candidates,
    )

  def run(self, params, key: jax.Array) -> EvalResult:
    """Evaluates one policy; see Evaluator.run."""
    problems, prompt_ids = self._problems, self._problems.prompt_ids()
    session = self._engine.session(params)
    trees = self._search(
      partial(continuation.generate, session), prompt_ids
    ).run(
      [
        Prefix(int(id_), np.array(ids, np.int32))
        for id_, ids in zip(problems.batch().id_P, prompt_ids)
      ],
      key,
    )
    texts = problems.tokenizer.decode_batch(
      [
        self._splitter.without_stop_token(tree.answer.tokens)
        if tree.answer
        else ()
        for tree in trees
      ]
    )
    tokens_P = np.array([tree.used_tokens for tree in trees])
    scored = problems.reward.score(
      texts, list(problems.prompts), tokens_P.tolist()
    )
    records = sample_records(
      list(problems.prompts),
      scored,
      tokens_P,
      [FINISH_STOP if tree.answer else FINISH_LENGTH for tree in trees],
    )
    for record, tree in zip(records, trees):
      record |= {
        'nodes': sum(1 for _ in tree.nodes()),
        'simulations': tree.num_simulations,
      }
      if tree.answer:
        record |= {
          'value': tree.answer.value,
          'visits': tree.answer.visit_count,
        }
    unanswered.warn(
      'the evaluation',
      records,
      problems.parser,
      unanswered.Limit(
        self._options.budget_tokens, 'eval.search.budget_tokens'
      ),
    )
    return EvalResult(_tree_metrics(records, trees, tokens_P), records)

  def _candidates(
    self, completions_P: Sequence[Sequence[tuple[int, ...]]]
  ) -> list[list[int | None]]:
    """Returns the final answers of completions as numbers; see vote.py.

    Args:
      completions_P: Token ids of some completions of each problem.
    """
    votes = []
    for prompt, completions in zip(
      self._problems.prompts, completions_P, strict=True
    ):
      texts = self._problems.tokenizer.decode_batch(
        [self._splitter.without_stop_token(tokens) for tokens in completions]
      )
      n, parse = len(texts), self._problems.parser.parse
      votes.append(
        vote.votes_of(
          [dispatch.graded_text(parse(text), prompt.source) for text in texts],
          [prompt.source] * n,
          [prompt.answer] * n,
          [None] * n,
        )
      )
    return vote.candidates_of(votes)

  def _values_by_model(
    self, prompt_ids: Sequence[Sequence[int]], nodes
  ) -> list[float]:
    """The reward model's probability after the last token of each node."""
    sequences = [
      [*prompt_ids[p], *self._splitter.without_stop_token(tokens)]
      for p, tokens in nodes
    ]
    assert self._model is not None  # __init__ checks it for this leaf_value.
    probs = self._model.scores_at(
      sequences, [[len(ids) - 1] for ids in sequences]
    )
    return [float(prob[0]) for prob in probs]

  def _values_by_rule(self, completions) -> list[float]:
    """1 for each completion with the right answer, else 0."""
    problems = self._problems
    texts = problems.tokenizer.decode_batch(
      [self._splitter.without_stop_token(tokens) for _, tokens in completions]
    )
    verdicts = dispatch.verdicts(
      [
        (
          dispatch.graded_text(problems.parser.parse(text), prompt.source),
          prompt.answer,
          prompt.source,
        )
        for (p, _), text in zip(completions, texts)
        for prompt in [problems.prompts[p]]
      ]
    )
    return [float(verdict is Verdict.CORRECT) for verdict in verdicts]


def _tree_metrics(
  records: list[dict], trees: Sequence[search_tree.Tree], tokens_P: np.ndarray
) -> dict[str, float]:
  """Means over the trees of all problems."""
  correct_P = np.array(
    [record['verdict'] == Verdict.CORRECT for record in records]
  )
  distinct_answers = [
    len(
      {t.tokens for t in tree.answer_nodes}
      | {a.tokens for a in tree.rollout_answers}
    )
    for tree in trees
  ]
  return {
    'eval/pass@1': float(correct_P.mean()),
    'eval/pass@1_stderr': standard_error(correct_P),
    'eval/tokens': float(tokens_P.mean()),
    'eval/tokens_max': float(tokens_P.max()),
    'eval/answered': float(np.mean([bool(tree.answer) for tree in trees])),
    'eval/nodes': float(np.mean([record['nodes'] for record in records])),
    'eval/simulations': float(
      np.mean([tree.num_simulations for tree in trees])
    ),
    'eval/distinct_answers': float(np.mean(distinct_answers)),
  }
