"""Labels reasoning steps without people (Math-Shepherd, arXiv 2312.08935).

From each step on, the policy finishes the thought several times, and how often
the answer is right says how good the step was (section 3.3).

  prompts → thoughts → their steps → n continuations of each → rows

Writes steps.jsonl, rows that `prm.data` reads, each with where it came from;
and report.json, with the tokens that it took.
"""

from collections import Counter
from collections.abc import Sequence
import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from r1jax import registry
from r1jax.config.schema.run import RunConfig
from r1jax.config.schema.sampled_data import LabelStepsConfig
from r1jax.data import batching, splits
from r1jax.data.text import steps
from r1jax.errors import UserError
from r1jax.graders import dispatch
from r1jax.graders.verdict import Verdict
from r1jax.records import Prompt
from r1jax.rollout import assemble, continuation
from r1jax.rollout.continuation import Prefix
from r1jax.rollout.sampling import SamplingParams
from r1jax.rollout.scheduler import Completion
from r1jax.stages.build import parts as build
from r1jax.stages.build import prompts, sampler
from r1jax.stages.dataset_stage import (
  DatasetStage,
  checkpoint_name,
  num_prompts,
)
from r1jax.stages.stage import Kind

# Streams of randomness.
_THOUGHTS, _CONTINUATIONS = range(2)


class _Thought(NamedTuple):
  """A completion, and where its steps end.

  Attributes:
    prompt: The prompt.
    sample: Its number among the prompt's completions.
    start: The prompt's tokens, with no token sampled yet.
    tokens: Completion tokens, the stop token among them.
    ends: For each step, the number of tokens until its end.
    correct: Whether the answer is right.
  """

  prompt: Prompt
  sample: int
  start: Prefix
  tokens: tuple[int, ...]
  ends: list[int]
  correct: bool

  def until(self, end: int) -> Prefix:
    """Returns the beginning of the thought, as a context to continue."""
    return self.start._replace(tokens=self.tokens[:end])


@registry.stage('label_steps')
class LabelSteps(DatasetStage):
  """Samples thoughts, and continues each of their beginnings n times."""

  section = LabelStepsConfig
  takes = {'data.': (Kind.SFT_DATA,)}
  output = 'steps.jsonl'

  def __init__(self, config: RunConfig, parts: build.Parts):
    c = self._config = config.label_steps
    self.seed, self.prompts_per_chunk = config.seed, c.prompts_per_chunk
    self._run, self._parts = config, parts
    self.prompts = prompts.prompts(
      config, parts.template, parts.tokenizer, splits.TRAIN, general=False
    )
    self.num_prompts = num_prompts(self.name, c.num_prompts, self.prompts)
    self._splitter = steps.make_splitter(
      config.data.step_delimiter, parts.parser, parts.tokenizer
    )
    self._engine = sampler.engine(config, parts)
    self._sampling = SamplingParams(
      max_new_tokens=config.rl.max_new_tokens,
      temperature=c.temperature,
      top_p=c.top_p,
      stop_token_ids=parts.tokenizer.stop_ids,
    )

  @classmethod
  def leaves(cls, config: RunConfig) -> Kind:
    return Kind.STEP_LABELS

  @classmethod
  def reads(cls, config: RunConfig) -> dict[str, list[Path]]:
    return prompts.prompt_files(config, evaluates=False)

  def provenance(self) -> dict:
    return {
      'checkpoint': checkpoint_name(self._run),
      'seed': self.seed,
      'temperature': self._config.temperature,
      'delimiter': self._splitter.delimiter,
    }

  def check_counts(self, counts: Counter):
    if not counts['steps']:
      raise UserError(
        f'label_steps: no steps found: all {counts["thoughts"]} completions '
        'are empty'
      )
    if not counts['divided']:
      raise UserError(
        f'label_steps: data.step_delimiter = {self._splitter.delimiter!r} '
        f'occurs in none of {counts["thoughts"]} completions'
      )

  def finish(
    self, rows: list[dict], counts: Counter
  ) -> tuple[list[dict], dict, str]:
    right = np.concatenate([row['right'] for row in rows])
    share = float((right / self._config.num_continuations).mean())
    tokens = counts['thought_tokens'] + counts['continuation_tokens']
    report = (
      {'num_prompts': self.num_prompts}
      | counts
      | {'right': share, 'tokens': tokens}
    )
    line = (
      f'label_steps: {counts["steps"]} steps of {len(rows)} thoughts, '
      f'{share:.0%} of their continuations right; {tokens:,} tokens'
    )
    return rows, report, line

  def progress_numbers(self, rows, counts) -> dict[str, str]:
    return {'steps': f'{counts["steps"]}'}

  def sample_chunk(
    self, params: Any, prompts: Sequence[Prompt], rows: Sequence[dict]
  ) -> tuple[list[dict], dict[str, int]]:
    del rows
    c, key = self._config, jax.random.key(self.seed)
    session = self._engine.session(params)
    batch = batching.pad_prompts(
      prompts, self._parts.tokenizer, self._run.data.max_prompt_tokens
    )
    completions = continuation.generate(
      session,
      assemble.build_requests(
        batch, c.num_samples, self._sampling, jax.random.fold_in(key, _THOUGHTS)
      ),
    )
    thoughts = self._thoughts(prompts, batch.id_P, completions)
    beginnings: dict[tuple, tuple[Prompt, Prefix]] = {}  # Each of them once.
    for thought in thoughts:
      for end in thought.ends[:-1]:
        context = thought.until(end)
        key_of = thought.prompt.id, context.tokens
        beginnings[key_of] = thought.prompt, context
    contexts = [context for _, context in beginnings.values()]
    continued = continuation.generate(
      session,
      continuation.build_requests(
        contexts,
        [self._remaining(context) for context in contexts],
        c.num_continuations,
        jax.random.fold_in(key, _CONTINUATIONS),
      ),
    )
    counts = self._count_right(list(beginnings.values()), continued)
    right = dict(zip(beginnings, counts))
    rows = [self._row(thought, right) for thought in thoughts if thought.ends]
    return rows, {
      'thoughts': len(thoughts),
      'empty': len(thoughts) - len(rows),
      'divided': sum(self._splitter.has_delimiter(t.tokens) for t in thoughts),
      'steps': sum(len(t.ends) for t in thoughts),
      'continued': len(beginnings),
      'thought_tokens': sum(len(c.tokens) for c in completions),
      'continuation_tokens': sum(len(c.tokens) for c in continued),
    }

  def _remaining(self, context: Prefix) -> SamplingParams:
    """Returns the sampling of a continuation, with the tokens that are left."""
    left = self._sampling.max_new_tokens - len(context.tokens)
    return dataclasses.replace(self._sampling, max_new_tokens=left)

  def _thoughts(
    self, prompts: Sequence[Prompt], id_P, completions: Sequence[Completion]
  ) -> list[_Thought]:
    G = self._config.num_samples
    correct = self._correct(
      [prompts[b // G] for b in range(len(completions))], completions
    )
    return [
      _Thought(
        prompts[b // G],
        b % G,
        Prefix(int(id_P[b // G]), completion.request.prompt),
        tuple(completion.tokens),
        self._splitter.step_ends(completion.tokens),
        correct[b],
      )
      for b, completion in enumerate(completions)
    ]

  def _count_right(
    self,
    beginnings: Sequence[tuple[Prompt, Prefix]],
    continued: Sequence[Completion],
  ) -> list[int]:
    """Returns how many continuations of each context are right."""
    n = self._config.num_continuations
    correct = self._correct(
      [beginnings[b // n][0] for b in range(len(continued))],
      continued,
      [beginnings[b // n][1].tokens for b in range(len(continued))],
    )
    return [sum(correct[i * n : (i + 1) * n]) for i in range(len(beginnings))]

  def _correct(
    self,
    prompts: Sequence[Prompt],
    completions: Sequence[Completion],
    prefixes: Sequence[tuple[int, ...]] | None = None,
  ) -> list[bool]:
    """Returns whether each completion, after its prefix, ends in the answer."""
    prefixes = prefixes or [()] * len(completions)
    texts = self._parts.tokenizer.decode_batch(
      [
        [*prefix, *self._splitter.without_stop_token(completion.tokens)]
        for prefix, completion in zip(prefixes, completions)
      ]
    )
    verdicts = dispatch.verdicts(
      [
        (self._parts.parser.parse(text).answer, prompt.answer, prompt.source)
        for text, prompt in zip(texts, prompts)
      ]
    )
    return [
      completion.finish_reason == 'stop' and verdict is Verdict.CORRECT
      for completion, verdict in zip(completions, verdicts)
    ]

  def _row(self, thought: _Thought, right: dict[tuple, int]) -> dict:
    """Returns a row; the last step has no continuation, but is right or not."""
    n = self._config.num_continuations
    prompt = thought.prompt
    tokens = self._splitter.without_stop_token(thought.tokens)
    counts = [
      right[prompt.id, thought.tokens[:end]] for end in thought.ends[:-1]
    ]
    return {
      'id': f'{prompt.id}-{thought.sample}',
      'question': prompt.question,
      'answer': prompt.answer,
      'source': prompt.source,
      'prompt': prompt.text,
      'completion': self._parts.tokenizer.decode(tokens),
      'tokens': list(tokens),
      'ends': thought.ends,
      'right': [*counts, n * thought.correct],
      'continuations': n,
      'correct': thought.correct,
      'provenance': {'prompt': prompt.id, 'sample': thought.sample},
    }
