"""Labels reasoning steps without people (Math-Shepherd, arXiv 2312.08935).

From each step on, the policy finishes the thought several times, and how often
the answer is right says how good the step was (section 3.3).

  prompts → thoughts → their steps → n continuations of each → rows

Writes steps.jsonl, rows that `prm.data` reads, each with where it came from;
and report.json, with the tokens that it took.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
import dataclasses
from pathlib import Path
from typing import NamedTuple

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
from r1jax.rollout.session import Session
from r1jax.stages.build import parts as build
from r1jax.stages.build import prompts, sampler
from r1jax.stages.dataset_stage import (
  DatasetStage,
  PromptRows,
  checkpoint_name,
  num_prompts,
)
from r1jax.stages.stage import Kind

# Streams of randomness.
_THOUGHTS, _CONTINUATIONS = range(2)


# Identifies the beginning of a thought: its prompt's id, and its tokens.
_Key = tuple[str, tuple[int, ...]]


class _Thought(NamedTuple):
  """A completion, and where its steps end.

  Attributes:
    prompt: The prompt.
    sample: Its number among the prompt's completions.
    start: The prompt's tokens, with no token sampled yet.
    completion: The completion; its tokens have the stop token among them.
    ends: For each step, the number of tokens until its end.
  """

  prompt: Prompt
  sample: int
  start: Prefix
  completion: Completion
  ends: list[int]

  def beginnings(self) -> dict[_Key, Prefix]:
    """Returns the thought until the end of each step but the last."""
    tokens = tuple(self.completion.tokens)
    return {
      (self.prompt.id, tokens[:end]): self.start._replace(tokens=tokens[:end])
      for end in self.ends[:-1]
    }


class _Sampled(NamedTuple):
  """The thoughts of a chunk, and how they might have gone on.

  Attributes:
    thoughts: The thoughts of each prompt, by its number in the chunk.
    continued: The continuations of each beginning of a thought.
  """

  thoughts: dict[int, list[_Thought]]
  continued: dict[_Key, list[Completion]]


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
    self.engine = sampler.engine(config, parts)
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

  def sample(
    self, session: Session, prompts: Sequence[Prompt], indices: Sequence[int]
  ) -> _Sampled:
    """Returns thoughts, and continuations of their beginnings."""
    c, key = self._config, jax.random.key(self.seed)
    thoughts = self._sample_thoughts(
      session, prompts, indices, jax.random.fold_in(key, _THOUGHTS)
    )
    contexts: dict[_Key, Prefix] = {}  # Each of them once.
    for group in thoughts.values():
      for thought in group:
        contexts |= thought.beginnings()
    n = c.num_continuations
    continued = continuation.generate(
      session,
      continuation.build_requests(
        list(contexts.values()),
        [self._remaining(context) for context in contexts.values()],
        n,
        jax.random.fold_in(key, _CONTINUATIONS),
      ),
    )
    return _Sampled(
      thoughts,
      {name: continued[i * n : (i + 1) * n] for i, name in enumerate(contexts)},
    )

  def _sample_thoughts(
    self,
    session: Session,
    prompts: Sequence[Prompt],
    indices: Sequence[int],
    key: jax.Array,
  ) -> dict[int, list[_Thought]]:
    """Returns the thoughts of some prompts, by their number in the chunk."""
    n = self._config.num_samples
    batch = batching.pad_prompts(
      prompts, self._parts.tokenizer, self._run.data.max_prompt_tokens
    )
    requests = assemble.build_requests(batch, n, self._sampling, key)
    completions = continuation.generate(
      session, [requests[p * n + i] for p in indices for i in range(n)]
    )
    thoughts: dict[int, list[_Thought]] = {p: [] for p in indices}
    for b, completion in enumerate(completions):
      p = indices[b // n]
      thoughts[p].append(
        _Thought(
          prompts[p],
          b % n,
          Prefix(int(batch.id_P[p]), completion.request.prompt),
          completion,
          self._splitter.step_ends(completion.tokens),
        )
      )
    return thoughts

  def _remaining(self, context: Prefix) -> SamplingParams:
    """Returns the sampling of a continuation, with the tokens that are left."""
    left = self._sampling.max_new_tokens - len(context.tokens)
    return dataclasses.replace(self._sampling, max_new_tokens=left)

  def make_rows(
    self, prompts: Sequence[Prompt], sampled: _Sampled, indices: Sequence[int]
  ) -> list[PromptRows]:
    """Returns a row for each thought with steps; see DatasetStage."""
    thoughts = [t for p in indices for t in sampled.thoughts[p]]
    correct = self._correct(
      [thought.prompt for thought in thoughts],
      [thought.completion for thought in thoughts],
    )
    # A beginning counts for the first prompt that has it.
    prompt_of: dict[_Key, int] = {}
    for p in indices:
      for thought in sampled.thoughts[p]:
        for name in thought.beginnings():
          prompt_of.setdefault(name, p)
    continued = {name: sampled.continued[name] for name in prompt_of}
    right = self._count_right(
      [prompts[p] for p in prompt_of.values()], continued
    )
    n = self._config.num_samples
    return [
      PromptRows(
        [
          self._row(thought, is_correct, right)
          for thought, is_correct in zip(
            sampled.thoughts[p], correct[i * n : (i + 1) * n]
          )
          if thought.ends
        ],
        self._counts(
          sampled.thoughts[p],
          [continued[name] for name in prompt_of if prompt_of[name] == p],
        ),
      )
      for i, p in enumerate(indices)
    ]

  def _counts(
    self,
    thoughts: Sequence[_Thought],
    continued: Sequence[Sequence[Completion]],
  ) -> dict[str, int]:
    """Returns the numbers of a prompt for the report."""
    completions = [thought.completion for thought in thoughts]
    return {
      'thoughts': len(thoughts),
      'empty': sum(not thought.ends for thought in thoughts),
      'divided': sum(
        self._splitter.has_delimiter(c.tokens) for c in completions
      ),
      'steps': sum(len(thought.ends) for thought in thoughts),
      'continued': len(continued),
      'thought_tokens': sum(len(c.tokens) for c in completions),
      'continuation_tokens': sum(
        len(c.tokens) for each in continued for c in each
      ),
    }

  def _count_right(
    self,
    prompts: Sequence[Prompt],
    continued: Mapping[_Key, Sequence[Completion]],
  ) -> dict[_Key, int]:
    """Returns how many continuations of each beginning are right.

    Args:
      prompts: The prompt of each beginning.
      continued: The continuations of each beginning.
    """
    n = self._config.num_continuations
    correct = self._correct(
      [prompt for prompt in prompts for _ in range(n)],
      [c for each in continued.values() for c in each],
      [tokens for _, tokens in continued for _ in range(n)],
    )
    return {
      name: sum(correct[i * n : (i + 1) * n])
      for i, name in enumerate(continued)
    }

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
    parse = self._parts.parser.parse
    verdicts = dispatch.verdicts(
      [
        (
          dispatch.graded_text(parse(text), prompt.source),
          prompt.answer,
          prompt.source,
        )
        for text, prompt in zip(texts, prompts)
      ]
    )
    return [
      completion.finish_reason == 'stop' and verdict is Verdict.CORRECT
      for completion, verdict in zip(completions, verdicts)
    ]

  def _row(
    self, thought: _Thought, correct: bool, right: Mapping[_Key, int]
  ) -> dict:
    """Returns a row; the last step has no continuation, but is right or not."""
    n, prompt = self._config.num_continuations, thought.prompt
    tokens = self._splitter.without_stop_token(thought.completion.tokens)
    counts = [right[name] for name in thought.beginnings()]
    return {
      'id': f'{prompt.id}-{thought.sample}',
      'question': prompt.question,
      'answer': prompt.answer,
      'source': prompt.source,
      'prompt': prompt.text,
      'completion': self._parts.tokenizer.decode(tokens),
      'tokens': list(tokens),
      'ends': thought.ends,
      'right': [*counts, n * correct],
      'continuations': n,
      'correct': correct,
      'provenance': {'prompt': prompt.id, 'sample': thought.sample},
    }
