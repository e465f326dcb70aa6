"""The loss of multi-token prediction (MTP) modules."""

import dataclasses

import jax
import jax.numpy as jnp

from r1jax.algos import common
from r1jax.model import mtp
from r1jax.model.transformer import Transformer, output_head


@dataclasses.dataclass(frozen=True)
class MTPLoss:
  """The schedule of λ, the weight of the MTP loss (V3 section 4.2).

  Attributes:
    weight: λ at first.
    final_weight: λ from the switch on.
    switch_updates: Number of optimizer updates before the switch.
  """

  weight: float
  final_weight: float
  switch_updates: int

  def at(self, updates) -> jax.Array:
    """Returns λ after so many optimizer updates."""
    return jnp.where(
      updates < self.switch_updates, self.weight, self.final_weight
    )


def mtp_loss(
  model: Transformer,
  params,
  hidden_BTD,
  inputs,
  target_BT,
  weight_BT,
  total_weight,
  balance_BT=None,
  prefix_BT=None,
):
  """Returns the mean cross-entropy of the MTP modules (V3 eq. 24, 25).

  Args:
    model: A model with MTP modules.
    params: Its parameters.
    hidden_BTD: Hidden states after the main model's final norm.
    inputs: tokens_BT, position_BT and segment_BT.
    target_BT: int32 next tokens.
    weight_BT: Weight of each target in the loss.
    total_weight: Sum of the weights of the whole batch.
    balance_BT, prefix_BT: See Transformer.__call__.

  Returns:
    The loss without λ, and the routing of the modules' MoE layers.
  """
  hidden_ZBTD, routing = model.apply(
    {'params': params},
    hidden_BTD,
    *inputs,
    balance_BT,
    prefix_BT,
    method='predict_ahead',
  )
  head, depth = output_head(model, params), model.config.prediction_depth
  total = jnp.float32(0)
  for k in range(depth):
    target, weight = mtp.targets(target_BT, weight_BT, inputs[2], k + 1)
    logp_BT, _ = common.token_logp(
      hidden_ZBTD[k], head, target, layout=model.layout, mask_BT=weight != 0
    )
    total -= jnp.sum(logp_BT * weight) / jnp.maximum(total_weight, 1)
  return total / depth, routing
