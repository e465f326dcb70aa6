"""Stages that sample from a policy and write a dataset."""

from collections.abc import Iterator
import dataclasses

from r1jax.config.conditions import above, is_set
from r1jax.config.field import key
from r1jax.config.schema.section import Problem, Section


@dataclasses.dataclass(frozen=True)
class SampledDataConfig(Section):
  """Keys of stages that sample completions; rl.max_new_tokens bounds them."""

  num_prompts: int = key(
    0,
    'Number of training prompts, from the first; 0 for all of a dataset.',
    at_least=0,
  )
  num_samples: int = key(4, 'Completions of each prompt.', at_least=1)
  temperature: float = key(1.0, 'Sampling temperature.', at_least=0)
  top_p: float = key(
    1.0,
    'Nucleus mass.',
    above=0,
    at_most=1,
    only_if=above('temperature', 0).quiet,
  )
  prompts_per_chunk: int = key(256, 'Prompts between two saves.', at_least=1)


@dataclasses.dataclass(frozen=True)
class RejectionSamplingConfig(SampledDataConfig):
  """Completions of config.init of which the good ones are kept to learn from.

  The stage `rejection_sampling` (DeepSeek-R1 section 2.3.3).
  """

  require_correct: bool = key(
    True, 'Whether completions that a grader finds wrong are dropped.'
  )
  require_format: bool = key(
    True, 'Whether completions that break data.response_format are dropped.'
  )
  min_language: float = key(
    0.0,
    "Least share of words in the question's language.",
    at_least=0,
    at_most=1,
  )
  max_repetition: float = key(
    1.0, 'Largest share of repeated 4-grams of words.', at_least=0, at_most=1
  )
  max_tokens: int = key(
    0, 'Longest completion; 0 for any.', unit='tokens', at_least=0
  )
  forbidden_substrings: tuple[str, ...] = key(
    (), "Texts that must not occur in a completion, such as '```'."
  )
  reward_model: str = key('', 'Weights of a reward model that scores.')
  min_score: float = key(
    0.0, 'Least score of the reward model.', only_if=is_set('reward_model')
  )
  deduplicate: bool = key(
    True, 'Whether a response that was kept before is dropped.'
  )
  max_per_prompt: int = key(
    1, 'Largest number of completions that are kept of a prompt.', at_least=1
  )
  sort_by_score: bool = key(
    False,
    'Whether the best scores of a prompt are kept, not the first ones.',
    only_if=is_set('reward_model'),
  )
  pairs: bool = key(
    False,
    'Whether rows are preference pairs for dpo.data: an accepted completion '
    'before one of the same prompt that is wrong or malformed.',
  )
  max_reasoning_rows: int = key(
    0, 'So many of the accepted rows, drawn at random; 0 for all.', at_least=0
  )
  extra_data: tuple[str, ...] = key(
    (),
    'Rows to mix in: files of demonstrations, or synthetic tasks, with a '
    "number of rows, such as 'manners:200'.",
  )
  top_logprobs: int = key(
    0,
    "O, the checkpoint's most likely tokens to keep at each token, to distil "
    'from.',
    at_least=0,
  )

  def conflicts(self) -> Iterator[Problem]:
    if not self.pairs:
      return
    if not (self.require_correct or self.require_format):
      yield (
        'pairs',
        'needs require_correct or require_format: what they drop is the '
        'rejected response',
      )
    for name in ('extra_data', 'top_logprobs'):
      if getattr(self, name):
        yield name, 'must be left out with pairs, which are no demonstrations'


@dataclasses.dataclass(frozen=True)
class LabelStepsConfig(SampledDataConfig):
  """Labels for reasoning steps from continuations: the stage `label_steps`.

  From each step on, the policy finishes the thought several times
  (Math-Shepherd, arXiv 2312.08935).
  """

  prompts_per_chunk: int = key(64, 'Prompts between two saves.', at_least=1)
  num_continuations: int = key(
    8, 'n, continuations of each step (Math-Shepherd: N = 8).', at_least=1
  )
