"""Small tokenizers in the form of published ones, written to folders.

Normaliser, pre-tokeniser, post-processor, decoder, special tokens, settings and
the form of the chat template are those of the families; the vocabularies are a
few hundred tokens. transformers_ids.json holds the ids that transformers gives
for them; `python -m tests.data.text.real_forms`, in an environment that has
transformers, writes it.
"""

import json
from pathlib import Path
import sys

IDS = Path(__file__).parent / 'transformers_ids.json'
_WORDS = (
  'the what is of and to in a question answer user assistant system model'
  ' think brief day number hello world you are helpful'
).split()
_QWEN = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| "
  r'?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+'
)
_LLAMA3 = _QWEN.replace(r'\p{N}| ?', r'\p{N}{1,3}| ?')
_TEKKEN = (
  r'[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*'
  r'[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]'
  r'+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|'
  r'\s+(?!\S)|\s+'
)
_BYTE_LEVEL = {
  'type': 'ByteLevel',
  'add_prefix_space': False,
  'trim_offsets': False,
  'use_regex': False,
}


def _bytes() -> list[str]:
  """The characters that stand for bytes in byte-level tokenizers."""
  plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
  others = [b for b in range(256) if b not in plain]
  return [chr(b) for b in plain] + [chr(256 + i) for i in range(len(others))]


def _grown(alphabet: list[str], space: str) -> tuple[dict, list]:
  """A vocabulary of an alphabet and the words, with the merges to them."""
  vocab = {token: i for i, token in enumerate(alphabet)}
  merges = []
  for word in _WORDS:
    for text in (word, space + word):
      whole = text[0]
      for letter in text[1:]:
        if whole + letter not in vocab:
          merges.append([whole, letter])
          vocab[whole + letter] = len(vocab)
        whole += letter
  return vocab, merges


def _added(vocab: dict, tokens, **flags) -> list[dict]:
  known = dict.fromkeys(tokens)
  free = iter(range(len(vocab), len(vocab) + len(known)))
  return [
    {
      'id': vocab.get(token, None) if token in vocab else next(free),
      'content': token,
      'single_word': False,
      'lstrip': False,
      'rstrip': False,
      'normalized': False,
      'special': not token.startswith(('<think', '</think', '<tool')),
    }
    | flags
    for token in known
  ]


def _split(regex: str) -> dict:
  return {
    'type': 'Sequence',
    'pretokenizers': [
      {
        'type': 'Split',
        'pattern': {'Regex': regex},
        'behavior': 'Isolated',
        'invert': False,
      },
      _BYTE_LEVEL,
    ],
  }


def _starts_with(token: str, id_: int) -> dict:
  """The post-processor that puts BOS first."""
  special = {'SpecialToken': {'id': token, 'type_id': 0}}
  text = {'Sequence': {'id': 'A', 'type_id': 0}}
  pair = {'Sequence': {'id': 'B', 'type_id': 1}}
  return {
    'type': 'TemplateProcessing',
    'single': [special, text],
    'pair': [special, text, special, pair],
    'special_tokens': {token: {'id': token, 'ids': [id_], 'tokens': [token]}},
  }


def _core(model: dict, added: list[dict], **parts) -> dict:
  empty = dict.fromkeys(
    ('truncation', 'padding', 'normalizer', 'pre_tokenizer')
    + ('post_processor', 'decoder')
  )
  return {
    'version': '1.0',
    **empty,
    'added_tokens': added,
    'model': {'type': 'BPE', 'dropout': None, 'unk_token': None} | model,
    **parts,
  }


def _byte_level(
  tokens, pre_tokenizer, normalizer=None, bos='', processor=True, **model
) -> dict:
  vocab, merges = _grown(_bytes(), 'Ġ')
  added = _added(vocab, tokens)
  post = _BYTE_LEVEL if processor else None
  if bos:
    id_ = next(token['id'] for token in added if token['content'] == bos)
    post = {
      'type': 'Sequence',
      'processors': [_BYTE_LEVEL, _starts_with(bos, id_)],
    }
  return _core(
    dict(vocab=vocab, merges=merges, byte_fallback=False, fuse_unk=False)
    | dict(continuing_subword_prefix='', end_of_word_suffix='')
    | model,
    added,
    normalizer=normalizer,
    pre_tokenizer=pre_tokenizer,
    post_processor=post,
    decoder=_BYTE_LEVEL,
  )


def _sentencepiece(
  first, tokens=(), bos='<s>', strips=False, flags=(), **parts
) -> dict:
  """A BPE of Unicode characters with byte fallback, as SentencePiece makes."""
  letters = [chr(c) for c in range(33, 127)] + ['▁', '\n']
  alphabet = [*first, *(f'<0x{b:02X}>' for b in range(256)), *letters]
  vocab, merges = _grown(alphabet, '▁')
  steps = [
    {'type': 'Replace', 'pattern': {'String': '▁'}, 'content': ' '},
    {'type': 'ByteFallback'},
    {'type': 'Fuse'},
  ]
  if strips:
    steps.append({'type': 'Strip', 'content': ' ', 'start': 1, 'stop': 0})
  added = _added(vocab, first) + _added(vocab, tokens, **dict(flags))
  model = dict(vocab=vocab, merges=merges, byte_fallback=True, fuse_unk=True)
  return _core(
    model | dict(unk_token='<unk>', ignore_merges=False),
    added,
    decoder={'type': 'Sequence', 'decoders': steps},
    post_processor=_starts_with(bos, vocab[bos]) if bos else None,
    **parts,
  )


_SPACES = {'type': 'Replace', 'pattern': {'String': ' '}, 'content': '▁'}
_LEGACY = {
  'type': 'Sequence',
  'normalizers': [{'type': 'Prepend', 'prepend': '▁'}, _SPACES],
}
_METASPACE = {
  'type': 'Metaspace',
  'replacement': '▁',
  'prepend_scheme': 'first',
  'split': False,
}
_CHATML = ['<|endoftext|>', '<|im_start|>', '<|im_end|>']
_THINK = ['<think>', '</think>', '<tool_call>', '</tool_call>']
_DEEPSEEK = ['<｜begin▁of▁sentence｜>', '<｜end▁of▁sentence｜>']
_TURNS = ['<｜User｜>', '<｜Assistant｜>']
_HEADERS = ['<|start_header_id|>', '<|end_header_id|>', '<|eot_id|>']
_LLAMA3_TOKENS = ['<|begin_of_text|>', '<|end_of_text|>', *_HEADERS]

# Templates in the form of the published ones, in words of our own.
_CHATML_TEMPLATE = """\
{%- if messages[0]['role'] != 'system' and SYSTEM %}
    {{- '<|im_start|>system\\n' + SYSTEM + '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {{- '<|im_start|>' + message['role'] + '\\n' + message['content'] }}
    {{- '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\nOPEN' }}
{%- endif %}
"""
_QWEN3_TEMPLATE = """\
{%- set last = namespace(index=messages|length - 1, found=false) %}
{%- for message in messages[::-1] %}
    {%- if not last.found and message.role == 'user' %}
        {%- set last.found = true %}
        {%- set last.index = messages|length - 1 - loop.index0 %}
    {%- endif %}
{%- endfor %}
{%- if tools %}
    {{- '<|im_start|>system\\n# Tools\\n' }}
    {%- for tool in tools %}
        {{- tool | tojson + '\\n' }}
    {%- endfor %}
    {{- '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.content is string %}
        {%- set content = message.content %}
    {%- else %}
        {%- set content = '' %}
    {%- endif %}
    {%- if message.role in ['user', 'system'] %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>\\n' }}
    {%- elif message.role == 'assistant' %}
        {%- if '</think>' in content %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {{- '<|im_start|>assistant\\n' + content }}
        {%- if message.tool_calls %}
            {%- for call in message.tool_calls %}
                {%- set call = call.function %}
                {{- '<tool_call>\\n{"name": "' + call.name + '", "arguments": ' }}
                {{- call.arguments | tojson + '}\\n</tool_call>' }}
            {%- endfor %}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == 'tool' %}
        {{- '<|im_start|>user\\n<tool_response>\\n' + content }}
        {{- '\\n</tool_response><|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""
_LLAMA3_TEMPLATE = """\
{{- bos_token }}
{%- if not date_string is defined %}
    {%- set date_string = '26 Jul 2024' %}
{%- endif %}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
    {%- if message.role == 'system' %}
        {{- 'Day: ' + date_string + '\\n\\n' }}
    {%- endif %}
    {{- message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""
_DEEPSEEK_TEMPLATE = (
  "{% set ns = namespace(system='') %}{%- for message in messages %}"
  "{%- if message['role'] == 'system' %}{% set ns.system = message['content'] %}"
  '{%- endif %}{%- endfor %}{{bos_token}}{{ns.system}}'
  "{%- for message in messages %}{%- if message['role'] == 'user' %}"
  "{{'<｜User｜>' + message['content']}}{%- endif %}"
  "{%- if message['role'] == 'assistant' %}{% set content = message['content'] %}"
  "{% if '</think>' in content %}{% set content = content.split('</think>')[-1] %}"
  "{% endif %}{{'<｜Assistant｜>' + content + '<｜end▁of▁sentence｜>'}}{%- endif %}"
  "{%- endfor %}{% if add_generation_prompt %}{{'<｜Assistant｜>OPEN'}}{% endif %}"
)
_MISTRAL_TEMPLATE = """\
{%- if messages[0]['role'] == 'system' %}
    {%- set system = messages[0]['content'] + '\\n\\n' %}
    {%- set turns = messages[1:] %}
{%- else %}
    {%- set system = '' %}
    {%- set turns = messages %}
{%- endif %}
{{- bos_token }}
{%- for message in turns %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('roles must alternate') }}
    {%- endif %}
    {%- if message['role'] == 'user' %}
        {%- if loop.last and system %}
            {{- '[INST] ' + system + message['content'] + ' [/INST]' }}
        {%- else %}
            {{- '[INST] ' + message['content'] + ' [/INST]' }}
        {%- endif %}
    {%- else %}
        {{- ' ' + message['content'] + eos_token }}
    {%- endif %}
{%- endfor %}
"""
_LLAMA2_TEMPLATE = """\
{% if messages[0]['role'] == 'system' %}{% set turns = messages[1:] %}\
{% set system = messages[0]['content'] %}{% else %}{% set turns = messages %}\
{% set system = false %}{% endif %}{% for message in turns %}\
{% if loop.index0 == 0 and system %}\
{% set content = '<<SYS>>\\n' + system + '\\n<</SYS>>\\n\\n' + message['content'] %}\
{% else %}{% set content = message['content'] %}{% endif %}\
{% if message['role'] == 'user' %}\
{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}\
{% else %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"""
_GEMMA_TEMPLATE = """\
{{ bos_token }}
{%- if messages[0]['role'] == 'system' %}
    {%- if messages[0]['content'] is string %}
        {%- set first = messages[0]['content'] + '\\n\\n' %}
    {%- else %}
        {%- set first = messages[0]['content'][0]['text'] + '\\n\\n' %}
    {%- endif %}
    {%- set turns = messages[1:] %}
{%- else %}
    {%- set first = '' %}
    {%- set turns = messages %}
{%- endif %}
{%- for message in turns %}
    {%- set role = 'model' if message['role'] == 'assistant' else message['role'] %}
    {{ '<start_of_turn>' + role + '\\n' + (first if loop.first else '') }}
    {%- if message['content'] is string %}
        {{ message['content'] | trim }}
    {%- else %}
        {%- for part in message['content'] %}
            {{ part['text'] | trim }}
        {%- endfor %}
    {%- endif %}
    {{ '<end_of_turn>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{ '<start_of_turn>model\\n' }}
{%- endif %}
"""
_PIPES_TEMPLATE = """\
{% for message in messages %}
{% if message['role'] == 'user' %}
{{ '<|user|>\\n' + message['content'] + 'END' }}
{% elif message['role'] == 'system' %}
{{ '<|system|>\\n' + message['content'] + 'END' }}
{% elif message['role'] == 'assistant' %}
{{ '<|assistant|>\\n' + message['content'] + 'END' }}
{% endif %}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>\\n' }}
{% endif %}
{% endfor %}"""
_PHI4_TEMPLATE = """\
{% for message in messages %}\
{{ '<|im_start|>' + message['role'] + '<|im_sep|>' + message['content'] }}\
{{ '<|im_end|>' }}{% endfor %}\
{% if add_generation_prompt %}{{ '<|im_start|>assistant<|im_sep|>' }}{% endif %}"""
_SMOLLM3_TEMPLATE = """\
{%- for message in messages %}
    {%- if message.role == 'assistant' %}
        {{- '<|im_start|>assistant\\n' }}
        {%- generation %}
        {{- message.content.lstrip('\\n') + '<|im_end|>\\n' }}
        {%- endgeneration %}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content }}
        {{- '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if not (enable_thinking | default(true)) %}
        {{- '<think>\\n\\n</think>\\n' }}
    {%- endif %}
{%- endif %}
"""


def _chatml(system: str = '', opens: str = '') -> str:
  return _CHATML_TEMPLATE.replace('SYSTEM', repr(system)).replace('OPEN', opens)


def _settings(eos, bos=None, pad=None, **more) -> dict:
  return {
    'bos_token': bos,
    'eos_token': eos,
    'pad_token': pad,
    'clean_up_tokenization_spaces': False,
    'model_max_length': 4096,
  } | more


_NFC = {'type': 'NFC'}
_DIGITS = {
  'type': 'Sequence',
  'pretokenizers': [
    {'type': 'Digits', 'individual_digits': True},
    _BYTE_LEVEL | {'use_regex': True},
  ],
}
_GEMMA_SPLIT = {
  'type': 'Split',
  'pattern': {'String': ' '},
  'behavior': 'MergedWithPrevious',
  'invert': False,
}


def _qwen(tokens=()) -> dict:
  return _byte_level([*_CHATML, *_THINK, *tokens], _split(_QWEN), _NFC)


def _llama3(tokens=_LLAMA3_TOKENS, bos='<|begin_of_text|>') -> dict:
  return _byte_level(tokens, _split(_LLAMA3), bos=bos, ignore_merges=True)


def _pipes(end: str) -> str:
  return _PIPES_TEMPLATE.replace('END', end)


def forms() -> dict[str, tuple[dict, dict, str]]:
  """tokenizer.json, tokenizer_config.json and chat template of each form."""
  qwen_class = dict(tokenizer_class='Qwen2Tokenizer', add_prefix_space=False)
  gpt2 = dict(tokenizer_class='GPT2Tokenizer', add_prefix_space=False)
  fast = dict(tokenizer_class='PreTrainedTokenizerFast')
  llama = dict(tokenizer_class='LlamaTokenizer', unk_token='<unk>')
  pieces = ['<unk>', '<s>', '</s>']
  deepseek_pre = _split(_LLAMA3)
  r1 = [*_DEEPSEEK, *_TURNS, '<think>', '</think>']
  bos, eos = _DEEPSEEK
  deepseek = _settings(
    eos, bos, eos, add_bos_token=True, add_eos_token=False, legacy=True
  ) | dict(tokenizer_class='LlamaTokenizerFast')
  gemma = ['<pad>', '<eos>', '<bos>', '<unk>']
  turns = ['<start_of_turn>', '<end_of_turn>']
  helpful = 'You are a helpful assistant.'
  return {
    'qwen2': (
      _qwen(),
      _settings('<|im_end|>', pad='<|endoftext|>', **qwen_class),
      _chatml(helpful),
    ),
    'qwen2.5': (
      _qwen(),
      _settings(
        '<|im_end|>', pad='<|endoftext|>', add_bos_token=False, **qwen_class
      ),
      _chatml('You are a model. ' + helpful),
    ),
    'qwen2.5-base': (
      _qwen(),
      _settings(
        '<|endoftext|>', pad='<|endoftext|>', add_bos_token=False, **qwen_class
      ),
      _chatml(helpful),
    ),
    'qwen3': (
      _qwen(),
      _settings(
        '<|im_end|>', pad='<|endoftext|>', add_bos_token=False, **qwen_class
      ),
      _QWEN3_TEMPLATE,
    ),
    'qwq': (
      _qwen(),
      _settings('<|im_end|>', pad='<|endoftext|>', **qwen_class),
      _chatml(opens='<think>\\n'),
    ),
    'r1-distill-qwen': (
      _byte_level([*r1, *_CHATML], _split(_QWEN), _NFC),
      deepseek,
      _DEEPSEEK_TEMPLATE.replace('OPEN', '<think>\\n'),
    ),
    'llama3': (
      _llama3(),
      _settings('<|eot_id|>', '<|begin_of_text|>', **fast),
      _LLAMA3_TEMPLATE,
    ),
    'llama3-base': (
      _llama3(),
      _settings('<|end_of_text|>', '<|begin_of_text|>', **fast),
      _LLAMA3_TEMPLATE,
    ),
    'r1-distill-llama': (
      _llama3([*r1, *_LLAMA3_TOKENS], ''),
      deepseek,
      _DEEPSEEK_TEMPLATE.replace('OPEN', '<think>\\n'),
    ),
    'deepseek-v3': (
      _byte_level(r1, deepseek_pre, {'type': 'Sequence', 'normalizers': []}),
      deepseek,
      _DEEPSEEK_TEMPLATE.replace('OPEN', ''),
    ),
    'smollm': (
      _byte_level(_CHATML, _DIGITS, processor=False),
      _settings('<|im_end|>', '<|im_start|>', '<|im_end|>', **gpt2),
      _chatml(),
    ),
    'smollm2': (
      _byte_level(_CHATML, _DIGITS, processor=False),
      _settings('<|im_end|>', '<|im_start|>', '<|im_end|>', **gpt2),
      _chatml('You are a helpful model.'),
    ),
    'smollm3': (
      _llama3([*_LLAMA3_TOKENS, *_CHATML[1:], *_THINK], ''),
      _settings('<|im_end|>', None, '<|im_end|>', **fast),
      _SMOLLM3_TEMPLATE,
    ),
    'mistral-v0.1': (
      _sentencepiece(pieces, strips=True, normalizer=_LEGACY),
      _settings(
        '</s>', '<s>', add_bos_token=True, add_eos_token=False, legacy=True
      )
      | llama,
      _MISTRAL_TEMPLATE,
    ),
    'mistral-v0.3': (
      _sentencepiece(
        pieces, ['[INST]', '[/INST]'], strips=True, pre_tokenizer=_METASPACE
      ),
      _settings(
        '</s>', '<s>', add_bos_token=True, add_eos_token=False, legacy=False
      )
      | llama,
      _MISTRAL_TEMPLATE,
    ),
    'mistral-nemo': (
      _byte_level(
        ['<unk>', '<s>', '</s>', '[INST]', '[/INST]'],
        _split(_TEKKEN),
        bos='<s>',
        ignore_merges=True,
      ),
      _settings('</s>', '<s>', **fast),
      _MISTRAL_TEMPLATE,
    ),
    'llama2': (
      _sentencepiece(pieces, strips=True, normalizer=_LEGACY),
      _settings('</s>', '<s>', legacy=True) | llama,
      _LLAMA2_TEMPLATE,
    ),
    'tinyllama': (
      _sentencepiece(pieces, strips=True, normalizer=_LEGACY),
      _settings('</s>', '<s>', '</s>', legacy=True) | llama,
      _pipes('</s>'),
    ),
    'gemma2': (
      _sentencepiece(
        gemma, turns, '<bos>', normalizer=_SPACES, pre_tokenizer=_GEMMA_SPLIT
      ),
      _settings(
        '<eos>', '<bos>', '<pad>', add_bos_token=True, add_eos_token=False
      )
      | dict(tokenizer_class='GemmaTokenizer', unk_token='<unk>'),
      _GEMMA_TEMPLATE,
    ),
    'gemma3': (
      _sentencepiece(
        gemma, turns, '<bos>', normalizer=_SPACES, pre_tokenizer=_GEMMA_SPLIT
      ),
      _settings(
        '<eos>', '<bos>', '<pad>', add_bos_token=True, add_eos_token=False
      )
      | dict(tokenizer_class='GemmaTokenizer', unk_token='<unk>'),
      _GEMMA_TEMPLATE,
    ),
    'phi3': (
      _sentencepiece(
        pieces,
        ['<|user|>', '<|assistant|>', '<|system|>', '<|end|>'],
        bos='',
        strips=True,
        flags={'rstrip': True},
        normalizer=_LEGACY,
      ),
      _settings(
        '<|end|>', '<s>', add_bos_token=False, add_eos_token=False, legacy=False
      )
      | llama,
      _pipes('<|end|>\\n'),
    ),
    'phi4': (
      _byte_level(
        [*_CHATML, '<|im_sep|>'], _split(_LLAMA3), bos='', processor=True
      ),
      _settings('<|im_end|>', '<|endoftext|>', '<|endoftext|>', **gpt2),
      _PHI4_TEMPLATE,
    ),
  }


_MODEL_TYPES = (
  ('qwen2', ('qwen2', 'qwen2.5', 'qwen2.5-base', 'qwq', 'r1-distill-qwen')),
  ('qwen3', ('qwen3',)),
  ('llama', ('llama', 'smollm', 'smollm2', 'tinyllama', 'r1-distill-llama')),
  ('deepseek_v3', ('deepseek-v3',)),
  ('smollm3', ('smollm3',)),
  ('mistral', ('mistral',)),
  ('gemma2', ('gemma2',)),
  ('gemma3_text', ('gemma3',)),
  ('phi3', ('phi3', 'phi4')),
)


def model_type(name: str) -> str:
  """Returns the model_type of the family's config.json."""
  return next(
    kind
    for kind, names in reversed(_MODEL_TYPES)
    if name in names or name.startswith(names[:1])
  )


PLAIN = (
  'What is 12 + 345?',
  ' a leading space, two  spaces\nand\n\nlines\t',
  "you're the model: naïve café, 北京 2024, 👍🏽",
  'the end<|im_end|> </s> [INST] <think> of',
)
CHATS = (
  [{'role': 'user', 'content': 'What is 2+2?'}],
  [
    {'role': 'user', 'content': '  hello  world '},
    {'role': 'assistant', 'content': '<think>a</think>\n\nthe answer'},
    {'role': 'user', 'content': 'naïve 北京\n1234567?'},
  ],
  [
    {'role': 'system', 'content': 'You are brief.'},
    {'role': 'user', 'content': "the question isn't <b>1 & 2</b>"},
  ],
)

# Texts of the assistant that may end each of these conversations.
ANSWERS = (
  'the answer is 4',
  ' hello  world \n',
  '<think>\nbrief day\n</think>\n\nworld',
)


def write(folder: Path, name: str) -> Path:
  """Writes a form into a new folder of its name; returns that."""
  core, settings, template = forms()[name]
  place = folder / name
  place.mkdir(parents=True)
  for file, content in (
    ('tokenizer.json', core),
    ('tokenizer_config.json', settings | {'chat_template': template}),
    ('config.json', {'model_type': model_type(name)}),
  ):
    (place / file).write_text(json.dumps(content, ensure_ascii=False))
  return place


def _reference(folder: Path) -> dict:
  """The ids that transformers gives for every form."""
  from transformers import AutoTokenizer

  found = {}
  for name in forms():
    tokenizer = AutoTokenizer.from_pretrained(str(write(folder, name)))
    found[name] = {
      'plain': [tokenizer(text)['input_ids'] for text in PLAIN],
      'chat': [
        tokenizer.apply_chat_template(
          chat, add_generation_prompt=True, return_dict=False
        )
        for chat in CHATS
      ],
      'whole': [
        [
          tokenizer.apply_chat_template(
            [*chat, {'role': 'assistant', 'content': answer}], return_dict=False
          )
          for answer in ANSWERS
        ]
        for chat in CHATS
      ],
    }
  return found


if __name__ == '__main__':
  IDS.write_text(json.dumps(_reference(Path(sys.argv[1]))) + '\n')
