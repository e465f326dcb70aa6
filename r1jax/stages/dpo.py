"""Direct preference optimisation of a policy, near to where it began.

DeepSeek-R1 has no such stage: it is what a policy may learn from the same
pairs without a reward model.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from r1jax import registry
from r1jax.algos import dpo
from r1jax.config.schema.preferences import DPOConfig
from r1jax.config.schema.run import RunConfig
from r1jax.data import preference_batches
from r1jax.errors import UserError
from r1jax.model.transformer import Transformer
from r1jax.stages.build import packing, preference_data
from r1jax.stages.build import parts as build
from r1jax.stages.build.abstract import train_state_of
from r1jax.stages.preferences import PreferenceStage, abstract_batch
from r1jax.stages.stage import Kind, Network, Update
from r1jax.train import dpo_step, optimizer

_UNTRAINED = ('mtp', 'scalar')


@registry.stage('dpo')
class DPO(PreferenceStage):
  """Trains config.init, which is also the reference, on pairs."""

  section = DPOConfig
  takes = {
    'dpo.data': (Kind.PREFERENCE_DATA,),
    'dpo.eval_data': (Kind.PREFERENCE_DATA,),
  }
  untrained = _UNTRAINED
  predicts = True

  def __init__(self, config: RunConfig, parts: build.Parts):
    c = config.dpo
    shape = packing.example_row_shape(config, self.name, parts.model.layout)
    datasets = preference_data.datasets(
      config,
      parts,
      self.name,
      shape,
      lambda rows, bad_rows: preference_batches.dpo_examples(
        rows, parts.tokenizer, c.max_tokens, bad_rows
      ),
    )
    super().__init__(config, parts, datasets, shape)
    self._robust = _group_robust(c, datasets)
    self._logps = dpo_step.response_logps(parts.model, shape, 2)
    (self._update,) = self.update(
      config,
      parts.model.layout,
      num_updates=self.num_steps,
      model=parts.model,
      robust=self._robust,
    )

  @classmethod
  def networks(cls, config: RunConfig) -> list[Network]:
    return [
      *super().networks(config),
      Network('reference policy', config.model),
    ]

  @classmethod
  def check(cls, config, parts, missing):
    preference_data.check(config, parts, cls.name, missing)

  @classmethod
  def update(cls, config, layout, *, num_updates=1000, model=None, robust=None):
    """Returns the program of a step; see Stage.update.

    Ahead of a run, group-robust DPO is compiled for two groups; it is as large
    with any other number.
    """
    c = config.dpo
    shape = packing.example_row_shape(config, cls.name, layout)
    model = model or Transformer(config.model, layout)
    tx = optimizer.make(c.optimizer, num_updates, untrained=_UNTRAINED)
    if c.group_robust and not robust:
      robust = dpo.GroupRobust(c.group_dro_step_size, (1, 1))
    step = dpo_step.dpo(model, tx, c, robust, c, shape)
    train = train_state_of(model, tx)
    group_weights = None
    if robust:
      group_weights = jax.ShapeDtypeStruct(
        (len(robust.counts),), jnp.float32, sharding=layout.replicated()
      )
    state = dpo_step.DPOState(train=train, alpha_g=group_weights)
    arguments = (state, abstract_batch(layout, shape), train.params)
    size = shape.microbatch_rows, shape.row_tokens, shape.max_microbatches
    return [Update('DPO', model, step, arguments, *size)]

  def shardings(self) -> Any:
    return dpo_step.dpo_shardings(self._model, self._tx, self._robust)

  def fresh_state(self, params: Any) -> Any:
    return dpo_step.dpo_state(params, self._tx, self._robust)

  def update_on(self, state: Any, batch: Any) -> tuple[Any, dict]:
    return self._update.step(state, batch, self._base_params)

  def update_flops(self, counts):
    """Returns the model FLOPs of the policy's update and of the reference."""
    return self.info.training(counts) + self.info.forward(counts)

  def policy(self, state: Any) -> Any:
    return state.train.params

  def margins(self, state: Any, batch: Any) -> np.ndarray:
    return np.asarray(
      dpo.log_ratio(*self._logps(state.train.params, self._base_params, batch))
    )

  def extra_metrics(self, state: Any) -> dict[str, float]:
    if not self._robust:
      return {}
    return {
      f'group_weights/{name}': alpha
      for name, alpha in zip(self._datasets.groups, np.asarray(state.alpha_g))
    }


def _group_robust(c: DPOConfig, datasets) -> dpo.GroupRobust | None:
  if not c.group_robust:
    return None
  if '' in datasets.names:
    raise UserError(
      "dpo: group_robust needs a 'group' in every row; "
      f'{datasets.train.row_without_group()} has none'
    )
  return dpo.GroupRobust(c.group_dro_step_size, tuple(datasets.groups.values()))
