"""Batches of RL for tests: packed rows, and the oracle of one row a sample."""

import numpy as np

from r1jax.data import sample_packing
from r1jax.data.sample_packing import RowShape
from r1jax.records import RLBatch, Rollout


def one_a_row(rollout: Rollout) -> RLBatch:
  """The oracle: each sample a row of its own, in order."""
  zeros = np.zeros_like(rollout.staleness_BT)
  return RLBatch(
    tokens_BT=rollout.tokens_BT,
    position_BT=np.maximum(rollout.valid_BT.cumsum(1) - 1, 0),
    segment_BT=rollout.valid_BT.astype(np.int32),
    sample_BT=zeros + np.arange(len(zeros), dtype=np.int32)[:, None],
    mask_BT=rollout.mask_BT,
    logp_BT=rollout.logp_BT,
    staleness_BT=rollout.staleness_BT,
    num_microbatches_u=np.array([1]),
    experts_BTLA=rollout.experts_BTLA,
  )


def packed(rollout: Rollout, shape: RowShape, **values) -> RLBatch:
  """The rollout's rows, with arrays [B, T] of its samples packed likewise."""
  included_B = np.ones(len(rollout.tokens_BT), bool)
  order_B = np.arange(len(rollout.tokens_BT))
  pack = lambda **fields: sample_packing.pack(
    rollout.replace(**fields), included_B, order_B, shape
  )
  return pack().replace(
    **{name: pack(logp_BT=np.asarray(x)).logp_BT for name, x in values.items()}
  )


def unpacked(batch: RLBatch, rollout: Rollout, x_BT) -> np.ndarray:
  """Returns packed numbers as rows of the rollout, 0 outside the loss mask."""
  found = np.zeros(rollout.mask_BT.shape, np.float32)
  mask = np.asarray(batch.mask_BT)
  sample = batch.sample_BT[mask]
  column = batch.position_BT[mask] + rollout.valid_BT.argmax(1)[sample]
  found[sample, column] = np.asarray(x_BT)[mask]
  return found
