"""Keys that a config sets in vain: errors and warnings before a run begins.

A key that differs from its default and whose condition (conditions.py) does not
hold has no effect. Saying so keeps a user from believing that a file was read
or that a setting was tried.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
import dataclasses
import logging
import types
from typing import Any

from r1jax.config.conditions import Condition, Severity, value_at
from r1jax.config.field import specs
from r1jax.errors import UserError

_SHOWN = 3  # Keys that a warning lists by name.
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Idle:
  """A key that has no effect on a run.

  Attributes:
    key: The dotted key.
    value: Its value.
    default: The value that it may be set back to.
    now: The setting in its way: " with rl.adv_estimator = 'grpo'".
    needs: The condition that it needs instead.
    severity: The consequence.
    of_stages: Whether the stages that run are why.
    in_evaluation: See Condition.
    run: The run of a pipeline that it belongs to, or ''.
  """

  key: str
  value: Any
  default: Any
  now: str
  needs: str
  severity: Severity
  of_stages: bool = False
  in_evaluation: Callable[[str], bool] = lambda name: False
  run: str = ''

  def text(self) -> str:
    """One clause of an error."""
    key = f'{self.run}.{self.key}' if self.run else self.key
    return (
      f'{key} = {self.value!r} has no effect{self.now}: it needs {self.needs}; '
      f'else leave it at {self.default!r}'
    )


def idle_keys(run: Any, given: Collection[str] = ()) -> list[Idle]:
  """Returns the keys that differ from their defaults and have no effect.

  Args:
    run: The config of a run.
    given: Dotted keys on the command line: one without effect is an error.
  """
  found: list[Idle] = []
  _collect(run, run, type(run)(), '', None, frozenset(given), found)
  return found


def _collect(
  run: Any,
  section: Any,
  defaults: Any,
  prefix: str,
  outer: Condition | None,
  given: frozenset[str],
  found: list[Idle],
):
  """Appends the keys without effect of a section and those below it.

  Args:
    run: The whole config.
    section: The section.
    defaults: The section with every key at its default.
    prefix: The dotted name of the section, with a dot behind it.
    outer: The condition of a section around it that does not hold.
    given: Dotted keys on the command line.
    found: The keys so far.
  """
  for name, spec in specs(type(section)).items():
    value, default = getattr(section, name), getattr(defaults, name)
    around = None if spec.read_beyond_section else outer
    failed = around or next(
      (each for each in spec.only_if if not each.holds(run, section)), None
    )
    dotted = f'{prefix}{name}'
    if spec.is_section:
      _collect(run, value, default, f'{dotted}.', failed, given, found)
    elif failed and value != default:
      is_given = any(_is_below(key, dotted) for key in given)
      if not is_given and _is_off(value):
        continue
      severity = Severity.ERROR if is_given else failed.severity
      found.append(
        Idle(
          dotted,
          value,
          default,
          _now(failed, run, prefix),
          failed.needs,
          severity,
          failed.of_stages,
          failed.in_evaluation,
        )
      )


def _is_below(key: str, other: str) -> bool:
  return key == other or key.startswith(f'{other}.')


def _is_off(value: Any) -> bool:
  """Whether a value says 'nothing', which is what comes of an idle key."""
  if isinstance(value, Mapping):
    return not any(value.values())
  return value in (0, '', ())


def _now(condition: Condition, run: Any, prefix: str) -> str:
  """Returns ' with KEY = VALUE', the keys of a condition as they are."""
  now = []
  for key in condition.keys:
    dotted = key if '.' in key else _found(run, prefix, key)
    dotted = dotted.removeprefix('.')
    now.append(f'{dotted} = {value_at(run, dotted)!r}')
  return f' with {" and ".join(now)}' if now else ''


def _found(run: Any, prefix: str, key: str) -> str:
  """Returns the dotted name of a key in a section or in one around it."""
  parts = prefix.split('.')[:-1]
  while parts:
    dotted = '.'.join([*parts, key])
    try:
      value_at(run, dotted)
      return dotted
    except (AttributeError, KeyError):
      parts.pop()
  return key


def check(run: Any, given: Collection[str] = ()):
  """Refuses keys without effect on a run, or warns of them.

  Args:
    run: The config of the run.
    given: See idle_keys.

  Raises:
    UserError: naming every such key, and what it needs.
  """
  report(idle_keys(run, given))


def check_given(run: Any, given: Collection[str]):
  """Refuses keys of the command line without effect, where no stage runs.

  Args:
    run: The config of a run, for an evaluation or a sample.
    given: See idle_keys.

  Raises:
    UserError: as `check`.
  """
  report(
    [
      idle
      for idle in idle_keys(run, given)
      if not idle.of_stages and any(_is_below(key, idle.key) for key in given)
    ]
  )


def check_all(
  runs: Mapping[str, Any],
  given: Collection[str] = (),
  evaluations: Mapping[str, Collection[str]] = types.MappingProxyType({}),
):
  """Refuses keys without effect in the runs of a pipeline.

  Runs of a pipeline are often variants of one config. A key that has no effect
  on a run is left alone if it has the same value and an effect in another.

  Args:
    runs: Configs by name.
    given: Keys on the command line: 'sft.data.path' is data.path of run sft.
    evaluations: Tasks and datasets that a run's policy is evaluated on, by the
      name of the run.

  Raises:
    UserError: naming every key that has no effect on any run.
  """
  idle = {
    name: [
      each
      for each in idle_keys(run, _below(name, given))
      if not any(map(each.in_evaluation, evaluations.get(name, ())))
    ]
    for name, run in runs.items()
  }
  unused = {name: {each.key for each in found} for name, found in idle.items()}
  report(
    [
      dataclasses.replace(each, run=name)
      for name, found in idle.items()
      for each in found
      if f'{name}.{each.key}' in given or not _is_shared(each, runs, unused)
    ]
  )


def _below(name: str, given: Collection[str]) -> list[str]:
  """Returns keys of one run of a pipeline, without its name before them."""
  return [
    key.removeprefix(f'{name}.') for key in given if key.startswith(f'{name}.')
  ]


def _is_shared(
  idle: Idle, runs: Mapping[str, Any], unused: Mapping[str, Collection[str]]
) -> bool:
  """Whether another run has the key, with the same value, and it has effect."""
  for name, run in runs.items():
    if idle.key in unused[name]:
      continue
    try:
      if value_at(run, idle.key) == idle.value:
        return True
    except AttributeError:  # A section of a plugin's stage.
      continue
  return False


def report(found: Sequence[Idle]):
  """Logs one warning, or raises one error, for all keys without effect."""
  errors = [each for each in found if each.severity is Severity.ERROR]
  if errors:
    raise UserError(f'config: {"; ".join(each.text() for each in errors)}')
  # Keys by run and reason, then the runs that lack the same for one reason.
  keys_of: dict[tuple[str, str], list[str]] = {}
  for each in found:
    if each.severity is Severity.WARNING:
      reason = each.needs if each.of_stages else f'{each.needs};{each.now}'
      keys_of.setdefault((reason, each.run), []).append(each.key)
  runs_of: dict[tuple[str, tuple[str, ...]], list[str]] = {}
  for (reason, run), keys in keys_of.items():
    runs_of.setdefault((reason, tuple(keys)), []).append(run)
  clauses = [_clause(*group, runs) for group, runs in runs_of.items()]
  if clauses:
    _log.warning('config: keys without effect: %s', '; '.join(clauses))


def _clause(reason: str, keys: Sequence[str], runs: Sequence[str]) -> str:
  """Returns 'sft.data and 2 more of base (they need the stage sft)'."""
  more = f' and {len(keys) - _SHOWN} more' * (len(keys) > _SHOWN)
  of_runs = f' of {", ".join(runs)}' if any(runs) else ''
  needs, _, now = reason.partition(';')
  needs = f'{"they need" if len(keys) > 1 else "it needs"} {needs}'
  return (
    f'{", ".join(keys[:_SHOWN])}{more}{of_runs} ({needs}{now and ","}{now})'
  )
