"""Process reward models: a probability of success after each step of a thought.

DeepSeek-R1 tried process rewards and gave them up (section 4.2 of the first
version): a step of general reasoning is hard to define and to label, and a policy
that is trained on such a model learns to exploit it.
"""

from collections.abc import Sequence
import dataclasses

import jax
import numpy as np

from r1jax.algos import prm as process
from r1jax.data.text.steps import StepSplitter
from r1jax.data.text.tokenizer import Tokenizer
from r1jax.errors import UserError
from r1jax.model.scoring import token_scores
from r1jax.model.transformer import Transformer
from r1jax.records import Prompt
from r1jax.rewards import reward_model

KIND = 'prm'


@dataclasses.dataclass(frozen=True)
class ProcessScoringConfig:
  """How a process reward model is run.

  It is stored in the metadata of the model's weights under the key 'scoring'.

  Attributes:
    kind: KIND.
    delimiter: Text that ends a step in the training data.
    max_tokens: Maximum number of tokens of prompt and completion.
    batch_size: Number of completions per call on the device.
  """

  kind: str
  delimiter: str
  max_tokens: int
  batch_size: int = 16


class ProcessRewardModel:
  """A process reward model with its parameters.

  Attributes:
    splitter: Splits completions into the steps that it scores.
  """

  def __init__(
    self,
    model: Transformer,
    params,
    tokenizer: Tokenizer,
    splitter: StepSplitter,
    scoring: ProcessScoringConfig,
  ):
    if not model.config.scalar_head:
      raise UserError(
        'process reward model: model.scalar_head is False; a process reward '
        'model has a scalar head'
      )
    self.splitter = splitter
    self._params, self._tokenizer, self._scoring = params, tokenizer, scoring
    self._probabilities = jax.jit(
      lambda *inputs: jax.nn.sigmoid(token_scores(model, *inputs))
    )

  def scores_at(
    self, rows: Sequence[Sequence[int]], positions: Sequence[Sequence[int]]
  ) -> list[np.ndarray]:
    """Scores each row of tokens after the given positions.

    Args:
      rows: Tokens of prompt and completion.
      positions: Indices of tokens, for each row.

    Returns:
      For each row the probabilities of success at its positions, float32.
    """
    scores: list[np.ndarray] = [np.zeros(0, np.float32)] * len(rows)
    order = np.argsort([len(ids) for ids in rows], kind='stable')
    for start in range(0, len(rows), self._scoring.batch_size):
      batch = order[start : start + self._scoring.batch_size]
      prob_BT = np.asarray(
        self._probabilities(
          self._params,
          *reward_model.padded(
            [rows[b] for b in batch],
            self._scoring.batch_size,
            self._scoring.max_tokens,
            self._tokenizer.pad_id,
          ),
        )
      )
      for b, prob_T in zip(batch, prob_BT):
        scores[b] = prob_T[list(positions[b])]
    return scores

  def step_scores(
    self, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]
  ) -> list[np.ndarray]:
    """Scores each step of each completion.

    Args:
      prompts: Tokens of the prompt of each completion.
      completions: Tokens of the completions.

    Returns:
      For each completion the probabilities of success after its steps, float32.
    """
    trimmed = [
      self.splitter.without_stop_token(tokens) for tokens in completions
    ]
    return self.scores_at(
      [[*prompt, *tokens] for prompt, tokens in zip(prompts, trimmed)],
      [
        [len(prompt) + end - 1 for end in self.splitter.step_ends(tokens)]
        for prompt, tokens in zip(prompts, trimmed)
      ],
    )

  def scorer(self, aggregation: str):
    """Returns a function that scores one response per prompt, float32 [B].

    A text that the tokenizer cannot encode, such as that of the unused last ids
    of a padded vocabulary, scores 0.

    Args:
      aggregation: How the scores of the steps become one; one of the keys of
        algos.prm.AGGREGATES.
    """

    def score(prompts: Sequence[Prompt], texts: Sequence[str]) -> np.ndarray:
      scores = np.zeros(len(texts), np.float32)
      rows = [self._ids(text) for text in texts]
      encoded = {b: ids for b, ids in enumerate(rows) if ids is not None}
      step_scores = self.step_scores(
        [self._tokenizer.encode_prompt(prompts[b].text) for b in encoded],
        list(encoded.values()),
      )
      scores[list(encoded)] = [
        process.aggregate(steps, aggregation) for steps in step_scores
      ]
      return scores

    return score

  def _ids(self, text: str) -> list[int] | None:
    try:
      return self._tokenizer.encode(text)
    except UserError:
      return None
