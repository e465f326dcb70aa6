"""Reward models that a run is scored by, from the files that name them."""

from pathlib import Path

import jax
import ml_collections

from r1jax.errors import UserError
from r1jax.model.config import ModelConfig
from r1jax.model.transformer import Transformer
from r1jax.rewards.learned import Judge, Judging
from r1jax.stages import convert, lessons
from r1jax.stages.build import Parts
from r1jax.train import weights


def judge(key: str, file: str, config: ml_collections.ConfigDict,
          made: Parts, kind: str = '') -> Judge:
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
  path = Path(file).expanduser()
  if jax.process_count() > 1:
    raise UserError(f'{key}: reward models run in runs of one process alone: '
                    'several divide the scoring, each at its own pace')
  if not path.exists():
    raise UserError(f'{key}: no file {path}; give what the stage reward_model '
                    'leaves')
  judging = weights.about(path).get('judging')
  if judging is None:
    raise UserError(f'{key}: {path} is no reward model')
  if kind and judging['kind'] != kind:
    raise UserError(f'{key}: {path} judges what is {judging["kind"]!r}, not '
                    f'what is {kind!r}')
  lessons.same_tokens(path, config, made.tokenizer)
  model = Transformer(
      ModelConfig.from_dict(convert.architecture(path)), made.model.layout)
  return Judge(model, weights.load(path, model), made.tokenizer, made.reader,
               Judging(**judging))


def of_rewards(config: ml_collections.ConfigDict, made: Parts):
  """The judges that config.rl.reward_models names, by the part they give."""
  return {kind: judge(f'rl.reward_models.{kind}', file, config, made, kind).score
          for kind, file in config.rl.reward_models.items() if file}


def of_curation(config: ml_collections.ConfigDict, made: Parts):
  """score(prompts, texts) of config.curate.judge, or None."""
  file = config.curate.judge
  return judge('curate.judge', file, config, made).score if file else None
