"""The typed records on the arrows of the data flow, and the dimension table.

An array's name ends in its shape, one letter a dimension; the same letters are
einsum indices and sharding axes:

  B sequences (= P·G)    P prompts              G samples a prompt
  T tokens               S cache slots          D model width
  N heads                K kv heads             M = N/K
  H head                 J query-key head (= H + R in MLA)
  R rope part            C kv latent            X latent cache entry (= C + R)
  Q query latent         U value head           F ffn width
  E experts              A active experts       V vocabulary
  L layers               W blocks; pages a row  Y pages of the cache's pool
  Z look-ahead depth; parts of a cache entry
  O tokens of a teacher's distribution that are kept
  g groups of preferences
"""

from collections.abc import Sequence
from typing import NamedTuple

import chex
import numpy as np

FINISH_LENGTH = 0  # Ran into the token budget: truncated.
FINISH_STOP = 1  # Sampled an end-of-sequence token.


class Message(NamedTuple):
  """One turn of a conversation; `role` is 'system', 'user' or 'assistant'."""

  role: str
  content: str


@chex.dataclass(frozen=True)
class Prompt:
  """One question, on the host.

  Attributes:
    id: Unique within its source; names the row in errors and samples.
    text: The templated prompt, exactly as the tokenizer sees it.
    question: The bare question.
    answer: The gold answer, in the form that the source's grader reads.
    source: Which grader scores it: 'arithmetic', 'countdown' or 'math'.
    where: 'path:line' of a row of a file; for errors.
    language: Of the question, and so of the answer that it asks for: ISO 639.
    messages: The turns that lead to the answer, where there are several; empty
      where the question is all.
  """

  id: str
  text: str
  question: str
  answer: str
  source: str
  where: str = ''
  language: str = 'en'
  messages: tuple[Message, ...] = ()

  def __post_init__(self):  # A checkpoint's JSON has lists for tuples.
    object.__setattr__(
      self, 'messages', tuple(Message(*turn) for turn in self.messages)
    )


@chex.dataclass(frozen=True)
class Demonstration:
  """A prompt and a response to learn from, on the host.

  Attributes:
    id: Unique within its source.
    question, messages: As Prompt has them.
    prompt: The templated prompt.
    response: What follows it, up to the end-of-sequence token.
    general: Of a general row, not of reasoning.
    where: 'path:line' of a row of a file; for errors.
    teacher: What a teacher thought of each token of the response, or None.
  """

  id: str
  question: str
  prompt: str
  response: str
  messages: tuple[Message, ...] = ()
  general: bool = False
  where: str = ''
  teacher: 'TopLogp | None' = None


class TopLogp(NamedTuple):
  """The likeliest tokens of T distributions over the vocabulary.

  Attributes:
    ids_TO: int32.
    logp_TO: float32, their log-probabilities, of all tokens at temperature τ.
    temperature: τ.
  """

  ids_TO: np.ndarray
  logp_TO: np.ndarray
  temperature: float


@chex.dataclass(frozen=True)
class PreferencePair:
  """Two responses to a prompt, of which one was preferred, on the host.

  Attributes:
    prompt: Its `where` is the row's.
    chosen, rejected: What follows the prompt, up to the end-of-sequence token.
    group: Whose preference it is; '' where the row does not say.
  """

  prompt: Prompt
  chosen: str
  rejected: str
  group: str = ''


@chex.dataclass(frozen=True)
class LabelledResponse:
  """One response and whether it is safe; see PreferencePair."""

  prompt: Prompt
  response: str
  safe: bool
  group: str = ''


@chex.dataclass(frozen=True)
class PromptBatch:
  """Tokenised prompts, padded on the left so that all end in one column.

  Example, T = 5, prompts [7, 8, 9] and [7, 8, 9, 4, 5]:
    tokens_PT = [[0, 0, 7, 8, 9], [7, 8, 9, 4, 5]]
    valid_PT  = [[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]]

  Attributes:
    tokens_PT: int32.
    valid_PT: bool, False on padding. Never derived from token ids.
    id_P: uint32 hash of Prompt.id: seeds the prompt's samples.
  """

  tokens_PT: chex.Array
  valid_PT: chex.Array
  id_P: chex.Array


@chex.dataclass(frozen=True)
class Rollout:
  """G completions for each of P prompts; row b belongs to prompt b // G.

  Prompt columns come first, completion columns after them, one T axis.

  Attributes:
    tokens_BT: int32, prompt (left-padded) then completion (right-padded).
    valid_BT: bool, True on prompt and completion tokens.
    mask_BT: bool, True on completion tokens, the stop token among them.
    logp_BT: float32 log-probability of each token under the distribution that
      it was sampled from; 0 outside mask_BT.
    model_logp_BT: The same at temperature 1, with nothing cut.
    age_BT: int32, how many steps ago the policy was current that drew the
      token: 0, but in rows that an earlier step has begun.
    finish_B: int32, FINISH_STOP or FINISH_LENGTH.
    length_B: int32, completion tokens, the stop token among them.
    group_B: int32, which of the batch's prompts the row completes.
    experts_BTLA: uint16, the experts of each token in each MoE layer, or None;
      meaningless where valid_BT is False.
  """

  tokens_BT: chex.Array
  valid_BT: chex.Array
  mask_BT: chex.Array
  logp_BT: chex.Array
  model_logp_BT: chex.Array
  age_BT: chex.Array
  finish_B: chex.Array
  length_B: chex.Array
  group_B: chex.Array
  experts_BTLA: chex.Array | None = None


@chex.dataclass(frozen=True)
class Scored:
  """Rewards, on the host.

  Attributes:
    reward_B: float32, the weighted sum of the parts; 0 where not scorable.
    scorable_B: bool, False where no grader could say anything of the answer.
    parts: Name to float32 [B], NaN where a sample has none: 'accuracy', …
    verdicts: B names, of rewards/verdict.py; or 'general'.
    texts: B decoded completions.
  """

  reward_B: np.ndarray
  scorable_B: np.ndarray
  parts: dict[str, np.ndarray]
  verdicts: Sequence[str]
  texts: Sequence[str]

  def groups(self, size: int) -> list['Scored']:
    """The inverse of `together`, of batches of one size."""

    def cut(start: int) -> Scored:
      part = slice(start, start + size)
      return Scored(
        reward_B=self.reward_B[part],
        scorable_B=self.scorable_B[part],
        parts={name: x_B[part] for name, x_B in self.parts.items()},
        verdicts=self.verdicts[part],
        texts=self.texts[part],
      )

    return [cut(start) for start in range(0, len(self.texts), size)]

  @classmethod
  def together(cls, batches: Sequence['Scored']) -> 'Scored':
    """One after the other."""
    beside = lambda arrays: np.concatenate(list(arrays))
    return cls(
      reward_B=beside(b.reward_B for b in batches),
      scorable_B=beside(b.scorable_B for b in batches),
      parts={
        name: beside(b.parts[name] for b in batches)
        for name in batches[0].parts
      },
      verdicts=[v for b in batches for v in b.verdicts],
      texts=[t for b in batches for t in b.texts],
    )


@chex.dataclass(frozen=True)
class RLBatch:
  """What a policy update reads.

  Attributes:
    rollout: The sampled sequences.
    adv_BT: float32, of each token; [B, 1] where a sequence's share one.
    old_logp_BT: float32, log-probabilities under the sampling policy, of each
      token the one that drew it.
    ref_logp_BT: float32, under the reference policy.
    weight_BT: float32, of each token in the loss, where the sampler was not
      the trainer's policy (see grpo.mismatch_weight); None for 1.
    value_BT, return_BT: float32, of the state that each token was drawn in:
      what it was worth by the value function, and what that is to learn; None
      without one.
  """

  rollout: Rollout
  adv_BT: chex.Array
  old_logp_BT: chex.Array
  ref_logp_BT: chex.Array
  weight_BT: chex.Array | None = None
  value_BT: chex.Array | None = None
  return_BT: chex.Array | None = None


@chex.dataclass(frozen=True)
class StepBatch:
  """Thoughts whose steps are labelled, right-padded.

  A prompt [7, 8] and two steps, [4, 5] and [6], with the labels 0.5 and 1:
    tokens_BT = [7, 8, 4, 5,   6, 0]
    label_BT  = [0, 0, 0, 0.5, 1, 0]
    weight_BT = [0, 0, 0, 1,   1, 0]

  Attributes:
    valid_BT: bool, False on padding.
    label_BT: float32, of a step at its last token.
    weight_BT: float32, 1 there and 0 elsewhere.
  """

  tokens_BT: chex.Array
  valid_BT: chex.Array
  label_BT: chex.Array
  weight_BT: chex.Array


@chex.dataclass(frozen=True)
class TokenBatch:
  """Packed documents for next-token prediction.

  Documents [7, 8, 9] and [4, 5] packed into T = 6, one spare column:
    tokens_BT   = [7, 8, 9, 4, 5, 0]
    target_BT   = [8, 9, 0, 5, 0, 0]   the next token of the same document
    weight_BT   = [1, 1, 0, 1, 0, 0]   0 where a document ends, and on padding
                                       (SFT: 0 too where the target is prompt)
    segment_BT  = [1, 1, 1, 2, 2, 0]   0 on padding
    position_BT = [0, 1, 2, 0, 1, 0]

  Attributes:
    top_ids_BTO, top_logp_BTO: A teacher's likeliest next tokens, int32, and
      their log-probabilities, float32, where weight_BT is not 0; or None.
  """

  tokens_BT: chex.Array
  target_BT: chex.Array
  weight_BT: chex.Array
  segment_BT: chex.Array
  position_BT: chex.Array
  top_ids_BTO: chex.Array | None = None
  top_logp_BTO: chex.Array | None = None


@chex.dataclass(frozen=True)
class PairBatch:
  """P pairs as B = 2·P rows, a chosen response and then its rejected one.

  Prompt [7, 8], chosen [9], rejected [4, 5], 2 to end them, T = 6:
    tokens_BT = [[7, 8, 9, 2, 0, 0], [7, 8, 4, 5, 2, 0]]
    valid_BT  = [[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 0]]
    mask_BT   = [[0, 0, 1, 1, 0, 0], [0, 0, 1, 1, 1, 0]]

  Attributes:
    tokens_BT: int32.
    valid_BT: bool, False on padding.
    mask_BT: bool, True on the response and its end.
    weight_P: float32, 1; 0 for a pair that only fills the batch.
    group_P: int32, the pair's group.
  """

  tokens_BT: chex.Array
  valid_BT: chex.Array
  mask_BT: chex.Array
  weight_P: chex.Array
  group_P: chex.Array


@chex.dataclass(frozen=True)
class LabelBatch:
  """Single responses; see PairBatch.

  Attributes:
    safe_B: float32, 1 for safe, 0 for unsafe.
    weight_B: float32; 0 for a row that only fills the batch.
    group_B: int32.
  """

  tokens_BT: chex.Array
  valid_BT: chex.Array
  safe_B: chex.Array
  weight_B: chex.Array
  group_B: chex.Array
