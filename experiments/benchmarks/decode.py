"""Sampling from a small DeepSeek-V3, beside transformers and beside itself.

  python experiments/benchmarks/decode.py --peer-python=VENV/bin/python

VENV has torch and transformers; r1jax needs neither. The model is that of
train_step.py, float32, pinned to one core and measured in CPU-seconds after a
warm-up, all in one run:

  peer     32 prompts of 64 tokens, 256 new ones each, temperature 1.
  tail     256 requests with lengths of a long tail (mean 20 % of 256), through
           32 rows that are refilled, and in static batches of 32, whose rows
           draw on until the longest is done. The sampler is not told lengths:
           budgets stand for stop tokens, and nothing is ordered by them. And
           through as many rows as decode fast in the cache of those batches,
           since pages are of tokens that exist.
  context  Cost of a token after 256 … 8192 others, and the bytes it reads.
  group    16 samples of a 512-token prompt, against one sample.
"""

import argparse
import dataclasses
import json
import time

import peer

ROWS, PROMPT, NEW, STEPS = 32, 64, 256, 3


def tail_lengths(drawn):
  """Exponential lengths up to NEW, whose mean is a fifth of it."""
  low, high = 0.0, float(NEW)
  for _ in range(50):
    scale = (low + high) / 2
    lengths = (scale * drawn + 1).clip(1, NEW)
    low, high = (scale, high) if lengths.mean() < 0.2 * NEW else (low, scale)
  return lengths


def as_the_longest(requests):
  """The same requests, each as long as the longest of them."""
  longest = max(
    (r.sampling_params for r in requests), key=lambda s: s.max_new_tokens
  )
  return [dataclasses.replace(r, sampling_params=longest) for r in requests]


def ours() -> dict:
  import jax
  import numpy as np

  from r1jax.model import parameters
  from r1jax.rollout.engine import Engine
  from r1jax.rollout.sampling import SamplingParams
  from r1jax.rollout.scheduler import Request
  from r1jax.rollout.sizes import EngineConfig

  model = peer.model_of()
  params = parameters.init_params(model, jax.random.key(0))
  rng = np.random.default_rng(0)
  keys = np.asarray(
    jax.random.key_data(jax.random.split(jax.random.key(1), 256))
  )

  def engine(**changes) -> Engine:
    return Engine(
      model,
      EngineConfig(
        **dict(
          max_num_seqs=ROWS,
          max_model_len=PROMPT + NEW,
          block_size=64,
          decode_steps=32,
        )
        | changes
      ),
    )

  def request(n: int, new: int, prompt: int = PROMPT) -> Request:
    return Request(
      name=n,
      prompt=rng.integers(2, 512, prompt).astype(np.int32),
      key=keys[n % 256],
      sampling_params=SamplingParams(max_new_tokens=new, stop_token_ids=()),
    )

  def best(run, warm: int = 1, times: int = STEPS) -> float:
    secs = []
    for i in range(warm + times):
      began = time.process_time()
      run()
      secs.append(time.process_time() - began)
    return min(secs[warm:])

  found = {}
  batch = [request(n, NEW) for n in range(ROWS)]
  sampler = engine()
  found['peer'] = ROWS * NEW / best(lambda: sampler.run(params, batch))

  lengths = tail_lengths(rng.exponential(size=256))
  tail = [request(n, int(length)) for n, length in enumerate(lengths)]
  # A row waits half a chunk for its next request; few prompts come at a time.
  short = engine(decode_steps=4, max_num_batched_tokens=512)
  paged = engine(
    max_num_seqs=3 * ROWS,
    decode_steps=5,
    max_num_batched_tokens=512,
    block_size=8,
    kv_cache_tokens=ROWS * (PROMPT + NEW),
  )
  batches = [as_the_longest(tail[i : i + ROWS]) for i in range(0, 256, ROWS)]
  secs, passes = {}, {}
  for turn in range(1 + STEPS):  # Side by side; the first warms up.
    for name, through, groups in (
      ('refilled', short, [tail]),
      ('paged', paged, [tail]),
      ('static', sampler, batches),
    ):
      began = time.process_time()
      session = through.session(params)
      for requests in groups:
        for item in requests:
          session.submit(item)
        for _ in session:
          pass
      spent, passes[name] = time.process_time() - began, session.decode_steps
      secs[name] = min(secs.get(name, spent), spent) if turn else 1e9
  found['tail'] = dict(
    mean_tokens=float(lengths.mean()),
    secs=secs,
    passes=passes,
    tokens=sum(r.sampling_params.max_new_tokens for r in tail),
  )

  found['context'] = []
  weights = sum(x.nbytes for x in jax.tree.leaves(params))
  for tokens in (256, 512, 1024, 2048, 4096, 8192):
    rows = 8
    long = engine(
      max_num_seqs=rows, max_model_len=tokens + 128, decode_steps=16
    )
    session = long.session(params)
    for n in range(rows):
      session.submit(request(n, 65, tokens))
    session.step()  # Reads the prompts.
    secs = best(session.step, 0) / 16
    entry = model.config.num_hidden_layers * model.config.cache_width * 4
    found['context'].append(
      dict(
        context=tokens,
        step_ms=secs * 1e3,
        cache_MB=rows * tokens * entry / 1e6,
        weights_MB=weights / 1e6,
      )
    )

  shared = engine(max_num_seqs=16, max_model_len=512 + 32, decode_steps=16)
  one = request(0, 16, 512)
  group = [
    Request(
      name=n,
      prompt=one.prompt,
      key=keys[n],
      sampling_params=one.sampling_params,
    )
    for n in range(16)
  ]
  prompt_blocks, reading = {}, {}
  for name, requests in (('one', [one]), ('sixteen', group)):

    def read():
      session = shared.session(params)
      for item in requests:
        session.submit(item)
      jobs = session._schedulerr.admit()
      began = time.process_time()
      session._prefill(jobs)
      jax.block_until_ready(session._kv_cache)
      reading[name] = min(reading.get(name, 1e9), time.process_time() - began)
      prompt_blocks[name] = len(
        {
          block.block_id
          for seq in session._scheduler.running[0]
          for block in seq.blocks
        }
      )

    for _ in range(4):
      read()
  found['group'] = dict(prefill_secs=reading, prompt_blocks=prompt_blocks)
  return found


def peers() -> dict:
  import torch

  prompts = torch.randint(2, 512, (ROWS, PROMPT))
  found = {}
  for attention in ('eager', 'sdpa'):
    model = peer.theirs(attention).eval()
    secs = []
    for _ in range(2):
      began = time.process_time()
      with torch.no_grad():
        model.generate(
          prompts,
          max_new_tokens=NEW,
          min_new_tokens=NEW,
          do_sample=True,
          temperature=1.0,
          top_k=0,
          pad_token_id=0,
        )
      secs.append(time.process_time() - began)
    found[attention] = ROWS * NEW / min(secs)
  return found


def main():
  flags = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  flags.add_argument('--peer-python', required=True)
  flags.add_argument('--run', choices=('ours', 'peer'))
  args = flags.parse_args()
  if args.run:
    print(json.dumps({'ours': ours, 'peer': peers}[args.run]()))
    return
  found = {
    run: peer.pinned(__file__, run, args.peer_python)
    for run in ('ours', 'peer')
  }
  mine, best = found['ours'], max(found['peer'].values())
  print('peer: tokens a CPU-second, and ours over it')
  print(f'  {"r1jax":<24} {mine["peer"]:7.0f}')
  for name, speed in found['peer'].items():
    print(
      f'  {"transformers, " + name:<24} {speed:7.0f}  '
      f'{mine["peer"] / speed:.2f}'
    )
  print(f'  over its best: {mine["peer"] / best:.2f}')
  tail = mine['tail']
  secs, passes = tail['secs'], tail['passes']
  print(
    f'tail: {tail["tokens"]} tokens, mean {tail["mean_tokens"]:.0f}: '
    f'static batches {secs["static"]:.2f} s, {passes["static"]} passes'
  )
  for name in ('refilled', 'paged'):
    print(
      f'  {name} {secs[name]:.2f} s, {passes[name]} passes: '
      f'{secs["static"] / secs[name]:.2f}×'
    )
  print('context: ms a step of 8 rows; MB of cache, and of weights, it reads')
  for row in mine['context']:
    print(
      f'  {row["context"]:<6} {row["step_ms"]:8.2f} {row["cache_MB"]:8.1f} '
      f'{row["weights_MB"]:6.1f}'
    )
  first, last = mine['context'][0], mine['context'][-1]
  read = lambda row: row['cache_MB'] + row['weights_MB']
  print(
    f'  from first to last: {last["step_ms"] / first["step_ms"]:.2f}× the '
    f'time, {read(last) / read(first):.2f}× the bytes'
  )
  group = mine['group']
  print(
    'group: prefill CPU-seconds and pages of the prompt: one sample '
    f'{group["prefill_secs"]["one"]:.3f}, {group["prompt_blocks"]["one"]}; '
    f'sixteen {group["prefill_secs"]["sixteen"]:.3f}, '
    f'{group["prompt_blocks"]["sixteen"]}'
  )


if __name__ == '__main__':
  main()
