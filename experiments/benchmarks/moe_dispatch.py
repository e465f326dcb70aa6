"""Time of one MoE layer's experts on this machine, by dispatch.

  python experiments/benchmarks/moe_dispatch.py

The ideal is one dense SwiGLU with as many rows as there are (token, expert)
pairs. Each number is the best of several calls in one process.
"""

from functools import partial
import time

import jax
import jax.numpy as jnp

from r1jax.model import experts

SHAPES = ((8192, 2, 96, 64, 8), (4096, 4, 256, 128, 16), (2048, 8, 128, 64, 64))
REPEATS = 10


def best_ms(function, *args) -> float:
  run = jax.jit(function)
  jax.block_until_ready(run(*args))
  times = []
  for _ in range(REPEATS):
    began = time.perf_counter()
    jax.block_until_ready(run(*args))
    times.append(time.perf_counter() - began)
  return min(times) * 1e3


def ideal(x_TD, weights, A: int):
  gate_DI, up_DI, down_ID = (w[0] for w in weights)
  x = jnp.repeat(x_TD, A, axis=0)
  return (jax.nn.silu(x @ gate_DI) * (x @ up_DI)) @ down_ID


def main():
  print(
    'T      A  D    I   E   | forward ms: ideal blocks ragged '
    '| with gradient: ideal blocks ragged'
  )
  for T, A, D, I, E in SHAPES:
    keys = jax.random.split(jax.random.key(0), 5)
    x_TD = jax.random.normal(keys[0], (T, D))
    weights = tuple(
      0.1 * jax.random.normal(key, shape)
      for key, shape in zip(keys[1:4], ((E, D, I), (E, D, I), (E, I, D)))
    )
    expert_TA = jax.lax.top_k(jax.random.uniform(keys[4], (T, E)), A)[1]
    pairs = expert_TA, jnp.full((T, A), 1 / A)
    functions = [partial(ideal, A=A)] + [
      lambda x, w, kind=kind, pairs=pairs: experts.swiglu(
        x, *pairs, w, kind, False
      )
      for kind in ('blocks', 'ragged')
    ]
    forward = [best_ms(f, x_TD, weights) for f in functions]
    backward = [
      best_ms(
        jax.grad(lambda x, w, f=f: jnp.sum(f(x, w) ** 2), (0, 1)), x_TD, weights
      )
      for f in functions
    ]
    print(
      f'{T:<6} {A:<2} {D:<4} {I:<3} {E:<3} |'
      + ''.join(f'{ms:9.2f}' for ms in forward)
      + ' |'
      + ''.join(f'{ms:9.2f}' for ms in backward)
    )


if __name__ == '__main__':
  main()
