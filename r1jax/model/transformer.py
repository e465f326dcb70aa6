"""The transformer: embedding → scanned layers → norm → logits.

Layers of one kind (dense, then MoE) are stacked along L and scanned, so that
program size and compile time do not grow with depth. For decoding a model with
few layers they can be unrolled instead: a scan copies each layer's weights out
of the stack, which costs much of a step that computes one token per sequence.
"""

from functools import partial
from typing import Any, NamedTuple

from flax import linen as nn
import jax
from jax.ad_checkpoint import checkpoint_name
import jax.numpy as jnp

from r1jax.config.schema.model import ModelConfig
from r1jax.model import cache, mtp, quant
from r1jax.model.attention import GQA
from r1jax.model.layers import RMSNorm, SwiGLU, weight
from r1jax.model.mla import MLA
from r1jax.model.moe import MoE, Routing
from r1jax.model.mtp import MTP
from r1jax.sharding import Layout

_LAYER_INPUT = 'layer_input'  # Name of what remat = 'offload' moves.


class Output(NamedTuple):
  """Result of a forward pass.

  Attributes:
    hidden_BTD: Hidden states after the final norm.
    routing: Name of each stack of MoE layers to its Routing, with a leading L.
  """

  hidden_BTD: jax.Array
  routing: dict[str, Routing]


class Block(nn.Module):
  """One layer: pre-norm attention and pre-norm FFN or MoE, both residual."""

  config: ModelConfig
  layout: Layout
  is_moe: bool

  def setup(self):
    c = self.config
    self.attention_norm = RMSNorm(c.rms_norm_eps)
    attention: Any = {'mla': MLA, 'gqa': GQA}[c.attention]
    if c.remat == 'attention':
      attention = nn.remat(attention, methods=['__call__'])
    self.attention = attention(c, self.layout)
    self.ffn_norm = RMSNorm(c.rms_norm_eps)
    self.ffn: Any
    if self.is_moe:
      self.ffn = MoE(c, self.layout)
    else:
      self.ffn = SwiGLU(c, self.layout, c.intermediate_size)

  def feed_forward(
    self, x_BTD, counted_BT, replay_BTA=None, balance_BT=None, prefix_BT=None
  ):
    """Applies the second half of the layer; returns its output and Routing."""
    h_BTD = self.ffn_norm(x_BTD)
    if not self.is_moe:
      return x_BTD + self.ffn(h_BTD), None
    y_BTD, routing = self.ffn(
      h_BTD, counted_BT, replay_BTA, balance_BT, prefix_BT
    )
    return x_BTD + y_BTD, routing

  def __call__(
    self,
    x_BTD,
    position_BT,
    segment_BT,
    replay_BTA=None,
    balance_BT=None,
    prefix_BT=None,
  ):
    """Applies the layer to whole sequences; returns [B, T, D] and Routing."""
    x_BTD = checkpoint_name(x_BTD, _LAYER_INPUT)
    x_BTD += self.attention(
      self.attention_norm(x_BTD), position_BT, segment_BT, prefix_BT
    )
    x_BTD, routing = self.feed_forward(
      self.layout.constrain(x_BTD, 'BtD'),
      segment_BT > 0,
      replay_BTA,
      balance_BT,
      prefix_BT,
    )
    return self.layout.constrain(x_BTD, 'BtD'), routing

  def extend(
    self,
    carry,
    layer,
    pool,
    block_tables,
    position_BT,
    valid_BT,
    see_BTS,
    column,
    skip: int = 0,
  ):
    """Applies the layer to T new tokens per sequence with a KV cache.

    Args:
      carry: Hidden states [B, T, D], and the columns of the layer's stack.
      layer: Index of the layer in its stack.
      pool, block_tables, position_BT, valid_BT, see_BTS, column: See
        Transformer.extend; the pool is the stack's.
      skip: Number of first tokens of each sequence that are not attended to.

    Returns:
      The updated carry, and the experts of the tokens or None.
    """
    x_BTD, columns = carry
    parts = self.config.cache_parts
    h_BTD = self.attention_norm(x_BTD)
    entry_BTKX = self.attention.entry(h_BTD, position_BT)
    columns = cache.write(columns, entry_BTKX, layer, column, parts)
    x_BTD += self.attention.extend(
      h_BTD,
      position_BT,
      cache.View(
        pool=pool,
        layer=layer,
        block_tables=block_tables,
        columns_BKSX=cache.read(columns, layer, parts, x_BTD.dtype),
        see_BTS=see_BTS,
        skip=skip,
      ),
    )
    x_BTD, routing = self.feed_forward(x_BTD, valid_BT)
    expert_BTA = routing.expert_BTA if self.is_moe else None
    return (self.layout.constrain(x_BTD, 'BtD'), columns), expert_BTA


def _over_layers(layers: int, initializing: bool) -> dict[str, Any]:
  """Returns the arguments of nn.scan for parameters that are stacked along L.

  Flax's check of what layers share traces a layer a second time. It is left out
  except for the initial weights, whose random numbers depend on it.
  """
  return dict(
    variable_axes={'params': 0},
    split_rngs={'params': True},
    length=layers,
    metadata_params={nn.PARTITION_NAME: 'L'},
    check_constancy_invariants=initializing,
  )


def _stack(
  initializing: bool,
  config: ModelConfig,
  layout: Layout,
  is_moe: bool,
  layers: int,
):
  """Builds layers of one kind whose parameters are stacked along L."""
  over_layers = _over_layers(layers, initializing)
  scanned = nn.scan(
    _recomputed(Block, config),
    methods={
      '__call__': dict(
        over_layers,
        unroll=config.scan_unroll,
        in_axes=(nn.broadcast,) * 2 + (0,) + (nn.broadcast,) * 2,
      ),
      'extend': dict(over_layers, in_axes=(0,) + (nn.broadcast,) * 6),
    },
  )
  return scanned(config, layout, is_moe)


def _recomputed(module: type[nn.Module], config: ModelConfig):
  """Returns a layer's class that keeps what config.remat says for the gradient.

  A run replaces 'auto' before it trains; elsewhere it is 'block'.
  """
  if config.remat in ('none', 'attention'):  # Block sees to the latter.
    return module
  policy = None
  if config.remat == 'offload':
    policy = jax.checkpoint_policies.save_and_offload_only_these_names(
      names_which_can_be_saved=[],
      names_which_can_be_offloaded=[_LAYER_INPUT],
      offload_src='device',
      offload_dst='pinned_host',
    )
  return nn.remat(module, policy=policy)


def _unrolled(config: ModelConfig, layout: Layout, is_moe: bool, layers: int):
  """Builds layers of one kind, each with its own parameters."""
  return [Block(config, layout, is_moe) for _ in range(layers)]


def _extend_stack(stack, layers: int, carry, *args):
  return stack.extend(carry, jnp.arange(layers), *args)


def _extend_unrolled(blocks, layers: int, carry, *args):
  experts = []
  for layer, block in zip(range(layers), blocks, strict=True):
    carry, expert_BTA = block.extend(carry, layer, *args)
    experts.append(expert_BTA)
  return carry, None if experts[0] is None else jnp.stack(experts)


def _mtp(initializing: bool, config: ModelConfig, layout: Layout):
  """Builds the MTP modules, whose parameters are stacked along Z."""
  return nn.scan(
    _recomputed(MTP, config),
    **_over_layers(config.num_nextn_predict_layers, initializing),
    in_axes=(0,) + (nn.broadcast,) * 4,
  )(config, layout, Block)


class Transformer(nn.Module):
  """A decoder-only language model, with optional MTP modules and scalar head.

  Attributes:
    config: The architecture.
    layout: The mesh and its sharding tables.
    scan_layers: Whether layers are stacked and scanned. If False, parameters
      are those of parameters.unstack_layers and only `extend` works.
  """

  config: ModelConfig
  layout: Layout
  scan_layers: bool = True

  def setup(self):
    c = self.config
    self.embedding_VD = weight(
      self,
      'embedding',
      'VD',
      (c.vocab_size, c.hidden_size),
      c.initializer_range,
    )
    initializing = self.is_initializing()
    layers = partial(_stack, initializing) if self.scan_layers else _unrolled
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
      self.mtp = _mtp(initializing, c, self.layout)

  def __call__(
    self,
    tokens_BT,
    position_BT,
    segment_BT,
    replay_BTLA=None,
    balance_BT=None,
    prefix_BT=None,
  ) -> Output:
    """Computes hidden states of whole sequences.

    Logits are a separate method, since training computes them in chunks.

    Args:
      tokens_BT: int32.
      position_BT: int32, position of each token in its document.
      segment_BT: int32; a token attends within its segment, 0 is padding.
      replay_BTLA: int, the experts to use in each MoE layer (routing replay);
        if None the routers choose them.
      balance_BT: int32 in [0, T], the sequences of a row that the balance loss
        of the experts is the mean over; None where a row is one sequence.
      prefix_BT: int32, for each token the id of an earlier segment of its row
        that it attends to as well, such as the prompt that completions share;
        −1 for tokens of such a segment, 0 for others. Positions go on after
        that segment. See kernels.attend and moe.sequence_aux_loss.
    """
    x_BTD = self.embed(tokens_BT)
    routing = {}
    for name, stack, _ in self.stacks:
      replay_LBTA = None
      if replay_BTLA is not None and stack.is_moe:
        replay_LBTA = jnp.moveaxis(replay_BTLA, 2, 0)
      x_BTD, routed = stack(
        x_BTD, position_BT, segment_BT, replay_LBTA, balance_BT, prefix_BT
      )
      if routed is not None:
        routing[name] = routed
    return Output(self.norm(x_BTD), routing)

  def predict_ahead(
    self,
    hidden_BTD,
    tokens_BT,
    position_BT,
    segment_BT,
    balance_BT=None,
    prefix_BT=None,
  ):
    """Runs the multi-token prediction (MTP) modules (V3 section 2.2).

    At depth k a token is paired with the one k places later, see
    mtp.tokens_ahead. A single module is applied config.prediction_depth times.

    Args:
      hidden_BTD: The main model's hidden states, from __call__.
      tokens_BT, position_BT, segment_BT, balance_BT, prefix_BT: See __call__.

    Returns:
      hidden_ZBTD, where index k − 1 predicts the token k + 1 positions ahead;
      and the modules' Routing by stack.
    """
    c = self.config
    ahead = [
      mtp.tokens_ahead(tokens_BT, segment_BT, prefix_BT, k + 1)
      for k in range(c.prediction_depth)
    ]
    ahead_NZBT = jnp.stack(ahead).reshape(
      -1, c.num_nextn_predict_layers, *tokens_BT.shape
    )
    ahead_NZBTD = self.embedding_VD[ahead_NZBT]
    context = position_BT, segment_BT, balance_BT, prefix_BT
    if len(ahead_NZBTD) == 1:
      return mtp.by_stack(*self.mtp(hidden_BTD, ahead_NZBTD[0], *context)[1])
    again = nn.scan(
      lambda self, h_BTD, *args: self.mtp(h_BTD, *args),
      variable_broadcast='params',
      split_rngs={'params': False},
      in_axes=(0,) + (nn.broadcast,) * 4,
    )
    found = again(self, hidden_BTD, ahead_NZBTD, *context)[1]
    return mtp.by_stack(*mtp.joined(*found))

  def embed(self, tokens_BT) -> jax.Array:
    """Returns the token embeddings, [B, T, D]."""
    return self.layout.constrain(self.embedding_VD[tokens_BT], 'BtD')

  def scalars(self, hidden: jax.Array) -> jax.Array:
    """Applies the scalar head (values, rewards): [..., D] → float32 [...]."""
    return jnp.matmul(
      hidden, self.scalar_D1, preferred_element_type=quant.wide(hidden.dtype)
    )[..., 0]

  def init_all(self, tokens_BT, position_BT, segment_BT):
    """Uses every parameter; for Module.init."""
    hidden_BTD = self(tokens_BT, position_BT, segment_BT).hidden_BTD
    if self.config.num_nextn_predict_layers:
      self.predict_ahead(hidden_BTD, tokens_BT, position_BT, segment_BT)

  def logits(self, hidden: jax.Array) -> jax.Array:
    """Applies the language model head: [..., D] → float32 [..., V]."""
    return jnp.matmul(
      hidden, self.head_DV, preferred_element_type=quant.wide(hidden.dtype)
    )

  def extend(
    self,
    tokens_BT,
    position_BT,
    valid_BT,
    see_BTS,
    columns,
    column,
    kv_cache,
    block_tables: cache.BlockTables,
  ):
    """Computes T new tokens per sequence with a KV cache.

    It serves prefill and decoding. The new entries are written to the columns
    only; cache.flush appends them to the blocks later.

    Args:
      tokens_BT: int32.
      position_BT: int32, position of each token in its sequence.
      valid_BT: bool, False for tokens whose output is not used.
      see_BTS: bool, the columns of this call that each token attends to.
      columns: Name of each stack to its columns, a KVCache with B blocks.
      column: The first of the T columns to write.
      kv_cache: Name of each stack to its block pool.
      block_tables: Positions of the sequences are in the pools.

    Returns:
      hidden_BTD after the final norm; the columns; and the experts of the
      tokens, [B, T, L, A] with L the MoE layers, or None without any.
    """
    x_BTD = self.embed(tokens_BT)
    columns, expert_BTLA = dict(columns), None
    extend = _extend_stack if self.scan_layers else _extend_unrolled
    for name, stack, layers in self.stacks:
      (x_BTD, columns[name]), expert_LBTA = extend(
        stack,
        layers,
        (x_BTD, columns[name]),
        kv_cache[name],
        block_tables,
        position_BT,
        valid_BT,
        see_BTS,
        column,
      )
      if expert_LBTA is not None:
        expert_BTLA = jnp.moveaxis(expert_LBTA, 0, 2)
    return self.norm(x_BTD), columns, expert_BTLA


def first_mtp_module(model: Transformer, params):
  """Returns the MTP module that predicts the token after the next.

  Returns:
    An unbound MTP module, and its parameters.
  """
  return (
    MTP(model.config, model.layout, Block),
    jax.tree.map(lambda x: x[0], params['mtp']),
  )


def output_head(model: Transformer, params) -> jax.Array:
  """Returns the language model head, [D, V] in the compute dtype."""
  head = (
    params['embedding'].T
    if model.config.tie_word_embeddings
    else params['head']
  )
  return head.astype(model.config.compute_dtype)


def positions(valid_BT: jax.Array) -> jax.Array:
  """Counts valid tokens from 0 along each row: [0 0 1 1 1] → [0 0 0 1 2]."""
  return jnp.maximum(jnp.cumsum(valid_BT.astype(jnp.int32), -1) - 1, 0)
