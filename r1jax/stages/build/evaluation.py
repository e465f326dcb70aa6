"""The evaluation that config.eval.search asks for."""

from r1jax.config.schema.rollout import MCTSConfig
from r1jax.config.schema.run import RunConfig
from r1jax.config.schema.section import narrow
from r1jax.data import splits
from r1jax.data.text import steps
from r1jax.errors import UserError
from r1jax.evaluate.evaluator import Evaluator
from r1jax.evaluate.search import BestOfN, EvalProblems, TreeSearch
from r1jax.rewards.prm import ProcessRewardModel
from r1jax.rewards.reward_manager import RewardManager
from r1jax.rollout import mcts
from r1jax.rollout.engine import Engine
from r1jax.stages.build import parts as build
from r1jax.stages.build import prompts, reward_models, sampler

_KEY = 'eval.search.process_reward_model'


def evaluator(
  config: RunConfig, parts: build.Parts, engine: Engine
) -> Evaluator | BestOfN | TreeSearch:
  """Builds what evaluates a policy by run(params, key) → Report.

  Raises:
    UserError: a budget is below one step, or the process reward model is
      missing or no such model.
  """
  c = config.eval.search
  if c.kind == 'none':
    return sampler.evaluator(config, parts, engine)
  held_out = prompts.prompts(
    config, parts.template, parts.tokenizer, splits.HELD_OUT
  )
  problems = EvalProblems(
    [held_out[i] for i in range(len(held_out))],
    parts.tokenizer,
    parts.parser,
    RewardManager({}, {}, parts.parser, sampler.reward_options(config)),
    config.data.max_prompt_tokens,
    sampler.eval_sampling(config, parts),
  )
  if c.kind != 'mcts':
    model = _model(config, parts) if c.kind == 'best_of_n' else None
    return BestOfN(engine, problems, config.eval.num_samples, model)
  by_rule = c.leaf_value == 'rule'
  leaf_value = mcts.ROLLOUT if by_rule else c.leaf_value
  params = narrow(MCTSConfig, c, leaf_value=leaf_value)
  if by_rule:
    splitter = steps.make_splitter(
      config.data.step_delimiter, parts.parser, parts.tokenizer
    )
    return TreeSearch(engine, problems, params, splitter, None)
  model = _model(config, parts)
  return TreeSearch(engine, problems, params, model.splitter, model)


def _model(config: RunConfig, parts: build.Parts) -> ProcessRewardModel:
  file = config.eval.search.process_reward_model
  if not file:
    raise UserError(
      f'{_KEY}: {config.eval.search.kind} needs what the stage prm leaves'
    )
  return reward_models.load_process_reward_model(_KEY, file, config, parts)
