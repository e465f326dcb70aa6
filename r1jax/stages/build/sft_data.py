"""What a supervised stage learns from: demonstrations, and a teacher."""

from collections.abc import Sequence
from pathlib import Path

import ml_collections

from r1jax.algos import distill
from r1jax.checkpoints import convert, weights
from r1jax.data import demonstrations as demos
from r1jax.data import mixture, packing, readers, tasks
from r1jax.data.quarantine import Quarantine
from r1jax.data.text import tokenizer
from r1jax.data.text.tokenizer import Tokenizer
from r1jax.errors import UserError
from r1jax.model.config import ModelConfig
from r1jax.model.transformer import Transformer
from r1jax.records import Demonstration
from r1jax.stages.build import parts as build
from r1jax.train import supervised_step

STORED = 'stored'  # In the data: what config.sft.teacher_model may say.


def check(config: ml_collections.ConfigDict, made: build.Parts):
  """What config.sft says, whatever is in the files that it names.

  Raises:
    UserError: naming the key that means nothing.
  """
  c = config.sft
  build.divides(
    'sft.batch_size',
    c.batch_size,
    c.gradient_accumulation_steps,
    made.model.layout,
  )
  if not -1 <= c.reasoning_loss_weight <= 1:
    raise UserError(
      'sft: reasoning_loss_weight must lie within [0, 1], or be -1, '
      f'got {c.reasoning_loss_weight}'
    )
  for name, count in mixture.parse(c.data).items():
    if name in tasks.TASKS and (not count or count != int(count)):
      raise UserError(f"sft: data: say how many of {name}, as in '{name}:1000'")
    if name not in tasks.TASKS and count is not None:
      raise UserError(
        f'sft: data: {name} is no task, of which there are '
        f'{", ".join(tasks.TASKS)}; of a file all rows count: leave '
        f':{count:g} out'
      )
  if not c.data:
    raise UserError('sft: data names nothing to learn from')
  if c.teacher_model:
    distill.SoftTargets(c.distillation_alpha, c.distillation_temperature)
  elif c.distillation_alpha:
    raise UserError(
      f'sft: distillation_alpha = {c.distillation_alpha} needs a teacher_model'
    )


def demonstrations(
  config: ml_collections.ConfigDict, made: build.Parts
) -> packing.PackedBatches:
  """What config.sft.data names, packed for as many epochs as it says.

  Args:
    config: Of the run; `check` has taken it.
    made: Its parts.

  Raises:
    UserError: bad data, or none.
  """
  c = config.sft
  quarantine = Quarantine(config.data.max_bad_row_share)
  found = []
  for name, count in mixture.parse(c.data).items():
    if name in tasks.TASKS:
      found += demos.synthetic(
        name,
        build.corpus_config(config),
        made.template,
        config.seed,
        int(count),
      )
    else:
      found += demos.read(name, made.template, quarantine=quarantine)
  if not found:
    raise UserError(f'sft: data: no rows in {", ".join(c.data)}')
  total = len(found) + len(quarantine.dropped)
  documents = packing.to_documents(
    found,
    made.tokenizer,
    c.length_tokens,
    quarantine,
    None if c.reasoning_loss_weight < 0 else c.reasoning_loss_weight,
  )
  if told := quarantine.finish('sft.data', total):
    print(told)
  kept = _stored(c, found) if c.teacher_model == STORED else 0
  return packing.PackedBatches(
    documents,
    c.batch_size,
    c.length_tokens,
    made.tokenizer.pad_id,
    config.seed,
    c.num_train_epochs,
    kept,
  )


def _stored(
  c: ml_collections.ConfigDict, found: Sequence[Demonstration]
) -> int:
  """O of the teacher's distributions that rows bring along."""
  without = [d for d in found if d.teacher is None]
  if without:
    raise UserError(
      f"sft: teacher_model = 'stored', but {without[0].where or without[0].id} has "
      "no 'teacher'; sample them with rejection_sampling.top_logprobs above 0"
    )
  kept = {(d.teacher.ids_TO.shape[1], d.teacher.temperature) for d in found}
  if len(kept) > 1 or min(kept)[1] != c.distillation_temperature:
    raise UserError(
      f'sft: distillation_temperature = {c.distillation_temperature}, but the distributions in the '
      'data are (tokens, temperature): '
      f'{", ".join(map(str, sorted(kept)))}'
    )
  return min(kept)[0]


def distillation(
  config: ml_collections.ConfigDict, made: build.Parts
) -> supervised_step.Distillation | None:
  """Of config.sft.teacher_model; None where the text alone teaches.

  Raises:
    UserError: the teacher has other tokens than the student.
  """
  c = config.sft
  if not c.teacher_model:
    return None
  soft = distill.SoftTargets(c.distillation_alpha, c.distillation_temperature)
  if c.teacher_model == STORED:
    return supervised_step.Distillation(soft)
  path = Path(c.teacher_model).expanduser()
  if not path.exists():
    raise UserError(
      f'sft: teacher_model: no file {path}; give weights of ours, or '
      f'{STORED!r} for distributions in the data'
    )
  same_tokens('sft.teacher_model', path, config, made.tokenizer)
  teacher = Transformer(
    ModelConfig.from_dict(convert.model_config_of(path)), made.model.layout
  )
  return supervised_step.Distillation(soft, teacher)


def same_tokens(
  key: str, path: Path, config: ml_collections.ConfigDict, ours: Tokenizer
):
  """Whether the tokens of the model that a key names mean what ours do.

  Raises:
    UserError: they do not, with the first that differs.
  """
  said = weights.metadata(path).get('config', {})
  source = said.get('tokenizer.source')
  if source is None:  # Imported: only its size is known.
    if said['model.vocab_size'] != config.model.vocab_size:
      raise UserError(
        f'{key}: {path} has a vocabulary of {said["model.vocab_size"]}, '
        f'this model {config.model.vocab_size}'
      )
    return
  if source == config.tokenizer.source:
    return
  theirs = tokenizer.load(
    source if source in tokenizer.BUILT_IN else str(readers.resolve(source))
  )
  if different := ours.first_difference(theirs):
    raise UserError(
      f'{key}: {path} has the tokenizer {source}, this model '
      f'{config.tokenizer.source}: {different}'
    )
