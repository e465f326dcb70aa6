"""Stages that learn from preferences or from labelled steps."""

from collections.abc import Iterator
import dataclasses

from r1jax.config.conditions import is_empty, is_set, names_file, names_task
from r1jax.config.field import Change, key, section
from r1jax.config.schema.section import Problem, Section
from r1jax.config.schema.training import (
  OptimizerConfig,
  RowsConfig,
  TrainingConfig,
)


@dataclasses.dataclass(frozen=True)
class PackedConfig(RowsConfig, TrainingConfig):
  """Keys of stages that learn from whole sequences, packed into rows."""

  num_train_epochs: int = key(
    1, 'Passes over the data.', at_least=1, change=Change.EPOCHS
  )
  max_tokens: int = key(
    8192, 'Longest prompt and response together.', unit='tokens', at_least=2
  )
  eval_steps: int = key(
    50,
    'Steps between two evaluations; also before the first and after the last.',
    unit='steps',
    at_least=1,
    change=Change.FREE,
  )

  @property
  def is_paired(self) -> bool:
    """Whether an example is a pair of sequences."""
    return False


@dataclasses.dataclass(frozen=True)
class SyntheticPreferencesConfig(Section):
  """How preferences of the synthetic task `manners` come about."""

  error_rate: float = key(
    0.4, 'Probability that a part of a response is wrong.', above=0, at_most=1
  )
  sharpness: float = key(
    8.0,
    's: response a is preferred to b with probability σ(s · (quality of a − '
    'quality of b)) (Bradley and Terry).',
    above=0,
  )


@dataclasses.dataclass(frozen=True)
class PreferencesConfig(PackedConfig):
  """Keys of reward models and of DPO."""

  data: tuple[str, ...] = key(
    (),
    'Preference files (data/preferences.py), named datasets, and the '
    "synthetic task with a number of rows, such as 'manners:2000'.",
  )
  eval_data: tuple[str, ...] = key(
    (),
    'What to evaluate on, as in `data`. Without it, a share of the rows of '
    'each file, and what datasets and the task hold out.',
  )
  eval_share: float = key(
    0.05,
    'Share of a file that is held out for evaluation, by the hash of ids.',
    at_least=0,
    below=1,
    only_if=(is_empty('eval_data'), names_file('data')),
  )
  max_eval_rows: int = key(
    512,
    'Largest number of evaluation rows of each source; 0 for all of a file.',
    unit='rows',
    at_least=0,
  )
  synthetic_preferences: SyntheticPreferencesConfig = section(
    SyntheticPreferencesConfig, only_if=names_task('data', 'eval_data')
  )


@dataclasses.dataclass(frozen=True)
class PairwiseLossConfig(Section):
  """The Bradley-Terry loss of preference pairs, see algos/reward_model.py."""

  margin: float = key(
    0.0, 'm, by how much a chosen response should be ahead.', at_least=0
  )
  center_rewards_coefficient: float = key(
    0.0, 'c, which draws the mean score of a pair to 0.', at_least=0
  )


@dataclasses.dataclass(frozen=True)
class DPOLossConfig(Section):
  """The loss of direct preference optimisation, see algos/dpo.py."""

  beta: float = key(0.1, 'β; the larger, the nearer to the reference.', above=0)
  loss_type: str = key(
    'sigmoid',
    "'sigmoid' (DPO) or 'ipo' (arXiv 2310.12036).",
    choices=('sigmoid', 'ipo'),
  )
  label_smoothing: float = key(
    0.0,
    "ε, the probability that a label is wrong, for loss_type = 'sigmoid'.",
    at_least=0,
    below=0.5,
  )

  def conflicts(self) -> Iterator[Problem]:
    yield from super().conflicts()
    if self.label_smoothing and self.loss_type != 'sigmoid':
      yield 'label_smoothing', "needs loss_type = 'sigmoid'"


@dataclasses.dataclass(frozen=True)
class RewardModelConfig(PreferencesConfig, PairwiseLossConfig):
  """A reward model, the stage `reward_model`; it needs model.scalar_head.

  The defaults are R1's (second version, section 3.1): 66,000 pairs for
  helpfulness, 106,000 labelled responses for safety.
  """

  optimizer: OptimizerConfig = section(OptimizerConfig, learning_rate=6e-6)
  kind: str = key(
    'helpful',
    "What is scored: 'helpful', from pairs; or 'safe', from single labelled "
    'responses.',
    choices=('helpful', 'safe'),
  )
  batch_size: int = key(256, 'Pairs, or responses, in a batch.', at_least=1)
  truncate_long: bool = key(
    False,
    'Whether a response beyond max_tokens loses its beginning, as '
    'it does when it is scored; otherwise it is a bad row.',
  )
  score_batch_size: int = key(
    16, 'Responses that are scored in one call.', at_least=1
  )

  @property
  def is_paired(self) -> bool:
    return self.kind == 'helpful'

  def conflicts(self) -> Iterator[Problem]:
    yield from super().conflicts()
    if self.kind == 'safe':
      for name in ('margin', 'center_rewards_coefficient'):
        if getattr(self, name):
          yield name, "is of pairs; kind = 'safe' learns from single responses"


@dataclasses.dataclass(frozen=True)
class DPOConfig(PreferencesConfig, DPOLossConfig):
  """Direct preference optimisation of config.init, the stage `dpo`.

  R1 has no such stage; the defaults are the paper's (arXiv 2305.18290,
  appendix B).
  """

  optimizer: OptimizerConfig = section(
    OptimizerConfig, learning_rate=1e-6, warmup_steps=150
  )
  batch_size: int = key(64, 'Pairs in a batch.', at_least=1)
  group_robust: bool = key(
    False,
    'Whether groups are weighted by their loss (algos/dpo.py); every row then '
    'needs a group.',
  )
  group_dro_step_size: float = key(
    0.01,
    'η, the step of the group weights.',
    at_least=0,
    only_if=is_set('group_robust'),
  )

  @property
  def is_paired(self) -> bool:
    return True


@dataclasses.dataclass(frozen=True)
class PRMConfig(PackedConfig):
  """A process reward model, the stage `prm`; it needs model.scalar_head."""

  optimizer: OptimizerConfig = section(OptimizerConfig, learning_rate=1e-5)
  data: tuple[str, ...] = key((), 'Files of labelled steps.')
  eval_share: float = key(
    0.1, 'Share of the questions that are held out.', above=0, below=1
  )
  labels: str = key(
    'soft',
    "A step's label: the share of its continuations that were right, 'soft'; "
    "or whether any was, 'hard' (algos/prm.py).",
    choices=('soft', 'hard'),
  )
  batch_size: int = key(64, 'Thoughts in a batch.', at_least=1)
  score_batch_size: int = key(
    16, 'Thoughts that are scored in one call.', at_least=1
  )
