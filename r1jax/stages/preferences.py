"""Learning from preferences: reward models, and DPO.

R1's reward models score general rows in its second RL stage (second version,
section 3.1); DPO is what a policy may learn from the same pairs without them.
"""

import abc

import ml_collections
import numpy as np

from r1jax.algos import common, dpo, reward_model
from r1jax.data import preference_batches, scored_text
from r1jax.errors import UserError
from r1jax.records import PairBatch
from r1jax.stages.build import parts as build
from r1jax.stages.build import preference_data
from r1jax.stages.measured import Measured
from r1jax.train import dpo_step, reward_model_step
from r1jax.train import state as train_state


class _Preferences(Measured):
  """On comparisons; measured by how many come out on their right side."""

  @abc.abstractmethod
  def _gaps(self, state, batch, base_params) -> np.ndarray:
    """By how much each example of a batch is on its right side."""

  def _evaluated(self, state, base_params) -> dict[str, float]:
    """Accuracy on what is held out: of all, of each group, of the worst."""
    right, group = [], []
    for batch in self._batches():
      gap = self._gaps(state, batch, base_params)
      right.append(common.pairwise_accuracy(gap))
      group.append(_group(batch))
    right, group = (self._counting(found) for found in (right, group))
    metrics = {
      'eval/accuracy': right.mean(),
      'eval/accuracy_stderr': right.std() / np.sqrt(len(right)),
    }
    by_group = {
      name: right[group == i].mean()
      for i, name in enumerate(self._lessons.names)
      if (group == i).any()
    }
    if len(by_group) > 1:
      metrics |= {
        f'eval/accuracy/{name}': value for name, value in by_group.items()
      }
      metrics['eval/worst_group'] = min(by_group.values())
    return {name: float(value) for name, value in metrics.items()}

  def _counting(self, found: list) -> np.ndarray:
    """One after the other, without what fills the last batch."""
    counts = np.concatenate([_counts(batch) for batch in self._batches()])
    return np.concatenate(found)[counts > 0]


def _group(batch) -> np.ndarray:
  return batch.group_P if isinstance(batch, PairBatch) else batch.group_B


def _counts(batch) -> np.ndarray:
  return batch.weight_P if isinstance(batch, PairBatch) else batch.weight_B


class RewardModel(_Preferences):
  """Scores responses: from pairs how helpful, from labels how safe."""

  name = 'reward_model'
  leaves_policy = False

  def __init__(self, config: ml_collections.ConfigDict, parts: build.Parts):
    c = config.reward_model
    _check_judge(config)
    encoder = scored_text.ScoredTextEncoder(
      c.kind, max(c.length_buckets, default=0), parts.tokenizer, parts.parser
    )
    super().__init__(
      config,
      parts,
      preference_data.lessons(
        config,
        parts,
        self.name,
        lambda found, quarantine: preference_batches.reward_model_examples(
          found, encoder, c.cut_long, quarantine
        ),
        labelled=c.kind == scored_text.SAFE,
      ),
      untrained=('mtp', 'head'),
    )
    self._scores = reward_model_step.scores(parts.model)
    self._update = reward_model_step.reward_model(
      parts.model,
      self._tx,
      reward_model.PairwiseLoss(c.margin, c.center_rewards_coefficient),
      self._balancing,
      c.gradient_accumulation_steps,
    )

  @classmethod
  def check(cls, config, parts, missing):
    _check_judge(config)
    preference_data.check(config, parts, cls.name, missing)

  def _shardings(self):
    return train_state.shardings(self._model, self._tx)

  def _fresh(self, params):
    return train_state.create(params, self._tx)

  def _step(self, state, batch, base_params):
    return self._update(state, batch)

  def _train(self, state) -> train_state.TrainState:
    return state

  def _gaps(self, state, batch, base_params) -> np.ndarray:
    score_B = np.asarray(self._scores(state.params, batch))
    if isinstance(batch, PairBatch):
      return score_B[0::2] - score_B[1::2]
    return (2 * batch.safe_B - 1) * score_B

  def _about(self, state) -> dict:
    """How its scores are read: what rewards.reward_model.ScoringConfig holds."""
    each = [
      np.asarray(self._scores(state.params, batch)).reshape(
        len(_counts(batch)), -1
      )
      for batch in self._batches()
    ]
    score = self._counting(each).ravel()
    c = self._config
    return {
      'scoring': {
        'kind': c.kind,
        'max_tokens': c.length_buckets[-1],
        'batch_size': c.score_batch_size,
        'mean': float(score.mean()),
        # Of one that has learnt nothing, all are alike.
        'std': max(float(score.std()), _LEAST),
      }
    }


def _check_judge(config: ml_collections.ConfigDict):
  """What a reward model needs, whatever it learns from."""
  c = config.reward_model
  scored_text.check_kind(c.kind)
  if not config.model.scalar_head:
    raise UserError(
      'reward_model: model.scalar_head is False; a score is '
      'what a scalar head says: set it'
    )
  if c.kind == scored_text.SAFE and (c.margin or c.center_rewards_coefficient):
    raise UserError(
      'reward_model: margin and center_rewards_coefficient are of pairs, and '
      "kind = 'safe' learns from single responses"
    )


_LEAST = 1e-6


class DPO(_Preferences):
  """A policy that follows preferences, near to where it began."""

  name = 'dpo'

  def __init__(self, config: ml_collections.ConfigDict, parts: build.Parts):
    c = config.dpo
    most = max(c.length_buckets, default=0)
    lessons = preference_data.lessons(
      config,
      parts,
      self.name,
      lambda found, quarantine: preference_batches.dpo_examples(
        found, parts.tokenizer, most, quarantine
      ),
    )
    super().__init__(config, parts, lessons, untrained=('mtp', 'scalar'))
    self._loss = _loss(c)
    self._group_robust = _group_robust(c, lessons)
    self._logps = dpo_step.response_logps(
      parts.model, c.gradient_accumulation_steps
    )
    self._update = dpo_step.dpo(
      parts.model,
      self._tx,
      self._loss,
      self._group_robust,
      self._balancing,
      c.gradient_accumulation_steps,
    )

  @classmethod
  def check(cls, config, parts, missing):
    _loss(config.dpo)
    preference_data.check(config, parts, cls.name, missing)

  def _shardings(self):
    return dpo_step.dpo_shardings(self._model, self._tx, self._group_robust)

  def _fresh(self, params):
    return dpo_step.dpo_state(params, self._tx, self._group_robust)

  def _step(self, state, batch, base_params):
    return self._update(state, batch, base_params)

  def _train(self, state) -> train_state.TrainState:
    return state.train

  def _gaps(self, state, batch, base_params) -> np.ndarray:
    return np.asarray(
      dpo.log_ratio(
        self._logps(state.train.params, batch), self._logps(base_params, batch)
      )
    )

  def _told(self, state) -> dict[str, float]:
    if not self._group_robust:
      return {}
    return {
      f'group_weights/{name}': alpha
      for name, alpha in zip(self._lessons.groups, np.asarray(state.alpha_g))
    }


def _loss(c: ml_collections.ConfigDict) -> dpo.DPOLoss:
  return dpo.DPOLoss(c.beta, c.loss_type, c.label_smoothing)


def _group_robust(
  c: ml_collections.ConfigDict, lessons: preference_data.Lessons
) -> dpo.GroupRobust | None:
  if not c.group_robust:
    return None
  if '' in lessons.names:
    raise UserError(
      f"dpo: group_robust needs a 'group' in every row; "
      f'{lessons.train.row_without_group()} has none'
    )
  return dpo.GroupRobust(c.group_dro_step_size, tuple(lessons.groups.values()))
