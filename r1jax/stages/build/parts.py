"""From a ConfigDict to the parts that a stage runs. Below here, no ConfigDict.

Everything is made and checked before a run writes anything.
"""

from collections.abc import Collection, Mapping, Sequence
import dataclasses
import hashlib
import json
import os
from pathlib import Path

import ml_collections

from r1jax.algos.policy_loss import PolicyLoss
from r1jax.data import batching, mixture, readers, tasks
from r1jax.data.text import chat, response_formats, tokenizer
from r1jax.data.text.template import PromptTemplate
from r1jax.data.text.tokenizer import Tokenizer
from r1jax.errors import UserError
from r1jax.evaluate.evaluator import Evaluator
from r1jax.model.config import ModelConfig
from r1jax.model.parameters import parameter_shardings
from r1jax.model.transformer import Transformer
from r1jax.records import Prompt
from r1jax.rewards.reward_manager import (
  RewardManager,
  RewardModelFn,
  RewardOptions,
)
from r1jax.rollout.engine import Engine, EngineConfig
from r1jax.rollout.sampling import SamplingParams
from r1jax.sharding import Layout, make_mesh
from r1jax.stages.build import prompts as questions
from r1jax.train.optimizer import OptimizerConfig

SHIPPED_BASE = Path(__file__).parents[2] / 'assets' / 'base_tiny.safetensors'


@dataclasses.dataclass(frozen=True)
class Parts:
  """What every stage needs."""

  model: Transformer
  tokenizer: Tokenizer
  template: PromptTemplate
  parser: response_formats.ResponseParser


def check_counts(config: ml_collections.ConfigDict):
  """Numbers that are at least 1, whatever else is true."""
  for key in _AT_LEAST_ONE:
    section, field = key.split('.')
    if config[section][field] < 1:
      raise UserError(f'{key} must be at least 1, got {config[section][field]}')
  if config.seed < 0:
    raise UserError(f'seed must not be below 0, got {config.seed}')


def parts(config: ml_collections.ConfigDict) -> Parts:
  """The model on its mesh, and how text becomes its tokens."""
  check_counts(config)
  questions.check(config.data)
  layout = Layout(make_mesh(config.mesh))
  model = Transformer(model_config(config.model), layout)
  parameter_shardings(model, layout)
  source = config.tokenizer.source
  if source not in tokenizer.BUILT_IN:
    source = str(readers.resolve(source))
  text = tokenizer.load(source)
  if text.vocab_size > config.model.vocab_size:
    raise UserError(
      f'tokenizer: {config.tokenizer.source} has {text.vocab_size} ids, more '
      f'than config.model.vocab_size = {config.model.vocab_size}; raise it'
    )
  data = config.data
  asks = chat.load_template(
    data.template, text, data.system, data.response_prefix
  )
  return Parts(
    model,
    text,
    asks,
    response_formats.ResponseParser(
      response_formats.get(data.response_format), asks.prompt_opens_think
    ),
  )


def model_config(section: ml_collections.ConfigDict) -> ModelConfig:
  return ModelConfig.from_dict(section)


_AT_LEAST_ONE = (
  'pretrain.max_steps',
  'pretrain.gradient_accumulation_steps',
  'pretrain.save_steps',
  'pretrain.save_total_limit',
  'pretrain.logging_steps',
  'sft.num_train_epochs',
  'sft.gradient_accumulation_steps',
  'sft.save_steps',
  'sft.save_total_limit',
  'sft.logging_steps',
  *(
    f'{stage}.{field}'
    for stage in ('reward_model', 'dpo', 'prm')
    for field in (
      'num_train_epochs',
      'gradient_accumulation_steps',
      'save_steps',
      'save_total_limit',
      'logging_steps',
      'eval_steps',
    )
  ),
  'rejection_sampling.num_samples',
  'rejection_sampling.prompts_per_chunk',
  'rejection_sampling.max_per_prompt',
  'label_steps.num_samples',
  'label_steps.num_continuations',
  'label_steps.prompts_per_chunk',
  'rl.max_steps',
  'rl.num_minibatches',
  'rl.gradient_accumulation_steps',
  'rl.ref_model_sync_steps',
  'rl.eval_steps',
  'rl.save_steps',
  'rl.save_total_limit',
  'eval.num_problems',
  'eval.num_samples',
  'data.max_prompt_tokens',
)


def running(config: ml_collections.ConfigDict) -> tuple[str, ...]:
  """The stages of a config that run: 'pretrain' does where its base is meant."""
  wanted = config.init == 'pretrain' or config.stages[-1] == 'pretrain'
  return tuple(name for name in config.stages if wanted or name != 'pretrain')


def corpus(
  config: ml_collections.ConfigDict, made: Parts
) -> batching.SyntheticCorpusBatches:
  c = config.pretrain
  depth = config.model.num_nextn_predict_layers
  if c.length_tokens < depth + 2:
    raise UserError(
      f'pretrain: rows of length_tokens = {c.length_tokens} hold no target '
      f'for model.num_nextn_predict_layers = {depth}; they need {depth + 2}'
    )
  divides(
    'pretrain.batch_size',
    c.batch_size,
    c.gradient_accumulation_steps,
    made.model.layout,
  )
  return batching.SyntheticCorpusBatches(
    _corpus_tasks(config),
    corpus_config(config),
    made.template,
    made.tokenizer,
    c.batch_size,
    c.length_tokens,
    config.seed,
    c.max_steps,
  )


def init_file(config: ml_collections.ConfigDict) -> Path:
  """Of config.init; it need not exist."""
  if config.init == 'pretrain':
    return base_file(config)
  if config.init == 'shipped':
    return SHIPPED_BASE
  return Path(config.init).expanduser()


def corpus_config(config: ml_collections.ConfigDict) -> tasks.CorpusConfig:
  fields = config.corpus.to_dict()
  del fields['tasks']
  return tasks.CorpusConfig(**fields)


def _corpus_tasks(config: ml_collections.ConfigDict) -> dict[str, float]:
  """Returns the share of each task in the corpus."""
  if not config.corpus.tasks:
    return {config.data.task: 1.0}
  weights = mixture.parse(config.corpus.tasks)
  for name in weights:
    tasks.get(name)
  return dict(
    zip(
      weights,
      mixture.proportions([1] * len(weights), list(weights.values()), 1.0),
    )
  )


def prompts(
  config: ml_collections.ConfigDict,
  made: Parts,
  split: str,
  general: bool = True,
) -> Sequence[Prompt]:
  """The training prompts, with general ones or without; or the first
  eval.num_problems held-out ones."""
  asked = questions.Questions(config, made.template, made.tokenizer)
  if split == tasks.HELD_OUT:
    return asked.held_out()
  return asked.training(general)


def engine(
  config: ml_collections.ConfigDict, made: Parts, rows: int | None = None
) -> Engine:
  """The sampler of everything in a run: rollouts, evaluations, samples.

  Args:
    config: Its sizes.
    made: Whose model samples.
    rows: That are asked for; without it, what a step or an evaluation asks.
  """
  _fits_context(config)
  return Engine(
    made.model,
    engine_config(config, rows),
    record_routing=config.rl.routing_replay,
    detokenize=made.tokenizer.decode,
  )


def engine_config(
  config: ml_collections.ConfigDict, rows: int | None = None
) -> EngineConfig:
  """The sampler's sizes, with no more rows than are asked for."""
  asked = rows or max(
    groups_in_flight(config) * config.rl.group_size,
    config.eval.num_problems * config.eval.num_samples,
  )
  return EngineConfig(
    **config.rollout.to_dict()
    | {
      'max_num_seqs': min(config.rollout.max_num_seqs, asked),
      'max_model_len': config.data.max_prompt_tokens + config.rl.max_new_tokens,
    }
  )


def groups_in_flight(config: ml_collections.ConfigDict) -> int:
  """How many groups a step samples, to complete rl.prompts_per_step."""
  factor = config.rl.oversample
  if factor < 1:
    raise UserError(f'rl: oversample must be at least 1, got {factor}')
  return round(config.rl.prompts_per_step * factor)


def evaluator(
  config: ml_collections.ConfigDict, made: Parts, sampler: Engine
) -> Evaluator:
  """Of the held-out problems; by rules alone, whatever a run rewards."""
  c = config.eval
  rules = RewardManager({}, {}, made.parser, reward_options(config))
  return Evaluator(
    sampler,
    prompts(config, made, tasks.HELD_OUT),
    made.tokenizer,
    rules,
    made.parser,
    config.data.max_prompt_tokens,
    c.num_samples,
    eval_sampling(config, made),
  )


def eval_sampling(
  config: ml_collections.ConfigDict, made: Parts
) -> SamplingParams:
  """How held-out problems are answered."""
  c = config.eval
  return SamplingParams(
    max_new_tokens=config.rl.max_new_tokens,
    temperature=c.temperature,
    top_p=c.top_p,
    stop_token_ids=made.tokenizer.stop_ids,
  )


def reward(
  config: ml_collections.ConfigDict,
  made: Parts,
  reward_models: Mapping[str, RewardModelFn] | None = None,
) -> RewardManager:
  """Of a run's completions; with what its reward models say of them."""
  c = config.rl
  return RewardManager(
    c.reward.to_dict(),
    c.general_reward.to_dict(),
    made.parser,
    reward_options(config),
    reward_models,
  )


def reward_options(config: ml_collections.ConfigDict) -> RewardOptions:
  c = config.rl
  return RewardOptions(
    max_tokens=c.max_new_tokens,
    max_unscorable_share=c.max_unscorable_share,
    overlong_buffer_tokens=c.overlong_buffer_tokens,
    repetition_n=c.repetition_n,
    code_partial_credit=c.code_partial_credit,
  )


def check_rl(config: ml_collections.ConfigDict, layout: Layout):
  """What a rollout and its updates need of the numbers in config.rl."""
  c = config.rl
  one_of('rl.adv_estimator', c.adv_estimator, ('grpo', 'gae'))
  if c.group_size < 2 and c.adv_estimator == 'grpo':
    raise UserError(
      f'rl: group_size must be at least 2, got {c.group_size}: an advantage '
      'is relative to the other samples of its group'
    )
  if c.temperature <= 0:
    raise UserError(f'rl: temperature must be above 0, got {c.temperature}')
  if c.prompts_per_step < 1:
    raise UserError(
      f'rl: prompts_per_step must be at least 1, got {c.prompts_per_step}'
    )
  divides(
    'rl.prompts_per_step × rl.group_size',
    c.prompts_per_step * c.group_size,
    c.num_minibatches * c.gradient_accumulation_steps,
    layout,
  )
  if c.mtp_loss_weight and not config.model.num_nextn_predict_layers:
    raise UserError(
      f'rl: mtp_loss_weight = {c.mtp_loss_weight} needs look-ahead '
      'modules, but model.num_nextn_predict_layers is 0'
    )
  if c.routing_replay and not config.model.n_routed_experts:
    raise UserError(
      'rl: routing_replay needs experts, but model.n_routed_experts is 0'
    )
  one_of('rl.old_logp_source', c.old_logp_source, ('rollout', 'recompute'))
  policy_loss(config)
  if c.rollout_is != 'none' and c.old_logp_source != 'recompute':
    raise UserError(
      f'rl: rollout_is = {c.rollout_is!r} needs old_logp_source = '
      "'recompute': the "
      "trainer's own probabilities are compared with the sampler's"
    )
  if not 0 < c.ref_model_mixup_alpha <= 1:
    raise UserError(
      f'rl: ref_model_mixup_alpha must lie within (0, 1], got {c.ref_model_mixup_alpha}'
    )
  if (
    c.max_staleness < 0
    or c.general_prompts_after_steps < 0
    or c.dynamic_sampling_max_rounds < 1
  ):
    raise UserError(
      'rl: max_staleness and general_prompts_after_steps must not be below 0, and '
      'dynamic_sampling_max_rounds must be at least 1'
    )
  if c.dynamic_sampling and c.group_size < 2:
    raise UserError(
      f'rl: dynamic_sampling needs group_size above 1, got '
      f'{c.group_size}: one sample alone is never of two worths'
    )
  if c.oversample > 1 and c.old_logp_source != 'rollout':
    raise UserError(
      f'rl: oversample = {c.oversample} needs old_logp_source = '
      "'rollout': only the sampler knows what an older policy thought"
    )
  _fits_context(config)


def policy_loss(config: ml_collections.ConfigDict) -> PolicyLoss:
  c = config.rl
  kl_coef = 0.0 if c.kl_in_reward else c.kl_coef
  return PolicyLoss(
    max_tokens=c.max_new_tokens,
    kl_coef=kl_coef,
    **{
      field.name: c[field.name]
      for field in dataclasses.fields(PolicyLoss)
      if field.name not in ('max_tokens', 'kl_coef')
    },
  )


def rl_sampling(
  config: ml_collections.ConfigDict, made: Parts, **changes
) -> SamplingParams:
  """Nothing is cut away: the ratio would be biased by the mass kept."""
  return SamplingParams(
    **dict(
      max_new_tokens=config.rl.max_new_tokens,
      temperature=config.rl.temperature,
      stop_token_ids=made.tokenizer.stop_ids,
    )
    | changes
  )


def optimizer_config(section: ml_collections.ConfigDict) -> OptimizerConfig:
  return OptimizerConfig(**section.optimizer)


def _fits_context(config: ml_collections.ConfigDict):
  prompt, new = config.data.max_prompt_tokens, config.rl.max_new_tokens
  context = config.model.max_position_embeddings
  if prompt + new > context:
    raise UserError(
      f'data.max_prompt_tokens = {prompt} and rl.max_new_tokens = {new} '
      f'exceed model.max_position_embeddings = {context}; lower either, '
      'as in --config.rl.max_new_tokens='
      f'{max(context - prompt, 1)}'
    )


def one_of(name: str, value, choices: tuple[str, ...]):
  if value not in choices:
    raise UserError(f'{name} must be one of {choices}, got {value!r}')


def divides(name: str, rows: int, parts_: int, layout: Layout):
  """Rows split into parts_, and each part over the mesh."""
  over = layout.size('B')
  if rows < 1 or rows % (parts_ * over):
    raise UserError(
      f'{name} = {rows} does not divide into {parts_} batches over the '
      f"mesh's {' × '.join(layout.activation_axes('B'))} = {over}"
    )


def widths(
  section: str, tokens: Sequence[int], max_position_embeddings: int
) -> tuple[int, ...]:
  """The lengths that batches of a section are padded to."""
  tokens = tuple(tokens)
  if not tokens or min(tokens) < 2 or list(tokens) != sorted(set(tokens)):
    raise UserError(
      f'{section}: length_buckets = {tokens} must rise, from at least 2'
    )
  if tokens[-1] > max_position_embeddings:
    raise UserError(
      f'{section}: length_buckets ends at {tokens[-1]}, beyond '
      f'model.max_position_embeddings = {max_position_embeddings}'
    )
  return tokens


def check_files(
  key: str,
  names: Sequence[str],
  missing: Collection[str],
  known: Collection[str] = tuple(tasks.TASKS),
):
  """Are the files of a config's list there, but for those that are to come?

  Args:
    key: Of the list: 'sft.data'.
    names: What stands in it.
    missing: 'sft.data[0]', …: the entries to come.
    known: Names that are no files.

  Raises:
    UserError: naming what is not there.
  """
  for i, name in enumerate(mixture.parse(names)):
    if f'{key}[{i}]' not in missing and name not in known:
      readers.files(name)


def base_file(config: ml_collections.ConfigDict) -> Path:
  """Where a base made by this config is kept for the next run to find."""
  made_by = {
    key: config[key].to_dict()
    for key in ('model', 'tokenizer', 'corpus', 'pretrain')
  }
  # Bases made before stay found.
  for key in (
    'tasks',
    'connective_rate',
    'language_mixing_rate',
    'general_error_rate',
  ):
    if not made_by['corpus'][key]:
      del made_by['corpus'][key]
  made_by |= {
    'seed': config.seed,
    'task': config.data.task,
    # Of empty texts nothing is seen: bases made before stay found.
    'template': ''.join(
      config.data[key] for key in ('template', 'system', 'response_prefix')
    ),
  }
  text = json.dumps(made_by, sort_keys=True)
  digest = hashlib.sha256(text.encode()).hexdigest()[:16]
  cache = Path(os.environ.get('R1JAX_CACHE', '~/.cache/r1jax')).expanduser()
  return cache / 'bases' / f'{digest}.safetensors'
