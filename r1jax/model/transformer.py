"""The transformer: embed → scanned blocks → norm → logits.

Layers of one kind (dense, then MoE) are stacked along L and scanned, so that
program size and compile time do not grow with depth.
"""

from functools import partial
from typing import NamedTuple

import chex
from flax import linen as nn
import jax
import jax.numpy as jnp

from r1jax.model import quant
from r1jax.model.attention import GQA
from r1jax.model.config import ModelConfig
from r1jax.model.layers import RMSNorm, SwiGLU, weight
from r1jax.model.mla import MLA
from r1jax.model.moe import MoE, Routing
from r1jax.model.mtp import MTP, shift
from r1jax.sharding import Layout


@chex.dataclass(frozen=True)
class Cache:
  """What P prompts left in each layer, and the G samples that continue each.

  Attributes:
    prefix: One [L, P, S, X] a stack of layers: the prompts.
    own: One [L, P, G, S, X] a stack: each sample's own tokens.
    valid_PS: bool, False on the prompts' padding.
    length_P: int32, tokens in each prompt.
  """

  prefix: tuple[jax.Array, ...]
  own: tuple[jax.Array, ...]
  valid_PS: jax.Array
  length_P: jax.Array


class Output(NamedTuple):
  """hidden_BTD after the final norm; cache entries; what the experts saw."""

  hidden_BTD: jax.Array
  entries: tuple[jax.Array, ...]  # One [L, B, T, X] a stack of layers.
  routing: dict[str, Routing]  # By stack of MoE layers, with a leading L.


class Block(nn.Module):
  config: ModelConfig
  layout: Layout
  is_moe: bool

  def setup(self):
    c = self.config
    self.attention_norm = RMSNorm(c.norm_eps)
    attention = {'mla': MLA, 'gqa': GQA}[c.attention]
    self.attention = attention(c, self.layout)
    self.ffn_norm = RMSNorm(c.norm_eps)
    if self.is_moe:
      self.ffn = MoE(c, self.layout)
    else:
      self.ffn = SwiGLU(c, self.layout, c.ffn_dim)

  def feed_forward(self, x_BTD, counted_BT, replay_BTA=None):
    h_BTD = self.ffn_norm(x_BTD)
    if not self.is_moe:
      return x_BTD + self.ffn(h_BTD), None
    y_BTD, routing = self.ffn(h_BTD, counted_BT, replay_BTA)
    return x_BTD + y_BTD, routing

  def __call__(self, x_BTD, position_BT, segment_BT, replay_BTA=None):
    mix_BTD, entry_BTX = self.attention(
        self.attention_norm(x_BTD), position_BT, segment_BT)
    x_BTD = self.layout.constrain(x_BTD + mix_BTD, 'BtD')
    x_BTD, routing = self.feed_forward(x_BTD, segment_BT > 0, replay_BTA)
    return self.layout.constrain(x_BTD, 'BtD'), (entry_BTX, routing)

  def decode(self, carry, layer, prefix_PSX, valid_PS, position_PG, slot):
    """Carries the stack's entries of own tokens and writes in place.

    Returns:
      The carry, and the experts of the new token, or None.
    """
    x_PGD, own_LPGSX = carry
    h_PGD = self.attention_norm(x_PGD)
    new_PGX = self.attention.entry(h_PGD, position_PG)
    own_LPGSX = jax.lax.dynamic_update_slice(
        own_LPGSX, new_PGX[None, :, :, None].astype(own_LPGSX.dtype),
        (layer, 0, 0, slot, 0))
    x_PGD += self.attention.decode(
        h_PGD, position_PG, prefix_PSX, valid_PS, own_LPGSX[layer], slot)
    x_PGD, routing = self.feed_forward(x_PGD, jnp.ones(x_PGD.shape[:2], bool))
    chosen_PGA = routing.expert_BTA if self.is_moe else None
    return (self.layout.constrain(x_PGD, 'PGD'), own_LPGSX), chosen_PGA


def _stack(config: ModelConfig, layout: Layout, is_moe: bool, layers: int):
  """`layers` blocks of one kind, their parameters stacked along L."""
  over_layers = dict(
      variable_axes={'params': 0}, split_rngs={'params': True}, length=layers,
      metadata_params={nn.PARTITION_NAME: 'L'})
  block = nn.remat(Block) if config.remat else Block
  scanned = nn.scan(block, methods={
      '__call__': dict(over_layers, unroll=config.unroll,
                       in_axes=(nn.broadcast, nn.broadcast, 0)),
      'decode': dict(over_layers, in_axes=(0, 0) + (nn.broadcast,) * 3)})
  return scanned(config, layout, is_moe)


def _mtp(config: ModelConfig, layout: Layout):
  """The look-ahead modules, stacked along their depth."""
  module = nn.remat(MTP) if config.remat else MTP
  return nn.scan(
      module, variable_axes={'params': 0}, split_rngs={'params': True},
      length=config.mtp_depth, in_axes=(0, nn.broadcast, nn.broadcast),
      metadata_params={nn.PARTITION_NAME: 'L'})(config, layout, Block)


class Transformer(nn.Module):
  config: ModelConfig
  layout: Layout

  def setup(self):
    c = self.config
    self.embedding_VD = weight(
        self, 'embedding', 'VD', (c.vocab_size, c.d_model), c.init_std)
    stacks = []
    if c.first_k_dense:
      self.dense_layers = _stack(c, self.layout, False, c.first_k_dense)
      stacks.append((self.dense_layers, c.first_k_dense))
    if c.num_moe_layers:
      self.moe_layers = _stack(c, self.layout, True, c.num_moe_layers)
      stacks.append((self.moe_layers, c.num_moe_layers))
    self.stacks = stacks
    self.norm = RMSNorm(c.norm_eps)
    if c.tie_embeddings:
      self.head_DV = self.embedding_VD.T
    else:
      self.head_DV = weight(
          self, 'head', 'DV', (c.d_model, c.vocab_size), c.init_std)
    if c.scalar_head:
      self.scalar_D1 = weight(self, 'scalar', 'Dv', (c.d_model, 1), 0.0)
    if c.mtp_depth:
      self.mtp = _mtp(c, self.layout)

  def __call__(self, tokens_BT, position_BT, segment_BT,
               replay_BTLA=None) -> Output:
    """The full forward pass, without logits: they are asked for in chunks.

    Args:
      tokens_BT: int32.
      position_BT: int32, each token's place in its document.
      segment_BT: int32; a token attends within its segment, 0 is padding.
      replay_BTLA: int, the experts to use in each MoE layer (routing replay);
        None: each layer chooses.
    """
    x_BTD = self.layout.constrain(self.embedding_VD[tokens_BT], 'BtD')
    entries, routing = [], {}
    for (stack, _) in self.stacks:
      replay_LBTA = None
      if replay_BTLA is not None and stack.is_moe:
        replay_LBTA = jnp.moveaxis(replay_BTLA, 2, 0)
      x_BTD, (entry_LBTX, routed) = stack(
          x_BTD, position_BT, segment_BT, replay_LBTA)
      entries.append(entry_LBTX)
      if routed is not None:
        routing[stack.name] = routed
    return Output(self.norm(x_BTD), tuple(entries), routing)

  def look_ahead(self, hidden_BTD, tokens_BT, position_BT, segment_BT):
    """The multi-token prediction modules (V3 section 2.2).

    Args:
      hidden_BTD: Of __call__; the rest as its arguments.

    Returns:
      hidden_ZBTD, along depth: [k − 1] is of the module that predicts k + 1
      tokens on; and the modules' routing, by stack.
    """
    ahead_ZBTD = jnp.stack([
        self.embedding_VD[shift(tokens_BT, k + 1)]
        for k in range(self.config.mtp_depth)])
    _, (hidden_ZBTD, routed) = self.mtp(
        hidden_BTD, ahead_ZBTD, position_BT, segment_BT)
    return hidden_ZBTD, {} if routed is None else {'mtp': routed}

  def scalars(self, hidden: jax.Array) -> jax.Array:
    """[..., D] → float32 [...]: values, or rewards, of every token."""
    return jnp.matmul(hidden, self.scalar_D1,
                      preferred_element_type=quant.wide(hidden.dtype))[..., 0]

  def everything(self, tokens_BT, position_BT, segment_BT):
    """Passes through every parameter: what initialisation calls."""
    hidden_BTD = self(tokens_BT, position_BT, segment_BT).hidden_BTD
    if self.config.mtp_depth:
      self.look_ahead(hidden_BTD, tokens_BT, position_BT, segment_BT)

  def logits(self, hidden: jax.Array) -> jax.Array:
    """[..., D] → float32 [..., V]."""
    return jnp.matmul(
        hidden, self.head_DV,
        preferred_element_type=quant.wide(hidden.dtype))

  def prefill(self, tokens_PT, valid_PT, group_size: int, budget_tokens: int):
    """Reads the prompts, left-padded, once for all samples of each.

    Returns:
      The last token's logits [P, V]; a cache with room for `budget_tokens` own
      tokens of each of `group_size` samples; and the experts of each token,
      [P, T, L, A], L of the MoE layers, or None without any.
    """
    position_PT = positions(valid_PT)
    out = self(tokens_PT, position_PT, valid_PT.astype(jnp.int32))
    P = tokens_PT.shape[0]
    own = tuple(
        jnp.zeros((e.shape[0], P, group_size, budget_tokens, e.shape[-1]),
                  e.dtype) for e in out.entries)
    cache = Cache(prefix=out.entries, own=own, valid_PS=valid_PT,
                        length_P=valid_PT.sum(-1, dtype=jnp.int32))
    routed = out.routing.get('moe_layers')
    chosen_PTLA = routed and jnp.moveaxis(routed.expert_BTA, 0, 2)
    return self.logits(out.hidden_BTD[:, -1]), cache, chosen_PTLA

  def decode(self, tokens_PG, cache: Cache, slot):
    """Appends one token to each sample, at own slot `slot`.

    Returns:
      Logits [P, G, V] for the token after it; the cache; and the experts of
      the token, [P, G, L, A], or None.
    """
    x_PGD = self.layout.constrain(self.embedding_VD[tokens_PG], 'PGD')
    position_PG = jnp.broadcast_to(
        cache.length_P[:, None] + slot, tokens_PG.shape)
    own, chosen_PGLA = [], None
    for (stack, layers), prefix, own_LPGSX in zip(
        self.stacks, cache.prefix, cache.own):
      (x_PGD, own_LPGSX), chosen_LPGA = stack.decode(
          (x_PGD, own_LPGSX), jnp.arange(layers), prefix, cache.valid_PS,
          position_PG, slot)
      own.append(own_LPGSX)
      if chosen_LPGA is not None:
        chosen_PGLA = jnp.moveaxis(chosen_LPGA, 0, 2)
    return (self.logits(self.norm(x_PGD)), cache.replace(own=tuple(own)),
            chosen_PGLA)


STACKS = ('dense_layers', 'moe_layers', 'mtp')


def is_stacked(path: str) -> bool:
  """Whether the parameter at this path has a leading L."""
  return path.split('/', 1)[0] in STACKS


def output_head(model: Transformer, params) -> jax.Array:
  """[D, V] in the compute dtype: what turns hidden states into logits."""
  head = (params['embedding'].T if model.config.tie_embeddings
          else params['head'])
  return head.astype(model.config.compute_dtype)


def last_of(x_BT: jax.Array, valid_BT: jax.Array) -> jax.Array:
  """Each row's value at its last valid token: a reward model's answer."""
  T = valid_BT.shape[1]
  last_B = T - 1 - jnp.argmax(valid_BT[:, ::-1], 1)
  return jnp.take_along_axis(x_BT, last_B[:, None], 1)[:, 0]


def positions(valid_BT: jax.Array) -> jax.Array:
  """Place of each token among the valid ones: [0 0 1 1 1] → [0 0 0 1 2]."""
  return jnp.maximum(jnp.cumsum(valid_BT.astype(jnp.int32), -1) - 1, 0)


def parameter_shapes(model: Transformer):
  """Boxed shapes: nn.Partitioned leaves that carry the dimension letters.

  They do not depend on the mesh, which may not even divide them.
  """
  one = jnp.zeros((1, 1), jnp.int32)
  alone = model.clone(layout=model.layout.alone())
  init = partial(alone.init, method='everything')
  return jax.eval_shape(init, jax.random.key(0), one, one, one)['params']


def parameter_shardings(model: Transformer, layout: Layout):
  """The NamedSharding of every parameter, after checking that it divides."""
  def shard(path, boxed):
    name = '/'.join(str(getattr(k, 'key', k)) for k in path)
    layout.check(name, boxed.value.shape, boxed.names)
    return jax.sharding.NamedSharding(
        layout.mesh, layout.weight_spec(boxed.names))

  return jax.tree_util.tree_map_with_path(
      shard, parameter_shapes(model),
      is_leaf=lambda x: isinstance(x, nn.Partitioned))


def init_params(model: Transformer, key: jax.Array):
  """Fresh parameters, made in place on the mesh: plain nested dicts."""
  def make(key):
    one = jnp.zeros((1, 1), jnp.int32)
    return nn.meta.unbox(model.init(
        key, one, one, one, method='everything')['params'])

  shardings = parameter_shardings(model, model.layout)
  return jax.jit(make, out_shardings=shardings)(key)
