"""Tables that map r1jax parameters to the tensors of Hugging Face checkpoints.

One entry describes one parameter:

  ParameterMapping('attention/q_up', 'QNJ', 'self_attn.q_b_proj.weight', '(NJ)Q')

The Hugging Face tensor is a matrix with N·J rows, head-major, and Q columns;
the r1jax parameter has the axes Q, N, J. PyTorch stores a linear layer as
[out, in], r1jax as [in, out].
"""

from collections.abc import Iterator, Mapping
import dataclasses
import math
import re

import numpy as np

from r1jax.checkpoints.hf_config import model_type
from r1jax.config.schema.model import ModelConfig


@dataclasses.dataclass(frozen=True)
class ParameterMapping:
  """One r1jax parameter and the Hugging Face tensor that holds it.

  Attributes:
    path: Parameter path, below the model or below a layer.
    axes: Dimension letters of the parameter (see dimension_sizes). Experts, a
      leading E, are one Hugging Face tensor each.
    hf_name: Tensor name below `model.layers.3.`; with a leading dot, the whole
      name. '{e}' stands for the number of the expert.
    hf_axes: Dimension letters of the tensor; letters in parentheses are fused
      into one axis.
    part: '' if the tensor holds this parameter alone. 'first' or 'last' if the
      parameter is the first H or the last U of the fused y = H + U entries.
  """

  path: str
  axes: str
  hf_name: str
  hf_axes: str
  part: str = ''

  @property
  def per_expert(self) -> bool:
    """Whether every expert has a Hugging Face tensor of its own."""
    return '{e}' in self.hf_name

  @property
  def tensor_axes(self) -> str:
    """The axes that one Hugging Face tensor covers: without E for experts."""
    return self.axes.removeprefix('E') if self.per_expert else self.axes

  @property
  def split_axes(self) -> str:
    """The Hugging Face axes with nothing fused: '(NJ)Q' → 'NJQ'."""
    return ''.join(_axis_groups(self.hf_axes))

  def shape(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """Shape of the r1jax parameter."""
    return tuple(sizes[letter] for letter in self.axes)

  def hf_shape(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """Shape of the Hugging Face tensor."""
    return tuple(
      math.prod(sizes[letter] for letter in group)
      for group in _axis_groups(self.hf_axes)
    )


_M = ParameterMapping
_EMBEDDING = _M('embedding', 'VD', '.model.embed_tokens.weight', 'VD')
_HEAD = _M('head', 'DV', '.lm_head.weight', 'VD')
_NORM = _M('norm/scale', 'D', '.model.norm.weight', 'D')
_BLOCK_NORMS = (
  _M('attention_norm/scale', 'D', 'input_layernorm.weight', 'D'),
  _M('ffn_norm/scale', 'D', 'post_attention_layernorm.weight', 'D'),
)
_GQA = (
  _M('attention/q', 'DNH', 'self_attn.q_proj.weight', '(NH)D'),
  _M('attention/k', 'DKH', 'self_attn.k_proj.weight', '(KH)D'),
  _M('attention/v', 'DKH', 'self_attn.v_proj.weight', '(KH)D'),
  _M('attention/q_bias', 'NH', 'self_attn.q_proj.bias', '(NH)'),
  _M('attention/k_bias', 'KH', 'self_attn.k_proj.bias', '(KH)'),
  _M('attention/v_bias', 'KH', 'self_attn.v_proj.bias', '(KH)'),
  _M('attention/q_norm/scale', 'H', 'self_attn.q_norm.weight', 'H'),
  _M('attention/k_norm/scale', 'H', 'self_attn.k_norm.weight', 'H'),
  _M('attention/out', 'NHD', 'self_attn.o_proj.weight', 'D(NH)'),
)
_MLA = (
  _M('attention/q', 'DNJ', 'self_attn.q_proj.weight', '(NJ)D'),
  _M('attention/q_down', 'DQ', 'self_attn.q_a_proj.weight', 'QD'),
  _M('attention/q_norm/scale', 'Q', 'self_attn.q_a_layernorm.weight', 'Q'),
  _M('attention/q_up', 'QNJ', 'self_attn.q_b_proj.weight', '(NJ)Q'),
  _M('attention/kv_down', 'DX', 'self_attn.kv_a_proj_with_mqa.weight', 'XD'),
  _M('attention/kv_norm/scale', 'C', 'self_attn.kv_a_layernorm.weight', 'C'),
  _M('attention/k_up', 'CNH', 'self_attn.kv_b_proj.weight', '(Ny)C', 'first'),
  _M('attention/v_up', 'CNU', 'self_attn.kv_b_proj.weight', '(Ny)C', 'last'),
  _M('attention/out', 'NUD', 'self_attn.o_proj.weight', 'D(NU)'),
)
_DENSE_FFN = (
  _M('ffn/gate', 'DF', 'mlp.gate_proj.weight', 'FD'),
  _M('ffn/up', 'DF', 'mlp.up_proj.weight', 'FD'),
  _M('ffn/down', 'FD', 'mlp.down_proj.weight', 'DF'),
)
_MOE_FFN = (
  _M('ffn/router', 'DE', 'mlp.gate.weight', 'ED'),
  _M('ffn/bias', 'E', 'mlp.gate.e_score_correction_bias', 'E'),
  _M('ffn/gate', 'EDI', 'mlp.experts.{e}.gate_proj.weight', 'ID'),
  _M('ffn/up', 'EDI', 'mlp.experts.{e}.up_proj.weight', 'ID'),
  _M('ffn/down', 'EID', 'mlp.experts.{e}.down_proj.weight', 'DI'),
  _M('ffn/shared/gate', 'Ds', 'mlp.shared_experts.gate_proj.weight', 'sD'),
  _M('ffn/shared/up', 'Ds', 'mlp.shared_experts.up_proj.weight', 'sD'),
  _M('ffn/shared/down', 'sD', 'mlp.shared_experts.down_proj.weight', 'Ds'),
)
# An MTP module is stored as a layer after the last one.
_MTP = (
  _M('merge', 'mD', 'eh_proj.weight', 'Dm'),
  _M('ahead_norm/scale', 'D', 'enorm.weight', 'D'),
  _M('hidden_norm/scale', 'D', 'hnorm.weight', 'D'),
  _M('norm/scale', 'D', 'shared_head.norm.weight', 'D'),
)
# The layers of each config.attention: attention, dense FFN, MoE FFN.
_LAYERS = {'mla': (_MLA, _DENSE_FFN, _MOE_FFN), 'gqa': (_GQA, _DENSE_FFN, ())}


def dimension_sizes(c: ModelConfig) -> dict[str, int]:
  """Returns the size that each letter of the tables stands for.

  Capital letters are those of r1jax/records.py, and I, the width of an expert.
  Lower-case letters exist in these tables alone: y = H + U, the fused keys and
  values of a head; s, the width of the shared experts; m = 2·D, the input of
  an MTP module's projection.
  """
  mla = c.attention == 'mla'
  return dict(
    V=c.vocab_size,
    D=c.hidden_size,
    N=c.num_attention_heads,
    K=c.num_key_value_heads,
    H=c.qk_nope_head_dim if mla else c.head_dim,
    Q=c.q_lora_rank,
    C=c.kv_lora_rank,
    J=c.qk_nope_head_dim + c.qk_rope_head_dim,
    U=c.v_head_dim,
    X=c.cache_width,
    F=c.intermediate_size,
    I=c.moe_intermediate_size,
    E=c.n_routed_experts,
    y=c.qk_nope_head_dim + c.v_head_dim,
    s=c.moe_intermediate_size * c.n_shared_experts,
    m=2 * c.hidden_size,
  )


def _axis_groups(axes: str) -> list[str]:
  """Splits axes into tensor axes: '(NJ)Q' → ['NJ', 'Q']."""
  return [a or b for a, b in re.findall(r'\((\w+)\)|(\w)', axes)]


def from_hf(
  tensor: np.ndarray, mapping: ParameterMapping, sizes: Mapping[str, int]
) -> np.ndarray:
  """Converts a Hugging Face tensor to the axes of the r1jax parameter.

  Args:
    tensor: The whole tensor, of shape mapping.hf_shape(sizes).
    mapping: The parameter to extract.
    sizes: The result of dimension_sizes.

  Returns:
    The parameter, or one expert of it.
  """
  letters = mapping.split_axes
  split = tensor.reshape([sizes[letter] for letter in letters])
  if mapping.part:
    axis = letters.index('y')
    first = mapping.part == 'first'
    start, size = (0, sizes['H']) if first else (sizes['H'], sizes['U'])
    split = np.take(split, range(start, start + size), axis)
    letters = letters.replace('y', 'H' if first else 'U')
  return np.transpose(
    split, [letters.index(letter) for letter in mapping.tensor_axes]
  )


def to_hf(parts: list[tuple[ParameterMapping, np.ndarray]]) -> np.ndarray:
  """Converts r1jax parameters to the one Hugging Face tensor that they form.

  Args:
    parts: One parameter, or the 'first' and 'last' part of a fused tensor.

  Returns:
    The numbers in the order of the tensor; its fused axes are still apart.
  """
  pieces = []
  for mapping, array in parts:
    letters = mapping.split_axes
    if mapping.part:
      letters = letters.replace('y', 'H' if mapping.part == 'first' else 'U')
    pieces.append(
      np.transpose(array, [mapping.tensor_axes.index(x) for x in letters])
    )
  if len(pieces) == 1:
    return pieces[0]
  return np.concatenate(pieces, parts[0][0].split_axes.index('y'))


@dataclasses.dataclass(frozen=True)
class MappedParameter:
  """One parameter of one layer, and the Hugging Face tensors that hold it.

  Attributes:
    name: Name in r1jax safetensors: 'moe_layers/0/ffn/gate'.
    mapping: Its entry in the tables.
    hf_names: Names of the Hugging Face tensors: one, or one an expert.
  """

  name: str
  mapping: ParameterMapping
  hf_names: tuple[str, ...]


def mapped_parameters(config: ModelConfig) -> list[MappedParameter]:
  """Lists all parameters of a model, in the order of its layers.

  Raises:
    UserError: No Hugging Face family has this architecture.
  """
  model_type(config)  # Refuses an architecture that no family has.
  attention, dense, moe = _LAYERS[config.attention]
  first_moe = config.first_k_dense_replace

  def layer(
    number: int, name: str, mappings: tuple[ParameterMapping, ...]
  ) -> Iterator[MappedParameter]:
    for mapping in mappings:
      if mapping.path not in absent:
        hf_name = f'model.layers.{number}.{mapping.hf_name}'
        experts = range(config.n_routed_experts) if mapping.per_expert else (0,)
        yield MappedParameter(
          f'{name}/{mapping.path}',
          mapping,
          tuple(hf_name.format(e=e) for e in experts),
        )

  def top(mapping: ParameterMapping) -> MappedParameter:
    return MappedParameter(mapping.path, mapping, (mapping.hf_name[1:],))

  absent = _absent_paths(config)
  parameters = [top(_EMBEDDING)]
  for i in range(first_moe):
    parameters += layer(
      i, f'dense_layers/{i}', _BLOCK_NORMS + attention + dense
    )
  for i in range(config.num_moe_layers):
    parameters += layer(
      first_moe + i, f'moe_layers/{i}', _BLOCK_NORMS + attention + moe
    )
  for i in range(config.num_nextn_predict_layers):
    number = config.num_hidden_layers + i
    ffn = moe if config.num_moe_layers else dense
    parameters += layer(number, f'mtp/{i}', _MTP)
    parameters += layer(
      number, f'mtp/{i}/block', _BLOCK_NORMS + attention + ffn
    )
  parameters.append(top(_NORM))
  if not config.tie_word_embeddings:
    parameters.append(top(_HEAD))
  return parameters


def _absent_paths(c: ModelConfig) -> set[str]:
  """Layer parameters of the tables that this architecture does not have."""
  absent = set()
  if c.attention == 'mla':
    absent |= (
      {'attention/q'}
      if c.q_lora_rank
      else {'attention/q_down', 'attention/q_norm/scale', 'attention/q_up'}
    )
  else:
    if not c.qkv_bias:
      absent |= {f'attention/{x}_bias' for x in 'qkv'}
    if not c.qk_norm:
      absent |= {'attention/q_norm/scale', 'attention/k_norm/scale'}
  if not c.n_shared_experts:
    absent |= {f'ffn/shared/{x}' for x in ('gate', 'up', 'down')}
  return absent


HF_HEAD = _HEAD.hf_name[1:]


def duplicates(config: ModelConfig) -> dict[str, str]:
  """Maps Hugging Face tensors that repeat another one to its name.

  These are the head of a model with tied embeddings, and the embedding and
  head of each MTP module.
  """
  embedding = _EMBEDDING.hf_name[1:]
  copies = {HF_HEAD: embedding} if config.tie_word_embeddings else {}
  for i in range(config.num_nextn_predict_layers):
    layer = f'model.layers.{config.num_hidden_layers + i}'
    copies |= {
      f'{layer}.embed_tokens.weight': embedding,
      f'{layer}.shared_head.head.weight': copies.get(HF_HEAD, HF_HEAD),
    }
  return copies
