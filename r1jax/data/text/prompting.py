"""The template of a run's prompts, and the tokenizer as they need it."""

import logging

from r1jax.config.schema.data import DataConfig, TokenizerConfig
from r1jax.data.text import chat
from r1jax.data.text.template import PromptTemplate
from r1jax.data.text.tokenizer import Tokenizer

_log = logging.getLogger(__name__)


def template_and_tokenizer(
  text: Tokenizer, data: DataConfig, config: TokenizerConfig
) -> tuple[PromptTemplate, Tokenizer]:
  """Returns the template of a run, and its tokenizer with the run's stop tokens.

  Args:
    text: The tokenizer as its folder describes it.
    data: The template and its settings.
    config: The stop tokens, and whether BOS is added.

  Raises:
    UserError: there is no such template, or no such token.
  """
  template = chat.load_template(
    data.template,
    text,
    data.system,
    data.response_prefix,
    data.template_args,
    config.chat_template_name,
  )
  stops = [text.token_id(token) for token in config.stop_tokens]
  if isinstance(template, chat.ChatTemplate):
    text = text.for_chat(template.bos_in_turns())
    end = template.end_of_turn().lstrip()
    ids = text.encode(end)[:1]
    # A text that the tokenizer lacks may be a special token for unknown ones.
    found = ids and end.startswith(text.token_text(ids[0]))
    if not stops and found and text.is_special(ids[0]):
      if ids[0] not in text.stop_ids:
        _log.warning(
          'tokenizer: %s ends the turns of data.template, so that it ends '
          'completions too; the files of %s do not say so. Set '
          '--config.tokenizer.stop_tokens to choose others',
          text.token_text(ids[0]),
          text.source,
        )
      stops = ids
  elif config.add_bos_token:
    text = text.with_bos()
  elif text.bos_begins_documents and not text.prefix_ids:
    _log.warning(
      'tokenizer: %s asks for BOS in tokenizer_config.json, but its '
      'tokenizer.json adds none, so that prompts begin without it, as in '
      'transformers; --config.tokenizer.add_bos_token=True adds it',
      text.source,
    )
  return template, text.with_stop_tokens(stops)
