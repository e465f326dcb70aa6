"""Process rewards: the chance that a thought ends well, after each step of it.

DeepSeek-R1 tried them and gave them up (section 4.2 of the first version): a
step of general reasoning is hard to define and to judge, and a policy that is
trained on a model's judgement learns to please the model.
"""

from collections.abc import Sequence
import dataclasses

import jax
import numpy as np

from r1jax.algos import prm as process
from r1jax.data.text.steps import Splitter
from r1jax.data.text.tokenizer import Tokenizer
from r1jax.errors import UserError
from r1jax.model import transformer
from r1jax.model.transformer import Transformer
from r1jax.records import Prompt
from r1jax.rewards import reward_model

KIND = 'prm'


@dataclasses.dataclass(frozen=True)
class ProcessScoringConfig:
  """What a process reward model is asked.

  Attributes:
    kind: KIND.
    delimiter: Ends the steps that it has learnt from.
    max_tokens: Of prompt and completion.
    batch_size: Of one call on the device.
  """

  kind: str
  delimiter: str
  max_tokens: int
  batch_size: int = 16


class ProcessRewardModel:
  """A process reward model and its parameters.

  Attributes:
    splitter: Of the steps that it judges.
  """

  def __init__(
    self,
    model: Transformer,
    params,
    tokenizer: Tokenizer,
    splitter: Splitter,
    scoring: ProcessScoringConfig,
  ):
    if not model.config.scalar_head:
      raise UserError(
        'process model: model.scalar_head is False; a process '
        'reward model has a scalar head'
      )
    self.splitter = splitter
    self._params, self._tokenizer, self._how = params, tokenizer, scoring
    self._chances = jax.jit(
      lambda *inputs: jax.nn.sigmoid(transformer.all_scalars(model, *inputs)[0])
    )

  def after(
    self, rows: Sequence[Sequence[int]], last: Sequence[Sequence[int]]
  ) -> list[np.ndarray]:
    """Chances of each row after its tokens of these indices, float32.

    Args:
      rows: Tokens of prompt and completion.
      last: For each row indices of its tokens.
    """
    found: list[np.ndarray] = [np.zeros(0, np.float32)] * len(rows)
    order = np.argsort([len(ids) for ids in rows], kind='stable')
    for start in range(0, len(rows), self._how.batch_size):
      some = order[start : start + self._how.batch_size]
      chance_BT = np.asarray(
        self._chances(
          self._params,
          *reward_model.padded(
            [rows[b] for b in some],
            self._how.batch_size,
            self._how.max_tokens,
            self._tokenizer.pad_id,
          ),
        )
      )
      for b, chance_T in zip(some, chance_BT):
        found[b] = chance_T[list(last[b])]
    return found

  def of_steps(
    self, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]
  ) -> list[np.ndarray]:
    """After each step of each completion; both are tokens."""
    said = [self.splitter.said(tokens) for tokens in completions]
    return self.after(
      [[*prompt, *tokens] for prompt, tokens in zip(prompts, said)],
      [
        [len(prompt) + end - 1 for end in self.splitter.ends(tokens)]
        for prompt, tokens in zip(prompts, said)
      ],
    )

  def scorer(self, how: str):
    """score(prompts, texts) → float32 [B], as other learned rewards have it.

    A text that the tokenizer cannot write, as of what a padded vocabulary's
    last ids become, has no chance.

    Args:
      how: Of process.AGGREGATES.
    """

    def score(prompts: Sequence[Prompt], texts: Sequence[str]) -> np.ndarray:
      found = np.zeros(len(texts), np.float32)
      rows = [self._ids(text) for text in texts]
      known = [b for b, ids in enumerate(rows) if ids is not None]
      each = self.of_steps(
        [self._tokenizer.prompt(prompts[b].text) for b in known],
        [rows[b] for b in known],
      )
      found[known] = [process.aggregate(chance, how) for chance in each]
      return found

    return score

  def _ids(self, text: str) -> list[int] | None:
    try:
      return self._tokenizer.encode(text)
    except UserError:
      return None
