"""What decoding keeps of a context: pages of a pool, and this call's columns.

A row's context is a list of pages, each with room for S tokens and some number
of them in it. Rows that share a prefix list the same pages. A call reads the
pages, and collects the entries of its own tokens in columns beside them, one
column for all rows; `flush` then appends the columns that count to the rows'
last pages. So a call writes to the pool once, whatever it decodes. Columns are
`Pages` too: one page a row, as long as the call. An entry is rounded to 8 bits
when it comes, and so is the same to every token that ever sees it.

A token's entry is X numbers for each of K key heads; in MLA one head, whose
key is the latent and the rotated part, and whose value is the latent again.
"""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from r1jax.model import quant
from r1jax.model.kernels import NEG_INF
from r1jax.sharding import Layout

_SPAN_TOKENS = 64, 256  # At least and at most: see _span.
_ROWS_TOGETHER = 16  # At most, on a processor: a turn's pages fit its cache.


@chex.dataclass(frozen=True)
class Pages:
  """The pool of one stack of layers.

  Attributes:
    entry_LYKSX: In the model's dtype, or int8.
    scale_LYKSZ: float32, of each of the Z parts of an int8 entry; else None.
    hidden_YD: Of the stack that looks ahead: the model's state at the last
      token of each page, which the token after it is joined with. Else None.
  """

  entry_LYKSX: jax.Array
  scale_LYKSZ: jax.Array | None
  hidden_YD: jax.Array | None = None


@chex.dataclass(frozen=True)
class Context:
  """Where B rows find their tokens in the pool.

  On a mesh each part of the batch has its own part of the pool, and counts its
  pages from 0.

  Attributes:
    table_BW: int32, the pages of each row, in order, used ones first.
    fill_BW: int32, the tokens in each; 0 for a page that is not used yet.
    next_B: int32, where the row's next token goes, w · S + its place in page w.
  """

  table_BW: jax.Array
  fill_BW: jax.Array
  next_B: jax.Array


@chex.dataclass(frozen=True)
class View:
  """The context of B rows as the attention of one layer sees it.

  Attributes:
    pages: The pool of the layer's stack.
    layer: The layer's number in the stack.
    context: Which pages, and how much of them.
    columns_BKSX: The entries of this call, the new tokens' among them.
    see_BTS: bool, which of them each new token sees. At least one.
    skip: Tokens of the pages, from a row's first on, of which nothing is seen.
  """

  pages: Pages
  layer: jax.Array
  context: Context
  columns_BKSX: jax.Array
  see_BTS: jax.Array
  skip: int = 0


def empty(
  layers: int,
  pages: int,
  heads: int,
  page_tokens: int,
  parts: tuple[int, ...],
  dtype,
  int8: bool,
) -> Pages:
  """A pool of so many pages; an entry's X numbers fall into `parts`."""
  shape = layers, pages, heads, page_tokens
  if not int8:
    return Pages(
      entry_LYKSX=jnp.zeros((*shape, sum(parts)), dtype), scale_LYKSZ=None
    )
  return Pages(
    entry_LYKSX=jnp.zeros((*shape, sum(parts)), jnp.int8),
    scale_LYKSZ=jnp.zeros((*shape, len(parts)), jnp.float32),
  )


def put(
  columns: Pages, entry_BTKX, layer, column, parts: tuple[int, ...]
) -> Pages:
  """The entries of T new tokens a row, from this column of a layer on."""

  def into(x_LBKS_, new_BTK_):
    return jax.lax.dynamic_update_slice(
      x_LBKS_,
      new_BTK_.swapaxes(1, 2)[None].astype(x_LBKS_.dtype),
      (layer, 0, 0, column, 0),
    )

  if columns.scale_LYKSZ is None:
    return columns.replace(entry_LYKSX=into(columns.entry_LYKSX, entry_BTKX))
  scale_BTKZ, rounded_BTKX = _as_int8(entry_BTKX, parts)
  return columns.replace(
    entry_LYKSX=into(columns.entry_LYKSX, rounded_BTKX),
    scale_LYKSZ=into(columns.scale_LYKSZ, scale_BTKZ),
  )


def attend(
  q_BTKMX,
  view: View,
  split: Callable,
  parts: tuple[int, ...],
  scale: float,
  layout: Layout,
  letters: str,
):
  """Attention of T new tokens a row to its pages and to this call's columns.

  The softmax is summed up page by page, in float32. A processor takes some
  rows after the others, and each such loop ends with the longest of its rows:
  it is fastest where rows of like length lie side by side.

  Args:
    q_BTKMX: M queries share a key head.
    view: What they look at.
    split: Of entries [..., X] into keys [..., X'] and values [..., U].
    parts: See `empty`.
    scale: Of the scores.
    layout: Of the mesh.
    letters: Of q's dimensions on the mesh.

  Returns:
    [B, T, K, M, U]
  """

  def local(q_BTKMX, pages, layer, *of_rows):
    def some(of_some):
      q, context, columns_BKSX, see_BTS = of_some
      return _attend(
        q,
        View(
          pages=pages,
          layer=layer,
          context=context,
          columns_BKSX=columns_BKSX,
          see_BTS=see_BTS,
          skip=view.skip,
        ),
        split,
        parts,
        scale,
      )

    of_rows, rows = (q_BTKMX, *of_rows), q_BTKMX.shape[0]
    together = rows
    if layout.platform == 'cpu':
      together = max(n for n in range(1, _ROWS_TOGETHER + 1) if rows % n == 0)
    if together == rows:
      return some(of_rows)
    mix = jax.lax.map(
      some,
      jax.tree.map(lambda x: x.reshape(-1, together, *x.shape[1:]), of_rows),
    )
    return mix.reshape(rows, *mix.shape[2:])

  args = (
    q_BTKMX,
    view.pages.replace(hidden_YD=None),
    view.layer,
    view.context,
    view.columns_BKSX,
    view.see_BTS,
  )
  if layout.mesh.size == 1:
    return local(*args)
  of_q = layout.fitting_spec(q_BTKMX.shape, letters)
  rows, heads = of_q[0], of_q[2]
  return jax.shard_map(
    local,
    mesh=layout.mesh,
    in_specs=(
      of_q,
      PartitionSpec(None, rows, heads),
      PartitionSpec(),
      PartitionSpec(rows),
      PartitionSpec(rows, heads),
      PartitionSpec(rows),
    ),
    out_specs=of_q,
    check_vma=False,
  )(*args)


def _attend(
  q_BTKMX, view: View, split: Callable, parts: tuple[int, ...], scale: float
):
  B, T, K, M, _ = q_BTKMX.shape
  dtype, wide = q_BTKMX.dtype, quant.wide(q_BTKMX.dtype)
  q_BKRX = q_BTKMX.swapaxes(1, 2).reshape(B, K, T * M, -1)
  S, W = view.pages.entry_LYKSX.shape[3], view.context.table_BW.shape[1]
  span = _span(S, W)
  pad = ((0, 0), (0, -W % span))
  table_BW, fill_BW = (
    jnp.pad(x_BW, pad) for x_BW in (view.context.table_BW, view.context.fill_BW)
  )

  def scores(key_BKSX, see_B1S):
    score = (
      jnp.einsum(
        'BKRX,BKSX->BKRS', q_BKRX, key_BKSX, preferred_element_type=wide
      )
      * scale
    )
    return jnp.where(see_B1S[:, None], score, NEG_INF)

  def weigh(prob_BKRS, value_BKSU):
    return jnp.einsum(
      'BKRS,BKSU->BKRU',
      prob_BKRS.astype(dtype),
      value_BKSU,
      preferred_element_type=wide,
    )

  key, value = split(view.columns_BKSX)
  score = scores(key, jnp.repeat(view.see_BTS, M, axis=1))
  top = score.max(-1, keepdims=True)
  prob = jnp.exp(score - top)
  carry = top, prob.sum(-1, keepdims=True), weigh(prob, value)

  def some_pages(turn, carry):
    top, total, mix = carry
    take = lambda x_BW: jax.lax.dynamic_slice_in_dim(
      x_BW, turn * span, span, axis=1
    )
    table, fill = take(table_BW), take(fill_BW)
    entry_BwKSX = read(view.pages, (view.layer, table), parts, dtype)
    key, value = split(entry_BwKSX.swapaxes(1, 2).reshape(B, K, span * S, -1))
    filled = (jnp.arange(S) < fill[..., None]).reshape(B, 1, span * S)
    filled &= turn * span * S + jnp.arange(span * S) >= view.skip
    score = scores(key, filled)
    higher = jnp.maximum(top, score.max(-1, keepdims=True))
    prob, rest = jnp.exp(score - higher), jnp.exp(top - higher)
    return (
      higher,
      total * rest + prob.sum(-1, keepdims=True),
      mix * rest + weigh(prob, value),
    )

  used = jnp.max(jnp.sum(fill_BW > 0, -1))
  _, total, mix_BKRU = jax.lax.fori_loop(0, -(-used // span), some_pages, carry)
  mix_BKTMU = (mix_BKRU / total).astype(dtype).reshape(B, K, T, M, -1)
  return mix_BKTMU.swapaxes(1, 2)


def _span(page_tokens: int, pages: int) -> int:
  """How many pages of each row one turn of the loop reads: a longer loop takes
  longer steps, of a thirty-second of the longest context."""
  least, most = _SPAN_TOKENS
  tokens = min(max(pages * page_tokens // 32, least), most)
  return max(1, min(tokens // page_tokens, pages))


def read(pages: Pages, at, parts: tuple[int, ...], dtype) -> jax.Array:
  """The entries of a layer, or of some of its pages, as attention sees them."""
  entry = pages.entry_LYKSX[at]
  if pages.scale_LYKSZ is None:
    return entry
  return (entry * _spread(pages.scale_LYKSZ[at], parts)).astype(dtype)


def _spread(scale, parts: tuple[int, ...]):
  """One scale a part, [..., Z], as one a number, [..., X]."""
  return jnp.concatenate(
    [
      jnp.broadcast_to(scale[..., z : z + 1], (*scale.shape[:-1], size))
      for z, size in enumerate(parts)
    ],
    -1,
  )


def flush(
  pages: Pages,
  context: Context,
  columns: Pages,
  kept_BS,
  layout: Layout,
  hidden_BSD=None,
) -> Pages:
  """Appends the columns that are kept to their rows' pages.

  Example, pages of S = 4, a row with next = 6 and kept = [1, 0, 1, 1]: columns
  0, 2 and 3 go to places 2 and 3 of its page 1 and place 0 of its page 2.

  Args:
    pages, context: Of the rows.
    columns: Of this call.
    kept_BS: bool.
    layout: Of the mesh.
    hidden_BSD: The model's state at each column, where the pages keep it.
  """

  def local(pages, context, columns, kept_BS, hidden_BSD):
    S, Y = pages.entry_LYKSX.shape[3], pages.entry_LYKSX.shape[1]
    at_BS = context.next_B[:, None] + jnp.cumsum(kept_BS, -1) - 1
    page_BS = jnp.take_along_axis(
      context.table_BW, jnp.where(kept_BS, at_BS // S, 0), 1
    )
    page_BS = jnp.where(kept_BS, page_BS, Y)  # Beyond the pool: dropped.
    place = (slice(None), page_BS, slice(None), at_BS % S)
    put = lambda pool, new_LBKS_: pool.at[place].set(
      new_LBKS_.transpose(1, 3, 0, 2, 4), mode='drop'
    )
    if hidden_BSD is not None:
      last_BS = (at_BS % S == S - 1) | (at_BS == at_BS[:, -1:])
      pages = pages.replace(
        hidden_YD=pages.hidden_YD.at[jnp.where(last_BS, page_BS, Y)].set(
          hidden_BSD, mode='drop'
        )
      )
    return pages.replace(
      entry_LYKSX=put(pages.entry_LYKSX, columns.entry_LYKSX),
      scale_LYKSZ=None
      if pages.scale_LYKSZ is None
      else put(pages.scale_LYKSZ, columns.scale_LYKSZ),
    )

  args = pages, context, columns, kept_BS, hidden_BSD
  if layout.mesh.size == 1:
    return local(*args)
  rows = layout.fitting_spec(kept_BS.shape, 'B_')[0]
  heads = layout.fitting_spec(columns.entry_LYKSX.shape, 'LBKSX')[2]
  of_rows, of_columns = PartitionSpec(rows), PartitionSpec(None, rows, heads)
  of_pages = Pages(
    entry_LYKSX=of_columns, scale_LYKSZ=of_columns, hidden_YD=of_rows
  )
  return jax.shard_map(
    local,
    mesh=layout.mesh,
    in_specs=(of_pages, of_rows, of_columns, of_rows, of_rows),
    out_specs=of_pages,
    check_vma=False,
  )(*args)


def last_hidden(pages: Pages, context: Context, layout: Layout) -> jax.Array:
  """The model's state at each row's last token, [B, D]; any, if it has none."""

  def local(hidden_YD, context):
    last_B = jnp.maximum(jnp.sum(context.fill_BW > 0, -1) - 1, 0)
    return hidden_YD[
      jnp.take_along_axis(context.table_BW, last_B[:, None], 1)[:, 0]
    ]

  args = pages.hidden_YD, context
  if layout.mesh.size == 1:
    return local(*args)
  rows = PartitionSpec(layout.fitting_spec(context.table_BW.shape, 'B_')[0])
  return jax.shard_map(
    local,
    mesh=layout.mesh,
    in_specs=(rows, rows),
    out_specs=rows,
    check_vma=False,
  )(*args)


def _as_int8(x, parts: tuple[int, ...]):
  """Scales [..., Z] and the numbers over them, within ±127."""
  ends = [sum(parts[:z]) for z in range(1, len(parts))]
  largest = jnp.stack(
    [
      jnp.abs(part.astype(jnp.float32)).max(-1)
      for part in jnp.split(x, ends, -1)
    ],
    -1,
  )
  scale = jnp.where(largest == 0, 1.0, largest / 127)  # NaN stays NaN.
  return scale, jnp.round(x / _spread(scale, parts)).astype(jnp.int8)
