"""Reward models that score a run's completions, from their files."""

from collections.abc import Collection
import dataclasses
from pathlib import Path

import jax

from r1jax import buckets, processes
from r1jax.checkpoints import convert, weights
from r1jax.config.load import model_config
from r1jax.config.schema.run import RunConfig
from r1jax.data import scored_text
from r1jax.data.text import steps
from r1jax.errors import UserError
from r1jax.model.transformer import Transformer
from r1jax.rewards import prm
from r1jax.rewards.reward_manager import RewardModelFn
from r1jax.rewards.reward_model import RewardModel, ScoringConfig
from r1jax.sharding import Layout, make_mesh
from r1jax.stages.build.parts import Parts
from r1jax.stages.build.tokenizers import check_same_tokens

_STAGES = {prm.KIND: 'prm'}  # The stage that leaves a kind (default below).


def load_reward_model(
  key: str, file: str, config: RunConfig, parts: Parts, kind: str = ''
) -> RewardModel:
  """Loads what the stage `reward_model` has left.

  Args:
    key: The key of the config that names it, for errors.
    file: Its weights.
    config: The run.
    parts: The run's tokenizer and parser.
    kind: The kind that it must be, 'helpful' or 'safe'; '' for either.

  Raises:
    UserError: there is no file, it is no reward model, scores something else,
      or has another tokenizer.
  """
  path, scoring = _scoring(key, file, 'reward_model', kind)
  if scoring['kind'] == prm.KIND:
    raise UserError(
      f'{key}: {path} scores the steps of thoughts; give what the stage '
      'reward_model leaves'
    )
  model, params = _load(key, path, config, parts)
  return RewardModel(
    model, params, parts.tokenizer, parts.parser, ScoringConfig(**scoring)
  )


def load_process_reward_model(
  key: str, file: str, config: RunConfig, parts: Parts
) -> prm.ProcessRewardModel:
  """Loads what the stage `prm` has left; see load_reward_model.

  Raises:
    UserError: as there; or it reads fewer tokens than a run may write.
  """
  path, scoring = _scoring(key, file, _STAGES[prm.KIND], prm.KIND)
  scoring_config = prm.ProcessScoringConfig(**scoring)
  longest = config.data.max_prompt_tokens + config.rl.max_new_tokens
  if scoring_config.max_tokens < longest:
    raise UserError(
      f'{key}: {path} reads {scoring_config.max_tokens} tokens, fewer than the '
      f'{longest} of data.max_prompt_tokens and rl.max_new_tokens'
    )
  model, params = _load(key, path, config, parts)
  return prm.ProcessRewardModel(
    model,
    params,
    parts.tokenizer,
    steps.make_splitter(
      scoring_config.delimiter, parts.parser, parts.tokenizer
    ),
    scoring_config,
  )


def _scoring(key: str, file: str, stage: str, kind: str) -> tuple[Path, dict]:
  """Returns a reward model's path, and how its metadata says it scores."""
  path = buckets.given(file)
  if not path.exists():
    raise UserError(
      f'{key}: no file {path}; give what the stage {stage} leaves'
    )
  scoring = weights.metadata(path).get('scoring')
  if scoring is None:
    raise UserError(f'{key}: {path} is no reward model')
  if kind and scoring['kind'] != kind:
    raise UserError(
      f'{key}: {path} scores what is {scoring["kind"]!r}, not what is {kind!r}'
    )
  return path, scoring


def _load(key: str, path: Path, config: RunConfig, parts: Parts):
  """Returns the model of a file, and its parameters."""
  check_same_tokens(key, path, config, parts.tokenizer)
  architecture = model_config(convert.model_config_of(path), str(path))
  if not architecture.scalar_head:
    raise UserError(
      f'{key}: {path} has no scalar head: model.scalar_head is False'
    )
  model = Transformer(architecture, _layout(parts.model.layout))
  return model, weights.load(path, model)


def _layout(layout: Layout) -> Layout:
  """Returns the layout of a reward model in a run with a layout.

  Several processes divide the scoring, each at its own pace, so each has the
  whole model on its own devices.
  """
  if not processes.several():
    return layout
  own = make_mesh({'fsdp': -1}, jax.local_devices())
  return dataclasses.replace(layout, mesh=own)


def named_files(config: RunConfig) -> dict[str, str]:
  """Returns the file of each learned part that config.rl names."""
  models = config.rl.reward_models
  named = {'helpful': models.helpful, 'safe': models.safe, 'prm': models.prm}
  return {name: file for name, file in named.items() if file}


def of_rewards(config: RunConfig, parts: Parts) -> dict[str, RewardModelFn]:
  """Loads the models that config.rl.reward_models names, by their part."""
  found = {}
  for kind, file in named_files(config).items():
    key = f'rl.reward_models.{kind}'
    if kind == prm.KIND:
      found[kind] = load_process_reward_model(key, file, config, parts).scorer(
        config.rl.prm_aggregation
      )
    else:
      found[kind] = load_reward_model(key, file, config, parts, kind).score
  return found


def expected(
  config: RunConfig, missing: Collection[str]
) -> dict[str, RewardModelFn | None]:
  """Returns the learned parts while files are still to come, without models.

  Args:
    config: The run.
    missing: Keys whose files other stages are still to write.

  Raises:
    UserError: a file that is not to come is not there, or scores something
      else.
  """
  found = named_files(config)
  for kind, file in found.items():
    key = f'rl.reward_models.{kind}'
    if key not in missing:
      _scoring(key, file, _STAGES.get(kind, 'reward_model'), kind)
  return dict.fromkeys(found)


def of_rejection_sampling(
  config: RunConfig, parts: Parts
) -> RewardModelFn | None:
  """Loads config.rejection_sampling.reward_model; None without one."""
  file = config.rejection_sampling.reward_model
  if not file:
    return None
  return load_reward_model(
    'rejection_sampling.reward_model', file, config, parts
  ).score


def check_input(
  config: RunConfig, key: str, parent: RunConfig, parent_name: str
):
  """Refuses another stage's reward model that does not fit a run.

  Raises:
    UserError: it reads too few tokens, or scores something else.
  """
  kind = key.removeprefix('rl.reward_models.')
  if kind in scored_text.KINDS and parent.reward_model.kind != kind:
    raise UserError(
      f'it needs what scores {kind!r}, but {parent_name} scores '
      f'{parent.reward_model.kind!r}'
    )
  if kind == prm.KIND:
    check_length(config, parent, parent_name)


def check_length(config: RunConfig, parent: RunConfig, parent_name: str):
  """Refuses a process reward model that reads fewer tokens than a run has."""
  longest = config.data.max_prompt_tokens + config.rl.max_new_tokens
  reads = parent.prm.max_tokens
  if longest > reads:
    raise UserError(
      f'{parent_name} reads {reads} tokens, fewer than the {longest} of this '
      f'stage; raise {parent_name}.prm.max_tokens'
    )
