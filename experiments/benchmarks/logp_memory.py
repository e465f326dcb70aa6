"""Memory of log-probabilities and their gradient, chunked and whole.

  python experiments/benchmarks/logp_memory.py

What XLA reserves beside arguments and results, read from the compiled
program: nothing is run. The whole [B, T, V] of logits is the last column.
"""

import jax
import jax.numpy as jnp

from r1jax.algos import common

SHAPES = (
  (8, 1024, 1024, 151936),
  (8, 8192, 1024, 151936),
  (1, 32768, 7168, 129280),
)


def temporary_bytes(function, *shapes) -> int:
  compiled = jax.jit(function).lower(*shapes).compile()
  return compiled.memory_analysis().temp_size_in_bytes


def main():
  print(
    'B   T      D     V       | GB forward: chunked whole '
    '| forward and backward: chunked whole | logits'
  )
  for B, T, D, V in SHAPES:
    shapes = (
      jax.ShapeDtypeStruct((B, T, D), jnp.bfloat16),
      jax.ShapeDtypeStruct((D, V), jnp.bfloat16),
      jax.ShapeDtypeStruct((B, T), jnp.int32),
    )
    found = []
    for backward in (False, True):
      for chunk in (None, B * T):

        def loss(hidden, head, target, chunk=chunk):
          logp, entropy = common.token_logp(
            hidden, head, target, chunk_tokens=chunk
          )
          return logp.sum(), entropy.sum()

        run = jax.grad(loss, (0, 1), has_aux=True) if backward else loss
        found.append(temporary_bytes(run, *shapes) / 1e9)
    forward, backward = found[:2], found[2:]
    print(
      f'{B:<3} {T:<6} {D:<5} {V:<7} |'
      + ''.join(f'{gb:9.2f}' for gb in forward)
      + ' |'
      + ''.join(f'{gb:9.2f}' for gb in backward)
      + f' | {B * T * V * 4 / 1e9:.2f}'
    )


if __name__ == '__main__':
  main()
