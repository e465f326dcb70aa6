"""One training step of a small DeepSeek-V3, ours beside transformers'.

  python experiments/benchmarks/train_step.py --peer-python=VENV/bin/python

VENV has torch and transformers; r1jax needs neither. Forward, backward and
AdamW at 8 × 512 tokens, float32, both pinned to one core and measured in
CPU-seconds, the best of several steps after warm-up, in turns in one run.
"""

import argparse
import json
import sys
import time

import peer

BATCH, TOKENS, STEPS, ROUNDS = 8, 512, 4, 2


def best_cpu_secs(step) -> float:
  """Returns CPU-seconds of all threads, the best of STEPS after two warm-ups."""
  times = []
  for i in range(STEPS + 2):
    began = time.process_time()
    step()
    if i >= 2:
      times.append(time.process_time() - began)
  return min(times)


def ours() -> dict[str, float]:
  import jax
  import numpy as np

  from r1jax.config.schema.training import LoadBalancingConfig, OptimizerConfig
  from r1jax.model import parameters
  from r1jax.records import TokenBatch
  from r1jax.train import mtp_loss, optimizer, supervised_step
  from r1jax.train import state as train_state

  model = peer.model_of(scan_unroll=3)
  tx = optimizer.make(
    OptimizerConfig(
      learning_rate=1e-3,
      warmup_steps=0,
      lr_scheduler_type='constant',
      min_lr_ratio=1.0,
      adam_beta1=0.9,
      adam_beta2=0.95,
      weight_decay=0.1,
      max_grad_norm=1.0,
      moment_dtype='float32',
    ),
    100,
  )
  step = supervised_step.supervised(
    model, tx, LoadBalancingConfig(1e-3, 0.0), mtp_loss.MTPLoss(0.0, 0.0, 0), 1
  )
  tokens = np.random.default_rng(0).integers(0, 512, (BATCH, TOKENS))
  ones = np.ones_like(tokens)
  batch = TokenBatch(
    tokens_BT=tokens,
    target_BT=np.roll(tokens, -1, 1),
    weight_BT=ones,
    segment_BT=ones,
    position_BT=ones * np.arange(TOKENS),
  )
  held = train_state.create(
    parameters.init_params(model, jax.random.key(0)), tx
  )

  def once():
    nonlocal held
    held, metrics = step(held, batch)
    jax.block_until_ready(metrics)

  return {'r1jax': best_cpu_secs(once)}


def peers() -> dict[str, float]:
  import torch

  tokens = torch.randint(0, 512, (BATCH, TOKENS))
  found = {}
  for attention in ('eager', 'sdpa'):
    for compiled in (False, True):
      model = peer.theirs(attention)
      run = torch.compile(model) if compiled else model
      tx = torch.optim.AdamW(model.parameters(), 1e-3, fused=True)

      def once():
        tx.zero_grad()
        run(input_ids=tokens, labels=tokens, use_cache=False).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        tx.step()

      name = f'transformers, {attention}' + (', compiled' if compiled else '')
      try:
        found[name] = best_cpu_secs(once)
      except Exception as error:  # A variant that does not run is no peer.
        print(f'{name}: {str(error).splitlines()[0][:100]}', file=sys.stderr)
  return found


def main():
  flags = argparse.ArgumentParser(description=__doc__)
  flags.add_argument('--peer-python', required=True)
  flags.add_argument('--run', choices=('ours', 'peer'))
  args = flags.parse_args()
  if args.run:
    print(json.dumps({'ours': ours, 'peer': peers}[args.run]()))
    return
  best: dict[str, float] = {}
  for _ in range(ROUNDS):
    for run in ('ours', 'peer'):
      for name, secs in peer.pinned(__file__, run, args.peer_python).items():
        best[name] = min(secs, best.get(name, secs))
  mine = best['r1jax']
  print('CPU-seconds a step, and ours over it')
  for name, secs in best.items():
    print(f'  {name:<32} {secs:6.2f}   {mine / secs:.2f}')


if __name__ == '__main__':
  main()
