"""Time of one MoE product on this machine, by dispatch, against the ideal.

  python experiments/benchmarks/moe_dispatch.py

The ideal is one dense product with as many rows as there are (token, expert)
pairs. Each row of the table is the best of several calls in one process.
"""

import time

import jax
import jax.numpy as jnp

from r1jax.model import moe

SHAPES = ((8192, 2, 96, 64, 8), (8192, 2, 128, 64, 16), (2048, 8, 128, 64, 64))
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


def main():
  print('B      A  D    F   E   | forward ms: ideal blocks ragged '
        '| with gradient: ideal blocks ragged')
  for B, A, D, F, E in SHAPES:
    keys = jax.random.split(jax.random.key(0), 3)
    x_BD = jax.random.normal(keys[0], (B, D))
    w_EDF = jax.random.normal(keys[1], (E, D, F))
    expert_BA = jax.lax.top_k(jax.random.uniform(keys[2], (B, E)), A)[1]
    rows = jnp.repeat(x_BD, A, axis=0)

    def dispatched(kind, expert_BA=expert_BA, A=A, E=E):
      def product(x, w):
        where = moe.plan(expert_BA.reshape(-1), E, kind)
        out = moe.grouped_matmul(x[where.row_S // A], w, where)
        return out[where.slot_R]

      return product

    functions = [(lambda x, w: x @ w[0], rows),
                 (dispatched('blocks'), x_BD), (dispatched('ragged'), x_BD)]
    forward = [best_ms(f, x, w_EDF) for f, x in functions]
    backward = [
        best_ms(jax.grad(lambda x, w, f=f: jnp.sum(f(x, w) ** 2), (0, 1)),
                x, w_EDF) for f, x in functions]
    print(f'{B:<6} {A:<2} {D:<4} {F:<3} {E:<3} |'
          + ''.join(f'{ms:9.2f}' for ms in forward) + ' |'
          + ''.join(f'{ms:9.2f}' for ms in backward))


if __name__ == '__main__':
  main()
