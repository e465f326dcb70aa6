"""The keys of a config in words: for `r1jax config --help KEY` and the docs."""

import difflib
import textwrap

from r1jax.config.field import Spec, first_sentence, type_name, walk
from r1jax.config.schema.run import RunConfig
from r1jax.errors import UserError

_WIDTH = 80


def describe(name: str, cls: type[RunConfig] = RunConfig) -> str:
  """Returns what a key means, or what the keys of a section mean.

  Args:
    name: A dotted key, such as 'rl.group_size'; '' for every section.
    cls: The class of a run's config, perhaps with sections of plugins.

  Raises:
    UserError: there is no such key; names the nearest.
  """
  rows = {key: rest for key, *rest in walk(cls())}
  if not name:
    return '\n'.join(
      _entry(key, *rest) for key, rest in rows.items() if '.' not in key
    )
  if name not in rows:
    near = difflib.get_close_matches(name, rows, 1, 0)[0]
    raise UserError(f'config: unknown key {name!r}; did you mean {near!r}?')
  hint, spec, value = rows[name]
  if not spec.is_section:
    return _entry(name, hint, spec, value)
  inside = [
    _entry(key, *rest)
    for key, rest in rows.items()
    if key.startswith(f'{name}.') and '.' not in key.removeprefix(f'{name}.')
  ]
  return '\n'.join([_entry(name, hint, spec, value), *inside])


def _entry(key: str, hint, spec: Spec, value) -> str:
  """Returns a key with its type, default and range, and its meaning below."""
  if spec.is_section:
    head = f'{key} (section)'
  else:
    facts = [type_name(hint), f'default {value!r}', spec.unit]
    facts.append(spec.range_text())
    head = f'{key} ({", ".join(filter(None, facts))})'
  return '\n'.join(
    textwrap.wrap(head, _WIDTH, subsequent_indent='    ')
    + textwrap.wrap(
      _meaning(spec), _WIDTH, initial_indent='  ', subsequent_indent='  '
    )
  )


def _meaning(spec: Spec) -> str:
  """Returns what a key means, what it needs, and whether it may change."""
  needs = '; '.join(dict.fromkeys(each.needs for each in spec.only_if))
  facts = (spec.meaning, needs and f'It needs {needs}.', spec.change.value)
  return ' '.join(filter(None, facts))


def page() -> str:
  """Returns docs/config.md: every key of a run's config, by section."""
  lines = [
    '# Config keys',
    '',
    'This page is written by `r1jax docs` from `r1jax/config/schema/`. On the '
    'command line, `--config.KEY=VALUE` overrides a key and `r1jax config '
    '--help KEY` prints its entry. A key that may change in the folder of a '
    'run says so; [runs.md](runs.md#what-may-change) has the rules.',
  ]
  tables: dict[str, list[str]] = {'': []}
  about = {'': ' '.join(first_sentence(RunConfig).split())}
  for key, hint, spec, value in walk(RunConfig()):
    parent = key.rpartition('.')[0]
    if spec.is_section:
      tables[key], about[key] = [], _meaning(spec)
      continue
    facts = ', '.join(filter(None, (spec.unit, spec.range_text())))
    tables[parent].append(
      f'| `{key}` | {type_name(hint)} | `{value!r}` | '
      f'{_meaning(spec)}{f" ({facts})" if facts else ""} |'.replace('\n', '\\n')
    )
  for name, rows in tables.items():
    if rows:
      title = f'`config.{name}`' if name else '`config`'
      lines += ['', f'## {title}', '', about[name], '']
      lines += ['| key | type | default | meaning |', '|---|---|---|---|']
      lines += rows
  return '\n'.join(lines) + '\n'
