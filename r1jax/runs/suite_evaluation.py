"""r1jax eval --suite: a folder with every completion of some suites, and results.

  OUT/config.json                 what was measured, and how
  OUT/SUITE/completions.parquet   every completion
  OUT/results.json                the numbers of every suite in the folder
  OUT/results.md, results.html    the same as a table, and as a page to read

A folder belongs to one policy and one protocol. More suites, or more completions
of each problem, may be added to it.
"""

from collections.abc import Callable, Sequence
import dataclasses
import json
from pathlib import Path
from typing import Any

import jax

from r1jax import buckets, files, processes
from r1jax.config.schema.run import RunConfig
from r1jax.errors import UserError
from r1jax.evaluate import (
  stored,
  suite_page,
  suite_report,
  suite_run,
  unanswered,
)
from r1jax.evaluate.suite_run import Problems
from r1jax.evaluate.suites import MAX_NEW_TOKENS, Suite
from r1jax.graders import dispatch
from r1jax.runs.workdir import Workdir
from r1jax.stages import ending
from r1jax.stages.build import sampler
from r1jax.stages.build import suites as build
from r1jax.stages.build.parts import Parts
from r1jax.train import checksums

RESULTS, TABLE, PAGE = 'results.json', 'results.md', 'results.html'
_SUITE = 'suite.json'


@dataclasses.dataclass(frozen=True)
class Wanted:
  """The suites of an evaluation, with what replaces their protocol.

  Attributes:
    suites: The suites.
    num_samples: Completions of each problem; 0 for each suite's own number.
    num_problems: Only the first so many of each; 0 for whole suites.
    max_new_tokens: Tokens of a completion; 0 for 32,768.
  """

  suites: Sequence[Suite]
  num_samples: int = 0
  num_problems: int = 0
  max_new_tokens: int = 0


def evaluate(
  config: RunConfig,
  parts: Parts,
  load_params: Callable[[], Any],
  policy: str,
  out: str,
  wanted: Wanted,
):
  """Samples and grades the suites, or goes on after a kill; prints the table.

  Args:
    config: The run.
    parts: Its model, tokenizer and template.
    load_params: Returns the policy; called once the problems are there.
    policy: Its name for people.
    out: The folder; it is made.
    wanted: The suites.

  Raises:
    UserError: the data of a suite are missing, or the folder is of another
      policy or protocol.
    Interrupted, DiskFull: saying what is kept.
  """
  with processes.agreed():
    buckets.local(out)
    found = [
      build.problems(suite, parts, wanted.num_samples, wanted.num_problems)
      for suite in wanted.suites
    ]
    config = build.sized(config, found, parts, wanted.max_new_tokens)
    total = sum(each.num_completions for each in found)
    engine = sampler.engine(config, parts, total)
    reader = build.reader(config, parts)
  params = load_params()
  record = _record(config, params, policy)
  workdir = Workdir(out, record)
  folder = workdir.path
  try:
    processes.from_first(lambda: _claim_suites(folder, found))
    _say(config, found)
    run = suite_run.SuiteRun(
      engine, found, reader, folder, jax.random.key(config.seed)
    )
    if run.done:
      _print(f'eval: {run.done} of {run.total} completions are there already')
    kept = 'its parts are kept, and the same command goes on after them'
    with (
      ending.explained('eval', folder, lambda: kept),
      dispatch.shutdown_on_exit(),
    ):
      speed = run.run(params)
      processes.from_first(
        lambda: _report(folder, found, parts, record, speed, config)
      )
  finally:
    workdir.close()


def _print(text: str):
  if processes.is_first():
    print(text, flush=True)


def _say(config: RunConfig, found: Sequence[Problems]):
  """Says what is not whole, and how long completions may be."""
  new = config.rl.max_new_tokens
  if new < MAX_NEW_TOKENS:
    _print(
      f'eval: completions have at most {new} tokens, fewer than the '
      f"{MAX_NEW_TOKENS} of DeepSeek's protocol"
    )
  for each in found:
    if len(each.prompts) + len(each.excluded) < each.available:
      _print(
        f'eval: {each.suite.name}: the first {len(each.prompts)} of '
        f'{each.available} problems'
      )
    if each.excluded:
      _print(
        f'eval: {each.suite.name}: {len(each.excluded)} rows are left out: '
        f'{each.excluded[0]}'
      )


def _record(config: RunConfig, params, policy: str) -> dict[str, Any]:
  """Returns what the results of a folder depend on, as JSON."""
  data = config.data
  return {
    'policy': policy,
    'weights': files.digest_of(json.dumps(checksums.of_tree(params))),
    'tokenizer': config.tokenizer.source,
    'template': data.template,
    'system': data.system,
    'response_prefix': data.response_prefix,
    'response_format': data.response_format,
    'dtype': config.model.dtype,
    'seed': config.seed,
    'temperature': config.eval.temperature,
    'top_p': config.eval.top_p,
    'max_new_tokens': config.rl.max_new_tokens,
  }


def _claim_suites(folder: Path, found: Sequence[Problems]):
  """Records the problems of each suite, or refuses others than were there.

  The problems may become more or fewer: the first ones are the same.
  """
  for each in found:
    facts = {
      'dataset': each.suite.dataset,
      'problems': [
        files.digest_of(f'{p.id}\n{p.text}\n{p.source}\n{p.answer}')[:16]
        for p in each.prompts
      ],
    }
    path = folder / each.suite.name / _SUITE
    if path.exists():
      before = json.loads(path.read_text())['problems']
      for ours, theirs in zip(facts['problems'], before):
        if ours != theirs:
          raise UserError(
            f'eval: {path.parent} has completions of other problems, or of '
            'other prompts of them; use another --out'
          )
      if len(before) > len(facts['problems']):
        facts['problems'] = before
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_text(path, json.dumps(facts, indent=1) + '\n')


def _report(
  folder: Path,
  found: Sequence[Problems],
  parts: Parts,
  record: dict,
  speed: suite_run.Speed,
  config: RunConfig,
):
  """Writes and prints the results of the suites in the first process."""
  path = folder / RESULTS
  before = json.loads(path.read_text())['suites'] if path.exists() else {}
  results = {
    name: suite_report.SuiteResult.from_json(each)
    for name, each in before.items()
  } | {each.suite.name: _result(folder, each, parts, config) for each in found}
  whole = {
    'evaluation': record,
    'suites': {name: each.to_json() for name, each in results.items()},
    'speed': dataclasses.asdict(speed),
  }
  files.write_text(path, json.dumps(whole, indent=1) + '\n')
  whole_results = list(results.values())
  rows = suite_report.table(whole_results)
  files.write_text(folder / TABLE, suite_report.markdown(rows))
  stored_by_suite = {
    name: _records(folder, name, each.num_samples, each.num_problems)
    for name, each in results.items()
  }
  files.write_text(
    folder / PAGE, suite_page.page(record, rows, stored_by_suite)
  )
  print(
    '\n'.join([suite_report.aligned(rows), *suite_report.notes(whole_results)])
  )
  if speed.completions:
    print(
      f'eval: {speed.completions} completions of {speed.tokens} tokens in '
      f'{speed.secs:.1f} s: {speed.tokens / speed.secs:.0f} tokens/s; the '
      f'device worked {speed.device_secs / speed.secs:.0%} of it'
    )
  print(f'eval: {folder / PAGE} shows the completions')


def _result(
  folder: Path, each: Problems, parts: Parts, config: RunConfig
) -> suite_report.SuiteResult:
  """Returns the numbers of a suite, all of whose completions are stored."""
  name, k = each.suite.name, each.num_samples
  stored.join(folder / name)
  records = _records(folder, name, k, len(each.prompts))
  unanswered.warn(
    name, records, parts.parser, unanswered.Limit(config.rl.max_new_tokens)
  )
  return suite_report.result(
    name, records, parts.parser, k, each.available, len(each.excluded)
  )


def _records(folder: Path, name: str, k: int, num_problems: int) -> list[dict]:
  """Returns the first k stored completions of the first problems of a suite."""
  records = stored.load(folder / name, k)
  return [record for record in records if record['problem'] < num_problems]
