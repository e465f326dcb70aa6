"""A policy as text in, text and log-probabilities out, for other harnesses."""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from r1jax.algos.token_chunks import map_token_chunks
from r1jax.data.text.tokenizer import Tokenizer
from r1jax.errors import UserError
from r1jax.model.transformer import Transformer, positions
from r1jax.rollout import assemble
from r1jax.rollout.engine import Engine
from r1jax.rollout.sampling import SamplingParams
from r1jax.rollout.scheduler import Request
from r1jax.train.policy_step import output_head

_ROUND_TOKENS = 8192  # Tokens of one scoring program, over all devices.
_MIN_WIDTH = 64  # Columns of its narrowest shape; they double from there.


class TokenPair(NamedTuple):
  """Tokens to condition on, at least one, and tokens to score after them."""

  context: Sequence[int]
  continuation: Sequence[int]


class Score(NamedTuple):
  """The log-probability of a continuation, in nats, and if greedy decoding
  would choose each of its tokens."""

  logp: float
  is_greedy: bool


class Prompted(NamedTuple):
  """A text to go on from, and how."""

  context: str
  sampling: SamplingParams


class TextModel:
  """Scores and completes texts with one policy."""

  def __init__(
    self, model: Transformer, params, engine: Engine, tokenizer: Tokenizer
  ):
    """Stores the arguments.

    Args:
      model: The transformer.
      params: Its parameters.
      engine: The sampler of the same model.
      tokenizer: Between text and ids.
    """
    self._model, self._params = model, params
    self._engine, self.tokenizer = engine, tokenizer

  @property
  def max_length(self) -> int:
    """The context of the model, in tokens."""
    return self._model.config.max_position_embeddings

  @property
  def max_model_len(self) -> int:
    """The longest prompt and completion together that are sampled, in tokens."""
    return self._engine.config.max_model_len

  @property
  def prefix_id(self) -> int:
    """The token that stands before a text without context: BOS, else EOS."""
    bos = self.tokenizer.bos_id
    return self.tokenizer.stop_ids[0] if bos is None else bos

  def pair(self, context: str, continuation: str) -> TokenPair:
    """Returns the tokens of a context and of what follows it.

    Spaces at the end of the context belong to the continuation, where they are
    part of its first token. An empty context is the prefix token.
    """
    kept = context.rstrip(' ')
    continuation, context = context[len(kept) :] + continuation, kept
    if not context:
      return TokenPair([self.prefix_id], self.tokenizer.encode(continuation))
    return TokenPair(
      self.tokenizer.encode_prompt(context),
      self.tokenizer.encode_response(context, continuation),
    )

  def score(self, pairs: Sequence[TokenPair]) -> list[Score]:
    """Scores continuations; the longest contexts lose their beginning.

    Raises:
      UserError: a continuation alone exceeds the model's context.
    """
    for pair in pairs:
      if len(pair.continuation) >= self.max_length:
        raise UserError(
          f'scoring: a continuation of {len(pair.continuation)} tokens exceeds '
          f"the model's context of {self.max_length}"
        )
    found: dict[int, Score] = {}
    widths: dict[int, list[int]] = {}
    for i, pair in enumerate(pairs):
      if not len(pair.continuation):
        found[i] = Score(0.0, True)
      else:
        widths.setdefault(self._width(pair), []).append(i)
    for width, members in widths.items():
      rows = self._rows(width)
      for start in range(0, len(members), rows):
        chosen = members[start : start + rows]
        scores = self._score_rows([pairs[i] for i in chosen], width, rows)
        found |= zip(chosen, scores)
    return [found[i] for i in range(len(pairs))]

  def _width(self, pair: TokenPair) -> int:
    """Returns the columns of a pair's row: a power of two, or the context."""
    tokens = min(len(pair.context) + len(pair.continuation), self.max_length)
    return min(max(_MIN_WIDTH, 1 << (tokens - 1).bit_length()), self.max_length)

  def _rows(self, width: int) -> int:
    """Returns the rows of a scoring program, which the mesh divides."""
    shards = self._model.layout.size('B')
    return shards * max(1, _ROUND_TOKENS // (width * shards))

  def _score_rows(
    self, pairs: Sequence[TokenPair], width: int, rows: int
  ) -> list[Score]:
    tokens_BT = np.zeros((rows, width), np.int32)
    valid_BT, mask_BT = np.zeros((2, rows, width), bool)
    for b, pair in enumerate(pairs):
      ids = [*pair.context, *pair.continuation][-width:]
      tokens_BT[b, : len(ids)] = ids
      valid_BT[b, : len(ids)] = True
      mask_BT[b, len(ids) - len(pair.continuation) : len(ids)] = True
    logp_B, greedy_B = jax.device_get(
      _sums(self._model, self._params, tokens_BT, valid_BT, mask_BT)
    )
    return [
      Score(float(logp_B[b]), bool(greedy_B[b])) for b in range(len(pairs))
    ]

  def complete(self, prompts: Sequence[Prompted], key: jax.Array) -> list[str]:
    """Completes texts; a stop string is not part of a completion.

    A context that is too long loses its beginning.

    Args:
      prompts: The texts, and how each is sampled.
      key: Seeds the samples.
    """
    keys_P12 = assemble.sample_keys(key, np.arange(len(prompts)), 1)
    completions = self._engine.run(
      self._params,
      [
        Request(
          name=p,
          prompt=self._prompt(prompt),
          key=keys_P12[p, 0],
          sampling_params=prompt.sampling,
        )
        for p, prompt in enumerate(prompts)
      ],
    )
    texts = assemble.completion_texts(completions, self.tokenizer.decode_batch)
    return [
      _before(text, prompt.sampling.stop_strings)
      for text, prompt in zip(texts, prompts, strict=True)
    ]

  def _prompt(self, prompt: Prompted) -> np.ndarray:
    room = self.max_model_len - prompt.sampling.max_new_tokens
    if room < 1:
      raise UserError(
        f'sampling: max_new_tokens = {prompt.sampling.max_new_tokens} leaves no '
        f'room for a prompt within {self.max_model_len} tokens'
      )
    ids = self.tokenizer.encode_prompt(prompt.context) or [self.prefix_id]
    return np.array(ids[-room:], np.int32)


def _before(text: str, stops: Sequence[str]) -> str:
  """Returns a text up to the first of some strings."""
  ends = [text.find(stop) for stop in stops if stop in text]
  return text[: min(ends, default=len(text))]


@partial(jax.jit, static_argnums=0)
def _sums(model: Transformer, params, tokens_BT, valid_BT, mask_BT):
  """Returns the log-probability of each row's masked tokens, and their being
  the likeliest ones: float32 [B] and bool [B]."""
  tokens_BT = model.layout.constrain(tokens_BT, 'BT')
  out: Any = model.apply(
    {'params': params},
    tokens_BT,
    positions(valid_BT),
    valid_BT.astype(jnp.int32),
  )
  ahead = lambda x: jnp.pad(x[:, 1:], ((0, 0), (0, 1)))
  logp_BT, is_top_BT = map_token_chunks(
    _scored,
    [(out.hidden_BTD, output_head(model, params))],
    [ahead(tokens_BT)],
    layout=model.layout,
    mask_BT=ahead(mask_BT),
  )
  missed_BT = ahead(mask_BT) & (is_top_BT == 0)
  return logp_BT.sum(1), ~missed_BT.any(1)


def _scored(logits, target):
  """Returns log-probabilities of targets, and 1 where one is the likeliest."""
  logp = jax.nn.log_softmax(logits)
  chosen = jnp.take_along_axis(logp, target[..., None], -1)[..., 0]
  is_top = (jnp.argmax(logits, -1) == target).astype(jnp.float32)
  return chosen, is_top
