"""The models of the benchmarks beside transformers: one small DeepSeek-V3, ours
and theirs, and processes that are pinned to one core."""

import json
import os
import subprocess
import sys
import tempfile

SHAPES = dict(
  architectures=['DeepseekV3ForCausalLM'],
  model_type='deepseek_v3',
  hidden_act='silu',
  vocab_size=512,
  hidden_size=256,
  intermediate_size=1024,
  moe_intermediate_size=128,
  num_hidden_layers=4,
  num_attention_heads=8,
  num_key_value_heads=8,
  n_shared_experts=1,
  n_routed_experts=16,
  num_experts_per_tok=4,
  n_group=4,
  topk_group=2,
  first_k_dense_replace=1,
  norm_topk_prob=True,
  routed_scaling_factor=2.5,
  kv_lora_rank=64,
  q_lora_rank=96,
  qk_rope_head_dim=16,
  v_head_dim=32,
  qk_nope_head_dim=32,
  max_position_embeddings=4096,
  rms_norm_eps=1e-6,
  rope_theta=10000.0,
  tie_word_embeddings=False,
  num_nextn_predict_layers=0,
  pad_token_id=0,
  eos_token_id=1,
  torch_dtype='float32',
)


def model_of(**changes):
  """Ours, on one device."""
  from r1jax.checkpoints import hf_config
  from r1jax.config.load import model_config
  from r1jax.model import transformer
  from r1jax.sharding import Layout, make_mesh

  with tempfile.TemporaryDirectory() as folder:
    with open(os.path.join(folder, 'config.json'), 'w') as file:
      json.dump(SHAPES, file)
    fields = hf_config.read_config(folder)
  fields |= dict(dtype='float32', remat='none') | changes
  return transformer.Transformer(model_config(fields), Layout(make_mesh({})))


def theirs(attention: str):
  """Transformers' model, with random weights, on one thread."""
  import torch
  import transformers

  torch.set_num_threads(1)
  config = transformers.DeepseekV3Config(
    **{
      key: value
      for key, value in SHAPES.items()
      if key not in ('architectures', 'model_type', 'torch_dtype')
    }
  )
  config._attn_implementation = attention
  return transformers.DeepseekV3ForCausalLM(config)


def pinned(script: str, run: str, peer_python: str) -> dict:
  """Returns the JSON that `script --run=RUN` prints last; 'peer' runs by its python."""
  python = peer_python if run == 'peer' else sys.executable
  done = subprocess.run(
    [
      'taskset',
      '-c',
      str(min(os.sched_getaffinity(0))),
      python,
      script,
      '--run',
      run,
      '--peer-python',
      peer_python,
    ],
    capture_output=True,
    text=True,
    env=os.environ | {'JAX_PLATFORMS': 'cpu'},
  )
  if done.returncode:
    sys.exit(done.stderr)
  return json.loads(done.stdout.splitlines()[-1])
