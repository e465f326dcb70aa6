"""Curation: rejection sampling from a checkpoint (DeepSeek-R1 section 2.3.3).

  prompts → n completions each → filters, in this order → at most m a prompt

Writes accepted.jsonl, rows that `sft.data` reads, each with where it came from;
and report.json, what every filter dropped. With `pairs` a row is a pair that
`dpo.data` reads: a completion that is kept, before one of the same prompt that
is wrong or malformed; its group is what grades it.
"""

from collections import Counter
from collections.abc import Sequence
import json
from pathlib import Path

import jax
import ml_collections
import numpy as np

from r1jax.data import batching, mixture, tasks
from r1jax.data import demonstrations as demos
from r1jax.data.datasets import GENERAL
from r1jax.errors import UserError
from r1jax.graders import dispatch
from r1jax.graders.verdict import Verdict
from r1jax.records import Demonstration, Prompt, TopLogprobs
from r1jax.rewards import language, length
from r1jax.rollout import assemble
from r1jax.rollout.sampling import SamplingParams
from r1jax.rollout.scheduler import Completion
from r1jax.stages import dataset_writer
from r1jax.stages.build import parts as build
from r1jax.stages.build import reward_models
from r1jax.stages.stage import Stage
from r1jax.train.metrics import Progress


class RejectionSampler(Stage):
  """Samples, keeps what is good, and adds general rows."""

  name = 'rejection_sampling'
  output = 'accepted.jsonl'
  leaves_policy = False

  def __init__(self, config: ml_collections.ConfigDict, parts: build.Parts):
    c = self._config = config.rejection_sampling
    self._seed, self._parts = config.seed, parts
    self._whole = config
    self._width = config.data.max_prompt_tokens
    _check(c)
    self._prompts = build.prompts(config, parts, tasks.TRAIN)
    self._count = dataset_writer.count(self.name, c.num_prompts, self._prompts)
    self._engine = build.engine(config, parts)
    self._sampling = _sampling(config, parts)
    self._reward_model = reward_models.rejection_sampling_scorer(config, parts)
    self._extra_rows = _extra_rows(config, parts)

  @classmethod
  def check(cls, config, parts, missing):
    c = config.rejection_sampling
    _check(c)
    _sampling(config, parts)
    build.engine(config, parts)
    if not any(key.startswith('data.') for key in missing):
      dataset_writer.count(
        cls.name, c.num_prompts, build.prompts(config, parts, tasks.TRAIN)
      )
    build.check_files('rejection_sampling.extra_data', c.extra_data, missing)
    if 'rejection_sampling.reward_model' not in missing:
      reward_models.rejection_sampling_scorer(config, parts)

  def run(self, directory: Path, base_params, about: dict) -> Path:
    """Samples chunk by chunk; a kill loses no chunk that was finished."""
    c = self._config
    directory.mkdir(parents=True, exist_ok=True)
    partial = directory / dataset_writer.PARTIAL
    done, rows, dropped = dataset_writer.resumed(partial)
    seen = {
      (row['question'], row['chosen' if c.pairs else 'response'])
      for row in rows
    }
    self._checkpoint = dataset_writer.checkpoint(self._whole)
    key = jax.random.key(self._seed)
    with (
      dispatch.shutdown_on_exit(),
      open(partial, 'a') as file,
      Progress(self.name, done, self._count, print_steps=1) as progress,
    ):
      if done:
        progress.log(f'goes on after prompt {done}')
      for start in range(done, self._count, c.prompts_per_chunk):
        end = min(start + c.prompts_per_chunk, self._count)
        kept, lost = self._chunk(
          base_params, [self._prompts[i] for i in range(start, end)], key, seen
        )
        rows += kept
        dropped.update(lost)
        dataset_writer.append(file, kept, end, lost)
        progress.update(
          end, {'accepted': f'{len(rows)}'}, keep=end == self._count
        )
    rows = _limited(rows, c.max_reasoning_rows, self._seed)
    report = {
      'num_prompts': self._count,
      'num_completions': self._count * c.num_samples,
      'dropped': dropped,
      'accepted': len(rows),
      'extra_rows': len(self._extra_rows),
    }
    (directory / 'report.json').write_text(json.dumps(report, indent=1) + '\n')
    if not rows:
      raise UserError(
        'rejection_sampling: the filters accept none of '
        f'{report["num_completions"]} completions: '
        f'{_counts(dropped)}; loosen one of them (of truncated, '
        'rl.max_new_tokens)'
      )
    path = directory / self.output
    dataset_writer.finish(path, [*rows, *self._extra_rows])
    print(
      f'rejection_sampling: accepted {len(rows)} of '
      f'{report["num_completions"]} completions; ' + _counts(dropped)
    )
    return path

  def _chunk(
    self,
    params,
    prompts: Sequence[Prompt],
    key: jax.Array,
    seen: set[tuple[str, str]],
  ):
    """Rows that are kept of some prompts, and what each filter dropped."""
    c = self._config
    batch = batching.pad_prompts(prompts, self._parts.tokenizer, self._width)
    made = self._engine.run(
      params, assemble.build_requests(batch, c.num_samples, self._sampling, key)
    )
    texts = assemble.completion_texts(made, self._parts.tokenizer.decode_batch)
    dropped: Counter = Counter()
    kept = []
    for p, prompt in enumerate(prompts):
      some = slice(p * c.num_samples, (p + 1) * c.num_samples)
      found, wrong = self._sorted(
        prompt, made[some], texts[some], dropped, seen
      )
      if c.sort_by_score:
        found.sort(
          key=lambda row: -row['provenance']['scores'].get('model', 0.0)
        )
      if c.pairs:
        dropped['unpaired'] += max(0, len(found) - len(wrong))
        found = list(map(_pair, found, wrong))
      dropped['max_per_prompt'] += len(found[c.max_per_prompt :])
      kept += found[: c.max_per_prompt]
    return kept, {name: n for name, n in dropped.items() if n}

  def _sorted(
    self,
    prompt: Prompt,
    made: Sequence[Completion],
    texts: Sequence[str],
    dropped: Counter,
    seen: set[tuple[str, str]],
  ) -> tuple[list[dict], list[str]]:
    """Rows of one prompt that pass every filter, and what is wrong."""
    scores = self._scores(prompt, made, texts)
    rows, wrong = [], {}  # In the order that they were sampled in.
    for sample, (completion, text) in enumerate(zip(made, texts)):
      score = {name: found[sample] for name, found in scores.items()}
      again = (prompt.question, self._opened(text)) in seen
      reason = self._reason(score, completion, text, again)
      if reason:
        dropped[reason] += 1
        if reason in _INCORRECT:
          wrong[self._opened(text)] = None
        continue
      seen.add((prompt.question, self._opened(text)))
      rows.append(self._row(prompt, completion, text, sample, score))
    return rows, list(wrong)

  def _row(
    self,
    prompt: Prompt,
    completion: Completion,
    text: str,
    sample: int,
    score: dict[str, float],
  ) -> dict:
    c = self._config
    row = {
      'id': f'{prompt.id}-{sample}',
      'question': prompt.question,
      'response': self._opened(text),
      'answer': prompt.answer,
      'source': prompt.source,
      'language': prompt.language,
      'general': prompt.source == GENERAL,
      'provenance': {
        'checkpoint': self._checkpoint,
        'prompt': prompt.id,
        'sample': sample,
        'seed': self._seed,
        'temperature': c.temperature,
        'scores': score,
      },
    }
    if prompt.messages:
      row['messages'] = [turn._asdict() for turn in prompt.messages]
    if c.top_logprobs:
      row['teacher'] = demos.encode_teacher(_top(completion))
    return row

  def _scores(self, prompt: Prompt, made, texts) -> dict[str, list[float]]:
    parsed = [self._parts.parser.parse(text) for text in texts]
    found = {
      'format': [float(read.well_formed) for read in parsed],
      'language': [
        language.consistency(read.reasoning or text, prompt.language)
        for read, text in zip(parsed, texts)
      ],
      'repetition': [-length.repetition(text.split(), 4) for text in texts],
    }
    if prompt.source != GENERAL:
      verdicts = dispatch.verdicts(
        [(read.answer, prompt.answer, prompt.source) for read in parsed]
      )
      found['correct'] = [float(v is Verdict.CORRECT) for v in verdicts]
    if self._reward_model:
      found['model'] = [
        float(s) for s in self._reward_model([prompt] * len(texts), texts)
      ]
    return found

  def _reason(
    self,
    score: dict[str, float],
    completion: Completion,
    text: str,
    again: bool,
  ) -> str:
    """The first filter that drops a completion, or ''."""
    c = self._config
    if completion.finish_reason != 'stop':
      return 'truncated'
    if not self._readable(completion, text):
      return 'unreadable'
    if c.require_correct and not score.get('correct', 1.0):
      return 'require_correct'
    if c.require_format and not score['format']:
      return 'require_format'
    if score['language'] < c.min_language:
      return 'min_language'
    if score['repetition'] > c.max_repetition:
      return 'max_repetition'
    if c.max_tokens and len(completion.tokens) > c.max_tokens:
      return 'max_tokens'
    if any(part in text for part in c.forbidden_substrings):
      return 'forbidden_substrings'
    if 'model' in score and score['model'] < c.min_score:
      return 'min_score'
    if c.deduplicate and again:
      return 'deduplicate'
    return ''

  def _readable(self, completion: Completion, text: str) -> bool:
    """Does the text become tokens again, with a teacher's the same ones?"""
    if '\ufffd' in text:
      return False
    try:
      ids = self._parts.tokenizer.encode(text)
    except UserError:
      return False
    return not self._config.top_logprobs or ids == completion.tokens[:-1]

  def _opened(self, text: str) -> str:
    """The response with what the template had said of it already."""
    template = self._parts.template
    said = template.response_prefix or (
      '<think>' if template.prompt_opens_think else ''
    )
    return said + text


# Filters whose dropped completions may be the rejected one of a pair.
_INCORRECT = 'require_correct', 'require_format'


def _counts(dropped: Counter) -> str:
  """Of every filter, in words."""
  return ', '.join(f'{name} dropped {n}' for name, n in dropped.most_common())


def _check(c: ml_collections.ConfigDict):
  """What the numbers of the section mean, whatever is sampled."""
  for field in ('min_language', 'max_repetition'):
    if not 0 <= c[field] <= 1:
      raise UserError(
        f'rejection_sampling: {field} must lie within [0, 1], got {c[field]}'
      )
  for field in (
    'num_prompts',
    'max_tokens',
    'max_reasoning_rows',
    'top_logprobs',
  ):
    if c[field] < 0:
      raise UserError(
        f'rejection_sampling: {field} must not be below 0, got {c[field]}'
      )
  if c.pairs:
    _check_pairs(c)


def _sampling(config: ml_collections.ConfigDict, parts: build.Parts):
  c = config.rejection_sampling
  how = SamplingParams(
    max_new_tokens=config.rl.max_new_tokens,
    temperature=c.temperature,
    top_p=c.top_p,
    stop_token_ids=parts.tokenizer.stop_ids,
    top_logprobs=c.top_logprobs,
  )
  how.validate(config.model.vocab_size)
  return how


def _check_pairs(c: ml_collections.ConfigDict):
  if not (c.require_correct or c.require_format):
    raise UserError(
      'rejection_sampling: pairs needs the filter require_correct or require_format: '
      'a completion that they drop becomes the rejected response'
    )
  for field in ('extra_data', 'top_logprobs'):
    if c[field]:
      raise UserError(
        f'rejection_sampling: pairs are no demonstrations; leave {field} out'
      )


def _pair(row: dict, wrong: str) -> dict:
  """What data/preferences.py reads."""
  pair = {
    key: row[key]
    for key in (
      'id',
      'question',
      'messages',
      'answer',
      'language',
      'provenance',
    )
    if key in row
  }
  return pair | {
    'chosen': row['response'],
    'rejected': wrong,
    'group': row['source'],
  }


def _top(completion: Completion) -> TopLogprobs:
  """The sampler's n best at each token, at temperature 1."""
  ids, logp = np.array(completion.top_logprobs).transpose(2, 0, 1)
  return TopLogprobs(ids.astype(np.int32), logp.astype(np.float32), 1.0)


def _limited(rows: list[dict], most: int, seed: int) -> list[dict]:
  """So many of them, chosen by chance, in their order."""
  if not most or len(rows) <= most:
    return rows
  chosen = np.random.default_rng(seed).choice(len(rows), most, replace=False)
  return [rows[i] for i in sorted(chosen)]


def _extra_rows(
  config: ml_collections.ConfigDict, parts: build.Parts
) -> list[dict]:
  """Rows that are mixed in as they are: files, and documents of tasks."""
  rows, c = [], config.rejection_sampling
  for name, count in mixture.parse(c.extra_data).items():
    if name in tasks.TASKS:
      found = demos.synthetic(
        name,
        build.corpus_config(config),
        parts.template,
        config.seed,
        int(count or 0),
      )
    else:
      found = demos.read(name, parts.template)
      found = _limited(found, int(count or 0), config.seed)
    if not found:
      raise UserError(
        f"rejection_sampling: extra_data: say how many of {name}, as in '{name}:200'"
      )
    rows += [_row(d) for d in found]
  return rows


def _row(d: Demonstration) -> dict:
  row = {
    'id': d.id,
    'question': d.question,
    'response': d.response,
    'general': d.general,
    'provenance': {'file': d.where},
  }
  if d.messages:
    row['messages'] = [turn._asdict() for turn in d.messages]
  return row
