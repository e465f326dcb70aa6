"""The sampler of a run, its rewards, and the evaluation of its policy."""

from collections.abc import Mapping
import dataclasses

from r1jax.config.schema.run import RunConfig
from r1jax.data import splits
from r1jax.evaluate.evaluator import Evaluator
from r1jax.rewards.parts import RewardOptions
from r1jax.rewards.reward_manager import RewardManager, RewardModelFn
from r1jax.rollout.engine import Engine
from r1jax.rollout.sampling import SamplingParams
from r1jax.rollout.sizes import EngineConfig
from r1jax.stages.build import prompts
from r1jax.stages.build.parts import Parts, check_context


def engine(
  config: RunConfig, parts: Parts, num_requests: int | None = None
) -> Engine:
  """Builds the sampler of everything in a run: rollouts and evaluations.

  Args:
    config: The run.
    parts: Its model and tokenizer.
    num_requests: Requests at once; by default those of a step, or of an
      evaluation.

  Raises:
    UserError: prompts and completions exceed the model's context, or memory
      cannot hold the KV cache.
  """
  check_context(config)
  return Engine(
    parts.model,
    engine_config(config, num_requests),
    record_routing=config.rl.routing_replay,
    detokenize=parts.tokenizer.decode,
  )


def engine_config(
  config: RunConfig, num_requests: int | None = None
) -> EngineConfig:
  """Returns the sampler's sizes, with no more sequences than requests."""
  num_requests = num_requests or max(
    groups_in_flight(config) * config.rl.group_size,
    config.eval.num_problems * config.eval.num_samples,
  )
  sizes = dataclasses.asdict(config.rollout) | {
    'max_num_seqs': min(config.rollout.max_num_seqs, num_requests)
  }
  return EngineConfig(
    **sizes,
    max_model_len=config.data.max_prompt_tokens + config.rl.max_new_tokens,
  )


def groups_in_flight(config: RunConfig) -> int:
  """Returns how many groups a step samples to complete rl.prompts_per_step."""
  return round(config.rl.prompts_per_step * config.rl.oversample)


def rl_sampling(config: RunConfig, parts: Parts, **changes) -> SamplingParams:
  """Returns how RL samples: nothing is cut away, which would bias the ratio."""
  params = SamplingParams(
    max_new_tokens=config.rl.max_new_tokens,
    temperature=config.rl.temperature,
    stop_token_ids=parts.tokenizer.stop_ids,
  )
  return dataclasses.replace(params, **changes)


def eval_sampling(config: RunConfig, parts: Parts) -> SamplingParams:
  """Returns how held-out problems are answered."""
  return SamplingParams(
    max_new_tokens=config.rl.max_new_tokens,
    temperature=config.eval.temperature,
    top_p=config.eval.top_p,
    stop_token_ids=parts.tokenizer.stop_ids,
  )


def evaluator(config: RunConfig, parts: Parts, sampler: Engine) -> Evaluator:
  """Builds the evaluation on held-out problems.

  It grades by rules alone, whatever the run rewards.
  """
  rules = RewardManager({}, {}, parts.parser, reward_options(config))
  return Evaluator(
    sampler,
    prompts.prompts(config, parts.template, parts.tokenizer, splits.HELD_OUT),
    parts.tokenizer,
    rules,
    parts.parser,
    config.data.max_prompt_tokens,
    config.eval.num_samples,
    eval_sampling(config, parts),
    config.eval.pass_k,
  )


def reward(
  config: RunConfig,
  parts: Parts,
  reward_models: Mapping[str, RewardModelFn | None] | None = None,
) -> RewardManager:
  """Builds the reward of a run's completions.

  Args:
    config: The run.
    parts: Its parser.
    reward_models: The reward model of each learned part, by name.
  """
  return RewardManager(
    config.rl.reward,
    config.rl.general_reward,
    parts.parser,
    reward_options(config),
    reward_models,
  )


def reward_options(config: RunConfig) -> RewardOptions:
  """Returns the options of the parts of a reward."""
  c = config.rl
  return RewardOptions(
    max_tokens=c.max_new_tokens,
    max_unscorable_share=c.max_unscorable_share,
    overlong_buffer_tokens=c.overlong_buffer_tokens,
    repetition_n=c.repetition_n,
    code_partial_credit=c.code_partial_credit,
    timeout_secs=c.reward_timeout_secs,
  )
