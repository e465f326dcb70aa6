"""Reward models that a run is scored by, from the files that name them."""

from collections.abc import Collection
from pathlib import Path

import jax
import ml_collections

from r1jax.algos.prm import check_aggregate
from r1jax.checkpoints import convert, weights
from r1jax.data.text import steps
from r1jax.errors import UserError
from r1jax.model.config import ModelConfig
from r1jax.model.transformer import Transformer
from r1jax.rewards import prm
from r1jax.rewards.reward_model import RewardModel, ScoringConfig
from r1jax.stages.build import sft_data
from r1jax.stages.build.parts import Parts

_STAGE = {prm.KIND: 'prm'}  # That leaves a judge, if not reward_model.


def reward_model(
  key: str,
  file: str,
  config: ml_collections.ConfigDict,
  made: Parts,
  kind: str = '',
) -> RewardModel:
  """Loads what the stage `reward_model` has left.

  Args:
    key: Of the config, for errors.
    file: The weights.
    config: Of the run.
    made: Its parts.
    kind: What it must judge; '' for anything.

  Raises:
    UserError: there is no file, it is no reward model, judges something else,
      or has other tokens.
  """
  path, scoring = _scoring(key, file, 'reward_model', kind)
  if scoring['kind'] == prm.KIND:
    raise UserError(
      f'{key}: {path} judges the steps of thoughts; give what '
      'the stage reward_model leaves'
    )
  return RewardModel(
    *_loaded(key, path, config, made),
    made.tokenizer,
    made.parser,
    ScoringConfig(**scoring),
  )


def process_reward_model(
  key: str, file: str, config: ml_collections.ConfigDict, made: Parts
) -> prm.ProcessRewardModel:
  """Loads what the stage `prm` has left.

  Raises:
    UserError: as `reward_model`; or it reads fewer tokens than a run may write.
  """
  path, scoring = _scoring(key, file, _STAGE[prm.KIND], prm.KIND)
  how = prm.ProcessScoringConfig(**scoring)
  most = config.data.max_prompt_tokens + config.rl.max_new_tokens
  if how.max_tokens < most:
    raise UserError(
      f'{key}: {path} reads {how.max_tokens} tokens, fewer than the {most} '
      'of data.max_prompt_tokens and rl.max_new_tokens'
    )
  return prm.ProcessRewardModel(
    *_loaded(key, path, config, made),
    made.tokenizer,
    steps.make_splitter(how.delimiter, made.parser, made.tokenizer),
    how,
  )


def _scoring(key: str, file: str, stage: str, kind: str) -> tuple[Path, dict]:
  """What a file says that it judges."""
  path = Path(file).expanduser()
  _check_processes(key)
  if not path.exists():
    raise UserError(
      f'{key}: no file {path}; give what the stage {stage} leaves'
    )
  scoring = weights.metadata(path).get('scoring')
  if scoring is None:
    raise UserError(f'{key}: {path} is no reward model')
  if kind and scoring['kind'] != kind:
    raise UserError(
      f'{key}: {path} judges what is {scoring["kind"]!r}, not what is {kind!r}'
    )
  return path, scoring


def _check_processes(key: str):
  if jax.process_count() > 1:
    raise UserError(
      f'{key}: reward models run in runs of one process alone: '
      'several divide the scoring, each at its own pace'
    )


def _loaded(
  key: str, path: Path, config: ml_collections.ConfigDict, made: Parts
):
  """The model in a file, and its parameters."""
  sft_data.same_tokens(key, path, config, made.tokenizer)
  fields = convert.model_config_of(path)
  if not fields['scalar_head']:
    raise UserError(
      f'{key}: {path} has no scalar head: model.scalar_head is False'
    )
  model = Transformer(ModelConfig.from_dict(fields), made.model.layout)
  return model, weights.load(path, model)


def of_rewards(config: ml_collections.ConfigDict, made: Parts):
  """The judges that config.rl.reward_models names, by the part they give."""
  c = config.rl
  check_aggregate('rl.prm_aggregation', c.prm_aggregation)
  found = {}
  for kind, file in c.reward_models.items():
    key = f'rl.reward_models.{kind}'
    if file and kind == prm.KIND:
      found[kind] = process_reward_model(key, file, config, made).scorer(
        c.prm_aggregation
      )
    elif file:
      found[kind] = reward_model(key, file, config, made, kind).score
  return found


def expected(config: ml_collections.ConfigDict, missing: Collection[str]):
  """In the place of `of_rewards`, while files are still to come: their parts,
  and no way to score them.

  Args:
    config: Of the run.
    missing: Keys whose files are to come.

  Raises:
    UserError: what the config says of them means nothing, or a file that is
      not to come is not there, or judges something else.
  """
  c = config.rl
  check_aggregate('rl.prm_aggregation', c.prm_aggregation)
  found = {kind: file for kind, file in c.reward_models.items() if file}
  for kind, file in found.items():
    key = f'rl.reward_models.{kind}'
    _check_processes(key)
    if key not in missing:
      _scoring(key, file, _STAGE.get(kind, 'reward_model'), kind)
  return dict.fromkeys(found)


def rejection_sampling_scorer(config: ml_collections.ConfigDict, made: Parts):
  """score(prompts, texts) of config.rejection_sampling.reward_model, or None."""
  file = config.rejection_sampling.reward_model
  return (
    reward_model('rejection_sampling.reward_model', file, config, made).score
    if file
    else None
  )
