"""All programs of an RL step with abstract arguments, to compile them ahead.

A step makes the parameters to sample with, prefills prompts and decodes, scores
the samples under the reference policy, and updates the policy. Each program is
told what else is in memory while it runs.
"""

from collections.abc import Callable
import dataclasses
from typing import Any

import jax

from r1jax.config.schema.run import RunConfig
from r1jax.data.sample_packing import RowShape
from r1jax.model.transformer import Transformer
from r1jax.rollout import ahead
from r1jax.rollout.engine import Engine
from r1jax.rollout.sampling import SamplingParams
from r1jax.sharding import Layout
from r1jax.stages import rl_update
from r1jax.stages.build import packing, sampler
from r1jax.stages.build.abstract import train_state_of
from r1jax.stages.memory import bytes_of_arrays
from r1jax.stages.stage import Program, ProgramKind, Update, as_program
from r1jax.train import policy_step, value_step

_STOP_TOKENS = (0,)  # Their ids do not change a program.


def of_step(config: RunConfig, layout: Layout) -> list[Program]:
  """Returns the programs of an RL step, in their order; see Stage.programs."""
  c = config.rl
  model = Transformer(config.model, layout)
  train = train_state_of(model, rl_update.policy_optimizer(config, 1000))
  held = {
    'weights': bytes_of_arrays(train.params),
    'optimizer': bytes_of_arrays(train) - bytes_of_arrays(train.params),
  }
  if c.kl_coef:
    held['reference policy'] = bytes_of_arrays(train.params)
  updates = rl_update.updates(config, layout, 1000)
  if len(updates) > 1:
    held['critic'] = bytes_of_arrays(updates[1].arguments[0])
  without = lambda *names: {k: v for k, v in held.items() if k not in names}
  programs = _sampling(config, model, train.params, held)
  programs += _scoring(config, model, train.params, without)
  if c.adv_estimator == 'gae':
    programs.append(_values(config, updates[-1], held))
  programs.append(as_program(updates[0], without('weights', 'optimizer')))
  if len(updates) > 1:
    programs.append(as_program(updates[1], without('critic')))
  return programs


def _sampling(
  config: RunConfig, model: Transformer, params: Any, held: dict[str, int]
) -> list[Program]:
  """The programs of the rollout engine."""
  engine = Engine(
    model,
    sampler.engine_config(config),
    record_routing=config.rl.routing_replay,
    check_memory=False,
  )
  sampled = ahead.sampled_params(engine, params)
  sampling_params = SamplingParams(
    max_new_tokens=config.rl.max_new_tokens,
    temperature=config.rl.temperature,
    stop_token_ids=_STOP_TOKENS,
  )
  others = {k: v for k, v in held.items() if k != 'weights'}
  if engine.replicas.apart:
    held = {}  # The devices that sample hold nothing else.
  relayout = Program(
    label='weights to sample with',
    kind=ProgramKind.RELAYOUT,
    model=model,
    function=engine.relayout,
    arguments=(params,),
    tokens=0,
    row_tokens=1,
    beside=others,
  )
  calls = {
    ProgramKind.PREFILL: ahead.prefill(engine, sampled),
    ProgramKind.DECODE: ahead.decode(engine, sampled, sampling_params),
  }
  return [relayout] + [
    Program(
      label=f'{kind}, {engine.max_num_seqs * engine.num_shards} sequences'
      if kind is ProgramKind.DECODE
      else str(kind),
      kind=kind,
      model=engine.model,
      function=call.function,
      arguments=call.arguments,
      keywords=call.keywords,
      tokens=call.tokens,
      row_tokens=engine.config.max_model_len,
      beside=held,
    )
    for kind, call in calls.items()
  ]


def _scoring(
  config: RunConfig,
  model: Transformer,
  params: Any,
  without: Callable[..., dict[str, int]],
) -> list[Program]:
  """The pass that computes log-probabilities of old and reference policy."""
  c, layout = config.rl, model.layout
  recompute = c.old_logp_source == 'recompute'
  if not (recompute or c.kl_coef):
    return []
  shape = packing.row_shape(config, layout)
  count = 2 if recompute and c.kl_coef else 1
  given = ['weights'] if recompute else []
  given += ['reference policy'] if c.kl_coef else []
  return [
    Program(
      label=f'log-probs of {"2 policies" if count == 2 else "a policy"}',
      kind=ProgramKind.SCORE,
      model=model,
      function=policy_step.token_logps(model, c.temperature, shape, count),
      arguments=(*[params] * count, _batch(config, layout, shape)),
      tokens=_round_tokens(shape),
      passes=count,
      row_tokens=shape.row_tokens,
      microbatches=shape.max_microbatches,
      beside=without(*given),
    )
  ]


def _values(config: RunConfig, update: Update, held: dict[str, int]) -> Program:
  """The pass that computes the values of a critic, separate or shared."""
  model = update.model
  shape = packing.row_shape(config, model.layout)
  separate = config.rl.ppo.critic == 'separate'
  given = bytes_of_arrays(update.arguments[0].params)
  return Program(
    label='values',
    kind=ProgramKind.SCORE,
    model=model,
    function=value_step.values(model, shape),
    arguments=(update.arguments[0].params, _batch(config, model.layout, shape)),
    tokens=_round_tokens(shape),
    row_tokens=shape.row_tokens,
    microbatches=shape.max_microbatches,
    beside=held
    | (
      {'critic': held['critic'] - given}
      if separate
      else {'weights': held['weights'] - given}
    ),
  )


def _round_tokens(shape: RowShape) -> int:
  """The tokens of one microbatch of each update."""
  return shape.num_updates * shape.microbatch_rows * shape.row_tokens


def _batch(config: RunConfig, layout: Layout, shape: RowShape) -> Any:
  """The rows of a whole step, before anything is known of their samples."""
  num_rows = shape.max_microbatches * shape.num_updates * shape.microbatch_rows
  batch = rl_update.abstract_batch(layout, num_rows, shape, uses_values=False)
  return dataclasses.replace(
    batch,
    num_microbatches_u=jax.ShapeDtypeStruct(
      (shape.num_updates,),
      batch.num_microbatches_u.dtype,
      sharding=layout.replicated(),
    ),
    adv_BT=None,
    old_logp_BT=None,
    ref_logp_BT=None,
  )
