"""Reward models: how helpful a response is, from pairs; how safe, from labels.

R1's reward models score general rows in its second RL stage (DeepSeek-R1,
second version, section 3.1).
"""

from typing import Any

import numpy as np

from r1jax import registry
from r1jax.config.schema.preferences import RewardModelConfig
from r1jax.config.schema.run import RunConfig
from r1jax.data import preference_batches, scored_text
from r1jax.data.preference_batches import PairBatch
from r1jax.model.transformer import Transformer
from r1jax.stages.build import packing, preference_data
from r1jax.stages.build import parts as build
from r1jax.stages.build.abstract import train_state_of
from r1jax.stages.packed import check_scalar_head
from r1jax.stages.preferences import (
  PreferenceStage,
  abstract_batch,
  example_weight,
)
from r1jax.stages.stage import Kind, Update
from r1jax.train import optimizer, reward_model_step

_UNTRAINED = ('mtp', 'head')
_MIN_STD = 1e-6  # Scores of a model that has learnt nothing are all alike.


@registry.stage('reward_model')
class RewardModelStage(PreferenceStage):
  """Scores responses by a scalar head at their last token."""

  section = RewardModelConfig
  takes = {
    'init': (Kind.POLICY, Kind.REWARD_MODEL, Kind.PRM),
    'reward_model.data': (Kind.PREFERENCE_DATA,),
    'reward_model.eval_data': (Kind.PREFERENCE_DATA,),
  }
  untrained = _UNTRAINED

  def __init__(self, config: RunConfig, parts: build.Parts):
    c = config.reward_model
    check_scalar_head(config, self.name)
    text = scored_text.ScoredTextEncoder(
      c.kind, c.max_tokens, parts.tokenizer, parts.parser
    )
    shape = packing.example_row_shape(config, self.name, parts.model.layout)
    super().__init__(
      config,
      parts,
      preference_data.datasets(
        config,
        parts,
        self.name,
        shape,
        lambda rows, bad_rows: preference_batches.reward_model_examples(
          rows, text, c.truncate_long, bad_rows
        ),
        labelled=not c.is_paired,
      ),
      shape,
    )
    self._scores = reward_model_step.scores(parts.model, shape)
    (self._update,) = self.update(
      config, parts.model.layout, num_updates=self.num_steps, model=parts.model
    )

  @classmethod
  def leaves(cls, config: RunConfig) -> Kind:
    return Kind.REWARD_MODEL

  @classmethod
  def check(cls, config, parts, missing):
    check_scalar_head(config, cls.name)
    preference_data.check(config, parts, cls.name, missing)

  @classmethod
  def update(cls, config, layout, *, num_updates=1000, model=None):
    """Returns the program of a step; see Stage.update."""
    c = config.reward_model
    shape = packing.example_row_shape(config, cls.name, layout)
    model = model or Transformer(config.model, layout)
    tx = optimizer.make(c.optimizer, num_updates, untrained=_UNTRAINED)
    step = reward_model_step.reward_model(model, tx, c, c, shape)
    batch = abstract_batch(layout, shape, labelled=not c.is_paired)
    arguments = (train_state_of(model, tx), batch)
    size = shape.microbatch_rows, shape.row_tokens, shape.max_microbatches
    return [Update('reward model', model, step, arguments, *size)]

  def update_on(self, state: Any, batch: Any) -> tuple[Any, dict]:
    return self._update.step(state, batch)

  def margins(self, state: Any, batch: Any) -> np.ndarray:
    score_B = np.asarray(self._scores(state.params, batch))
    if isinstance(batch, PairBatch):
      return score_B[0::2] - score_B[1::2]
    return (2 * batch.safe_B - 1) * score_B

  def metadata(self, state: Any) -> dict:
    """Returns how its scores are read: see rewards/reward_model.py."""
    each = [
      np.asarray(self._scores(state.params, batch)).reshape(
        len(example_weight(batch)), -1
      )
      for batch in self.eval_batches()
    ]
    score = self.of_examples(each).ravel()
    c = self._config
    return {
      'scoring': {
        'kind': c.kind,
        'max_tokens': c.max_tokens,
        'batch_size': c.score_batch_size,
        'mean': float(score.mean()),
        'std': max(float(score.std()), _MIN_STD),
      }
    }
