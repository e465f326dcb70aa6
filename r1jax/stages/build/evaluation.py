"""The evaluation that config.eval.search asks for."""

import ml_collections

from r1jax.data import tasks
from r1jax.data.text import steps
from r1jax.errors import UserError
from r1jax.evaluate.evaluator import Evaluator
from r1jax.evaluate.search import BestOfN, EvalProblems, TreeSearch
from r1jax.rewards.reward_manager import RewardManager
from r1jax.rollout import mcts
from r1jax.rollout.engine import Engine
from r1jax.stages.build import parts as build
from r1jax.stages.build import reward_models

_KEY = 'eval.search.process_reward_model'
KINDS = NONE, VOTE, BEST_OF_N, MCTS = 'none', 'vote', 'best_of_n', 'mcts'
_RULE = 'rule'  # What may value a search, beside mcts.LEAF_VALUES.


def evaluator(
  config: ml_collections.ConfigDict, made: build.Parts, sampler: Engine
) -> Evaluator | BestOfN | TreeSearch:
  """What run(params, key) → Report belongs to.

  Raises:
    UserError: a kind that there is not, a budget below one step, or a process
      model that is missing or no such model.
  """
  c = config.eval.search
  build.one_of('eval.search.kind', c.kind, KINDS)
  if c.kind == NONE:
    return build.evaluator(config, made, sampler)
  prompts = build.prompts(config, made, tasks.HELD_OUT)
  asked = EvalProblems(
    [prompts[i] for i in range(len(prompts))],
    made.tokenizer,
    made.parser,
    RewardManager({}, {}, made.parser, build.reward_options(config)),
    config.data.max_prompt_tokens,
    build.eval_sampling(config, made),
  )
  if c.kind != MCTS:
    model = None
    if c.kind == BEST_OF_N:
      model = _model(config, made)
    return BestOfN(sampler, asked, config.eval.num_samples, model)
  build.one_of(
    'eval.search.leaf_value', c.leaf_value, (*mcts.LEAF_VALUES, _RULE)
  )
  options = mcts.MCTSConfig(
    **{
      field: c[field]
      for field in (
        'budget_tokens',
        'max_step_tokens',
        'answer_reserve_tokens',
        'expansion_width',
        'c_puct',
        'widening_alpha',
        'leaf_batch_size',
        'num_simulations',
        'answer_selection',
      )
    },
    leaf_value=mcts.ROLLOUT if c.leaf_value == _RULE else c.leaf_value,
  )
  if c.leaf_value == _RULE:
    splitter = steps.make_splitter(
      config.data.step_delimiter, made.parser, made.tokenizer
    )
    return TreeSearch(sampler, asked, options, splitter, None)
  model = _model(config, made)
  return TreeSearch(sampler, asked, options, model.splitter, model)


def _model(config: ml_collections.ConfigDict, made: build.Parts):
  file = config.eval.search.process_reward_model
  if not file:
    raise UserError(
      f'{_KEY}: {config.eval.search.kind} needs what the stage prm leaves'
    )
  return reward_models.process_reward_model(_KEY, file, config, made)
