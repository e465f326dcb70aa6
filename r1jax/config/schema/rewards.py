"""Rewards of completions: the part of `config.rl` that rewards/ reads."""

from collections.abc import Mapping
import dataclasses

from r1jax.config.field import key, section
from r1jax.config.run_conditions import (
  code_prompts,
  evaluates,
  file_rewards,
  general_prompts,
  plugin_rewards,
  weighted,
)
from r1jax.config.schema.section import Section


@dataclasses.dataclass(frozen=True)
class RewardModelFiles(Section):
  """Weights of the models that give learned parts of the reward."""

  helpful: str = key(
    '',
    "Gives 'helpful'; from the stage reward_model.",
    only_if=file_rewards('helpful'),
  )
  safe: str = key(
    '',
    "Gives 'safe'; from the stage reward_model.",
    only_if=file_rewards('safe'),
  )
  prm: str = key(
    '', "Gives 'prm'; from the stage prm.", only_if=file_rewards('prm')
  )


@dataclasses.dataclass(frozen=True)
class RewardConfig(Section):
  """Rewards of completions, see rewards/parts.py."""

  reward: Mapping[str, float] = key(
    dict(
      accuracy=1.0,
      format=1.0,
      format_errors=0.0,
      language=0.0,
      overlong=0.0,
      cosine=0.0,
      repetition=0.0,
      helpful=0.0,
      safe=0.0,
      prm=0.0,
    ),
    'Weight of each part of the reward, for prompts that a rule can verify: '
    'those of rewards/parts.py, and any that a plugin registers.',
    registered=('reward',),
  )
  general_reward: Mapping[str, float] = key(
    dict(
      format=0.0,
      format_errors=0.0,
      language=0.0,
      overlong=0.0,
      repetition=0.0,
      helpful=0.0,
      safe=0.0,
    ),
    'Weight of each part of the reward, for general prompts.',
    registered=('reward',),
    only_if=general_prompts(),
  )
  reward_models: RewardModelFiles = section(RewardModelFiles)
  prm_aggregation: str = key(
    'min',
    "How the probabilities of a thought's steps become one reward.",
    choices=('min', 'product', 'mean', 'last'),
    only_if=weighted('prm').warned,
  )
  overlong_buffer_tokens: int = key(
    4096,
    "Length before max_new_tokens over which 'overlong' falls from 0 to −1 "
    '(DAPO, eq. 13).',
    unit='tokens',
    at_least=1,
    only_if=weighted('overlong').warned,
  )
  repetition_n: int = key(
    4,
    "Words of an n-gram of 'repetition'; in scripts without spaces 2 characters "
    'stand for a word (4 of Thai).',
    unit='words',
    at_least=1,
    only_if=weighted('repetition').warned,
  )
  code_partial_credit: bool = key(
    False,
    'Whether a program that fails some of its tests scores the share that it '
    'passes, instead of 0.',
    only_if=(code_prompts(), evaluates()),
    read_beyond_section=True,
  )
  reward_timeout_secs: float = key(
    60.0,
    "Longest time on the wall clock that a plugin's reward may take for one "
    'sample, or for a batch per sample of it; then the sample has no score.',
    unit='seconds',
    above=0,
    only_if=plugin_rewards().warned,
  )
  max_unscorable_share: float = key(
    0.2,
    'A larger share of samples without a score stops the run.',
    at_least=0,
    at_most=1,
  )
