"""Held-out evaluation: pass@1 and cons@k with their uncertainty.

General problems have no rule that says what is right. Of the miniature's own,
`eval/quality` is told instead, which no reward ever sees.
"""

from collections import Counter
from collections.abc import Sequence
import dataclasses
import re

import jax
import numpy as np

from r1jax.data import batching, manners, tasks
from r1jax.data.datasets import GENERAL
from r1jax.data.text.response_formats import ResponseParser
from r1jax.data.text.tokenizer import Tokenizer
from r1jax.graders.verdict import Verdict
from r1jax.records import Prompt, Rollout, ScoredRollout
from r1jax.rewards import language, multihost
from r1jax.rewards.reward_manager import RewardManager
from r1jax.rollout import assemble
from r1jax.rollout.engine import Engine
from r1jax.rollout.sampling import Sampling


@dataclasses.dataclass(frozen=True)
class Report:
  """Numbers under their metric names, and the completions behind them."""

  metrics: dict[str, float]
  samples: list[dict]


class Evaluator:
  """Samples every problem k times."""

  def __init__(
    self,
    engine: Engine,
    prompts: Sequence[Prompt],
    tokenizer: Tokenizer,
    reward: RewardManager,
    parser: ResponseParser,
    width_tokens: int,
    k: int,
    how: Sampling,
  ):
    self._engine, self._prompts, self._tokenizer = engine, prompts, tokenizer
    self._reward, self._parser = reward, parser
    self._width, self._k, self._how = width_tokens, k, how

  def run(self, params, key: jax.Array) -> Report:
    prompts = [self._prompts[i] for i in range(len(self._prompts))]
    batch = batching.pad_prompts(prompts, self._tokenizer, self._width)
    made = self._engine.run(
      params, assemble.requests(batch, self._k, self._how, key)
    )
    rollout = assemble.as_rollout(
      batch, self._k, self._how.max_new_tokens, made
    )
    scored = self._scored(
      prompts, rollout, assemble.texts(made, self._tokenizer.decode_batch)
    )
    rows = sample_rows(prompts, scored, rollout.length_B, rollout.finish_B)
    told = assemble.speculation(made)
    return Report(
      self._metrics(rows)
      | {f'eval/{name}': value for name, value in told.items()},
      rows,
    )

  def _scored(
    self, prompts: Sequence[Prompt], rollout: Rollout, texts: Sequence[str]
  ) -> ScoredRollout:
    mine = [p for p in range(len(prompts)) if multihost.is_local(p)]
    some = [b for b, p in enumerate(rollout.group_B) if multihost.is_local(p)]
    return multihost.gather_scores(
      [texts[p * self._k : (p + 1) * self._k] for p in range(len(prompts))],
      mine,
      lambda: self._reward.score(
        [texts[b] for b in some],
        [prompts[p] for p in mine],
        rollout.length_B[some],
      ),
    )

  def _metrics(self, rows: list[dict]) -> dict[str, float]:
    k, num = self._k, len(self._prompts)
    assert len(rows) == num * k, (len(rows), num, k)
    asked = [self._prompts[b // k] for b in range(len(rows))]
    read = [self._parser.parse(row['completion']) for row in rows]
    mean = lambda name: float(np.mean([row[name] for row in rows]))
    found = {
      'eval/format': mean('format'),
      'eval/response_length/mean': mean('tokens'),
      'eval/self_correction': float(
        np.mean([self_corrects(row['completion']) for row in rows])
      ),
      'eval/truncated': mean('truncated'),
      'eval/language': float(
        np.mean(
          [
            language.consistency(
              parsed.reasoning or row['completion'], prompt.language
            )
            for row, parsed, prompt in zip(rows, read, asked)
          ]
        )
      ),
    }
    if all(prompt.source == GENERAL for prompt in asked):
      if not all(manners.is_question(prompt.question) for prompt in asked):
        return found
      return found | {
        'eval/quality': float(
          np.mean(
            [
              manners.quality(prompt.question, parsed.answer)
              for parsed, prompt in zip(read, asked)
            ]
          )
        )
      }
    right_PG = np.array(
      [row['verdict'] == Verdict.CORRECT for row in rows]
    ).reshape(num, k)
    per_problem = right_PG.mean(1)
    voted = majority(
      [rows[p * k : (p + 1) * k] for p in range(num)], self._parser
    )
    return found | {
      'eval/pass@1': float(per_problem.mean()),
      # Problems are the independent draws, so the error is over them.
      'eval/pass@1_stderr': float(per_problem.std(ddof=1) / np.sqrt(num))
      if num > 1
      else 0.0,
      f'eval/cons@{k}': float(np.mean(voted)),
      # Counted as not right; of a sound grader there are none.
      'eval/unscorable': float(
        np.mean([row['accuracy'] is None for row in rows])
      ),
    }


def majority(rows: Sequence[list[dict]], parser: ResponseParser) -> list[bool]:
  """cons@k of each problem: is the most frequent of its answers right?

  Missing answers do not vote; a tie goes to the answer that came first.
  """
  return [_elected(some, parser) == Verdict.CORRECT for some in rows]


def _elected(rows: list[dict], parser: ResponseParser) -> str | None:
  """The verdict of the most frequent answer: that of a row that gives it."""
  given = [
    (answer, row['verdict'])
    for row in rows
    if (answer := parser.parse(row['completion']).answer)
  ]
  votes = Counter(answer for answer, _ in given)
  return dict(given)[votes.most_common(1)[0][0]] if given else None


_CORRECTION = re.compile(
  rf'\b({"|".join(tasks.CORRECTION_WORDS)})\b', re.IGNORECASE
)


def self_corrects(completion: str) -> bool:
  """Does the thought stop and repair a step?"""
  thought = completion.split('</think>')[0]
  return bool(_CORRECTION.search(thought))


def sample_rows(
  prompts: Sequence[Prompt], scored: ScoredRollout, length_B, finish_B
) -> list[dict]:
  """One JSON-ready row a completion."""
  group_size = len(scored.texts) // len(prompts)
  graded_B = np.isfinite(scored.parts['accuracy'])
  return [
    {
      'id': prompts[b // group_size].id,
      'question': prompts[b // group_size].question,
      'gold': prompts[b // group_size].answer,
      'completion': text,
      'accuracy': (float(scored.parts['accuracy'][b]) if graded_B[b] else None),
      'verdict': str(scored.verdicts[b]),
      'format': float(scored.parts['format'][b]),
      'tokens': int(length_B[b]),
      'truncated': float(finish_B[b] == 0),
    }
    for b, text in enumerate(scored.texts)
  ]
