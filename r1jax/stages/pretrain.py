"""Pre-training on noisy synthetic documents, made as they are read."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from r1jax import files, registry
from r1jax.checkpoints import tensor_digests
from r1jax.checkpoints.storage import SafetensorsReader
from r1jax.config.schema.run import RunConfig
from r1jax.config.schema.training import PretrainConfig
from r1jax.data import batching, mixture
from r1jax.errors import UserError
from r1jax.stages.build import parts as build
from r1jax.stages.next_token import NextTokenStage, check_length


@registry.stage('pretrain')
class Pretrain(NextTokenStage):
  """Makes a base model; the next run of the same config finds it."""

  section = PretrainConfig
  starts_fresh = True
  label = 'pre-training'
  weights_dtype = 'bfloat16'  # The dtype that the next stage reads.

  def __init__(self, config: RunConfig, parts: build.Parts):
    check_length(config, self.name)
    corpus = _corpus(config, parts)
    corpus.check()
    super().__init__(config, parts, corpus)

  @classmethod
  def cache_file(cls, config: RunConfig) -> Path:
    return base_file(config)

  @classmethod
  def check_cached(cls, path: Path):
    try:
      tensor_digests.check(SafetensorsReader(path).files)
    except UserError as error:
      raise UserError(
        f'pretrain: the base that was kept of this config is broken; remove '
        f'{path} to make it again'
      ) from error


def base_file(config: RunConfig) -> Path:
  """Returns where a base made by this config is kept for the next run."""
  made_by: dict[str, Any] = {
    name: dataclasses.asdict(getattr(config, name))
    for name in ('model', 'tokenizer', 'corpus', 'pretrain')
  }
  data = config.data
  # Keys that are off leave the hash as it was before there were any.
  made_by['tokenizer'] = {k: v for k, v in made_by['tokenizer'].items() if v}
  if data.template_args:
    made_by['template_args'] = dict(data.template_args)
  made_by |= {
    'seed': config.seed,
    'task': data.task,
    'template': [data.template, data.system, data.response_prefix],
    'plugins': [
      files.digest(registry.plugin_file(name)) for name in config.plugins
    ],
  }
  if contents := build.text_files(
    config
  ):  # Bases of built-in texts stay found.
    made_by['files'] = contents
  digest = files.digest_of(json.dumps(made_by, sort_keys=True))[:16]
  return files.user_cache() / 'bases' / f'{digest}.safetensors'


def _corpus(
  config: RunConfig, parts: build.Parts
) -> batching.SyntheticCorpusBatches:
  c, depth = config.pretrain, config.model.prediction_depth
  if c.length_tokens < depth + 2:
    by_modules = not config.model.mtp_depth
    key = 'num_nextn_predict_layers' if by_modules else 'mtp_depth'
    raise UserError(
      f'pretrain: rows of length_tokens = {c.length_tokens} hold no target for '
      f'model.{key} = {depth}; they need {depth + 2}'
    )
  return batching.SyntheticCorpusBatches(
    _task_shares(config),
    config.corpus,
    parts.template,
    parts.tokenizer,
    c.batch_size,
    c.length_tokens,
    config.seed,
    c.max_steps,
  )


def _task_shares(config: RunConfig) -> dict[str, float]:
  """Returns the tasks of the documents, and their shares."""
  if not config.corpus.tasks:
    return {config.data.task: 1.0}
  weights = mixture.parse(config.corpus.tasks)
  for name in weights:
    registry.task.get(name)
  return dict(
    zip(
      weights,
      mixture.proportions([1] * len(weights), list(weights.values()), 1.0),
    )
  )
