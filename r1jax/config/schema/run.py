"""The root of a config: one run, or a pipeline of runs."""

from collections.abc import Iterator
import dataclasses

from r1jax.config.field import Change, key, section
from r1jax.config.run_conditions import (
  STAGES,
  begins_at_step,
  begins_with_init,
  corpus,
  makes_base,
  samples,
  stage,
  trains,
)
from r1jax.config.schema.data import CorpusConfig, DataConfig, TokenizerConfig
from r1jax.config.schema.model import ModelConfig
from r1jax.config.schema.preferences import (
  DPOConfig,
  PRMConfig,
  RewardModelConfig,
)
from r1jax.config.schema.rl import RLConfig
from r1jax.config.schema.rollout import EvalConfig, RolloutConfig
from r1jax.config.schema.sampled_data import (
  LabelStepsConfig,
  RejectionSamplingConfig,
)
from r1jax.config.schema.section import Problem, Section
from r1jax.config.schema.training import (
  PretrainConfig,
  SFTConfig,
  SkippedUpdatesConfig,
)


@dataclasses.dataclass(frozen=True)
class MeshConfig(Section):
  """Sizes of the mesh axes; one may be −1, which takes the devices left."""

  data: int = key(-1, 'Data-parallel replicas.', at_least=-1)
  fsdp: int = key(1, 'Shards of the weights and of the batch.', at_least=-1)
  sequence: int = key(
    1,
    'Shards of the tokens of every row, in training and scoring, and of the '
    'weights. Rows of attention are whole, each device with some of the heads: '
    'tensor × sequence must divide model.num_attention_heads, and the tokens '
    'of a row. Sampling has other sequences on these devices, as on those of '
    'data.',
    at_least=-1,
  )
  tensor: int = key(1, 'Tensor parallelism.', at_least=-1)
  expert: int = key(
    1, 'Expert parallelism, and shards of the batch.', at_least=-1
  )

  def conflicts(self) -> Iterator[Problem]:
    sizes = {
      field.name: getattr(self, field.name)
      for field in dataclasses.fields(self)
    }
    free = [name for name, size in sizes.items() if size == -1]
    for name, size in sizes.items():
      if not size:
        yield name, 'must be at least 1, or -1'
      elif size == -1 and len(free) > 1:
        yield name, f'must be -1 for one axis alone, not for {", ".join(free)}'


@dataclasses.dataclass(frozen=True)
class RunConfig(Section):
  """Every key of a run, the root of its config.

  Values are R1-Zero's where they are published (DeepSeek-R1, second version,
  section 2); the clip range of R1-Zero is not, so 0.2 stands there, the usual
  one.
  """

  seed: int = key(0, 'Seed of all randomness.', at_least=0)
  stages: tuple[str, ...] = key(
    ('pretrain', 'rl'),
    'Stages to run, in order. Each but the last leaves a policy, and none but '
    'the first begins with random parameters.',
    registered=('stage',),
    built_in=STAGES,
  )
  plugins: tuple[str, ...] = key(
    (),
    'Python files, or modules by name, that register rewards, graders, tasks '
    'and more; imported before names are looked up.',
  )
  init: str = key(
    'pretrain',
    "What the first stage starts from: 'shipped' with the package; "
    "'pretrain', made by the stage of that name or found where this config "
    "made it before; 'random'; weights of ours, a .safetensors file or a "
    "folder that import-hf wrote; a Hugging Face model's folder; or the "
    "checkpoint that another run has saved at a step, 'runs/a@40', with the "
    'folder of the run or of its stage.',
    only_if=begins_with_init(),
  )
  init_optimizer: bool = key(
    False,
    "Whether the first stage also takes the optimizer's moments from the "
    'checkpoint that init names. Its learning-rate schedule begins anew.',
    only_if=begins_at_step(),
  )
  compilation_cache_dir: str = key(
    'auto',
    'Folder that keeps compiled programs for later runs, 4 GiB at most when '
    "one begins: 'auto' is ~/.cache/r1jax/jax (or below $R1JAX_CACHE or "
    "$XDG_CACHE_HOME), '' keeps none. $JAX_COMPILATION_CACHE_DIR comes first. "
    'Results do not depend on it.',
    recorded=False,
  )
  tracking: tuple[str, ...] = key(
    ('tensorboard',),
    "What shows the metrics, the config and sample completions: 'tensorboard', "
    'with files in the folder of each stage, and experiment trackers that are '
    "extras of the package: 'wandb', 'mlflow', 'trackio'; or those of plugins. "
    'Their own environment variables set their project and place.',
    registered=('tracker',),
    built_in=('wandb', 'mlflow', 'trackio'),
    only_if=trains(),
    change=Change.FREE,
  )
  skipped_updates: SkippedUpdatesConfig = section(SkippedUpdatesConfig)
  model: ModelConfig = section(
    ModelConfig, max_position_embeddings=1024 + 32768
  )
  mesh: MeshConfig = section(MeshConfig)
  tokenizer: TokenizerConfig = section(TokenizerConfig)
  data: DataConfig = section(DataConfig)
  corpus: CorpusConfig = section(CorpusConfig, only_if=corpus())
  pretrain: PretrainConfig = section(
    PretrainConfig, only_if=(stage('pretrain').warned, makes_base())
  )
  sft: SFTConfig = section(SFTConfig, only_if=stage('sft').warned)
  reward_model: RewardModelConfig = section(
    RewardModelConfig, only_if=stage('reward_model').warned
  )
  dpo: DPOConfig = section(DPOConfig, only_if=stage('dpo').warned)
  rejection_sampling: RejectionSamplingConfig = section(
    RejectionSamplingConfig, only_if=stage('rejection_sampling').warned
  )
  label_steps: LabelStepsConfig = section(
    LabelStepsConfig, only_if=stage('label_steps').warned
  )
  prm: PRMConfig = section(PRMConfig, only_if=stage('prm').warned)
  rl: RLConfig = section(RLConfig, only_if=stage('rl').warned)
  rollout: RolloutConfig = section(RolloutConfig, only_if=samples())
  eval: EvalConfig = section(EvalConfig)
