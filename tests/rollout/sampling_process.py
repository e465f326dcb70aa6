"""One of several processes that sample together; prints what it drew.

python -m tests.rollout.sampling_process ADDRESS PROCESSES PROCESS DEVICES
"""

import json
import os
import sys

import jax
import numpy as np

from r1jax.model.parameters import init_params
from r1jax.model.transformer import Transformer
from r1jax.rollout.engine import Engine
from r1jax.rollout.sampling import SamplingParams
from r1jax.rollout.scheduler import Request
from r1jax.rollout.sizes import EngineConfig
from r1jax.sharding import Layout, make_mesh
from tests import compiler
from tests.conftest import small_config


def main(address: str, processes: int, process: int, devices: int):
  # JAX reads the flags when it first looks for devices.
  os.environ['XLA_FLAGS'] = (
    f'--xla_force_host_platform_device_count={devices} '
    + compiler.light_flags()
  )
  jax.config.update('jax_cpu_collectives_implementation', 'gloo')
  jax.distributed.initialize(address, processes, process)
  print(
    json.dumps(
      {'processes': jax.process_count(), 'devices': jax.device_count()}
      | drawn(Layout(make_mesh(dict(fsdp=-1, tensor=2))))
    )
  )


def drawn(layout: Layout) -> dict:
  """Tokens and log-probabilities of eight requests, in a pool so short that
  rows give way."""
  model = Transformer(small_config(num_nextn_predict_layers=1), layout)
  params = init_params(model, jax.random.key(0))
  engine = Engine(
    model,
    EngineConfig(
      max_num_seqs=4,
      max_model_len=24,
      block_size=4,
      decode_steps=4,
      kv_cache_tokens=64,
      speculative=True,
      speculative_max_num_seqs=4,
    ),
  )
  session = engine.session(params)
  made = [
    session.submit(
      Request(
        name=n,
        prompt=np.arange(3, 4 + n, dtype=np.int32),
        key=np.array([0, n], np.uint32),
        sampling_params=SamplingParams(
          max_new_tokens=8 + n, stop_token_ids=(2,)
        ),
      )
    )
    for n in range(8)
  ]
  for _ in session:
    pass
  return {
    'tokens': [c.tokens for c in made],
    'logp': [c.logp for c in made],
    'preempted': session.num_preemptions,
  }


if __name__ == '__main__':
  main(sys.argv[1], *map(int, sys.argv[2:]))
