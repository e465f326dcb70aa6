"""Parameters of the transformer: shapes, shardings, dtypes, initialization.

Attributes:
  STACKS: Names of the parameter subtrees that are stacked along L.
"""

from functools import lru_cache, partial

from flax import linen as nn
import jax
import jax.numpy as jnp

from r1jax.config.schema.model import ModelConfig
from r1jax.model.int8_weights import Int8Weight
from r1jax.model.transformer import Transformer
from r1jax.sharding import Layout

STACKS = ('dense_layers', 'moe_layers', 'mtp')


def is_stacked(path: str) -> bool:
  """Returns whether the parameter at this path has a leading L."""
  return path.split('/', 1)[0] in STACKS


def unstack_layers(config: ModelConfig, params, take=lambda x, layer: x[layer]):
  """Splits the stacks of layers into one entry per layer.

  {'moe_layers': {'w': [L, …]}} becomes {'moe_layers_0': {'w': […]}, …}, which
  is what a Transformer with `scan_layers` = False takes. MTP modules stay
  stacked, and layers that are split already stay as they are.

  Args:
    config: The model's configuration.
    params: Arrays, or a tree of the same structure, such as shardings.
    take: Function from a leaf and a layer's index to the layer's leaf.
  """
  unstacked = dict(params)
  for name, layers in (
    ('dense_layers', config.first_k_dense_replace),
    ('moe_layers', config.num_moe_layers),
  ):
    if name not in unstacked:
      continue
    stack = unstacked.pop(name)
    unstacked |= {
      f'{name}_{layer}': jax.tree.map(partial(take, layer=layer), stack)
      for layer in range(layers)
    }
  return unstacked


def cast_to_compute(config: ModelConfig, params):
  """Casts parameters to the dtypes that the forward pass computes with.

  Weights in 8 bits stay as they are.
  """
  rounded = lambda x: isinstance(x, Int8Weight)
  return jax.tree_util.tree_map_with_path(
    lambda path, x: (
      x if rounded(x) else x.astype(param_compute_dtype(config, path[-1].key))
    ),
    params,
    is_leaf=rounded,
  )


def param_compute_dtype(config: ModelConfig, name: str):
  """Returns the dtype that a parameter is used in.

  It is the compute dtype, except for the scales of norms and the routers, which
  are float32.

  Args:
    config: The model's configuration.
    name: The last part of the parameter's path.
  """
  is_float32 = name in ('scale', 'router', 'bias')
  return jnp.dtype(jnp.float32) if is_float32 else config.compute_dtype


def parameter_shapes(model: Transformer):
  """Returns the shapes and dimension letters of all parameters.

  They do not depend on the mesh, which may not even divide them.

  Returns:
    A tree of nn.Partitioned; `value` is a ShapeDtypeStruct, `names` are the
    sharding letters.
  """
  return _shapes(model.config, model.layout.alone())


@lru_cache
def _shapes(config: ModelConfig, layout: Layout):
  one = jnp.zeros((1, 1), jnp.int32)
  init = partial(Transformer(config, layout).init, method='init_all')
  return jax.eval_shape(init, jax.random.key(0), one, one, one)['params']


def parameter_shardings(model: Transformer, layout: Layout):
  """Returns the NamedSharding of every parameter.

  Raises:
    UserError: the mesh does not divide a parameter.
  """

  def sharding(path, boxed):
    name = '/'.join(str(getattr(k, 'key', k)) for k in path)
    layout.check(name, boxed.value.shape, boxed.names)
    return jax.sharding.NamedSharding(
      layout.mesh, layout.weight_spec(boxed.names)
    )

  return jax.tree_util.tree_map_with_path(
    sharding,
    parameter_shapes(model),
    is_leaf=lambda x: isinstance(x, nn.Partitioned),
  )


def init_params(model: Transformer, key: jax.Array):
  """Initializes the parameters, directly in their shardings on the mesh.

  Returns:
    Nested dicts of float32 arrays; their shapes alone in a process whose
    devices are not in the mesh.
  """

  def init(key):
    one = jnp.zeros((1, 1), jnp.int32)
    return nn.meta.unbox(
      model.init(key, one, one, one, method='init_all')['params']
    )

  shardings = parameter_shardings(model, model.layout)
  initialised = jax.jit(init, out_shardings=shardings)
  if not model.layout.is_local:
    return jax.tree.map(
      lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
      jax.eval_shape(init, key),
      shardings,
    )
  return initialised(key)
