"""Supervised fine-tuning on demonstrations, and distillation from a teacher."""

from pathlib import Path

from r1jax import buckets, registry
from r1jax.checkpoints import weights
from r1jax.config.schema.run import RunConfig
from r1jax.config.schema.training import SFTConfig
from r1jax.errors import UserError
from r1jax.stages.build import parts as build
from r1jax.stages.build import sft_data
from r1jax.stages.next_token import NextTokenStage, check_length
from r1jax.stages.stage import Kind


@registry.stage('sft')
class SFT(NextTokenStage):
  """Learns the responses of demonstrations; prompts carry no loss."""

  section = SFTConfig
  takes = {'sft.data': (Kind.SFT_DATA,), 'sft.teacher_model': (Kind.POLICY,)}
  label = 'SFT'

  def __init__(self, config: RunConfig, parts: build.Parts):
    check_length(config, self.name)
    sft_data.check(config, parts)
    distillation = sft_data.distillation(config, parts)
    super().__init__(
      config, parts, sft_data.corpus(config, parts), distillation
    )
    self._teacher = distillation and distillation.teacher
    self._teacher_file = buckets.given(config.sft.teacher_model)

  @classmethod
  def reads(cls, config: RunConfig) -> dict[str, list[Path]]:
    found = {key: [path] for key, path in cls.loaded_models(config).items()}
    return found | {'sft.data': sft_data.files(config.sft.data)}

  @classmethod
  def loaded_models(cls, config: RunConfig) -> dict[str, Path]:
    if config.sft.teacher_model in ('', sft_data.STORED):
      return {}
    return {'sft.teacher_model': buckets.given(config.sft.teacher_model)}

  @classmethod
  def check(cls, config, parts, missing):
    check_length(config, cls.name)
    sft_data.check(config, parts)
    build.check_files('sft.data', config.sft.data, missing)
    if 'sft.teacher_model' not in missing:
      sft_data.distillation(config, parts)

  @classmethod
  def check_input(cls, config, key, parent, parent_name):
    """Refuses a dataset that lacks the teacher's distributions."""
    if not key.startswith('sft.data') or (
      config.sft.teacher_model != sft_data.STORED
    ):
      return
    if not parent.rejection_sampling.top_logprobs:
      raise UserError(
        f"sft.teacher_model = 'stored' needs {parent_name}."
        'rejection_sampling.top_logprobs above 0'
      )
    if parent.rejection_sampling.extra_data:
      raise UserError(
        f"sft.teacher_model = 'stored', but {parent_name}."
        'rejection_sampling.extra_data brings rows without a teacher; leave '
        'them out'
      )

  @classmethod
  def update(cls, config, layout, *, distillation=None, **options):
    """Returns the program of a step; see NextTokenStage.update.

    Raises:
      UserError: a teacher is run, and no run has given its model.
    """
    wanted = config.sft.teacher_model
    if wanted and not distillation:
      raise UserError(
        'aot: sft.teacher_model has a model of its own; compile without'
      )
    return super().update(config, layout, distillation=distillation, **options)

  def run(self, directory, params, metadata):
    """Loads the teacher, if there is one, and trains; see Stage.run."""
    if self._teacher:
      self._teacher_params = weights.load(self._teacher_file, self._teacher)
    return super().run(directory, params, metadata)
