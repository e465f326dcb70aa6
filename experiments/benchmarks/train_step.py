"""One training step of a small DeepSeek-V3, ours beside transformers'.

  python experiments/benchmarks/train_step.py --peer-python=VENV/bin/python

VENV has torch and transformers; r1jax needs neither. Forward, backward and
AdamW at 8 × 512 tokens, float32, both pinned to one core and measured in
CPU-seconds, the best of several steps after warm-up, in turns in one run.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time

BATCH, TOKENS, STEPS, ROUNDS = 8, 512, 4, 2
SHAPES = dict(
    architectures=['DeepseekV3ForCausalLM'], model_type='deepseek_v3',
    hidden_act='silu', vocab_size=512, hidden_size=256, intermediate_size=1024,
    moe_intermediate_size=128, num_hidden_layers=4, num_attention_heads=8,
    num_key_value_heads=8, n_shared_experts=1, n_routed_experts=16,
    num_experts_per_tok=4, n_group=4, topk_group=2, first_k_dense_replace=1,
    norm_topk_prob=True, routed_scaling_factor=2.5, kv_lora_rank=64,
    q_lora_rank=96, qk_rope_head_dim=16, v_head_dim=32, qk_nope_head_dim=32,
    max_position_embeddings=4096, rms_norm_eps=1e-6, rope_theta=10000.0,
    tie_word_embeddings=False, num_nextn_predict_layers=0, pad_token_id=0,
    eos_token_id=1, torch_dtype='float32')


def best_cpu_secs(step) -> float:
  """Of all threads of this process, the best of STEPS after two warm-ups."""
  times = []
  for i in range(STEPS + 2):
    began = time.process_time()
    step()
    if i >= 2:
      times.append(time.process_time() - began)
  return min(times)


def model_of(shapes: dict, **changes):
  """Ours, of a config.json's contents, on one device."""
  from r1jax import hf_config
  from r1jax.model import transformer
  from r1jax.model.config import ModelConfig
  from r1jax.sharding import Layout, make_mesh
  with tempfile.TemporaryDirectory() as folder:
    with open(os.path.join(folder, 'config.json'), 'w') as file:
      json.dump(shapes, file)
    fields = hf_config.read_config(folder)
  fields |= dict(dtype='float32', remat=False) | changes
  return transformer.Transformer(
      ModelConfig.from_dict(fields), Layout(make_mesh({})))


def ours() -> dict[str, float]:
  import jax
  import numpy as np
  from r1jax.model import moe, transformer
  from r1jax.records import TokenBatch
  from r1jax.train import optimizer, state as train_state, step as train_step
  model = model_of(SHAPES, unroll=3)
  tx = optimizer.make(optimizer.OptimizerConfig(
      learning_rate=1e-3, warmup_steps=0, decay='constant', final_ratio=1.0,
      beta1=0.9, beta2=0.95, weight_decay=0.1, clip_norm=1.0,
      moment_dtype='float32'), 100)
  step = train_step.supervised(
      model, tx, moe.Balancing(1e-3, 0.0),
      train_step.LookAhead(0.0, 0.0, 0), 1)
  tokens = np.random.default_rng(0).integers(0, 512, (BATCH, TOKENS))
  ones = np.ones_like(tokens)
  batch = TokenBatch(
      tokens_BT=tokens, target_BT=np.roll(tokens, -1, 1), weight_BT=ones,
      segment_BT=ones, position_BT=ones * np.arange(TOKENS))
  held = train_state.create(
      transformer.init_params(model, jax.random.key(0)), tx)

  def once():
    nonlocal held
    held, metrics = step(held, batch)
    jax.block_until_ready(metrics)

  return {'r1jax': best_cpu_secs(once)}


def peer() -> dict[str, float]:
  import torch
  import transformers
  torch.set_num_threads(1)
  config = transformers.DeepseekV3Config(**{
      key: value for key, value in SHAPES.items()
      if key not in ('architectures', 'model_type', 'torch_dtype')})
  tokens = torch.randint(0, 512, (BATCH, TOKENS))
  found = {}
  for attention in ('eager', 'sdpa'):
    for compiled in (False, True):
      config._attn_implementation = attention
      model = transformers.DeepseekV3ForCausalLM(config)
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
    print(json.dumps({'ours': ours, 'peer': peer}[args.run]()))
    return
  best: dict[str, float] = {}
  for _ in range(ROUNDS):
    for run, python in (('ours', sys.executable), ('peer', args.peer_python)):
      out = subprocess.run(
          ['taskset', '-c', '0', python, __file__, '--run', run,
           '--peer-python', python], capture_output=True, text=True,
          check=True, env=os.environ | {'JAX_PLATFORMS': 'cpu'})
      for name, secs in json.loads(out.stdout.splitlines()[-1]).items():
        best[name] = min(secs, best.get(name, secs))
  mine = best['r1jax']
  print('CPU-seconds a step, and ours over it')
  for name, secs in best.items():
    print(f'  {name:<32} {secs:6.2f}   {mine / secs:.2f}')


if __name__ == '__main__':
  main()
