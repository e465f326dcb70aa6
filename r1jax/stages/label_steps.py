"""Labels of reasoning steps without people: from each step on the policy
finishes the thought several times, and how often the answer is right says how
good the step was (Math-Shepherd, arXiv 2312.08935, section 3.3).

  prompts → thoughts → their steps → n continuations of each → rows

Writes steps.jsonl, rows that `prm.data` reads, each with where it came from;
and report.json, with the tokens that it all took.
"""

from collections import Counter
from collections.abc import Sequence
import dataclasses
import json
from pathlib import Path
from typing import NamedTuple

import jax
import ml_collections
import numpy as np

from r1jax.data import batching, tasks
from r1jax.data.text import steps
from r1jax.errors import UserError
from r1jax.graders import dispatch
from r1jax.graders.verdict import Verdict
from r1jax.records import Prompt
from r1jax.rollout import assemble, continuation
from r1jax.rollout.continuation import Prefix
from r1jax.rollout.sampling import SamplingParams
from r1jax.rollout.scheduler import Completion
from r1jax.stages import dataset_writer
from r1jax.stages.build import parts as build
from r1jax.stages.stage import Stage
from r1jax.train.metrics import Progress

# Streams of randomness.
_THOUGHTS, _CONTINUATIONS = range(2)


class _Thought(NamedTuple):
  prompt: Prompt
  sample: int
  start: Prefix  # Nothing drawn yet.
  tokens: tuple[int, ...]  # The stop token among them.
  ends: list[int]
  correct: bool

  def until(self, end: int) -> Prefix:
    return self.start._replace(tokens=self.tokens[:end])


class LabelSteps(Stage):
  """Samples thoughts, and finishes each of their beginnings n times."""

  name = 'label_steps'
  output = 'steps.jsonl'
  leaves_policy = False

  def __init__(self, config: ml_collections.ConfigDict, parts: build.Parts):
    c = self._config = config.label_steps
    self._whole, self._parts = config, parts
    self._prompts = build.prompts(config, parts, tasks.TRAIN, general=False)
    self._count = dataset_writer.count(self.name, c.num_prompts, self._prompts)
    self._splitter = steps.make_splitter(
      config.data.step_delimiter, parts.parser, parts.tokenizer
    )
    self._engine = build.engine(config, parts)
    self._sampling = SamplingParams(
      max_new_tokens=config.rl.max_new_tokens,
      temperature=c.temperature,
      top_p=c.top_p,
      stop_token_ids=parts.tokenizer.stop_ids,
    )

  def run(self, directory: Path, base_params, about: dict) -> Path:
    """Samples chunk by chunk; a kill loses no chunk that was finished."""
    c = self._config
    directory.mkdir(parents=True, exist_ok=True)
    partial = directory / dataset_writer.PARTIAL
    done, rows, counts = dataset_writer.resumed(partial)
    source = {
      'checkpoint': dataset_writer.checkpoint(self._whole),
      'seed': self._whole.seed,
      'temperature': c.temperature,
      'delimiter': self._splitter.delimiter,
    }
    with (
      dispatch.shutdown_on_exit(),
      open(partial, 'a') as file,
      Progress(self.name, done, self._count, print_steps=1) as progress,
    ):
      if done:
        progress.log(f'goes on after prompt {done}')
      for start in range(done, self._count, c.prompts_per_chunk):
        end = min(start + c.prompts_per_chunk, self._count)
        found, counted = self._chunk(
          base_params, [self._prompts[i] for i in range(start, end)]
        )
        found = [
          row | {'provenance': source | row['provenance']} for row in found
        ]
        rows += found
        counts.update(counted)
        self._check(counts)
        dataset_writer.append(file, found, end, counted)
        progress.update(
          end, {'steps': f'{counts["steps"]}'}, keep=end == self._count
        )
    right = np.concatenate([row['right'] for row in rows]) / c.num_continuations
    report = (
      {'prompts': self._count}
      | counts
      | {
        'right': float(right.mean()),
        'tokens': counts['thought_tokens'] + counts['continuation_tokens'],
      }
    )
    (directory / 'report.json').write_text(json.dumps(report, indent=1) + '\n')
    path = directory / self.output
    dataset_writer.finish(path, rows)
    print(
      f'label_steps: {counts["steps"]} steps of {len(rows)} thoughts, '
      f'{right.mean():.0%} of their continuations right; '
      f'{report["tokens"]:,} tokens'
    )
    return path

  def _check(self, counts: Counter):
    """Raises UserError where there is nothing to label."""
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

  def _chunk(self, params, prompts: Sequence[Prompt]):
    """Rows of some prompts, and what there is to count of them."""
    c, key = self._config, jax.random.key(self._whole.seed)
    session = self._engine.session(params)
    batch = batching.pad_prompts(
      prompts, self._parts.tokenizer, self._whole.data.max_prompt_tokens
    )
    made = continuation.generate(
      session,
      assemble.build_requests(
        batch, c.num_samples, self._sampling, jax.random.fold_in(key, _THOUGHTS)
      ),
    )
    thoughts = self._thoughts(prompts, batch.id_P, made)
    begun: dict[tuple, tuple[Prompt, Prefix]] = {}  # Each of them once.
    for thought in thoughts:
      for end in thought.ends[:-1]:
        context = thought.until(end)
        begun[thought.prompt.id, context.tokens] = thought.prompt, context
    contexts = [context for _, context in begun.values()]
    drawn = continuation.generate(
      session,
      continuation.build_requests(
        contexts,
        [self._left(context) for context in contexts],
        c.num_continuations,
        jax.random.fold_in(key, _CONTINUATIONS),
      ),
    )
    right = dict(zip(begun, self._right(list(begun.values()), drawn)))
    rows = [self._row(thought, right) for thought in thoughts if thought.ends]
    return rows, {
      'thoughts': len(thoughts),
      'empty': len(thoughts) - len(rows),
      'divided': sum(self._splitter.has_delimiter(t.tokens) for t in thoughts),
      'steps': sum(len(t.ends) for t in thoughts),
      'continued': len(begun),
      'thought_tokens': sum(len(m.tokens) for m in made),
      'continuation_tokens': sum(len(m.tokens) for m in drawn),
    }

  def _left(self, context: Prefix) -> SamplingParams:
    return dataclasses.replace(
      self._sampling,
      max_new_tokens=self._sampling.max_new_tokens - len(context.tokens),
    )

  def _thoughts(
    self, prompts: Sequence[Prompt], id_P, made: Sequence[Completion]
  ) -> list[_Thought]:
    G = self._config.num_samples
    correct = self._correct([prompts[b // G] for b in range(len(made))], made)
    return [
      _Thought(
        prompts[b // G],
        b % G,
        Prefix(int(id_P[b // G]), completion.request.prompt),
        tuple(completion.tokens),
        self._splitter.step_ends(completion.tokens),
        correct[b],
      )
      for b, completion in enumerate(made)
    ]

  def _right(
    self, begun: Sequence[tuple[Prompt, Prefix]], drawn: Sequence[Completion]
  ) -> list[int]:
    """Of each context how many of its continuations are right."""
    n = self._config.num_continuations
    correct = self._correct(
      [begun[b // n][0] for b in range(len(drawn))],
      drawn,
      [begun[b // n][1].tokens for b in range(len(drawn))],
    )
    return [sum(correct[i * n : (i + 1) * n]) for i in range(len(begun))]

  def _correct(
    self,
    prompts: Sequence[Prompt],
    made: Sequence[Completion],
    before: Sequence[tuple[int, ...]] | None = None,
  ) -> list[bool]:
    """Does each completion, with what it goes on from, end in the answer?"""
    before = before or [()] * len(made)
    texts = self._parts.tokenizer.decode_batch(
      [
        [*said, *self._splitter.without_stop_token(completion.tokens)]
        for said, completion in zip(before, made)
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
      for completion, verdict in zip(made, verdicts)
    ]

  def _row(self, thought: _Thought, right: dict[tuple, int]) -> dict:
    """What is last has no continuation: it is right or it is not."""
    n = self._config.num_continuations
    prompt, tokens = (
      thought.prompt,
      self._splitter.without_stop_token(thought.tokens),
    )
    return {
      'id': f'{prompt.id}-{thought.sample}',
      'question': prompt.question,
      'answer': prompt.answer,
      'source': prompt.source,
      'prompt': prompt.text,
      'completion': self._parts.tokenizer.decode(tokens),
      'tokens': list(tokens),
      'ends': thought.ends,
      'right': [
        right[prompt.id, thought.tokens[:end]] for end in thought.ends[:-1]
      ]
      + [n * thought.correct],
      'continuations': n,
      'correct': thought.correct,
      'provenance': {'prompt': prompt.id, 'sample': thought.sample},
    }
