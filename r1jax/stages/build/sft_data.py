"""The dataset of supervised fine-tuning: demonstrations, and a teacher."""

from collections.abc import Sequence
import logging
from pathlib import Path

from r1jax import buckets, registry
from r1jax.algos import distill
from r1jax.checkpoints import convert
from r1jax.config.load import model_config
from r1jax.config.schema.run import RunConfig
from r1jax.config.schema.training import SFTConfig
from r1jax.data import demonstrations as demos
from r1jax.data import mixture, packing, readers
from r1jax.data.quarantine import Quarantine
from r1jax.errors import UserError
from r1jax.model.transformer import Transformer
from r1jax.records import Demonstration
from r1jax.stages.build import parts as build
from r1jax.stages.build.tokenizers import shared_token_ids
from r1jax.train import supervised_step

STORED = 'stored'  # A value of sft.teacher_model: distributions in the data.
_log = logging.getLogger(__name__)


def check(config: RunConfig, parts: build.Parts):
  """Refuses a config.sft that is wrong whatever its files hold.

  Raises:
    UserError: naming the key.
  """
  c = config.sft
  build.divides(
    'sft.batch_size',
    c.batch_size,
    c.gradient_accumulation_steps,
    parts.model.layout,
  )
  parts.model.layout.check_row('sft.length_tokens', c.length_tokens)
  for name, count in mixture.parse(c.data).items():
    if name in registry.task and (not count or count != int(count)):
      raise UserError(f"sft: data: say how many of {name}, as in '{name}:1000'")
    if name not in registry.task and count is not None:
      raise UserError(
        f'sft: data: {name} is no task, of which there are '
        f'{", ".join(sorted(registry.task))}; all rows of a file count: leave '
        f':{count:g} out'
      )
  if not c.data:
    raise UserError('sft: data names nothing to learn from')


def corpus(config: RunConfig, parts: build.Parts) -> packing.PackedBatches:
  """Reads config.sft.data and packs it for all epochs.

  Args:
    config: The run; `check` has accepted it.
    parts: Its tokenizer and template.

  Raises:
    UserError: bad data, or none.
  """
  c = config.sft
  quarantine = Quarantine(config.data.max_bad_row_share)
  rows: list[Demonstration] = []
  for name, count in mixture.parse(c.data).items():
    if name in registry.task:
      rows += demos.synthetic(
        name, config.corpus, parts.template, config.seed, int(count or 0)
      )
    else:
      rows += demos.read(
        name, parts.template, quarantine=quarantine, named=c.columns
      )
  if not rows:
    raise UserError(f'sft: data: no rows in {", ".join(c.data)}')
  total = len(rows) + len(quarantine.dropped)
  documents = packing.to_documents(
    rows,
    parts.tokenizer,
    c.length_tokens,
    quarantine,
    None if c.reasoning_loss_weight < 0 else c.reasoning_loss_weight,
  )
  if summary := quarantine.finish('sft.data', total):
    _log.info('%s', summary)
  return packing.PackedBatches(
    documents,
    c.batch_size,
    c.length_tokens,
    parts.tokenizer.pad_id,
    config.seed,
    c.num_train_epochs,
    _stored_tokens(c, rows) if c.teacher_model == STORED else 0,
  )


def _stored_tokens(c: SFTConfig, rows: Sequence[Demonstration]) -> int:
  """Returns O, the tokens of each teacher's distribution in the rows."""
  teachers = [row.teacher for row in rows if row.teacher is not None]
  without = [row for row in rows if row.teacher is None]
  if without:
    raise UserError(
      f"sft: teacher_model = 'stored', but {without[0].where or without[0].id} "
      "has no 'teacher'; sample with rejection_sampling.top_logprobs above 0"
    )
  stored = {(t.ids_TO.shape[1], t.temperature) for t in teachers}
  if len(stored) > 1 or min(stored)[1] != c.distillation_temperature:
    raise UserError(
      f'sft: distillation_temperature = {c.distillation_temperature}, but the '
      'distributions in the data are (tokens, temperature): '
      f'{", ".join(map(str, sorted(stored)))}'
    )
  return min(stored)[0]


def distillation(
  config: RunConfig, parts: build.Parts
) -> supervised_step.Distillation | None:
  """Returns how config.sft.teacher_model is followed; None without a teacher.

  Raises:
    UserError: there is no such file, or the teacher has other tokens.
  """
  c = config.sft
  if not c.teacher_model:
    return None
  soft = distill.SoftTargets(c.distillation_alpha, c.distillation_temperature)
  if c.teacher_model == STORED:
    return supervised_step.Distillation(soft)
  path = buckets.given(c.teacher_model)
  if not path.exists():
    raise UserError(
      f'sft: teacher_model: no file {path}; give weights of ours, or '
      f'{STORED!r} for distributions in the data'
    )
  shared = shared_token_ids('sft.teacher_model', path, config, parts.tokenizer)
  architecture = model_config(convert.model_config_of(path), str(path))
  teacher = Transformer(architecture, parts.model.layout)
  return supervised_step.Distillation(soft, teacher, shared)


def files(names: Sequence[str]) -> list[Path]:
  """Returns the files that a list of demonstrations names."""
  return [
    file
    for name in mixture.parse(names)
    if name not in registry.task
    for file in readers.files(name)
  ]
