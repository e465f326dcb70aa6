"""Scalar scores of padded sequences, one a row, for models that reward RL."""

from typing import Any

import jax
import jax.numpy as jnp

from r1jax.model.transformer import Transformer, positions


def last_valid(x_BT: jax.Array, valid_BT: jax.Array) -> jax.Array:
  """Returns each row's value at its last valid token, [B]."""
  T = valid_BT.shape[1]
  last_B = T - 1 - jnp.argmax(valid_BT[:, ::-1], 1)
  return jnp.take_along_axis(x_BT, last_B[:, None], 1)[:, 0]


def sequence_scores(model: Transformer, params, tokens_BT, valid_BT):
  """Returns the scalar head's output at the last token of each row, [B]."""
  return last_valid(token_scores(model, params, tokens_BT, valid_BT), valid_BT)


def token_scores(model: Transformer, params, tokens_BT, valid_BT):
  """Computes the scalar head's output at every token.

  Args:
    model: A model with a scalar head.
    params: Its parameters.
    tokens_BT: int32.
    valid_BT: bool, False on padding.

  Returns:
    float32 [B, T].
  """
  tokens_BT = model.layout.constrain(tokens_BT, 'BT')
  out: Any = model.apply(
    {'params': params},
    tokens_BT,
    positions(valid_BT),
    valid_BT.astype(jnp.int32),
  )
  return model.apply({'params': params}, out.hidden_BTD, method='scalars')
