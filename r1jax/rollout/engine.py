"""The sampler: requests in, completions out, decoded on the device in chunks.

Two programs, whatever the lengths: one reads prompts, one draws a chunk of
tokens for every row (see programs.py). Between two calls the host hands out
rows and pages (see scheduler.py). Where fewer rows are busy, a narrower copy
of the same program runs: a row is nothing but a page list, so rows move for
free.
"""

from collections.abc import Callable, Sequence
import dataclasses
import math
import os

from flax import traverse_util
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
import numpy as np

from r1jax.errors import UserError
from r1jax.model.transformer import (
  Transformer,
  as_used,
  layers_apart,
  parameter_shapes,
  parameter_shardings,
  used_dtype,
)
from r1jax.records import PromptBatch, Rollout
from r1jax.rollout import assemble
from r1jax.rollout.programs import Programs
from r1jax.rollout.sampling import Sampling
from r1jax.rollout.scheduler import Completion, Request
from r1jax.rollout.session import Session
from r1jax.sharding import Layout


@dataclasses.dataclass(frozen=True)
class EngineConfig:
  """The sampler's sizes. What is drawn depends on the last two alone.

  Attributes:
    rows: Completions that decode at once.
    context_tokens: Longest prompt and completion together.
    page_tokens: S, of one page of the cache.
    chunk_steps: Forward passes between two looks of the host.
    prefill_tokens: Prompt tokens that one call reads.
    cache_tokens: Of the whole pool; 0 for as many as all rows could need.
    cache_int8: Keep the cache in 8 bits. The policy that samples is then near
      the model, not the same.
    speculative: Guess a token ahead with the model's look-ahead module. The
      distribution of samples is the same; a sample is another.
  """

  rows: int
  context_tokens: int
  page_tokens: int = 16
  chunk_steps: int = 16
  prefill_tokens: int = 2048
  cache_tokens: int = 0
  cache_int8: bool = False
  speculative: bool = False

  def __post_init__(self):
    for field in (
      'rows',
      'context_tokens',
      'page_tokens',
      'chunk_steps',
      'prefill_tokens',
    ):
      if getattr(self, field) < 1:
        raise UserError(
          f'rollout: {field} must be at least 1, got {getattr(self, field)}'
        )

  @property
  def places(self) -> int:
    """W, the most pages of a row: prompt and completion both end in half a
    page."""
    return -(-self.context_tokens // self.page_tokens) + 1

  def pages(self, parts: int) -> int:
    """Of each part's pool, page 0 among them.

    Raises:
      UserError: they hold no request of context_tokens.
    """
    every = -(-self.rows // parts) * parts * self.places * self.page_tokens
    tokens = self.cache_tokens or every
    pages = 1 + -(-tokens // (self.page_tokens * parts))
    if pages <= self.places:
      raise UserError(
        f'rollout: cache_tokens = {tokens} holds no request of '
        f'context_tokens = {self.context_tokens}; it needs '
        f'{self.places * self.page_tokens * parts}'
      )
    return pages


class Engine:
  """Programs and sizes; never parameters, and nothing that outlives a run.

  A sample's randomness is a function of its key and of how many tokens it has
  drawn, whatever else is in the batch and wherever it stands there.

  Raises:
    UserError: the pool cannot hold one request, or memory cannot hold the
      pool.
  """

  def __init__(
    self,
    model: Transformer,
    config: EngineConfig,
    record_routing: bool = False,
    decode: Callable[[Sequence[int]], str] | None = None,
  ):
    """Args:
    model: In its training layout.
    config: Sizes.
    record_routing: Completions tell the experts of their tokens.
    decode: Ids to text; stop strings need it.
    """
    self.config, self.decode = config, decode
    if config.speculative and not model.config.num_nextn_predict_layers:
      raise UserError(
        'rollout: speculative needs a look-ahead module, but '
        'model.num_nextn_predict_layers is 0'
      )
    self.layout = layout = model.layout.decoding()
    self.parts = layout.size('B')
    self.rows = -(-config.rows // self.parts)  # Of one part.
    self.places, self.pages = config.places, config.pages(self.parts)
    _check_memory(layout, device_bytes(model, model.layout, config))
    # A sample depends on itself alone: no pair of it is dropped for others'.
    self.model = model.clone(
      layout=layout,
      apart=_pays_apart(model),
      config=dataclasses.replace(model.config, capacity_factor=0.0),
    )
    self.programs = Programs(
      self.model,
      config.page_tokens,
      config.chunk_steps,
      config.cache_int8,
      record_routing,
      config.speculative,
    )
    self._shardings = parameter_shardings(model, layout)
    if self.model.apart:
      self._shardings = layers_apart(
        model.config, self._shardings, _of_one_layer
      )
    self._lay_out = jax.jit(self._as_sampled, out_shardings=self._shardings)
    self._make_pages = jax.jit(
      self._empty, out_shardings=self._page_shardings()
    )
    self.fill = jax.jit(
      self.programs.fill, donate_argnums=1, out_shardings=self._outputs()
    )
    self.draw = jax.jit(
      self.programs.draw,
      donate_argnums=1,
      static_argnames=('best',),
      out_shardings=self._outputs(),
    )

  def compiled(self) -> int:
    """How many programs have been compiled so far."""
    return self.fill._cache_size() + self.draw._cache_size()

  def run(self, params, requests: Sequence[Request]) -> list[Completion]:
    """Completes all requests; in their order.

    Raises:
      UserError: one of them cannot be served; see Session.check.
    """
    session = self.session(params)
    made = [session.submit(request) for request in requests]
    for _ in session:
      pass
    return made

  def session(self, params, version: int = 0) -> Session:
    """A cache of its own for these parameters: none survives their change."""
    return Session(self, self.laid_out(params), version)

  def laid_out(self, params):
    """Parameters as the two programs take them: in the decoding layout and
    the compute dtype."""
    wanted = jax.eval_shape(self._as_sampled, params)
    if jax.tree.structure(wanted) == jax.tree.structure(params) and all(
      x.dtype == like.dtype
      and isinstance(x, jax.Array)
      and x.sharding.is_equivalent_to(where, x.ndim)
      for x, like, where in zip(
        *map(jax.tree.leaves, (params, wanted, self._shardings))
      )
    ):
      return params  # Not copied.
    return self._lay_out(params)

  def _as_sampled(self, params):
    params = as_used(self.model.config, params)
    if not self.model.apart:
      return params
    return layers_apart(self.model.config, params)

  def generate(
    self,
    params,
    prompts: PromptBatch,
    group_size: int,
    how: Sampling,
    key: jax.Array,
  ) -> Rollout:
    """Completes every prompt `group_size` times.

    Args:
      params: In any layout; moved to the decoding one.
      prompts: P prompts.
      group_size: G.
      how: For all of them.
      key: Of this step; see assemble.sample_keys.

    Returns:
      A Rollout of B = P · G rows, on the host.
    """
    asked = assemble.requests(prompts, group_size, how, key)
    return assemble.as_rollout(
      prompts, group_size, how.max_new_tokens, self.run(params, asked)
    )

  def check(self, request: Request):
    """Raises UserError, which names the request, if it cannot be served."""

    def need(ok, message):
      if not ok:
        raise UserError(f'request {request.name}: {message}')

    p, new = len(request.prompt), request.sampling.budget(len(request.prompt))
    need(p, 'the prompt is empty')
    need(
      new >= 1,
      f'prompt of {p} leaves nothing of max_total_tokens = '
      f'{request.sampling.max_total_tokens}',
    )
    need(
      p + new <= self.config.context_tokens,
      f'prompt of {p} and max_new_tokens of {new} exceed context_tokens = '
      f'{self.config.context_tokens}',
    )
    need(
      np.shape(request.key) == (2,),
      f'its key has shape {np.shape(request.key)}; a raw key is uint32 [2]',
    )
    need(
      self.decode or not request.sampling.stop_strings,
      'stop strings need a tokenizer',
    )
    V = self.model.config.vocab_size
    need(
      0 <= request.prompt.min() and request.prompt.max() < V,
      f'the prompt has a token outside of the vocabulary of {V}',
    )
    try:
      request.sampling.check(V)
    except UserError as error:
      raise UserError(f'request {request.name}: {error}') from error

  @property
  def fill_shape(self) -> tuple[int, int]:
    """Rows a part and columns of a call that reads prompts."""
    columns = min(_FILL_COLUMNS, self.config.context_tokens)
    rows = max(1, self.config.prefill_tokens // (columns * self.parts))
    return rows, columns

  def new_pages(self):
    """An empty pool, by stack, laid out on the mesh."""
    return self._make_pages()

  def _outputs(self):
    """A program's: the pool stays where it is, all else is told to the host."""
    return self._page_shardings(), self.layout.replicated()

  def _empty(self):
    return self.programs.empty(self.pages * self.parts)

  def _page_shardings(self):
    return jax.tree.map(
      lambda x: NamedSharding(self.layout.mesh, _page_spec(self.layout, x)),
      jax.eval_shape(self._empty),
    )


def device_bytes(
  model: Transformer, layout: Layout, config: EngineConfig
) -> dict[str, int]:
  """What sampling needs of one device, part by part: both copies of the
  weights, where the two differ, and the cache. A step that trains has its
  moments and its reference policy beside it.

  Args:
    model: What samples.
    layout: Of its training; its mesh may be abstract.
    config: Sizes.
  """
  decoding = layout.decoding()
  boxes = traverse_util.flatten_dict(parameter_shapes(model))

  def held(layout: Layout, itemsize: Callable[[str], int]) -> int:
    return sum(
      itemsize(path[-1])
      * math.prod(box.value.shape)
      // layout.weight_parts(box.names)
      for path, box in boxes.items()
    )

  # Decoding leaves axes out and adds none.
  same = (
    model.config.compute_dtype == jnp.float32
    and not _pays_apart(model)
    and all(
      layout.weight_parts(box.names) == decoding.weight_parts(box.names)
      for box in boxes.values()
    )
  )
  parts = decoding.size('B')
  programs = Programs(
    model,
    config.page_tokens,
    config.chunk_steps,
    config.cache_int8,
    False,
    config.speculative,
  )
  pool = jax.eval_shape(lambda: programs.empty(config.pages(parts) * parts))
  dtype = model.config.compute_dtype
  return {
    'weights as trained, float32': held(layout, lambda name: 4),
    f'weights as sampled, {dtype}': 0
    if same
    else held(decoding, lambda name: used_dtype(model.config, name).itemsize),
    'cache': sum(
      math.prod(x.shape)
      * x.dtype.itemsize
      // decoding.parts(_page_spec(decoding, x))
      for x in jax.tree.leaves(pool)
    ),
  }


def _page_spec(layout: Layout, x) -> PartitionSpec:
  """Of an array of the pool."""
  return layout.fitting_spec(x.shape, {2: 'Y_', 5: 'LYKSX'}[x.ndim])


_FILL_COLUMNS = 64  # Of a row that reads a prompt.
_APART_LAYERS = 8  # At most: each is compiled.


def _pays_apart(model: Transformer) -> bool:
  """Where layers are few, and the device multiplies only what it has copied
  out of a stack. It costs a second copy of the parameters."""
  return (
    model.layout.platform == 'cpu'
    and model.config.num_hidden_layers <= _APART_LAYERS
  )


def _of_one_layer(sharding: NamedSharding, layer: int) -> NamedSharding:
  """Of a stack's sharding; L is never split."""
  del layer
  return NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[1:]))


def _check_memory(layout: Layout, needs: dict[str, int]):
  """Refuses what one device cannot hold."""
  here = layout.mesh.local_devices
  limit = (here[0].memory_stats() or {}).get('bytes_limit')
  if limit is None:  # A processor: devices share the host's memory.
    limit = os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')
    limit /= len(here)
  if sum(needs.values()) > limit:
    told = ', '.join(
      f'{name}: {size / 1e9:.1f}' for name, size in needs.items()
    )
    raise UserError(
      f'rollout: a device has {limit / 1e9:.1f} GB, and sampling needs '
      f'{told}; lower cache_tokens or rows, or split the weights over more '
      'of the mesh'
    )
