"""Rejection sampling from a checkpoint (DeepSeek-R1 section 2.3.3).

  prompts → n completions each → filters, in this order → at most m a prompt

Writes accepted.jsonl, rows that `sft.data` reads, each with where it came from;
and report.json, which counts what every filter dropped. With `pairs` a row is
a preference pair that `dpo.data` reads: an accepted completion before one of
the same prompt that is wrong or malformed; its group is the prompt's grader.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from r1jax import buckets, registry
from r1jax.config.schema.run import RunConfig
from r1jax.config.schema.sampled_data import RejectionSamplingConfig
from r1jax.data import batching, mixture, splits
from r1jax.data import demonstrations as demos
from r1jax.data.datasets import GENERAL
from r1jax.data.text import openings, responses
from r1jax.errors import UserError
from r1jax.graders import dispatch
from r1jax.graders.verdict import Verdict
from r1jax.records import Demonstration, Prompt, TopLogprobs
from r1jax.rewards import language, repetition
from r1jax.rollout import assemble, continuation
from r1jax.rollout.sampling import SamplingParams
from r1jax.rollout.scheduler import Completion
from r1jax.rollout.session import Session
from r1jax.stages.build import parts as build
from r1jax.stages.build import prompts, reward_models, sampler, sft_data
from r1jax.stages.dataset_stage import (
  DatasetStage,
  PromptRows,
  checkpoint_name,
  num_prompts,
)
from r1jax.stages.stage import Kind

# A completion that one of these drops may be the rejected one of a pair.
_REJECTED = ('require_correct', 'require_format')


@registry.stage('rejection_sampling')
class RejectionSampler(DatasetStage):
  """Samples, keeps what is good, and adds rows of other sources."""

  section = RejectionSamplingConfig
  takes = {
    'data.': (Kind.SFT_DATA,),
    'rejection_sampling.extra_data': (Kind.SFT_DATA,),
    'rejection_sampling.reward_model': (Kind.REWARD_MODEL,),
  }
  output = 'accepted.jsonl'

  def __init__(self, config: RunConfig, parts: build.Parts):
    c = self._config = config.rejection_sampling
    self.seed, self.prompts_per_chunk = config.seed, c.prompts_per_chunk
    self._run, self._parts = config, parts
    self.prompts = prompts.prompts(
      config, parts.template, parts.tokenizer, splits.TRAIN
    )
    self.num_prompts = num_prompts(self.name, c.num_prompts, self.prompts)
    self.engine = sampler.engine(config, parts)
    self._sampling = _sampling(config, parts)
    self._score = reward_models.of_rejection_sampling(config, parts)
    self._extra_rows = _extra_rows(config, parts)

  @classmethod
  def leaves(cls, config: RunConfig) -> Kind:
    if config.rejection_sampling.pairs:
      return Kind.PREFERENCE_DATA
    return Kind.SFT_DATA

  @classmethod
  def other_kind_hint(cls, wanted) -> str:
    if Kind.PREFERENCE_DATA in wanted:
      return 'rejection_sampling.pairs = True'
    if Kind.SFT_DATA in wanted:
      return 'rejection_sampling.pairs = False'
    return ''

  @classmethod
  def reads(cls, config: RunConfig) -> dict[str, list[Path]]:
    c = config.rejection_sampling
    found = prompts.prompt_files(config, evaluates=False)
    found['rejection_sampling.extra_data'] = sft_data.files(c.extra_data)
    if c.reward_model:
      found['rejection_sampling.reward_model'] = [buckets.given(c.reward_model)]
    return found

  @classmethod
  def check(cls, config, parts, missing):
    c = config.rejection_sampling
    _sampling(config, parts)
    sampler.engine(config, parts)
    if not any(key.startswith('data.') for key in missing):
      num_prompts(
        cls.name,
        c.num_prompts,
        prompts.prompts(config, parts.template, parts.tokenizer, splits.TRAIN),
      )
    build.check_files('rejection_sampling.extra_data', c.extra_data, missing)
    if 'rejection_sampling.reward_model' not in missing:
      reward_models.of_rejection_sampling(config, parts)

  def provenance(self) -> dict:
    c = self._config
    return {
      'checkpoint': checkpoint_name(self._run),
      'seed': self.seed,
      'temperature': c.temperature,
    }

  def sample(
    self, session: Session, prompts: Sequence[Prompt], indices: Sequence[int]
  ) -> dict[int, list[Completion]]:
    """Returns the completions of each prompt; see DatasetStage."""
    n, key = self._config.num_samples, jax.random.key(self.seed)
    batch = batching.pad_prompts(
      prompts, self._parts.tokenizer, self._run.data.max_prompt_tokens
    )
    requests = assemble.build_requests(batch, n, self._sampling, key)
    completions = continuation.generate(
      session, [requests[p * n + i] for p in indices for i in range(n)]
    )
    return {p: completions[i * n : (i + 1) * n] for i, p in enumerate(indices)}

  def make_rows(
    self,
    prompts: Sequence[Prompt],
    sampled: dict[int, list[Completion]],
    indices: Sequence[int],
  ) -> list[PromptRows]:
    """Returns rows that pass every filter but the last, and what they drop."""
    return [self._filter(prompts[p], sampled[p]) for p in indices]

  def join_rows(
    self, found: Sequence[PromptRows], rows: Sequence[dict]
  ) -> tuple[list[dict], dict[str, int]]:
    """Returns accepted rows of some prompts, and what each filter dropped.

    Whether a response was kept before is known here, where all rows are.
    """
    c = self._config
    response = 'chosen' if c.pairs else 'response'
    seen = {(row['question'], row[response]) for row in rows}
    dropped: Counter[str] = Counter()
    accepted = []
    for each in found:
      dropped.update(each.counts)
      good = []
      for row in each.rows:
        text = row['question'], row['response']
        if c.deduplicate and text in seen:
          dropped['deduplicate'] += 1
          continue
        seen.add(text)
        good.append(row)
      if c.sort_by_score:
        good.sort(
          key=lambda row: -row['provenance']['scores'].get('model', 0.0)
        )
      if c.pairs:
        dropped['unpaired'] += max(0, len(good) - len(each.rejected))
        good = list(map(_pair, good, each.rejected))
      dropped['max_per_prompt'] += len(good[c.max_per_prompt :])
      accepted += good[: c.max_per_prompt]
    return accepted, {name: n for name, n in dropped.items() if n}

  def finish(
    self, rows: list[dict], counts: Counter
  ) -> tuple[list[dict], dict, str]:
    c = self._config
    rows = _subset(rows, c.max_reasoning_rows, self.seed)
    num_samples = self.num_prompts * c.num_samples
    report = {
      'num_prompts': self.num_prompts,
      'num_completions': num_samples,
      'dropped': counts,
      'accepted': len(rows),
      'extra_rows': len(self._extra_rows),
    }
    if not rows:
      line = (
        f'rejection_sampling: the filters accept none of {num_samples} '
        f'completions: {_in_words(counts)}; loosen one of them (for truncated, '
        'rl.max_new_tokens)'
      )
      return [], report, line
    line = (
      f'rejection_sampling: accepted {len(rows)} of {num_samples} completions; '
      + _in_words(counts)
    )
    return [*rows, *self._extra_rows], report, line

  def progress_numbers(self, rows, counts) -> dict[str, str]:
    return {'accepted': f'{len(rows)}'}

  def _filter(
    self, prompt: Prompt, completions: Sequence[Completion]
  ) -> PromptRows:
    """Returns rows of a prompt, and its rejected responses without repeats."""
    texts = assemble.completion_texts(
      completions, self._parts.tokenizer.decode_batch
    )
    scores = self._scores(prompt, texts)
    rejected: dict[str, None] = {}
    dropped: Counter[str] = Counter()
    rows = []  # In the order that they were sampled in.
    for sample, (completion, text) in enumerate(zip(completions, texts)):
      score = {name: values[sample] for name, values in scores.items()}
      response = self._response(text)
      readable = self._readable(prompt, completion, text)
      reason = self._reason(score, completion, text, readable)
      if not reason:
        rows.append(self._row(prompt, completion, response, sample, score))
        continue
      dropped[reason] += 1
      if reason in _REJECTED:
        rejected[response] = None
    return PromptRows(rows, dropped, list(rejected))

  def _row(
    self,
    prompt: Prompt,
    completion: Completion,
    response: str,
    sample: int,
    score: dict[str, float],
  ) -> dict:
    row = {
      'id': f'{prompt.id}-{sample}',
      'question': prompt.question,
      'response': response,
      'answer': prompt.answer,
      'source': prompt.source,
      'language': prompt.language,
      'general': prompt.source == GENERAL,
      'provenance': {'prompt': prompt.id, 'sample': sample, 'scores': score},
    }
    if prompt.messages:
      row['messages'] = [turn.to_dict() for turn in prompt.messages]
    if prompt.fields.get('tools'):
      row['tools'] = prompt.fields['tools']
    if self._config.top_logprobs:
      row['teacher'] = demos.encode_teacher(_top_logp(completion))
    return row

  def _scores(
    self, prompt: Prompt, texts: Sequence[str]
  ) -> dict[str, list[float]]:
    """Returns the scores that the filters read, each a number a completion."""
    parsed = [self._parts.parser.parse(text) for text in texts]
    found = {
      'format': [float(response.well_formed) for response in parsed],
      'language': [
        language.consistency(response.reasoning or text, prompt.language)
        for response, text in zip(parsed, texts)
      ],
      'repetition': [-repetition.repetition(text, 4) for text in texts],
    }
    if prompt.source != GENERAL:
      verdicts = dispatch.verdicts(
        [
          (
            dispatch.graded_text(response, prompt.source),
            prompt.answer,
            prompt.source,
          )
          for response in parsed
        ]
      )
      found['correct'] = [float(v is Verdict.CORRECT) for v in verdicts]
    if self._score:
      found['model'] = [
        float(s) for s in self._score([prompt] * len(texts), texts)
      ]
    return found

  def _reason(
    self,
    score: dict[str, float],
    completion: Completion,
    text: str,
    readable: bool,
  ) -> str:
    """Returns the first filter that drops a completion, or ''.

    Rows that were kept before are dropped later; see join_rows.
    """
    c = self._config
    filters = (
      ('truncated', completion.finish_reason != 'stop'),
      ('unreadable', not readable),
      ('require_correct', c.require_correct and not score.get('correct', 1.0)),
      ('require_format', c.require_format and not score['format']),
      ('min_language', score['language'] < c.min_language),
      ('max_repetition', score['repetition'] > c.max_repetition),
      ('max_tokens', 0 < c.max_tokens < len(completion.tokens)),
      (
        'forbidden_substrings',
        any(part in text for part in c.forbidden_substrings),
      ),
      ('min_score', score.get('model', c.min_score) < c.min_score),
    )
    return next((name for name, drops in filters if drops), '')

  def _readable(
    self, prompt: Prompt, completion: Completion, text: str
  ) -> bool:
    """Whether the text encodes again; with a teacher, to the same tokens."""
    if '\ufffd' in text:
      return False
    template = self._parts.template
    learnt = responses.as_written(
      template,
      prompt.text,
      responses.as_content(template, text),
      prompt.question,
      prompt.messages,
      prompt.fields.get('tools') or (),
    )
    try:
      ids = self._parts.tokenizer.encode_response(prompt.text, learnt)
    except UserError:
      return False
    return not self._config.top_logprobs or ids == completion.tokens[:-1]

  def _response(self, text: str) -> str:
    """Returns a completion with what the prompt has begun of it."""
    template = self._parts.template
    opening = openings.of_template(template).text
    text = responses.as_content(template, text)
    return (opening or template.response_prefix) + text


def _in_words(dropped: Counter) -> str:
  return ', '.join(f'{name} dropped {n}' for name, n in dropped.most_common())


def _sampling(config: RunConfig, parts: build.Parts) -> SamplingParams:
  c = config.rejection_sampling
  params = SamplingParams(
    max_new_tokens=config.rl.max_new_tokens,
    temperature=c.temperature,
    top_p=c.top_p,
    stop_token_ids=parts.tokenizer.stop_ids,
    top_logprobs=c.top_logprobs,
  )
  params.validate(config.model.vocab_size)
  return params


def _pair(row: dict, rejected: str) -> dict:
  """Returns a preference pair that data/preferences.py reads."""
  kept = (
    'id',
    'question',
    'messages',
    'tools',
    'answer',
    'language',
    'provenance',
  )
  return {key: row[key] for key in kept if key in row} | {
    'chosen': row['response'],
    'rejected': rejected,
    'group': row['source'],
  }


def _top_logp(completion: Completion) -> TopLogprobs:
  """Returns the sampler's most likely tokens, at temperature 1."""
  ids, logp = np.array(completion.top_logprobs).transpose(2, 0, 1)
  return TopLogprobs(ids.astype(np.int32), logp.astype(np.float32), 1.0)


def _subset(rows: list, size: int, seed: int) -> list:
  """Returns so many of the rows, drawn at random, in their order; 0 for all."""
  if not size or len(rows) <= size:
    return rows
  chosen = np.random.default_rng(seed).choice(len(rows), size, replace=False)
  return [rows[i] for i in sorted(chosen)]


def _extra_rows(config: RunConfig, parts: build.Parts) -> list[dict]:
  """Returns rows of files and tasks that are mixed in as they are."""
  rows = []
  opening = openings.of_template(parts.template).text
  for name, count in mixture.parse(
    config.rejection_sampling.extra_data
  ).items():
    if name in registry.task:
      found = demos.synthetic(
        name, config.corpus, parts.template, config.seed, int(count or 0)
      )
    else:
      found = demos.read(name, parts.template)
      found = _subset(found, int(count or 0), config.seed)
    if not found:
      raise UserError(
        f'rejection_sampling: extra_data: say how many of {name}, as in '
        f"'{name}:200'"
      )
    rows += [_row_of(demonstration, opening) for demonstration in found]
  return rows


def _row_of(d: Demonstration, opening: str) -> dict:
  """Returns the row of a demonstration, with what its prompt held of it."""
  row = {
    'id': d.id,
    'question': d.question,
    'response': opening + d.response,
    'general': d.general,
    'provenance': {'file': d.where},
  }
  if d.messages:
    row['messages'] = [turn.to_dict() for turn in d.messages]
  if d.tools:
    row['tools'] = list(d.tools)
  return row
