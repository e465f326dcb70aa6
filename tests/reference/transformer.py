"""The DeepSeek-V3 forward pass in plain NumPy loops, float64.

Written from the paper's equations, one token and one head at a time, and
sharing no code with the package: the oracle of the model's tests.
"""

import numpy as np


def rms_norm(x, scale, eps):
  return x / np.sqrt((x * x).mean() + eps) * scale


def silu(x):
  return x / (1 + np.exp(-x))


def softmax(x):
  e = np.exp(x - x.max())
  return e / e.sum()


def rope(x, position, theta):
  """Rotates adjacent pairs as complex numbers."""
  half = len(x) // 2
  z = x[0::2] + 1j * x[1::2]
  z = z * np.exp(1j * position * theta ** (-2.0 * np.arange(half) / len(x)))
  out = np.empty_like(x)
  out[0::2], out[1::2] = z.real, z.imag
  return out


def mla(p, x_TD, position_T, segment_T, config):
  """Computes V3 eq. 1–11 for one sequence."""
  c = config
  T, C, H = len(x_TD), c.kv_lora_rank, c.qk_nope_head_dim
  queries, keys, values = [], [], []
  for t in range(T):
    if c.q_lora_rank:
      low = rms_norm(
        x_TD[t] @ p['q_down'], p['q_norm']['scale'], c.rms_norm_eps
      )
      q_NJ = np.einsum('q,qnj->nj', low, p['q_up'])
    else:
      q_NJ = np.einsum('d,dnj->nj', x_TD[t], p['q'])
    down = x_TD[t] @ p['kv_down']
    latent = rms_norm(down[:C], p['kv_norm']['scale'], c.rms_norm_eps)
    k_rope = rope(down[C:], position_T[t], c.rope.rope_theta)
    queries.append(
      [
        np.concatenate([q[:H], rope(q[H:], position_T[t], c.rope.rope_theta)])
        for q in q_NJ
      ]
    )
    keys.append(
      [
        np.concatenate([latent @ p['k_up'][:, n], k_rope])
        for n in range(c.num_attention_heads)
      ]
    )
    values.append(
      [latent @ p['v_up'][:, n] for n in range(c.num_attention_heads)]
    )
  out = np.zeros_like(x_TD)
  for t in range(T):
    seen = [s for s in range(t + 1) if segment_T[s] == segment_T[t]]
    for n in range(c.num_attention_heads):
      score = np.array([queries[t][n] @ keys[s][n] for s in seen])
      weight = softmax(score / np.sqrt(H + c.qk_rope_head_dim))
      mix = sum(w * values[s][n] for w, s in zip(weight, seen))
      out[t] += mix @ p['out'][n]
  return out


def swiglu(p, x):
  return (silu(x @ p['gate']) * (x @ p['up'])) @ p['down']


def route(affinity_E, bias_E, config):
  """Computes V3 eq. 12–16: the chosen experts and their gating weights."""
  c = config
  biased = affinity_E + bias_E
  per_group = c.n_routed_experts // c.n_group
  groups = biased.reshape(c.n_group, per_group)
  score = [sum(sorted(g)[-2:]) for g in groups]
  best_groups = sorted(range(len(score)), key=lambda g: -score[g])
  allowed = [
    e
    for e in range(c.n_routed_experts)
    if e // per_group in best_groups[: c.topk_group]
  ]
  chosen = sorted(allowed, key=lambda e: -biased[e])[: c.num_experts_per_tok]
  total = sum(affinity_E[e] for e in chosen)
  return {e: c.routed_scaling_factor * affinity_E[e] / total for e in chosen}


def moe(p, x, config):
  affinity = 1 / (1 + np.exp(-(x @ p['router'])))
  out = swiglu(p['shared'], x) if config.n_shared_experts else 0
  for e, gate in route(affinity, p['bias'], config).items():
    expert = {name: p[name][e] for name in ('gate', 'up', 'down')}
    out = out + gate * swiglu(expert, x)
  return out


def block(p, x_TD, position_T, segment_T, dense, config):
  c = config
  normed = np.stack(
    [rms_norm(x, p['attention_norm']['scale'], c.rms_norm_eps) for x in x_TD]
  )
  x_TD = x_TD + mla(p['attention'], normed, position_T, segment_T, c)
  for t in range(len(x_TD)):
    h = rms_norm(x_TD[t], p['ffn_norm']['scale'], c.rms_norm_eps)
    x_TD[t] += swiglu(p['ffn'], h) if dense else moe(p['ffn'], h, c)
  return x_TD


def hidden(params, tokens_T, position_T, segment_T, config):
  """Computes the hidden states after the final norm, [T, D]."""
  c = config
  x_TD = params['embedding'][tokens_T]
  for layer in range(c.num_hidden_layers):
    dense = layer < c.first_k_dense_replace
    stack = params['dense_layers' if dense else 'moe_layers']
    p = _layer(stack, layer if dense else layer - c.first_k_dense_replace)
    x_TD = block(p, x_TD, position_T, segment_T, dense, c)
  return np.stack(
    [rms_norm(x, params['norm']['scale'], c.rms_norm_eps) for x in x_TD]
  )


def logits(params, tokens_T, position_T, segment_T, config):
  """Computes the logits of one sequence, [T, V]."""
  return (
    hidden(params, tokens_T, position_T, segment_T, config) @ params['head']
  )


def predict_ahead(params, tokens_T, position_T, segment_T, config):
  """Computes V3 eq. 21–23: the normed state at each depth of MTP, [T, D].

  Beyond the end of a document token 0 stands in; what comes of it is not used.
  """
  h_TD = hidden(params, tokens_T, position_T, segment_T, config)
  found = []
  modules = config.num_nextn_predict_layers
  for k in range(config.mtp_depth or modules):
    p = _layer(params['mtp'], min(k, modules - 1))
    x_TD = []
    for i in range(len(tokens_T)):
      next_ = i + k + 1
      same = next_ < len(tokens_T) and segment_T[next_] == segment_T[i]
      ahead = params['embedding'][tokens_T[next_] if same else 0]
      x_TD.append(
        np.concatenate(
          [
            rms_norm(ahead, p['ahead_norm']['scale'], config.rms_norm_eps),
            rms_norm(h_TD[i], p['hidden_norm']['scale'], config.rms_norm_eps),
          ]
        )
        @ p['merge']
      )
    x_TD = block(
      p['block'], np.stack(x_TD), position_T, segment_T, False, config
    )
    h_TD = np.stack(
      [rms_norm(x, p['norm']['scale'], config.rms_norm_eps) for x in x_TD]
    )
    found.append(h_TD)
  return found


def _layer(stack, index):
  if isinstance(stack, dict):
    return {name: _layer(value, index) for name, value in stack.items()}
  return stack[index]
