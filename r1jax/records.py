"""The dimension table, and the typed records that pass between components.

An array's name ends in its shape, one letter a dimension: `logp_BT` is
[sequences, tokens]. The same letters are einsum indices and, in
r1jax/sharding.py, what is mapped to mesh axes.

  B  rows of a batch: sequences, P·G in RL and 2·P for preference pairs; or
     packed rows, each of several sequences
  P  prompts; each has one group of samples, or one preference pair
  G  samples (completions) per prompt
  T  tokens of a sequence; all tokens of a device inside the MoE layer
  S  cache slots, the key positions that a query attends to
  W  blocks in the block table of one sequence
  Y  blocks in the whole block pool
  L  layers of one stack
  Z  multi-token-prediction (MTP) modules
  D  hidden size of the model
  N  query heads
  K  key-value heads
  M  query heads per key-value head, N/K
  H  width of a head; in MLA of its part without position
  R  rotary part of an MLA head
  J  whole MLA query or key head, H + R
  U  width of a value head
  Q  query latent of MLA
  C  key-value latent of MLA
  X  numbers in a cache entry of one head: C + R in MLA, 2·H in GQA
  F  FFN hidden size
  E  routed experts
  A  active experts, the experts chosen for each token
  I  hidden size of one expert
  V  vocabulary
  O  listed token ids: top log-probabilities, stop ids, biased ids

A digit is a fixed size. Lower-case letters are dimensions that stay within a
module:

  d  concatenated input of an MTP module, 2·D
  g  preference groups of group-robust DPO
  p  (token, expert) pairs, T·A
  r  query rows of a key-value head in one matrix product, M·T
  s  dispatch slots: pairs sorted by expert, padded to whole blocks
  u  updates of a step, one of each minibatch
  w  blocks of dispatch slots
"""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any, NamedTuple

import chex
import numpy as np

from r1jax.message import Message

# A leaf of a record: a jax.Array or a NumPy array; in an abstract record a
# ShapeDtypeStruct, in a record of layouts a sharding.
Array = Any

FINISH_LENGTH = 0  # Reached the token limit: truncated.
FINISH_STOP = 1  # Sampled an end-of-sequence token.


@chex.dataclass(frozen=True)
class Prompt:
  """One question with its reference answer, on the host.

  Attributes:
    id: Identifier, unique within its source; names the row in errors and in
      stored samples.
    text: The templated prompt, exactly as the tokenizer sees it.
    question: The question without the template.
    answer: The reference answer, in the format that the source's grader reads.
    source: Name of the grader that scores it, such as 'arithmetic',
      'countdown' or 'math'.
    where: 'path:line' of the row in its file, for error messages.
    language: ISO 639 code of the question's language, in which the answer is
      expected.
    messages: The conversation that leads to the answer if it has several
      messages; empty if the question is all of it.
    fields: All fields of the dataset's row as JSON, for the rewards of plugins;
      empty for a synthetic task.
  """

  id: str
  text: str
  question: str
  answer: str
  source: str
  where: str = ''
  language: str = 'en'
  messages: tuple[Message, ...] = ()
  fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  def __post_init__(self):  # A prompt read from JSON has lists for tuples.
    object.__setattr__(
      self, 'messages', tuple(Message(*turn) for turn in self.messages)
    )


@chex.dataclass(frozen=True)
class Demonstration:
  """A prompt and a response to fine-tune on, on the host.

  Attributes:
    id: Identifier, unique within its source.
    question: See Prompt.
    prompt: The templated prompt.
    response: The text that follows the prompt, without the end-of-sequence
      token.
    messages: See Prompt.
    tools: JSON schemas of the tools that the conversation may call.
    general: True for general data, False for reasoning data.
    where: 'path:line' of the row in its file, for error messages.
    teacher: A teacher's top log-probabilities at each token of the response,
      to distil from; or None.
  """

  id: str
  question: str
  prompt: str
  response: str
  messages: tuple[Message, ...] = ()
  tools: tuple[Mapping[str, Any], ...] = ()
  general: bool = False
  where: str = ''
  teacher: 'TopLogprobs | None' = None


class TopLogprobs(NamedTuple):
  """The O most likely tokens of T next-token distributions.

  Attributes:
    ids_TO: int32 token ids.
    logp_TO: float32 log-probabilities of these tokens, normalised over the
      whole vocabulary at temperature τ.
    temperature: τ.
  """

  ids_TO: np.ndarray
  logp_TO: np.ndarray
  temperature: float


@chex.dataclass(frozen=True)
class PreferencePair:
  """Two responses to a prompt, one preferred to the other, on the host.

  Attributes:
    prompt: The prompt of both responses; its `where` is that of the row.
    chosen: The preferred response, without the end-of-sequence token.
    rejected: The other response.
    group: Name of the group that has this preference, for group-robust DPO;
      '' if the row names none.
  """

  prompt: Prompt
  chosen: str
  rejected: str
  group: str = ''


@chex.dataclass(frozen=True)
class LabelledResponse:
  """One response with a safety label, on the host.

  Attributes:
    prompt: The prompt; its `where` is that of the row.
    response: The response, without the end-of-sequence token.
    safe: Whether the response is safe.
    group: See PreferencePair.
  """

  prompt: Prompt
  response: str
  safe: bool
  group: str = ''


@chex.dataclass(frozen=True)
class PromptBatch:
  """Tokenized prompts, padded on the left so that all end in one column.

  Example, T = 5, prompts [7, 8, 9] and [7, 8, 9, 4, 5]:
    tokens_PT = [[0, 0, 7, 8, 9], [7, 8, 9, 4, 5]]
    valid_PT  = [[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]]

  Attributes:
    tokens_PT: int32 token ids.
    valid_PT: bool, False on padding. It is never derived from token ids.
    id_P: uint32 hash of Prompt.id, which seeds the prompt's samples.
  """

  tokens_PT: Array
  valid_PT: Array
  id_P: Array


@chex.dataclass(frozen=True)
class Rollout:
  """G completions of each of P prompts, on the host, one row a completion.

  Row b belongs to prompt b // G. The T axis holds the prompt columns first and
  the completion columns after them, as many as the longest completion needs.
  Training reads packed rows instead, an RLBatch.

  Attributes:
    tokens_BT: int32 token ids: the left-padded prompt, then the right-padded
      completion.
    valid_BT: bool, True on prompt and completion tokens.
    mask_BT: bool, True on the tokens that the policy sampled, including the
      stop token: those of the completion, without what an environment wrote.
    logp_BT: float32 log-probability of each token under the distribution that
      it was sampled from, after temperature and truncation (top-p and such); 0
      outside mask_BT.
    model_logp_BT: float32, the same under the model's own distribution, at
      temperature 1 and without truncation.
    staleness_BT: int32, the number of steps since the policy that sampled the
      token was current. 0 except in partial rollouts, which an earlier step
      began.
    finish_B: int32, FINISH_STOP or FINISH_LENGTH.
    length_B: int32, completion tokens including the stop token.
    group_B: int32, index within the batch of the row's prompt.
    experts_BTLA: uint16, the experts that each token was routed to in each MoE
      layer, or None; undefined where valid_BT is False.
  """

  tokens_BT: Array
  valid_BT: Array
  mask_BT: Array
  logp_BT: Array
  model_logp_BT: Array
  staleness_BT: Array
  finish_B: Array
  length_B: Array
  group_B: Array
  experts_BTLA: Array | None = None


@chex.dataclass(frozen=True)
class ScoredRollout:
  """The rewards of B completions, on the host.

  Attributes:
    reward_B: float32, the weighted sum of the reward parts; 0 where
      scorable_B is False.
    scorable_B: bool, False where the grader failed (it timed out or crashed),
      so that nothing is known of the answer.
    parts: Name of each reward part ('accuracy', 'format', …) to its float32
      [B] values before weighting; NaN where the part does not apply.
    verdicts: B names of r1jax/graders/verdict.py, or 'general' for a prompt
      without a rule to grade it.
    texts: B decoded completions.
  """

  reward_B: np.ndarray
  scorable_B: np.ndarray
  parts: dict[str, np.ndarray]
  verdicts: Sequence[str]
  texts: Sequence[str]

  def split(self, size: int) -> list['ScoredRollout']:
    """Splits it into consecutive records of `size` completions each.

    This is the inverse of `concatenate` for records of one size.
    """

    def record(start: int) -> ScoredRollout:
      rows = slice(start, start + size)
      return ScoredRollout(
        reward_B=self.reward_B[rows],
        scorable_B=self.scorable_B[rows],
        parts={name: x_B[rows] for name, x_B in self.parts.items()},
        verdicts=self.verdicts[rows],
        texts=self.texts[rows],
      )

    return [record(start) for start in range(0, len(self.texts), size)]

  @classmethod
  def concatenate(cls, batches: Sequence['ScoredRollout']) -> 'ScoredRollout':
    """Joins records along the batch axis; NaN stands for a part one lacks."""
    join = lambda arrays: np.concatenate(list(arrays))
    names = dict.fromkeys(name for b in batches for name in b.parts)
    none = lambda b: np.full(len(b.texts), np.nan, np.float32)
    return cls(
      reward_B=join(b.reward_B for b in batches),
      scorable_B=join(b.scorable_B for b in batches),
      parts={
        name: join(b.parts.get(name, none(b)) for b in batches)
        for name in names
      },
      verdicts=[v for b in batches for v in b.verdicts],
      texts=[t for b in batches for t in b.texts],
    )


@chex.dataclass(frozen=True)
class RLBatch:
  """The input of the updates of a step: samples packed into rows of T tokens.

  A sample is a prompt with its completion; a row holds whole samples. The rows
  of one update stand together, and within them those of one microbatch:
  B = updates × microbatches × rows of a microbatch. Microbatches beyond
  num_microbatches_u are padding, which is not computed.

  Example, T = 6, samples 4 and 7: the prompts [7, 8] and [9], with the
  completions [4] and [5, 6]:
    tokens_BT   = [7, 8, 4, 9, 5, 6]
    position_BT = [0, 1, 2, 0, 1, 2]
    segment_BT  = [1, 1, 1, 2, 2, 2]
    sample_BT   = [4, 4, 4, 7, 7, 7]
    mask_BT     = [0, 0, 1, 0, 1, 1]

  Samples may share a prompt, which then is a segment before theirs. Its last
  token is repeated in each of them (with MTP modules, one more for each), so
  that what predicts a token stands before it. The prompt [7, 8, 9] with the
  completions [4] and [5, 6]:
    tokens_BT   = [7,  8,  9, 4, 9, 5, 6]
    position_BT = [0,  1,  2, 3, 2, 3, 4]
    segment_BT  = [1,  1,  2, 2, 3, 3, 3]
    prefix_BT   = [−1, −1, 1, 1, 1, 1, 1]

  Attributes:
    tokens_BT: int32 token ids.
    position_BT: int32, the token's position in its sample.
    segment_BT: int32, segments of a row counted from 1: samples, or what they
      share; 0 on padding.
    sample_BT: int32, the token's row in the Rollout; 0 on padding.
    mask_BT: bool, True on the tokens that the loss counts.
    logp_BT, staleness_BT, experts_BTLA: See Rollout.
    num_microbatches_u: int32, microbatches that hold tokens, by update.
    adv_BT: float32 advantage of each token; None until it is estimated, as
      what follows.
    old_logp_BT: float32 log-probability of each token under the policy that
      sampled it, as recorded or as recomputed by the trainer
      (rl.old_logp_source): the denominator of the importance ratio.
    ref_logp_BT: float32 log-probability under the reference policy.
    rollout_is_weight_BT: float32 importance weight of each token that corrects
      for the difference between sampler and trainer; None for 1.
    value_BT: float32, the value function's prediction for the state in which
      each token was sampled; None without a value function.
    return_BT: float32 regression target of that prediction; None likewise.
    prefix_BT: int32, the segment of the prompt that the token's sample shares,
      to which it attends; −1 for tokens of such a prompt, 0 for others. None if
      no sample may share one.
  """

  tokens_BT: Array
  position_BT: Array
  segment_BT: Array
  sample_BT: Array
  mask_BT: Array
  logp_BT: Array
  staleness_BT: Array
  num_microbatches_u: Array
  experts_BTLA: Array | None = None
  adv_BT: Array | None = None
  old_logp_BT: Array | None = None
  ref_logp_BT: Array | None = None
  rollout_is_weight_BT: Array | None = None
  value_BT: Array | None = None
  return_BT: Array | None = None
  prefix_BT: Array | None = None


@chex.dataclass(frozen=True)
class PackedRows:
  """Whole sequences packed into rows of T tokens, of which some are read.

  Sequences of one example, such as the two of a preference pair, share a row.
  The rows of one microbatch stand together, as those of an RLBatch of one
  update. Example, T = 8, a pair of the prompt [7] with the chosen response
  [4, 2] and the rejected one [5, 2]:
    tokens_BT   = [7, 4, 2, 7, 5, 2, 0, 0]
    position_BT = [0, 1, 2, 0, 1, 2, 0, 0]
    segment_BT  = [1, 1, 1, 2, 2, 2, 0, 0]
    sample_BT   = [0, 0, 0, 1, 1, 1, 0, 0]
    mask_BT     = [0, 1, 1, 0, 1, 1, 0, 0]   for DPO
                  [0, 0, 1, 0, 0, 1, 0, 0]   for a reward model

  Attributes:
    tokens_BT: int32 token ids.
    position_BT: int32, the token's position in its sequence.
    segment_BT: int32, sequences of a row counted from 1; 0 on padding.
    sample_BT: int32, index of the token's sequence in the batch; 0 on padding.
    mask_BT: bool, True on tokens whose output is read: DPO reads the tokens of
      a response, an outcome reward model the last token of a sequence, a
      process reward model the last token of each step.
    num_microbatches_u: int32 [1], the number of microbatches that hold tokens.
    label_BT: float32 label in [0, 1] of each step, where mask_BT is True; None
      without labels of steps.
  """

  tokens_BT: Array
  position_BT: Array
  segment_BT: Array
  sample_BT: Array
  mask_BT: Array
  num_microbatches_u: Array
  label_BT: Array | None = None


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
    tokens_BT: int32 token ids.
    target_BT: int32, the token to predict at each position.
    weight_BT: float32 weight of each position in the loss.
    segment_BT: int32, the document that a token belongs to, counted from 1.
    position_BT: int32, the token's position in its document.
    top_ids_BTO: int32, a teacher's O most likely next tokens where weight_BT
      is not 0; or None.
    top_logp_BTO: float32 log-probabilities of these tokens; or None.
  """

  tokens_BT: Array
  target_BT: Array
  weight_BT: Array
  segment_BT: Array
  position_BT: Array
  top_ids_BTO: Array | None = None
  top_logp_BTO: Array | None = None
