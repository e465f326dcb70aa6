"""The model, tokenizer and prompts that all systems of grpo_step.py share.

The model is random, and its stop token has the probability that a workload asks
for, whatever was sampled before: channel 0 of the embeddings is a constant, no
layer writes to it, and the stop token's row of the output head differs from the
others in that channel. Needs NumPy and safetensors alone.
"""

import dataclasses
import json
import math
from pathlib import Path
import sys

import numpy as np
import peer
from safetensors.numpy import save_file

PAD, STOP = 0, 1
_STD = 0.02
_NEVER = 1e-12  # A probability.
_CHANNEL_0 = 8.0
# Channel 0 after the last norm. Experts choose by what differs between tokens,
# so that a tied embedding, which is the head too, may be smaller.
_NORMED_CHANNEL_0 = {'qwen2': 14.0, 'deepseek_v3': 10.5}
_EMBEDDING_STD = {'qwen2': _STD, 'deepseek_v3': 0.5}

QWEN2 = dict(
  architectures=['Qwen2ForCausalLM'],
  model_type='qwen2',
  hidden_act='silu',
  vocab_size=512,
  hidden_size=256,
  intermediate_size=1024,
  num_hidden_layers=6,
  num_attention_heads=8,
  num_key_value_heads=4,
  max_position_embeddings=4096,
  rms_norm_eps=1e-6,
  rope_theta=1000000.0,
  tie_word_embeddings=True,
  pad_token_id=PAD,
  eos_token_id=STOP,
  torch_dtype='float32',
)
SHAPES = {'qwen2': QWEN2, 'deepseek_v3': peer.SHAPES}


@dataclasses.dataclass(frozen=True)
class Workload:
  """The size of a GRPO step.

  Attributes:
    prompts, group: P and G.
    prompt_tokens: Tokens of every prompt.
    max_new_tokens: Longest completion.
    mean_tokens: Mean of a completion that nothing cuts off; 0 for completions
      that never stop.
  """

  prompts: int
  group: int
  prompt_tokens: int
  max_new_tokens: int
  mean_tokens: int


WORKLOADS = {
  'full': Workload(8, 8, 64, 128, 0),
  'stops': Workload(8, 8, 64, 512, 60),
  'long_prompts': Workload(4, 16, 512, 256, 110),
}


def write(folder: Path, shape: str, workload: str, num_prompts: int):
  """Writes a Hugging Face folder, prompts.jsonl and template.jinja."""
  folder.mkdir(parents=True, exist_ok=True)
  sizes, work = SHAPES[shape], WORKLOADS[workload]
  rng = np.random.default_rng(0)
  tensors = _qwen2(sizes, rng) if shape == 'qwen2' else _deepseek(sizes, rng)
  chance = 1 / work.mean_tokens if work.mean_tokens else _NEVER
  odds = chance / (1 - chance) * (sizes['vocab_size'] - 1)
  tied = sizes['tie_word_embeddings']
  head = tensors['model.embed_tokens.weight' if tied else 'lm_head.weight']
  head[:, 0] = _CHANNEL_0
  # Unknown words are padding too, with which r1jax would end completions.
  for token, log_odds in (STOP, math.log(odds)), (PAD, math.log(_NEVER)):
    head[token, 1:] = 0.0
    head[token, 0] += log_odds / _NORMED_CHANNEL_0[shape]
  save_file(tensors, folder / 'model.safetensors', {'format': 'pt'})
  _write_json(folder / 'config.json', sizes)
  _write_tokenizer(folder, sizes['vocab_size'])
  words = rng.integers(
    2, sizes['vocab_size'], (num_prompts, work.prompt_tokens)
  )
  rows = [
    {'id': str(i), 'prompt': ' '.join(f't{word}' for word in row)}
    for i, row in enumerate(words)
  ]
  rows = [row | {'question': row['prompt'], 'answer': '####1'} for row in rows]
  lines = ''.join(json.dumps(row) + '\n' for row in rows)
  (folder / 'prompts.jsonl').write_text(lines)
  (folder / 'template.jinja').write_text("{{ messages[0]['content'] }}")


def prompts(folder: Path) -> list[str]:
  lines = (folder / 'prompts.jsonl').read_text().splitlines()
  return [json.loads(line)['prompt'] for line in lines]


def reward(completion: str) -> float:
  """Returns the share of a completion's tokens that have an even number."""
  words = [word for word in completion.split() if word.startswith('t')]
  return sum(int(word[1:]) % 2 == 0 for word in words) / max(len(words), 1)


def _qwen2(c: dict, rng) -> dict[str, np.ndarray]:
  D, F, N, K = (
    c[f'{name}']
    for name in (
      'hidden_size',
      'intermediate_size',
      'num_attention_heads',
      'num_key_value_heads',
    )
  )
  H = D // N
  tensors = _embeddings(c, rng)
  for i in range(c['num_hidden_layers']):
    layer = f'model.layers.{i}'
    for name, heads in ('q', N), ('k', K), ('v', K):
      tensors |= {
        f'{layer}.self_attn.{name}_proj.weight': _normal(rng, heads * H, D),
        f'{layer}.self_attn.{name}_proj.bias': np.zeros(heads * H, np.float32),
      }
    tensors[f'{layer}.self_attn.o_proj.weight'] = _writes(rng, D, N * H)
    tensors |= _mlp(f'{layer}.mlp', D, F, rng) | _norms(layer, D)
  return tensors


def _deepseek(c: dict, rng) -> dict[str, np.ndarray]:
  D, N, C, Q, R, H, U, E = (
    c[name]
    for name in (
      'hidden_size',
      'num_attention_heads',
      'kv_lora_rank',
      'q_lora_rank',
      'qk_rope_head_dim',
      'qk_nope_head_dim',
      'v_head_dim',
      'n_routed_experts',
    )
  )
  tensors = _embeddings(c, rng)
  for i in range(c['num_hidden_layers']):
    layer = f'model.layers.{i}'
    attn, mlp = f'{layer}.self_attn', f'{layer}.mlp'
    tensors |= _norms(layer, D) | {
      f'{attn}.q_a_proj.weight': _normal(rng, Q, D),
      f'{attn}.q_a_layernorm.weight': np.ones(Q, np.float32),
      f'{attn}.q_b_proj.weight': _normal(rng, N * (H + R), Q),
      f'{attn}.kv_a_proj_with_mqa.weight': _normal(rng, C + R, D),
      f'{attn}.kv_a_layernorm.weight': np.ones(C, np.float32),
      f'{attn}.kv_b_proj.weight': _normal(rng, N * (H + U), C),
      f'{attn}.o_proj.weight': _writes(rng, D, N * U),
    }
    if i < c['first_k_dense_replace']:
      tensors |= _mlp(mlp, D, c['intermediate_size'], rng)
      continue
    router = _normal(rng, E, D)
    router[:, 0] = 0  # Else all tokens choose the same experts.
    tensors |= {
      f'{mlp}.gate.weight': router,
      f'{mlp}.gate.e_score_correction_bias': np.zeros(E, np.float32),
    }
    names = [f'{mlp}.experts.{e}' for e in range(E)]
    for name in (*names, f'{mlp}.shared_experts'):
      tensors |= _mlp(name, D, c['moe_intermediate_size'], rng)
  return tensors


def _embeddings(c: dict, rng) -> dict[str, np.ndarray]:
  V, D = c['vocab_size'], c['hidden_size']
  tensors = {
    'model.embed_tokens.weight': _normal(rng, V, D)
    * np.float32(_EMBEDDING_STD[c['model_type']] / _STD),
    'model.norm.weight': np.ones(D, np.float32),
  }
  tensors['model.embed_tokens.weight'][:, 0] = _CHANNEL_0
  if not c['tie_word_embeddings']:
    tensors['lm_head.weight'] = _normal(rng, V, D)
  return tensors


def _mlp(name: str, D: int, F: int, rng) -> dict[str, np.ndarray]:
  return {
    f'{name}.gate_proj.weight': _normal(rng, F, D),
    f'{name}.up_proj.weight': _normal(rng, F, D),
    f'{name}.down_proj.weight': _writes(rng, D, F),
  }


def _norms(layer: str, D: int) -> dict[str, np.ndarray]:
  return {
    f'{layer}.{name}_layernorm.weight': np.ones(D, np.float32)
    for name in ('input', 'post_attention')
  }


def _normal(rng, *shape: int) -> np.ndarray:
  return (_STD * rng.standard_normal(shape)).astype(np.float32)


def _writes(rng, D: int, width: int) -> np.ndarray:
  """A matrix into the residual stream that leaves its channel 0 alone."""
  weight = _normal(rng, D, width)
  weight[0] = 0
  return weight


def _write_tokenizer(folder: Path, vocab_size: int):
  """Writes a tokenizer whose tokens are the words t2, t3, …"""
  words = ['<pad>', '<eos>', *(f't{i}' for i in range(2, vocab_size))]
  special = [
    dict(
      id=i,
      content=words[i],
      single_word=False,
      lstrip=False,
      rstrip=False,
      normalized=False,
      special=True,
    )
    for i in (PAD, STOP)
  ]
  _write_json(
    folder / 'tokenizer.json',
    dict(
      version='1.0',
      truncation=None,
      padding=None,
      added_tokens=special,
      normalizer=None,
      pre_tokenizer=dict(type='WhitespaceSplit'),
      post_processor=None,
      decoder=None,
      model=dict(
        type='WordLevel',
        vocab={word: i for i, word in enumerate(words)},
        unk_token='<pad>',
      ),
    ),
  )
  _write_json(
    folder / 'tokenizer_config.json',
    dict(
      tokenizer_class='PreTrainedTokenizerFast',
      pad_token='<pad>',
      eos_token='<eos>',
      model_max_length=4096,
      clean_up_tokenization_spaces=False,
    ),
  )
  _write_json(
    folder / 'generation_config.json',
    dict(pad_token_id=PAD, eos_token_id=STOP, do_sample=True, top_k=0),
  )


def _write_json(path: Path, content: dict):
  path.write_text(json.dumps(content, indent=1) + '\n')


if __name__ == '__main__':
  write(Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4]))
