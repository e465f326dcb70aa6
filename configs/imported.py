"""A checkpoint from Hugging Face, to sample from or to evaluate.

  r1jax sample --config=imported:FOLDER --prompt='What is 7 + 5?'
  r1jax sample --config=imported:hf://Qwen/Qwen2.5-0.5B-Instruct --prompt=7+5

FOLDER is a Hugging Face checkpoint, an output of `r1jax import-hf`, or a
repository of the Hugging Face hub, hf://OWNER/NAME[@REVISION]. Its
tokenizer is used (change it with --config.tokenizer.source), and its chat
template if it has one, otherwise R1-Zero's template. DeepSeek's models were
trained with BOS before every text, but their tokenizer.json adds none: where no
chat template writes it, as with --config.data.template=r1_zero, set
--config.tokenizer.add_bos_token=True.

The response format follows the template: 'think' for a chat template that opens
<think>, as those of R1 and its distills do; 'think_answer' for R1-Zero's and for
one that asks for <answer>; and 'plain' for another one, which reads 'The answer
is 42' and \\boxed{42}, with or without a thought before it. Change it with --config.data.response_format. For
longer prompts and completions set --config.data.max_prompt_tokens and
--config.rl.max_new_tokens, within the model's context.
"""

from r1jax import buckets
from r1jax.checkpoints import convert
from r1jax.config import base
from r1jax.data.text import chat, tokenizer
from r1jax.errors import UserError


def get_config(source: str = ''):
  if not source:
    raise UserError('name the folder: --config=imported:FOLDER')
  config = base.get_config()
  config.stages = ('rl',)
  config.model = convert.model_config_of(source)
  config.init = config.tokenizer.source = source
  has_tokenizer = any(
    (buckets.given(source) / name).exists()
    for name in ('tokenizer.json', 'tokenizer.json.gz')
  )
  text = tokenizer.load(source) if has_tokenizer else None
  if text and text.chat_templates:
    config.data.template = 'chat'
    template = chat.load_template('chat', text)
    if template.prompt_opens_think:
      config.data.response_format = 'think'
    elif '<answer>' not in template.render('1+1'):  # It asks for no tags.
      config.data.response_format = 'plain'
  context = config.model.max_position_embeddings
  config.data.max_prompt_tokens = min(1024, context // 2)
  config.rl.max_new_tokens = min(4096, context // 2)
  return config
