"""Keys that several training stages share."""

from collections.abc import Iterator, Mapping
import dataclasses

from r1jax.config.conditions import is_set, none_of, one_of
from r1jax.config.field import Change, key, section
from r1jax.config.run_conditions import experts, trains
from r1jax.config.schema.section import Problem, Section


@dataclasses.dataclass(frozen=True)
class OptimizerConfig(Section):
  """AdamW or Muon with a warm-up schedule and gradient clipping."""

  name: str = key(
    'adamw',
    "'adamw', or 'muon': matrices within layers are moved by their orthogonal "
    'momentum (arXiv 2502.16982), all else by AdamW, with one learning rate.',
    choices=('adamw', 'muon'),
  )
  learning_rate: float = key(1e-6, 'Peak learning rate.', above=0)
  warmup_steps: int = key(
    0, 'Updates of the linear warm-up from 0.', unit='updates', at_least=0
  )
  lr_scheduler_type: str = key(
    'constant',
    "After the warm-up: 'constant', or 'cosine' down to learning_rate · "
    'min_lr_ratio.',
    choices=('constant', 'cosine'),
  )
  min_lr_ratio: float = key(
    0.1,
    "Where 'cosine' ends, over the peak.",
    at_least=0,
    at_most=1,
    only_if=one_of('lr_scheduler_type', 'cosine'),
  )
  adam_beta1: float = key(
    0.9, 'Decay of the first moment.', at_least=0, below=1
  )
  adam_beta2: float = key(
    0.95, 'Decay of the second moment.', at_least=0, below=1
  )
  muon_momentum: float = key(
    0.95,
    'Decay of the momentum of Muon.',
    at_least=0,
    below=1,
    only_if=one_of('name', 'muon'),
  )
  weight_decay: float = key(
    0.1, 'Decoupled weight decay, on matrices only.', at_least=0
  )
  max_grad_norm: float = key(
    1.0,
    'The global gradient norm is clipped to this.',
    above=0,
    may_be_infinite=True,
  )
  moment_dtype: str = key(
    'float32',
    "Type in which the moments are kept; 'bfloat16' as V3 (section 3.3).",
    choices=('float32', 'bfloat16'),
  )


def warmup_problem(
  optimizer: OptimizerConfig, num_updates: int, updates: str
) -> Iterator[Problem]:
  """Yields what is wrong with a warm-up that is longer than the run.

  Args:
    optimizer: The section `optimizer`.
    num_updates: Updates of the run.
    updates: How they come about, in words: 'max_steps = 8'.
  """
  if optimizer.warmup_steps > num_updates:
    yield (
      'optimizer.warmup_steps',
      f'is longer than the run of {num_updates} updates ({updates}), which '
      'ends before its peak learning rate; lower it',
    )


@dataclasses.dataclass(frozen=True)
class LoadBalancingConfig(Section):
  """How the load of the experts is kept even (DeepSeek-V3 section 2.1.2)."""

  routed_bias_update_rate: float = key(
    1e-3,
    'γ, the step of the routing bias; 0 leaves it alone.',
    at_least=0,
    only_if=experts(),
  )
  router_aux_loss_coef: float = key(
    1e-4,
    'α of the sequence-wise balance loss (eq. 17).',
    at_least=0,
    only_if=experts(),
  )


@dataclasses.dataclass(frozen=True)
class CheckpointConfig(Section):
  """Rules that say which checkpoints are saved, and which of them are kept."""

  save_steps: int = key(
    500,
    'Steps between two checkpoints.',
    unit='steps',
    at_least=1,
    change=Change.FREE,
  )
  save_total_limit: int = key(
    2,
    'Number of the last checkpoints that are kept.',
    at_least=1,
    change=Change.FREE,
  )
  keep_period: int = key(
    0,
    'The checkpoints of the steps that are multiples of it are kept for ever; '
    '0 keeps none so.',
    unit='steps',
    at_least=0,
    change=Change.FREE,
  )
  metric_for_best_model: str = key(
    '',
    'A metric of metrics.jsonl: the checkpoint with its best value so far is '
    "kept too, such as 'eval/pass@1'. '' keeps none so.",
    change=Change.FREE,
  )
  lower_is_better: bool = key(
    False,
    'Whether the best value is the smallest, as of a loss.',
    only_if=is_set('metric_for_best_model'),
    change=Change.FREE,
  )

  def conflicts(self) -> Iterator[Problem]:
    yield from super().conflicts()
    if self.keep_period % self.save_steps:
      yield (
        'keep_period',
        f'must be a multiple of save_steps = {self.save_steps}: no other step '
        'has a checkpoint',
      )
    if not self.metric_for_best_model:
      return
    evaluated = self.metric_for_best_model.startswith('eval/')
    name = 'eval_steps' if evaluated else 'logging_steps'
    every = getattr(self, name, 0 if evaluated else 1)
    if not every:
      yield (
        'metric_for_best_model',
        f'is {self.metric_for_best_model!r}, and this stage evaluates nothing',
      )
    elif self.save_steps % every:
      yield (
        'save_steps',
        f'must be a multiple of {name} = {every}, so that every checkpoint has '
        f'its {self.metric_for_best_model!r}',
      )


@dataclasses.dataclass(frozen=True)
class SkippedUpdatesConfig(Section):
  """The largest share of updates that may be skipped, in every trained stage.

  An update is skipped if its gradient is not finite. Above this share the run
  stops with exit code 8; its checkpoints stay.
  """

  max_frac: float = key(
    0.5,
    'Largest share over the last window_steps steps. A step whose loss is not '
    'finite counts as wholly skipped. 1 for no limit.',
    at_least=0,
    at_most=1,
    only_if=trains(),
    change=Change.FREE,
  )
  window_steps: int = key(
    50,
    'Steps over which the share is taken; a shorter run is not stopped.',
    unit='steps',
    at_least=1,
    only_if=trains(),
    change=Change.FREE,
  )


@dataclasses.dataclass(frozen=True)
class TrainingConfig(LoadBalancingConfig, CheckpointConfig):
  """Keys of every stage that trains a model."""

  optimizer: OptimizerConfig = section(OptimizerConfig)
  logging_steps: int = key(
    10,
    'Steps between two lines of metrics.jsonl.',
    unit='steps',
    at_least=1,
    change=Change.FREE,
  )


@dataclasses.dataclass(frozen=True)
class RowsConfig(Section):
  """The rows that updates read, each of several whole samples."""

  row_tokens: int = key(
    0,
    'Length of the rows that samples are packed into for the updates, at least '
    'that of the longest sample: in RL, data.max_prompt_tokens + '
    'rl.max_new_tokens; of a preference pair, 2 × max_tokens. 0 for the first '
    'length that holds the longest sample of a batch: 1,024, four times that, '
    'and so on, up to what the longest sample may need. With shared prompts '
    '(rl.share_prompts) the first is 4 × data.max_prompt_tokens, within 1,024 '
    'and 4,096.',
    unit='tokens',
    at_least=0,
  )
  microbatch_tokens: int = key(
    0,
    'Tokens whose activations are in memory at once, over all devices: whole '
    'rows on each. As many microbatches are summed for an update as its tokens '
    'need. 0 for rows of about 8,192 tokens a device, 1,536 on a CPU.',
    unit='tokens',
    at_least=0,
  )


@dataclasses.dataclass(frozen=True)
class NextTokenConfig(TrainingConfig):
  """Keys of the stages that learn the next token of documents."""

  gradient_accumulation_steps: int = key(
    1, 'Microbatches whose gradients are summed for one update.', at_least=1
  )


@dataclasses.dataclass(frozen=True)
class MTPConfig(Section):
  """Weight λ of the multi-token prediction loss (DeepSeek-V3 section 4.2)."""

  loss_weight: float = key(
    0.3,
    'λ in the first steps.',
    at_least=0,
    only_if=none_of('switch_fraction', 0.0).quiet,
  )
  final_loss_weight: float = key(
    0.1,
    'λ after switch_fraction of the steps.',
    at_least=0,
    only_if=none_of('switch_fraction', 1.0).quiet,
  )
  switch_fraction: float = key(
    0.68,
    'Share of the steps after which λ changes; V3 changes it after 10T of '
    '14.8T tokens.',
    at_least=0,
    at_most=1,
  )


@dataclasses.dataclass(frozen=True)
class PretrainConfig(NextTokenConfig):
  """Pre-training on synthetic documents: the stage `pretrain`."""

  optimizer: OptimizerConfig = section(OptimizerConfig, learning_rate=2.2e-4)
  mtp: MTPConfig = section(
    MTPConfig, only_if=is_set('model.num_nextn_predict_layers').warned
  )
  max_steps: int = key(
    2000, 'Number of steps.', unit='steps', at_least=1, change=Change.STEPS
  )
  batch_size: int = key(
    64, 'Rows of packed documents in a batch.', unit='rows', at_least=1
  )
  length_tokens: int = key(
    128, 'Length of a row of packed documents.', unit='tokens', at_least=2
  )

  def conflicts(self) -> Iterator[Problem]:
    yield from super().conflicts()
    yield from warmup_problem(
      self.optimizer, self.max_steps, f'pretrain.max_steps = {self.max_steps}'
    )


@dataclasses.dataclass(frozen=True)
class SFTConfig(NextTokenConfig):
  """Fine-tuning on demonstrations, and distillation: the stage `sft`.

  The defaults are those of R1's second SFT.
  """

  optimizer: OptimizerConfig = section(OptimizerConfig, learning_rate=5e-5)
  mtp: MTPConfig = section(
    MTPConfig,
    loss_weight=0.1,
    final_loss_weight=0.1,
    switch_fraction=1.0,
    only_if=is_set('model.num_nextn_predict_layers').warned,
  )
  data: tuple[str, ...] = key(
    (),
    'Files of demonstrations (data/demonstrations.py), and synthetic tasks '
    "with a number of their documents, such as 'arithmetic:1000'.",
  )
  columns: Mapping[str, str] = key(
    {},
    "The columns of these files by field: {'question': 'problem', 'response': "
    "'solution'}; {'messages': 'conversations'} where a row is a conversation "
    'that ends in the response. A text with braces is filled in.',
    only_if=is_set('data'),
  )
  num_train_epochs: int = key(
    2, 'Passes over the data.', at_least=1, change=Change.EPOCHS
  )
  batch_size: int = key(
    128, 'Rows of packed documents in a batch.', unit='rows', at_least=1
  )
  length_tokens: int = key(
    32768, 'Length of a row of packed documents.', unit='tokens', at_least=2
  )
  reasoning_loss_weight: float = key(
    -1.0,
    'α: the loss is α · (mean over tokens of reasoning rows) + (1 − α) · (mean '
    'over tokens of general rows). −1 is the mean over all tokens.',
    at_least=-1,
    at_most=1,
  )
  teacher_model: str = key(
    '',
    "Distillation from a teacher's distributions, see algos/distill.py: a "
    "weights file of r1jax, which is run during training, or 'stored' for "
    "distributions in the data; '' trains on the text alone.",
    only_if=is_set('distillation_alpha'),
  )
  distillation_alpha: float = key(
    0.0,
    'α, the weight of the KL to the teacher; 1 − α is the weight of the '
    'cross-entropy of the text.',
    at_least=0,
    at_most=1,
  )
  distillation_temperature: float = key(
    1.0,
    'τ, at which teacher and student are compared.',
    above=0,
    only_if=is_set('teacher_model'),
  )

  def conflicts(self) -> Iterator[Problem]:
    yield from super().conflicts()
    if -1 < self.reasoning_loss_weight < 0:
      yield 'reasoning_loss_weight', 'must lie within [0, 1], or be -1'
    if not self.teacher_model and self.distillation_alpha:
      yield 'distillation_alpha', 'needs a teacher_model'
