"""The transformer: embed → scanned blocks → norm → logits.

Layers of one kind (dense, then MoE) are stacked along L and scanned, so that
program size and compile time do not grow with depth. Where layers are few a
sampler takes them apart: a scan copies each layer out of its stack before it
multiplies, and a pass that draws one token a row does little else.
"""

from functools import lru_cache, partial
from typing import NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp

from r1jax.model import cache, quant
from r1jax.model.attention import GQA
from r1jax.model.config import ModelConfig
from r1jax.model.layers import RMSNorm, SwiGLU, weight
from r1jax.model.mla import MLA
from r1jax.model.moe import MoE, Routing
from r1jax.model.mtp import MTP, shift
from r1jax.sharding import Layout


class Output(NamedTuple):
  """hidden_BTD after the final norm, and what the experts saw."""

  hidden_BTD: jax.Array
  routing: dict[str, Routing]  # By stack of MoE layers, with a leading L.


class Block(nn.Module):
  config: ModelConfig
  layout: Layout
  is_moe: bool

  def setup(self):
    c = self.config
    self.attention_norm = RMSNorm(c.rms_norm_eps)
    attention = {'mla': MLA, 'gqa': GQA}[c.attention]
    self.attention = attention(c, self.layout)
    self.ffn_norm = RMSNorm(c.rms_norm_eps)
    if self.is_moe:
      self.ffn = MoE(c, self.layout)
    else:
      self.ffn = SwiGLU(c, self.layout, c.intermediate_size)

  def feed_forward(self, x_BTD, counted_BT, replay_BTA=None):
    h_BTD = self.ffn_norm(x_BTD)
    if not self.is_moe:
      return x_BTD + self.ffn(h_BTD), None
    y_BTD, routing = self.ffn(h_BTD, counted_BT, replay_BTA)
    return x_BTD + y_BTD, routing

  def __call__(self, x_BTD, position_BT, segment_BT, replay_BTA=None):
    x_BTD += self.attention(self.attention_norm(x_BTD), position_BT, segment_BT)
    x_BTD, routing = self.feed_forward(
      self.layout.constrain(x_BTD, 'BtD'), segment_BT > 0, replay_BTA
    )
    return self.layout.constrain(x_BTD, 'BtD'), routing

  def extend(
    self,
    carry,
    layer,
    pages,
    context,
    position_BT,
    live_BT,
    see_BTS,
    column,
    skip: int = 0,
  ):
    """T more tokens a row; carries the stack's columns, written in place.

    Of the first `skip` tokens of a row nothing is seen.

    Returns:
      The carry, and the experts of the tokens, or None.
    """
    x_BTD, columns = carry
    parts = self.config.cache_parts
    h_BTD = self.attention_norm(x_BTD)
    entry_BTKX = self.attention.entry(h_BTD, position_BT)
    columns = cache.put(columns, entry_BTKX, layer, column, parts)
    x_BTD += self.attention.extend(
      h_BTD,
      position_BT,
      cache.View(
        pages=pages,
        layer=layer,
        context=context,
        columns_BKSX=cache.read(columns, layer, parts, x_BTD.dtype),
        see_BTS=see_BTS,
        skip=skip,
      ),
    )
    x_BTD, routing = self.feed_forward(x_BTD, live_BT)
    chosen_BTA = routing.expert_BTA if self.is_moe else None
    return (self.layout.constrain(x_BTD, 'BtD'), columns), chosen_BTA


def _stack(config: ModelConfig, layout: Layout, is_moe: bool, layers: int):
  """`layers` blocks of one kind, their parameters stacked along L."""
  over_layers = dict(
    variable_axes={'params': 0},
    split_rngs={'params': True},
    length=layers,
    metadata_params={nn.PARTITION_NAME: 'L'},
  )
  block = nn.remat(Block) if config.remat else Block
  scanned = nn.scan(
    block,
    methods={
      '__call__': dict(
        over_layers,
        unroll=config.scan_unroll,
        in_axes=(nn.broadcast, nn.broadcast, 0),
      ),
      'extend': dict(over_layers, in_axes=(0,) + (nn.broadcast,) * 6),
    },
  )
  return scanned(config, layout, is_moe)


def _blocks(config: ModelConfig, layout: Layout, is_moe: bool, layers: int):
  """The same blocks, each with parameters of its own."""
  return [Block(config, layout, is_moe) for _ in range(layers)]


def _through_stack(stack, layers: int, carry, *same):
  return stack.extend(carry, jnp.arange(layers), *same)


def _through_blocks(blocks, layers: int, carry, *same):
  chosen = []
  for layer, block in zip(range(layers), blocks, strict=True):
    carry, chosen_BTA = block.extend(carry, layer, *same)
    chosen.append(chosen_BTA)
  return carry, None if chosen[0] is None else jnp.stack(chosen)


def _mtp(config: ModelConfig, layout: Layout):
  """The look-ahead modules, stacked along their depth."""
  module = nn.remat(MTP) if config.remat else MTP
  return nn.scan(
    module,
    variable_axes={'params': 0},
    split_rngs={'params': True},
    length=config.num_nextn_predict_layers,
    in_axes=(0, nn.broadcast, nn.broadcast),
    metadata_params={nn.PARTITION_NAME: 'L'},
  )(config, layout, Block)


class Transformer(nn.Module):
  """See above.

  Attributes:
    config: Of its shapes.
    layout: Of its mesh.
    apart: Only `extend`, over the parameters of `layers_apart`.
  """

  config: ModelConfig
  layout: Layout
  apart: bool = False

  def setup(self):
    c = self.config
    self.embedding_VD = weight(
      self,
      'embedding',
      'VD',
      (c.vocab_size, c.hidden_size),
      c.initializer_range,
    )
    layers = _blocks if self.apart else _stack
    stacks = []
    if c.first_k_dense_replace:
      self.dense_layers = layers(c, self.layout, False, c.first_k_dense_replace)
      stacks.append(
        ('dense_layers', self.dense_layers, c.first_k_dense_replace)
      )
    if c.num_moe_layers:
      self.moe_layers = layers(c, self.layout, True, c.num_moe_layers)
      stacks.append(('moe_layers', self.moe_layers, c.num_moe_layers))
    self.stacks = stacks
    self.norm = RMSNorm(c.rms_norm_eps)
    if c.tie_word_embeddings:
      self.head_DV = self.embedding_VD.T
    else:
      self.head_DV = weight(
        self, 'head', 'DV', (c.hidden_size, c.vocab_size), c.initializer_range
      )
    if c.scalar_head:
      self.scalar_D1 = weight(self, 'scalar', 'Dv', (c.hidden_size, 1), 0.0)
    if c.num_nextn_predict_layers:
      self.mtp = _mtp(c, self.layout)

  def __call__(
    self, tokens_BT, position_BT, segment_BT, replay_BTLA=None
  ) -> Output:
    """The full forward pass, without logits: they are asked for in chunks.

    Args:
      tokens_BT: int32.
      position_BT: int32, each token's place in its document.
      segment_BT: int32; a token attends within its segment, 0 is padding.
      replay_BTLA: int, the experts to use in each MoE layer (routing replay);
        None: each layer chooses.
    """
    x_BTD = self.embed(tokens_BT)
    routing = {}
    for name, stack, _ in self.stacks:
      replay_LBTA = None
      if replay_BTLA is not None and stack.is_moe:
        replay_LBTA = jnp.moveaxis(replay_BTLA, 2, 0)
      x_BTD, routed = stack(x_BTD, position_BT, segment_BT, replay_LBTA)
      if routed is not None:
        routing[name] = routed
    return Output(self.norm(x_BTD), routing)

  def look_ahead(self, hidden_BTD, tokens_BT, position_BT, segment_BT):
    """The multi-token prediction modules (V3 section 2.2).

    Args:
      hidden_BTD: Of __call__; the rest as its arguments.

    Returns:
      hidden_ZBTD, along depth: [k − 1] is of the module that predicts k + 1
      tokens on; and the modules' routing, by stack.
    """
    ahead_ZBTD = jnp.stack(
      [
        self.embedding_VD[shift(tokens_BT, k + 1)]
        for k in range(self.config.num_nextn_predict_layers)
      ]
    )
    _, (hidden_ZBTD, routed) = self.mtp(
      hidden_BTD, ahead_ZBTD, position_BT, segment_BT
    )
    return hidden_ZBTD, {} if routed is None else {'mtp': routed}

  def embed(self, tokens_BT) -> jax.Array:
    return self.layout.constrain(self.embedding_VD[tokens_BT], 'BtD')

  def scalars(self, hidden: jax.Array) -> jax.Array:
    """[..., D] → float32 [...]: values, or rewards, of every token."""
    return jnp.matmul(
      hidden, self.scalar_D1, preferred_element_type=quant.wide(hidden.dtype)
    )[..., 0]

  def everything(self, tokens_BT, position_BT, segment_BT):
    """Passes through every parameter: what initialisation calls."""
    hidden_BTD = self(tokens_BT, position_BT, segment_BT).hidden_BTD
    if self.config.num_nextn_predict_layers:
      self.look_ahead(hidden_BTD, tokens_BT, position_BT, segment_BT)

  def logits(self, hidden: jax.Array) -> jax.Array:
    """[..., D] → float32 [..., V]."""
    return jnp.matmul(
      hidden, self.head_DV, preferred_element_type=quant.wide(hidden.dtype)
    )

  def extend(
    self,
    tokens_BT,
    position_BT,
    live_BT,
    see_BTS,
    columns,
    column,
    pages,
    context: cache.Context,
  ):
    """Continues B rows, whose tokens so far lie in a cache, by T tokens each.

    Args:
      tokens_BT: int32.
      position_BT: int32, the place of each in its row.
      live_BT: bool; of the others nothing is read.
      see_BTS: bool, which columns of this call each token sees.
      columns: By stack, Pages of B: the entries of this call, ...
      column: ... where the T new ones are written from this column on.
      pages: By stack: the pool.
      context: Where the rows' tokens lie in it.

    Returns:
      hidden_BTD after the final norm; the columns; and the experts of the
      tokens, [B, T, L, A], L of the MoE layers, or None without any.
    """
    x_BTD = self.embed(tokens_BT)
    columns, chosen_BTLA = dict(columns), None
    for name, stack, layers in self.stacks:
      through = _through_blocks if self.apart else _through_stack
      (x_BTD, columns[name]), chosen_LBTA = through(
        stack,
        layers,
        (x_BTD, columns[name]),
        pages[name],
        context,
        position_BT,
        live_BT,
        see_BTS,
        column,
      )
      if chosen_LBTA is not None:
        chosen_BTLA = jnp.moveaxis(chosen_LBTA, 0, 2)
    return self.norm(x_BTD), columns, chosen_BTLA


def first_look_ahead(model: Transformer, params):
  """The module that predicts the token after the next, and its parameters."""
  return (
    MTP(model.config, model.layout, Block),
    jax.tree.map(lambda x: x[0], params['mtp']),
  )


def layers_apart(config: ModelConfig, params, of=lambda x, layer: x[layer]):
  """For a model whose layers are apart: {'moe_layers': {'w': [L, …]}} →
  {'moe_layers_0': {'w': […]}, …}. Modules that look ahead stay stacked.

  Args:
    config: The model's.
    params: Arrays, or what stands for them.
    of: What belongs to a layer of one of them.
  """
  found = dict(params)
  for name, layers in (
    ('dense_layers', config.first_k_dense_replace),
    ('moe_layers', config.num_moe_layers),
  ):
    stack = found.pop(name, None)
    found |= {
      f'{name}_{layer}': jax.tree.map(partial(of, layer=layer), stack)
      for layer in range(layers)
    }
  return found


def as_used(config: ModelConfig, params):
  """Parameters without the digits that no forward pass reads."""
  return jax.tree_util.tree_map_with_path(
    lambda path, x: x.astype(used_dtype(config, path[-1].key)), params
  )


def used_dtype(config: ModelConfig, name: str):
  """Of the parameter whose path ends so: the compute dtype, but that the
  scales of norms and the routers are float32."""
  wide = name in ('scale', 'router', 'bias')
  return jnp.dtype(jnp.float32) if wide else config.compute_dtype


STACKS = ('dense_layers', 'moe_layers', 'mtp')


def is_stacked(path: str) -> bool:
  """Whether the parameter at this path has a leading L."""
  return path.split('/', 1)[0] in STACKS


def output_head(model: Transformer, params) -> jax.Array:
  """[D, V] in the compute dtype: what turns hidden states into logits."""
  head = (
    params['embedding'].T
    if model.config.tie_word_embeddings
    else params['head']
  )
  return head.astype(model.config.compute_dtype)


def last_of(x_BT: jax.Array, valid_BT: jax.Array) -> jax.Array:
  """Each row's value at its last valid token: a reward model's answer."""
  T = valid_BT.shape[1]
  last_B = T - 1 - jnp.argmax(valid_BT[:, ::-1], 1)
  return jnp.take_along_axis(x_BT, last_B[:, None], 1)[:, 0]


def last_scalar(model: Transformer, params, tokens_BT, valid_BT):
  """What a reward model says of each row.

  Returns:
    float32 [B], the scalar head's number at the last valid token; and the
    forward pass's Output.
  """
  scalar_BT, out = all_scalars(model, params, tokens_BT, valid_BT)
  return last_of(scalar_BT, valid_BT), out


def all_scalars(model: Transformer, params, tokens_BT, valid_BT):
  """The scalar head's number at each token, float32 [B, T], and the forward
  pass's Output."""
  tokens_BT = model.layout.constrain(tokens_BT, 'BT')
  out = model.apply(
    {'params': params},
    tokens_BT,
    positions(valid_BT),
    valid_BT.astype(jnp.int32),
  )
  return model.apply({'params': params}, out.hidden_BTD, method='scalars'), out


def positions(valid_BT: jax.Array) -> jax.Array:
  """Place of each token among the valid ones: [0 0 1 1 1] → [0 0 0 1 2]."""
  return jnp.maximum(jnp.cumsum(valid_BT.astype(jnp.int32), -1) - 1, 0)


def parameter_shapes(model: Transformer):
  """Boxed shapes: nn.Partitioned leaves that carry the dimension letters.

  They do not depend on the mesh, which may not even divide them.
  """
  return _shapes(model.config, model.layout.alone())


@lru_cache
def _shapes(config: ModelConfig, layout: Layout):
  one = jnp.zeros((1, 1), jnp.int32)
  init = partial(Transformer(config, layout).init, method='everything')
  return jax.eval_shape(init, jax.random.key(0), one, one, one)['params']


def parameter_shardings(model: Transformer, layout: Layout):
  """The NamedSharding of every parameter, after checking that it divides."""

  def shard(path, boxed):
    name = '/'.join(str(getattr(k, 'key', k)) for k in path)
    layout.check(name, boxed.value.shape, boxed.names)
    return jax.sharding.NamedSharding(
      layout.mesh, layout.weight_spec(boxed.names)
    )

  return jax.tree_util.tree_map_with_path(
    shard,
    parameter_shapes(model),
    is_leaf=lambda x: isinstance(x, nn.Partitioned),
  )


def init_params(model: Transformer, key: jax.Array):
  """Fresh parameters, made in place on the mesh: plain nested dicts."""

  def make(key):
    one = jnp.zeros((1, 1), jnp.int32)
    return nn.meta.unbox(
      model.init(key, one, one, one, method='everything')['params']
    )

  shardings = parameter_shardings(model, model.layout)
  return jax.jit(make, out_shardings=shardings)(key)
