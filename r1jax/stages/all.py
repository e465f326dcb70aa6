"""Imports every stage of the package, so that its name is registered."""

from r1jax.stages import (  # noqa: F401
  dpo,
  label_steps,
  pretrain,
  prm,
  rejection_sampling,
  reward_model,
  rl,
  sft,
)
