"""Model families: the Hugging Face checkpoints that the one transformer runs.

A family that fields of ModelConfig suffice for is one record, which a plugin
may register too:

  registry.model_family('mistral')(
    ModelFamily('MistralForCausalLM', GQA, supported={'sliding_window': None})
  )
"""

from collections.abc import Mapping
import dataclasses
from typing import Any

from r1jax import registry


@dataclasses.dataclass(frozen=True)
class ModelFamily:
  """A family of checkpoints, registered under its `model_type`.

  Attributes:
    architecture: Its class in transformers, the entry of `architectures` in
      config.json.
    fields: Fields of ModelConfig that are the same in all of its models. A
      model is exported as the first family whose fields it has.
    keys: Key in config.json of each ModelConfig field that has another name
      there, such as {'rms_norm_eps': 'layer_norm_eps'}.
    supported: Keys of config.json of which one value is supported, with it;
      another one is refused. A key may be absent.
  """

  architecture: str
  fields: Mapping[str, Any]
  keys: Mapping[str, str] = dataclasses.field(default_factory=dict)
  supported: Mapping[str, Any] = dataclasses.field(default_factory=dict)


# Grouped-query attention without biases and without norms, as in Llama.
GQA = dict(attention='gqa', qkv_bias=False, qk_norm=False)

registry.model_family('deepseek_v3')(
  ModelFamily(
    'DeepseekV3ForCausalLM',
    dict(attention='mla', scoring_func='sigmoid', group_scoring='top2_sum'),
    supported={
      'scoring_func': 'sigmoid',
      'topk_method': 'noaux_tc',
      'moe_layer_freq': 1,
      'rope_interleave': True,
    },
  )
)
registry.model_family('llama')(ModelFamily('LlamaForCausalLM', GQA))
registry.model_family('qwen2')(
  ModelFamily('Qwen2ForCausalLM', GQA | dict(qkv_bias=True))
)
registry.model_family('qwen3')(
  ModelFamily('Qwen3ForCausalLM', GQA | dict(qk_norm=True))
)
