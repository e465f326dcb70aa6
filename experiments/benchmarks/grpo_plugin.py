"""The prompts and the reward of grpo_step.py, as a plugin of r1jax."""

import grpo_model

from r1jax import registry
from r1jax.data.sources import Source
from r1jax.data.splits import HELD_OUT, TRAIN

registry.dataset('random_words')(
  Source(
    files={TRAIN: 'prompts.jsonl', HELD_OUT: 'prompts.jsonl'},
    fields={'question': str, 'answer': str},
    grader='text',
    origin='made by grpo_model.py',
  )
)


@registry.reward('even')
def even(sample):
  """Returns the share of the completion's tokens that have an even number."""
  return grpo_model.reward(sample.completion)
