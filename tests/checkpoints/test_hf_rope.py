"""YaRN of config.json rotates and scales as transformers does.

yarn_reference.json holds what transformers 5.24 computes: the frequencies, the
factor on the cosines and sines, and the softmax scale.
"""

import json
from pathlib import Path

import numpy as np
import pytest

from r1jax.checkpoints import hf_config
from r1jax.config.load import model_config
from r1jax.errors import UserError
from r1jax.model import rope

_CASES = json.loads((Path(__file__).parent / 'yarn_reference.json').read_text())
_SIZES = dict(
  vocab_size=64,
  hidden_size=32,
  intermediate_size=48,
  num_hidden_layers=2,
  num_attention_heads=4,
  num_key_value_heads=2,
  max_position_embeddings=128,
  rms_norm_eps=1e-6,
  rope_theta=10000.0,
)
_MLA = dict(
  q_lora_rank=16,
  kv_lora_rank=8,
  qk_nope_head_dim=8,
  qk_rope_head_dim=8,
  v_head_dim=8,
  first_k_dense_replace=1,
  moe_intermediate_size=16,
  n_routed_experts=8,
  n_shared_experts=1,
  num_experts_per_tok=2,
  n_group=2,
  topk_group=1,
  routed_scaling_factor=2.5,
)


def _read(folder, kind: str, scaling: dict):
  values = _SIZES | {'model_type': kind, 'rope_scaling': scaling}
  values |= _MLA if kind == 'deepseek_v3' else {'head_dim': 8}
  (folder / 'config.json').write_text(json.dumps(values))
  return model_config(hf_config.read_config(folder))


def _scales(config) -> tuple[float, float]:
  """The factor on rotated numbers, and the softmax scale without the rest."""
  r = config.rope
  width = 16 if config.attention == 'mla' else 8
  return rope.magnitude(r), rope.softmax_factor(r) * width**-0.5


@pytest.mark.parametrize('case', _CASES, ids=lambda case: case['model_type'])
def test_yarn_is_that_of_transformers_there_and_back(tmp_path, case):
  config = _read(tmp_path, case['model_type'], case['rope_scaling'])
  want = case['cos_scale'], case['softmax_scale']
  np.testing.assert_allclose(
    rope.frequencies(config.rope, 8), case['inv_freq'], rtol=1e-5
  )
  np.testing.assert_allclose(_scales(config), want, rtol=1e-6)
  exported = hf_config.write_config(config, np.float32)
  again = _read(tmp_path, case['model_type'], exported['rope_scaling'])
  np.testing.assert_allclose(_scales(again), want, rtol=1e-6)
  assert again.rope.factor == config.rope.factor


@pytest.mark.parametrize(
  'mscale, all_dim', [(1, 1), (1, 0), (0.7, 1), (2, 0.5)]
)
def test_our_own_scales_are_exported_as_one_factor(tmp_path, mscale, all_dim):
  """Grouped-query attention: scaling the softmax by s² is rotating by s."""
  r = dict(rope_type='yarn', factor=4.0, mscale=mscale, mscale_all_dim=all_dim)
  config = _read(tmp_path, 'llama', {'rope_type': 'yarn', 'factor': 4.0})
  fields = hf_config.read_config(tmp_path)
  config = model_config(fields | {'rope': fields['rope'] | r})
  exported = hf_config.write_config(config, np.float32)['rope_scaling']
  again = _read(tmp_path, 'llama', exported)
  logits = [
    scale**2 * softmax for scale, softmax in map(_scales, (config, again))
  ]
  np.testing.assert_allclose(*logits, rtol=1e-9)


@pytest.mark.parametrize(
  'scaling, message',
  [
    ({'truncate': False}, 'truncate = false'),
    ({'partial_rotary_factor': 0.5}, 'partial_rotary_factor'),
    ({'factor': 1.0, 'attention_factor': 1.2}, 'attention_factor = 1.2'),
    ({'attention_factor': 'x'}, 'attention_factor = "x"'),
  ],
)
def test_other_yarns_are_refused(tmp_path, scaling, message):
  with pytest.raises(UserError, match=message):
    _read(tmp_path, 'llama', {'rope_type': 'yarn', 'factor': 4.0} | scaling)
