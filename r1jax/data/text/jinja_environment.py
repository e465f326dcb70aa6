"""The Jinja environment of chat templates, as that of transformers.

It is sandboxed and has trimmed blocks, the tag {% generation %}, the filter
`tojson` without HTML escapes, and the functions `raise_exception` and
`strftime_now`.
"""

import datetime
import json

import jinja2
from jinja2 import ext, meta, nodes, sandbox

# Variables that every template is given.
GIVEN = frozenset(
  ('messages', 'tools', 'documents', 'add_generation_prompt')
  + ('bos_token', 'eos_token')
)


class _Generation(ext.Extension):
  """{% generation %}…{% endgeneration %}, which marks what the model writes.

  The text stays as it is. A block has a scope of its own, as in transformers.
  """

  tags = {'generation'}

  def parse(self, parser) -> nodes.Node:
    line = next(parser.stream).lineno
    body = parser.parse_statements(('name:endgeneration',), drop_needle=True)
    call = nodes.CallBlock(self.call_method('_text'), [], [], body)
    return call.set_lineno(line)

  def _text(self, caller) -> str:
    return caller()


def variables(source: str) -> set[str]:
  """Returns the names of the variables that a template reads but does not set.

  Raises:
    jinja2.TemplateError: the template does not compile.
  """
  found = meta.find_undeclared_variables(ENVIRONMENT.parse(source))
  return found - set(ENVIRONMENT.globals)


def literal(value) -> str:
  """Returns a JSON value as an expression in Jinja."""
  if isinstance(value, str):
    quoted = json.dumps(value, ensure_ascii=False)
    # Jinja reads no \\/ or \\u escapes of surrogates; these texts have none.
    return quoted
  if value is None or isinstance(value, bool):
    return str(value).lower()
  if isinstance(value, dict):
    items = (f'{literal(str(k))}: {literal(v)}' for k, v in value.items())
    return '{' + ', '.join(items) + '}'
  if isinstance(value, (list, tuple)):
    return '[' + ', '.join(map(literal, value)) + ']'
  return json.dumps(value)


def _raise_exception(message: str):
  raise jinja2.TemplateError(message)


def _strftime_now(date_format: str) -> str:
  """Formats a fixed time, the default day of Llama 3's template.

  With today's date, a run that is resumed tomorrow would read other prompts.
  """
  return datetime.datetime(2024, 7, 26).strftime(date_format)


def _to_json(
  value, ensure_ascii=False, indent=None, separators=None, sort_keys=False
) -> str:
  """Writes JSON without the HTML escapes of Jinja's own filter."""
  return json.dumps(
    value,
    ensure_ascii=ensure_ascii,
    indent=indent,
    separators=separators,
    sort_keys=sort_keys,
  )


ENVIRONMENT = sandbox.ImmutableSandboxedEnvironment(
  trim_blocks=True,
  lstrip_blocks=True,
  extensions=[_Generation, ext.loopcontrols],
)
ENVIRONMENT.globals.update(
  raise_exception=_raise_exception, strftime_now=_strftime_now
)
ENVIRONMENT.filters['tojson'] = _to_json
