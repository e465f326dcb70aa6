"""The sampler: one prefill a prompt, then decoding that stays on the device."""

import dataclasses

import jax
import jax.numpy as jnp

from r1jax.model.transformer import Transformer, parameter_shardings
from r1jax.records import FINISH_LENGTH, FINISH_STOP, PromptBatch, Rollout
from r1jax.rollout import sampling
from r1jax.rollout.sampling import SamplingConfig


class Engine:
  """Samples groups of completions; holds programs, never parameters.

  The prompt's latents are computed once and shared by its group. A sample's
  randomness is a function of (key, prompt id, its number in the group, slot),
  whatever else is in the batch and wherever it stands there.
  """

  def __init__(self, model: Transformer, config: SamplingConfig,
               record_routing: bool = False):
    self.config, self._record = config, record_routing
    layout = model.layout.decoding()
    # A sample depends on itself alone: no pair of it is dropped for others'.
    self._model = model.clone(layout=layout, config=dataclasses.replace(
        model.config, capacity_factor=0.0))
    self._shardings = parameter_shardings(model, layout)
    self._generate = jax.jit(self._run, in_shardings=(
        self._shardings, layout.replicated(), layout.replicated()))

  def generate(self, params, prompts: PromptBatch, key: jax.Array) -> Rollout:
    """Completes every prompt `group_size` times.

    Args:
      params: In any layout; moved to the decoding one.
      prompts: P prompts.
      key: Of this step.

    Returns:
      A Rollout of B = P · G rows, on the device.
    """
    params = jax.device_put(params, self._shardings)
    return self._generate(params, prompts, key)

  def _run(self, params, prompts: PromptBatch, key) -> Rollout:
    config, model = self.config, self._model
    asked = len(prompts.tokens_PT) * config.group_size
    prompts = self._filled(prompts)
    P, G, S = len(prompts.tokens_PT), config.group_size, config.max_new_tokens
    B = P * G
    variables = {'params': params}
    logits_PV, cache, chosen_PTLA = model.apply(
        variables, prompts.tokens_PT, prompts.valid_PT, G, S, method='prefill')
    logits_BV = jnp.repeat(logits_PV, G, axis=0)
    fold = jax.random.fold_in
    prompt_keys_B = jax.vmap(fold, (None, 0))(key, jnp.repeat(prompts.id_P, G))
    sample_keys_B = jax.vmap(fold)(prompt_keys_B, jnp.arange(B) % G)
    stop_ids = jnp.asarray(config.stop_ids, jnp.int32)

    stored = lambda experts: experts.astype(jnp.uint16)
    experts_BSLA = None
    if self._record:
      experts_BSLA = jnp.zeros((B, S, *chosen_PTLA.shape[2:]), jnp.uint16)

    def unfinished(carry):
      slot, _, _, _, _, done_B, *_ = carry
      return (slot < S) & ~jnp.all(done_B)

    def one_token(carry):
      (slot, logits_BV, cache, tokens_BS, logp_BS, done_B, length_B,
       experts_BSLA) = carry
      keys_B = jax.vmap(fold, (0, None))(sample_keys_B, slot)
      token_B, logp_B = sampling.draw(logits_BV, keys_B, config)
      tokens_BS = tokens_BS.at[:, slot].set(token_B)
      logp_BS = logp_BS.at[:, slot].set(logp_B)
      length_B += ~done_B
      done_B |= jnp.isin(token_B, stop_ids)
      # A finished row decodes on, unread, until the last one finishes.
      logits_PGV, cache, chosen_PGLA = model.apply(
          variables, token_B.reshape(P, G), cache, slot, method='decode')
      if self._record:
        experts_BSLA = experts_BSLA.at[:, slot].set(
            stored(chosen_PGLA.reshape(B, *chosen_PGLA.shape[2:])))
      return (slot + 1, logits_PGV.reshape(B, -1), cache, tokens_BS, logp_BS,
              done_B, length_B, experts_BSLA)

    carry = (jnp.int32(0), logits_BV, cache, jnp.zeros((B, S), jnp.int32),
             jnp.zeros((B, S), jnp.float32), jnp.zeros(B, bool),
             jnp.zeros(B, jnp.int32), experts_BSLA)
    (_, _, _, tokens_BS, logp_BS, done_B, length_B,
     experts_BSLA) = jax.lax.while_loop(
        unfinished, one_token, carry)

    live_BS = jnp.arange(S) < length_B[:, None]
    prompt_BT = jnp.repeat(prompts.tokens_PT, G, axis=0)
    valid_BT = jnp.repeat(prompts.valid_PT, G, axis=0)
    beside = lambda left, right: jnp.concatenate([left, right], 1)
    experts_BTLA = None
    if self._record:
      experts_BTLA = beside(
          jnp.repeat(stored(chosen_PTLA), G, axis=0), experts_BSLA)
    rollout = Rollout(
        tokens_BT=beside(prompt_BT, jnp.where(live_BS, tokens_BS, 0)),
        valid_BT=beside(valid_BT, live_BS),
        mask_BT=beside(jnp.zeros_like(valid_BT), live_BS),
        logp_BT=beside(jnp.zeros(valid_BT.shape, jnp.float32),
                       jnp.where(live_BS, logp_BS, 0.0)),
        finish_B=jnp.where(done_B, FINISH_STOP, FINISH_LENGTH),
        length_B=length_B, group_B=jnp.arange(B, dtype=jnp.int32) // G,
        experts_BTLA=experts_BTLA)
    return jax.tree.map(lambda x: x[:asked], rollout)

  def _filled(self, prompts: PromptBatch) -> PromptBatch:
    """Repeats the last prompt until the mesh divides them."""
    layout = self._model.layout
    P, over = len(prompts.tokens_PT), layout.size('P')
    row_P = jnp.minimum(jnp.arange(-(-P // over) * over), P - 1)
    return jax.tree.map(
        lambda x: layout.constrain(x[row_P], 'PT'[:x.ndim]), prompts)
