"""Evaluates a policy on held-out problems: pass@k and cons@k.

General prompts have no rule that decides what is right. For those of the
synthetic task `manners`, 'eval/quality' is reported instead, which no reward
ever sees.
"""

from collections.abc import Sequence
import dataclasses
import math
import re

import jax
import numpy as np

from r1jax.data import batching
from r1jax.data.datasets import GENERAL
from r1jax.data.tasks import manners
from r1jax.data.tasks.corpus import CORRECTION_WORDS
from r1jax.data.text.response_formats import ResponseParser
from r1jax.data.text.tokenizer import Tokenizer
from r1jax.evaluate import unanswered
from r1jax.evaluate.vote import majority_correct
from r1jax.graders.verdict import Verdict
from r1jax.records import FINISH_LENGTH, Prompt, Rollout, ScoredRollout
from r1jax.rewards import language, multihost
from r1jax.rewards.reward_manager import RewardManager
from r1jax.rollout import assemble
from r1jax.rollout.engine import Engine
from r1jax.rollout.sampling import SamplingParams


@dataclasses.dataclass(frozen=True)
class EvalResult:
  """The outcome of one evaluation.

  Attributes:
    metrics: Value by metric name, 'eval/pass@1' and so on.
    samples: One JSON-ready record a completion; see sample_records.
  """

  metrics: dict[str, float]
  samples: list[dict]


class Evaluator:
  """Samples k completions of every problem and grades them."""

  def __init__(
    self,
    engine: Engine,
    prompts: Sequence[Prompt],
    tokenizer: Tokenizer,
    reward: RewardManager,
    parser: ResponseParser,
    max_prompt_tokens: int,
    k: int,
    sampling: SamplingParams,
    pass_k: Sequence[int] = (),
  ):
    """Builds the evaluation.

    Args:
      engine: The sampler.
      prompts: The problems.
      tokenizer: Encodes prompts and decodes completions.
      reward: Grades completions.
      parser: Finds the answer in a completion.
      max_prompt_tokens: Length that prompts are padded to.
      k: Completions of each problem.
      sampling: How tokens are sampled.
      pass_k: Numbers k of pass@k, each at most the completions of a problem;
        by default every divisor of them.
    """
    self._engine, self._prompts, self._tokenizer = engine, prompts, tokenizer
    self._reward, self._parser = reward, parser
    self._max_prompt_tokens, self._k = max_prompt_tokens, k
    self._sampling = sampling
    self._pass_k = pass_k or divisors(k)

  def run(self, params, key: jax.Array) -> EvalResult:
    """Evaluates one policy.

    Args:
      params: Parameters of the policy.
      key: Seeds the samples.
    """
    prompts = [self._prompts[i] for i in range(len(self._prompts))]
    batch = batching.pad_prompts(
      prompts, self._tokenizer, self._max_prompt_tokens
    )
    completions = self._engine.run(
      params, assemble.build_requests(batch, self._k, self._sampling, key)
    )
    rollout = assemble.build_rollout(batch, self._k, completions)
    scored = self._score(
      prompts,
      rollout,
      assemble.completion_texts(completions, self._tokenizer.decode_batch),
    )
    records = sample_records(
      prompts, scored, rollout.length_B, rollout.finish_B
    )
    unanswered.warn(
      'the evaluation',
      records,
      self._parser,
      unanswered.Limit(self._sampling.max_new_tokens),
    )
    speculation = self._engine.speculative_metrics(completions)
    return EvalResult(
      self._metrics(records)
      | {f'eval/{name}': value for name, value in speculation.items()},
      records,
    )

  def _score(
    self, prompts: Sequence[Prompt], rollout: Rollout, texts: Sequence[str]
  ) -> ScoredRollout:
    """Grades this process's share of the problems, and gathers the others."""
    local_P = [p for p in range(len(prompts)) if multihost.is_local(p)]
    local_B = [
      b for b, p in enumerate(rollout.group_B) if multihost.is_local(p)
    ]
    return multihost.gather_scores(
      [texts[p * self._k : (p + 1) * self._k] for p in range(len(prompts))],
      local_P,
      lambda: self._reward.score(
        [texts[b] for b in local_B],
        [prompts[p] for p in local_P],
        rollout.length_B[local_B],
      ),
    )

  def _metrics(self, records: list[dict]) -> dict[str, float]:
    k, num_problems = self._k, len(self._prompts)
    assert len(records) == num_problems * k, (len(records), num_problems, k)
    prompts = [self._prompts[b // k] for b in range(len(records))]
    metrics = self._text_metrics(records, prompts)
    if all(prompt.source == GENERAL for prompt in prompts):
      return metrics | self._quality(records, prompts)
    correct_PG = np.array(
      [record['verdict'] == Verdict.CORRECT for record in records]
    ).reshape(num_problems, k)
    consensus_P = majority_correct(
      [records[p * k : (p + 1) * k] for p in range(num_problems)], self._parser
    )
    # A completion that the grader failed on counts as wrong, in each of these.
    return (
      metrics
      | pass_at_k_metrics(correct_PG, self._pass_k)
      | {
        'eval/pass@1': float(correct_PG.mean(1).mean()),
        'eval/pass@1_stderr': standard_error(correct_PG.mean(1)),
        f'eval/cons@{k}': float(np.mean(consensus_P)),
        'eval/unscorable': float(
          np.mean([record['accuracy'] is None for record in records])
        ),
        'eval/unparsable': float(
          np.mean([r['verdict'] == Verdict.UNPARSABLE for r in records])
        ),
      }
    )

  def _text_metrics(
    self, records: list[dict], prompts: Sequence[Prompt]
  ) -> dict[str, float]:
    """Format, length and language, which need no right answer."""
    parsed = [self._parser.parse(record['completion']) for record in records]
    mean = lambda name: float(np.mean([record[name] for record in records]))
    return {
      'eval/format': mean('format'),
      'eval/completions/mean_length': mean('tokens'),
      'eval/completions/self_correction': float(
        np.mean(
          [
            self_corrects(
              record['completion'], self._parser.format.reasoning_end
            )
            for record in records
          ]
        )
      ),
      'eval/completions/clipped_ratio': mean('truncated'),
      'eval/language': float(
        np.mean(
          [
            language.consistency(
              response.reasoning or record['completion'], prompt.language
            )
            for record, response, prompt in zip(records, parsed, prompts)
          ]
        )
      ),
    }

  def _quality(
    self, records: list[dict], prompts: Sequence[Prompt]
  ) -> dict[str, float]:
    """Mean quality of the answers to `manners` prompts; {} for other ones."""
    if not all(manners.is_question(prompt.question) for prompt in prompts):
      return {}
    answers = [
      self._parser.parse(record['completion']).response for record in records
    ]
    return {
      'eval/quality': float(
        np.mean(
          [
            manners.quality(prompt.question, answer)
            for answer, prompt in zip(answers, prompts)
          ]
        )
      )
    }


def standard_error(score_P: np.ndarray) -> float:
  """Standard error of the mean over problems, the independent samples."""
  if len(score_P) < 2:
    return 0.0
  return float(score_P.std(ddof=1) / np.sqrt(len(score_P)))


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
  """Returns the unbiased estimate of pass@k of one problem.

  It is the probability that k of n samples, drawn without replacement, hold a
  right one: 1 − C(n − c, k) / C(n, k) (Codex, arXiv 2107.03374, eq. 1). Of 4
  samples 1 is right: pass@1 = 1/4, pass@2 = 1 − 3/6 = 1/2, pass@4 = 1.

  Args:
    num_samples: n; a sample that the grader failed on is one of them.
    num_correct: c, the right ones.
    k: At most n.
  """
  if not 0 < k <= num_samples:
    raise ValueError(f'pass@{k} needs at least {k} samples, got {num_samples}')
  total = math.comb(num_samples, k)
  return (total - math.comb(num_samples - num_correct, k)) / total


def pass_at_k_metrics(
  correct_PG: np.ndarray, ks: Sequence[int]
) -> dict[str, float]:
  """Returns 'eval/pass@k' for several k: means over problems of pass_at_k."""
  G = correct_PG.shape[1]
  return {
    f'eval/pass@{k}': float(
      np.mean([pass_at_k(G, int(c), k) for c in correct_PG.sum(1)])
    )
    for k in ks
  }


def divisors(number: int) -> tuple[int, ...]:
  """Returns the divisors of a number: 1, 2, 4 and 8 of 8."""
  return tuple(k for k in range(1, number + 1) if number % k == 0)


_CORRECTION = re.compile(rf'\b({"|".join(CORRECTION_WORDS)})\b', re.IGNORECASE)


def self_corrects(completion: str, reasoning_end: str) -> bool:
  """Whether the reasoning contains a word of correction, such as 'wait'.

  Args:
    completion: The completion as text.
    reasoning_end: The tag that closes the reasoning, such as '</think>'; all
      of a completion without it is reasoning.
  """
  reasoning = completion.split(reasoning_end)[0]
  return bool(_CORRECTION.search(reasoning))


def sample_records(
  prompts: Sequence[Prompt], scored: ScoredRollout, length_B, finish_B
) -> list[dict]:
  """Returns one JSON-ready record a completion.

  Args:
    prompts: P prompts.
    scored: Their P · G completions.
    length_B: Tokens of each completion.
    finish_B: FINISH_STOP or FINISH_LENGTH.
  """
  group_size = len(scored.texts) // len(prompts)
  graded_B = np.isfinite(scored.parts['accuracy'])
  return [
    {
      'id': prompts[b // group_size].id,
      'question': prompts[b // group_size].question,
      'prompt': prompts[b // group_size].text,
      'source': prompts[b // group_size].source,
      'gold': prompts[b // group_size].answer,
      'completion': text,
      'accuracy': (float(scored.parts['accuracy'][b]) if graded_B[b] else None),
      'verdict': str(scored.verdicts[b]),
      'format': float(scored.parts['format'][b]),
      'tokens': int(length_B[b]),
      'truncated': float(finish_B[b] == FINISH_LENGTH),
    }
    for b, text in enumerate(scored.texts)
  ]
