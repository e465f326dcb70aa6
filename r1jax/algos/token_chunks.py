"""Functions of logits, computed chunk by chunk for the tokens that count.

The logits of a whole batch do not fit in memory, and prompts and padding do not
count in a loss. Here the tokens that count are put first, and a loop runs over
as many chunks of them as there are. JAX cannot differentiate such a loop in
reverse, so its gradient is written here: another loop over the same chunks.

Dimensions of this module:

  k  shards of the batch, of its rows and of their tokens; no token leaves its
     shard
  n  tokens of a shard
  c  tokens of a chunk of a shard
  m  tokens of a chunk of all shards, k·c
"""

from collections.abc import Callable, Sequence
import dataclasses
from functools import partial
import math
from typing import NamedTuple

import jax
from jax.custom_derivatives import SymbolicZero
import jax.numpy as jnp

from r1jax.sharding import Layout

MAX_CHUNK_LOGITS = 1 << 26  # Per device: 256 MiB of float32.


def map_token_chunks(
  function: Callable,
  projections: Sequence[tuple[jax.Array, jax.Array]],
  arrays: Sequence[jax.Array],
  chunk_tokens: int | None = None,
  layout: Layout | None = None,
  mask_BT=None,
) -> tuple[jax.Array, ...]:
  """Maps a function over the logits of the tokens that count.

  The logits of one chunk exist at a time, in the forward and in the backward
  pass. If those of all tokens are within the bound of a chunk, the backward
  pass uses them again; otherwise it computes them again.

  Args:
    function: Takes float32 logits [m, V] of each projection and a chunk
      [m, …] of each array, and returns a tuple of arrays [m], one number per
      token. It is computed again in the backward pass, and must not close over
      traced arrays: what it reads are arguments.
    projections: Pairs of hidden_BTD and head_DV, whose product is the logits.
      Both have a gradient; that of a head is summed in float32.
    arrays: Constants [B, T] or [B, T, …], to which no gradient flows.
    chunk_tokens: Tokens per chunk over all devices, rounded down to whole
      shards. None takes chunk_size, within MAX_CHUNK_LOGITS on each device.
    layout: The mesh layout; None for one device.
    mask_BT: bool, True where a token counts; None for everywhere. A NaN at a
      token that does not count reaches neither value nor gradient.

  Returns:
    A tuple of arrays [B, T], 0 at tokens that do not count. The gradient of
    their hidden states is 0.
  """
  B, T = projections[0][0].shape[:2]
  devices = layout.mesh.size if layout else 1
  row_shards, token_shards = (
    # A dimension that does not divide is not sharded: see Layout.fitting_spec.
    layout.size(letter) if layout and size % layout.size(letter) == 0 else 1
    for letter, size in (('B', B), ('T', T))
  )
  shards = row_shards * token_shards
  tokens = B * T // shards
  if chunk_tokens:
    limit = max(chunk_tokens // shards, 1)
    chunk = min(limit, tokens)
  else:
    logits = sum(head_DV.shape[1] for _, head_DV in projections)
    limit = max(MAX_CHUNK_LOGITS // logits * devices // shards, 1)
    chunk = chunk_size(tokens, limit)
  plan = _Plan(
    row_shards,
    token_shards,
    tokens,
    chunk,
    limit >= tokens,
    layout if devices > 1 else None,
  )
  return _map(function, plan, tuple(projections), tuple(arrays), mask_BT)


def chunk_size(tokens: int, limit: int) -> int:
  """Returns the number of tokens in a chunk of a shard.

  A chunk is a sixteenth of the shard, since half of the last one is wasted on
  average. It has at least 256 tokens, which matrix products need, and at most
  2048, beyond which they gain nothing. All chunks are equal.

  Args:
    tokens: Tokens of the shard, whether they count or not.
    limit: Upper bound that memory sets.
  """
  chunk = min(max(tokens // 16, 256), 2048, limit, tokens)
  return math.ceil(tokens / math.ceil(tokens / chunk))


def num_chunks(count_k: jax.Array, chunk: int) -> jax.Array:
  """Returns how many chunks are computed, int32.

  Args:
    count_k: int32, the number of tokens of each shard that count. The shard
      with the most decides.
    chunk: Tokens of a chunk of a shard.
  """
  return jnp.max(-(-count_k // chunk))


@dataclasses.dataclass(frozen=True)
class _Plan:
  """The static sizes of a map.

  Attributes:
    row_shards: Number of shards of the rows.
    token_shards: Number of shards of the tokens of a row.
    tokens: Tokens of a shard, n.
    chunk: Tokens of a chunk of a shard, c.
    keep_logits: Whether the forward pass stores logits for the backward pass.
    layout: The mesh layout; None for one device.
  """

  row_shards: int
  token_shards: int
  tokens: int
  chunk: int
  keep_logits: bool
  layout: Layout | None

  @property
  def shards(self) -> int:
    """Number of shards, k."""
    return self.row_shards * self.token_shards

  @property
  def max_chunks(self) -> int:
    return math.ceil(self.tokens / self.chunk)

  def constrain(self, x, letters: str):
    return self.layout.constrain(x, letters) if self.layout else x

  def flat(self, x):
    """Reshapes [B, T, …] to [k, n, …]."""
    (B, T), rest = x.shape[:2], x.shape[2:]
    x = self.constrain(x, 'BT' + '_' * len(rest))
    if self.token_shards > 1:
      x = x.reshape(
        self.row_shards,
        B // self.row_shards,
        self.token_shards,
        T // self.token_shards,
        *rest,
      ).swapaxes(1, 2)
    x = x.reshape(self.shards, self.tokens, *rest)
    return self.constrain(x, 'k_' + '_' * len(rest))

  def rows(self, x, shape: tuple[int, int]):
    """Reshapes [k, n, …] to [B, T, …] of this B and T, the inverse of flat."""
    (B, T), rest = shape, x.shape[2:]
    if self.token_shards > 1:
      x = x.reshape(
        self.row_shards,
        self.token_shards,
        B // self.row_shards,
        T // self.token_shards,
        *rest,
      ).swapaxes(1, 2)
    return self.constrain(x.reshape(B, T, *rest), 'BT' + '_' * len(rest))

  def split(self, x):
    """Reshapes [m, …] to [k, c, …]."""
    return x.reshape(self.shards, self.chunk, *x.shape[1:])

  def zeros(self, like, letters: str = ''):
    """Returns zeros [k, n, …] for all chunks of arrays [m, …] like this one."""
    shape = self.shards, self.max_chunks * self.chunk, *like.shape[1:]
    return self.constrain(jnp.zeros(shape, like.dtype), 'k_' + letters)

  def get(self, buffer, i):
    """Reads chunk i, [m, …], of a buffer [k, n, …]."""
    x = jax.lax.dynamic_slice_in_dim(buffer, i * self.chunk, self.chunk, 1)
    return x.reshape(-1, *x.shape[2:])

  def put(self, buffer, x, i):
    """Writes chunk i, [m, …], of a buffer [k, n, …]."""
    return jax.lax.dynamic_update_slice_in_dim(
      buffer, self.split(x), i * self.chunk, 1
    )

  def loop(self, count_k, body: Callable, carry):
    """Runs carry = body(i, carry) for all chunks that count, and returns it."""
    chunks = num_chunks(count_k, self.chunk)

    def step(state):
      i, carry = state
      return i + 1, body(i, carry)

    # The second comparison is always true. It tells launch/flops.py the most
    # iterations that there can be.
    return jax.lax.while_loop(
      lambda state: (state[0] < chunks) & (state[0] < self.max_chunks),
      step,
      (jnp.int32(0), carry),
    )[1]


class _Order(NamedTuple):
  """An order of the tokens of each shard, first those that count.

  Example, one shard in chunks of two:
    mask_kn  = [0, 1, 0, 0, 1]       count_k = [2]
    index_kn = [1, 4, 0, 2, 3, 0]    rank_kn = [0, 0, 0, 0, 1]

  Attributes:
    mask_kn: bool, whether a token counts.
    count_k: int32, how many do.
    index_kn: int32, the tokens in this order, padded to whole chunks.
    rank_kn: int32, the position in it of a token that counts.
  """

  mask_kn: jax.Array
  count_k: jax.Array
  index_kn: jax.Array
  rank_kn: jax.Array

  def taker(self, plan: _Plan, i) -> Callable:
    """Returns take([k, n, …]) → chunk i, [m, …], 0 where no token counts."""
    first = i * plan.chunk
    index_kc = jax.lax.dynamic_slice_in_dim(self.index_kn, first, plan.chunk, 1)
    mask_kc = first + jnp.arange(plan.chunk) < self.count_k[:, None]

    def take(x):
      x = _where(mask_kc, _gather(x, index_kc))
      return x.reshape(-1, *x.shape[2:])

    return take

  def restored(self, plan: _Plan, x, shape: tuple[int, int]):
    """Returns [B, T, …] of all chunks [k, n, …], 0 where no token counts."""
    return plan.rows(_where(self.mask_kn, _gather(x, self.rank_kn)), shape)


def _order(plan: _Plan, mask_BT) -> _Order:
  shape = plan.shards, plan.tokens
  if mask_BT is None:
    mask_kn, count_k = jnp.ones(shape, bool), jnp.full(shape[:1], plan.tokens)
    index_kn = rank_kn = jnp.broadcast_to(jnp.arange(plan.tokens), shape)
  else:
    mask_kn = plan.flat(mask_BT)
    count_k = jnp.sum(mask_kn, 1)
    # One key per token sorts faster than a key and an index.
    token_n = jnp.arange(plan.tokens)
    key_kn = jnp.sort(jnp.where(mask_kn, token_n, token_n + plan.tokens), 1)
    index_kn = key_kn % plan.tokens
    rank_kn = jnp.maximum(jnp.cumsum(mask_kn, 1) - 1, 0)
  missing = plan.max_chunks * plan.chunk - plan.tokens
  return _Order(
    mask_kn, count_k, jnp.pad(index_kn, ((0, 0), (0, missing))), rank_kn
  )


def _gather(x, index_kn):
  """Returns x[k, index_kn[k, n]] for x of [k, n, …]."""
  take = partial(jnp.take, axis=0, mode='clip')
  if len(x) == 1:  # A dimension of one would cost a CPU a copy.
    return take(x[0], index_kn[0])[None]
  return jax.vmap(take)(x, index_kn)


def _where(mask_kn, x):
  """Returns x of [k, n, …] where the mask is True, and 0 elsewhere."""
  return jnp.where(mask_kn.reshape(*mask_kn.shape, *(1,) * (x.ndim - 2)), x, 0)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _map(function: Callable, plan: _Plan, projections, arrays, mask_BT):
  """Returns the outputs of map_token_chunks."""
  return _forward(function, plan, projections, arrays, mask_BT, False)[0]


def _forward(
  function: Callable, plan: _Plan, projections, arrays, mask_BT, keep: bool
):
  """Returns the outputs, and the logits [k, n, V] if they are to be kept."""
  shape, order = projections[0][0].shape[:2], _order(plan, mask_BT)
  flat, heads = _flat(plan, projections, arrays)

  def chunk(i):
    hiddens, constants = jax.tree.map(order.taker(plan, i), flat)
    logits = list(map(_logits, hiddens, heads))
    return function(*logits, *constants), logits if keep else []

  def body(i, buffers):
    return jax.tree.map(lambda b, x: plan.put(b, x, i), buffers, chunk(i))

  outputs, logits = jax.eval_shape(chunk, 0)
  buffers = (
    tuple(map(plan.zeros, outputs)),
    [plan.zeros(x, 'V') for x in logits],
  )
  outputs, logits = plan.loop(order.count_k, body, buffers)
  return tuple(order.restored(plan, x, shape) for x in outputs), logits


def _flat(plan: _Plan, projections, arrays):
  """Returns hidden states and arrays, both [k, n, …]; and the heads.

  A head is gathered here, before the loop, and not in each chunk.
  """
  hiddens, heads = zip(*projections)
  heads = tuple(plan.constrain(head_DV, '_V') for head_DV in heads)
  return jax.tree.map(plan.flat, (hiddens, arrays)), heads


def _logits(hidden_mD, head_DV):
  return jnp.matmul(hidden_mD, head_DV, preferred_element_type=jnp.float32)


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class _Wanted:
  """Which gradients are used: of each projection's hidden states and head."""

  pairs: tuple[tuple[bool, bool], ...]


def _map_fwd(function: Callable, plan: _Plan, projections, arrays, mask_BT):
  wanted = _Wanted(tuple((x.perturbed, w.perturbed) for x, w in projections))
  projections, arrays, mask_BT = jax.tree.map(
    lambda x: x.value, (projections, arrays, mask_BT)
  )
  outputs, logits = _forward(
    function, plan, projections, arrays, mask_BT, plan.keep_logits
  )
  return outputs, (wanted, projections, arrays, mask_BT, logits)


def _map_bwd(function: Callable, plan: _Plan, residuals, cotangents):
  """Returns the gradients of the projections that are used, and no others."""
  wanted, projections, arrays, mask_BT, kept = residuals
  shape, order = projections[0][0].shape[:2], _order(plan, mask_BT)
  flat, heads = _flat(plan, projections, arrays)
  cotangents = tuple(plan.flat(_instantiated(x)) for x in cotangents)

  def body(i, grads):
    take = order.taker(plan, i)
    hiddens, constants = jax.tree.map(take, flat)
    if kept:
      logits = [plan.get(x, i) for x in kept]
    else:
      logits = list(map(_logits, hiddens, heads))
    pull = jax.vjp(lambda *logits: function(*logits, *constants), *logits)[1]
    slopes = pull(tuple(map(take, cotangents)))
    return list(map(partial(_add, plan, i), grads, hiddens, heads, slopes))

  grads = plan.loop(
    order.count_k,
    body,
    [
      _zero_grads(plan, *pair, *projection)
      for pair, projection in zip(wanted.pairs, projections)
    ],
  )

  def finished(grads, head_DV):
    hidden, head = grads
    if hidden is not None:
      hidden = order.restored(plan, hidden, shape)
    if head is not None:
      head = jnp.sum(head, 0).astype(head_DV.dtype)
    return hidden, head

  return tuple(map(finished, grads, heads)), None, None


def _instantiated(cotangent):
  if isinstance(cotangent, SymbolicZero):
    return jnp.zeros(cotangent.shape, cotangent.dtype)
  return cotangent


def _zero_grads(
  plan: _Plan, want_hidden: bool, want_head: bool, hidden_BTD, head_DV
):
  """Returns zeros [k, n, D] and [k, D, V], None for what is not wanted.

  Each shard sums its own part of a head's gradient, so that devices exchange
  them once and not in each chunk.
  """
  hidden = head = None
  if want_hidden:
    hidden = plan.zeros(hidden_BTD[0], '_')
  if want_head:
    head = jnp.zeros((plan.shards, *head_DV.shape), jnp.float32)
    head = plan.constrain(head, 'k_V')
  return hidden, head


def _add(plan: _Plan, i, grads, hidden_mD, head_DV, slope_mV):
  """Adds chunk i to the gradients of a projection, from that of its logits."""
  hidden, head = grads
  product = partial(jax.lax.dot_general, preferred_element_type=jnp.float32)
  if hidden is not None:
    slope_mD = product(slope_mV, head_DV, (((1,), (1,)), ((), ())))
    hidden = plan.put(hidden, slope_mD.astype(hidden.dtype), i)
  if head is not None:
    pair = plan.split(hidden_mD), plan.split(slope_mV)
    head += product(*pair, (((1,), (1,)), ((0,), (0,))))
  return hidden, head


_map.defvjp(_map_fwd, _map_bwd, symbolic_zeros=True)
