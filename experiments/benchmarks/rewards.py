"""How fast graders are, how far hostile answers slow them, what they say.

  R1JAX_DATA=DATA python experiments/benchmarks/rewards.py [--rows=N]

DATA holds math/gsm8k_*.jsonl, math/math_train12k.jsonl, math/math500.jsonl,
code/humaneval.jsonl and code/mbpp.jsonl.
A group of 8 answers is half right, in other words than the gold answer, and
half some other row's answer, as a policy's would be.
"""

import argparse
from collections import Counter
import os
from pathlib import Path
import random
import sys
import time

from r1jax.data.code import sources as code_sources
from r1jax.data.datasets import read_jsonl
from r1jax.graders import code_grader, code_runner, dispatch, math_grader
from r1jax.graders.verdict import Verdict

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.graders import mutants

FILES = ('gsm8k_train', 'gsm8k_test', 'math_train12k', 'math500')
GROUP, BATCH, SHARE = 8, 4096, 0.05
HUGE = (  # Each made different by what comes behind it.
  '9^9^9+{}',
  '\\binom{{10000000}}{{5000000}}+{}',
  '10000000!+{}',
  '(' * 10_000 + '{}' + ')' * 10_000,
  '1' * 1_000_000 + '{}',
  '\\boxed{{' * 150_000 + '{}',
  '2^{{100000000}}+{}',
)
SLOW = (  # Within the bounds of a text; the most expensive that we know.
  '\\sum_{{k=1}}^{{499}} \\sin(kx)^{{k}}+{}',
  '\\sum_{{i=1}}^{{499}}\\sum_{{j=1}}^{{499}} ij+{}',
  '\\prod_{{k=1}}^{{499}} (x+k)!+{}',
  '\\prod_{{k=1}}^{{499}}\\frac{{k^9+1}}{{k^9+2}}+{}',
  '\\sum_{{k=1}}^{{400}}\\tan(k)+{}',
  '+'.join(f'{2999 - i}!' for i in range(40)) + '+{}',
  '+'.join(f'x^{{{{{i}x}}}}' for i in range(1, 32)) + '+{}',
  '+'.join(f'(1+{i}i)^{{{{x}}}}' for i in range(1, 24)) + '+{}',
  '+'.join(f'({i}+x)!' for i in range(1, 36)) + '+{}',
  ' or '.join(f'{i}x+\\sin1>{i}' for i in range(1, 19)) + ' or x>{}',
)


def golds_of(name: str, rows: int | None) -> list[str]:
  return [
    row['answer'] for row in read_jsonl(f'math/{name}.jsonl', {'answer': str})
  ][:rows]


def sampled(
  golds: list[str], count: int, rng: random.Random, bombs: tuple[str, ...] = ()
):
  """Answers of a policy, SHARE of them bombs if there are any, and which."""
  items = []
  for _ in range(count // GROUP):
    gold = rng.choice(golds)
    items += [
      (f'{gold} .' if i % 2 else rng.choice(golds), gold, 'math')
      for i in range(GROUP)
    ]
  chosen = rng.sample(range(count), int(count * SHARE)) if bombs else []
  for i in chosen:
    items[i] = (bombs[i % len(bombs)].format(i), items[i][1], 'math')
  return items, set(chosen)


def cpu_secs() -> float:
  """CPU seconds of the workers and their descendants since they started."""

  def of(pid) -> float:
    with open(f'/proc/{pid}/stat') as file:  # Its own, and of its dead.
      ticks = sum(map(int, file.read().rpartition(')')[2].split()[11:15]))
    with open(f'/proc/{pid}/task/{pid}/children') as file:
      below = file.read().split()
    return ticks / os.sysconf('SC_CLK_TCK') + sum(map(of, below))

  return sum(map(of, math_grader._worker_pool().pids()))


def speed(golds: list[str], at_once: int, batches: int = 5):
  """The same answers without bombs and with each kind, by new workers."""
  print(
    f'{BATCH} answers of MATH, {at_once} at once\n'
    f'{"":24} {"secs":>8} {"CPU-secs":>9} {"over clean":>11} '
    f'{"answers a CPU-sec":>18} {"others without a score":>23}'
  )
  for seed in range(1, 1 + batches):
    clean = 0.0
    for name, bombs in (('clean', ()), ('5 % huge', HUGE), ('5 % slow', SLOW)):
      items, chosen = sampled(golds, BATCH, random.Random(seed), bombs)
      math_grader.shutdown()
      dispatch.verdicts(
        sampled(golds, BATCH, random.Random(0))[0]
      )  # Fills tables.
      began, before = time.perf_counter(), cpu_secs()
      verdicts = [
        verdict
        for start in range(0, BATCH, at_once)
        for verdict in dispatch.verdicts(items[start : start + at_once])
      ]
      secs, spent = time.perf_counter() - began, cpu_secs() - before
      clean = clean or spent
      lost = sum(
        verdict.score is None
        for i, verdict in enumerate(verdicts)
        if i not in chosen
      )
      print(
        f'  {name:<22} {secs:8.2f} {spent:9.2f} {spent / clean:11.2f} '
        f'{BATCH / spent:18.0f} {lost:23}',
        flush=True,
      )


def soundness(name: str, golds: list[str]):
  """Prints how golds grade against themselves and against each other.

  The workers grade here even if both texts are equal.
  """

  def share(pairs, wanted) -> str:
    distinct = sorted(set(pairs))
    verdicts = dict(zip(distinct, math_grader.verify(distinct)))
    count = Counter(verdicts[pair] for pair in pairs)
    rest = {str(key): count[key] for key in count if key != wanted}
    return f'{count[wanted] / len(pairs):.4f} of {len(pairs)}, else {rest}'

  read = math_grader.verify([(None, gold) for gold in golds])
  refused = len(read) - read.count(Verdict.CORRECT)
  others = random.Random(0).sample(golds, len(golds))
  print(f'{name}: not read are {refused} of {len(golds)}')
  print(
    '  itself: correct',
    share([(gold, gold) for gold in golds], Verdict.CORRECT),
  )
  print(
    '  shuffled, where the texts differ: wrong',
    share(
      [pair for pair in zip(others, golds) if pair[0] != pair[1]], Verdict.WRONG
    ),
  )


def mathematics(rows: int | None):
  golds = {name: golds_of(name, rows) for name in FILES}
  for at_once in (512, 16):  # 16: a group, as RL grades it.
    speed(golds['math_train12k'], at_once)
  for name, some in golds.items():
    soundness(name, some)
  dispatch.shutdown()


def code(rows: int | None):
  """Reference solutions, their mutants, and how many programs a second."""
  sandbox = code_grader.sandbox()
  print(f'code: sandbox {sandbox.tier}, {len(sandbox)} slots')
  for name, convert in (
    ('humaneval', code_sources.humaneval),
    ('mbpp', code_sources.mbpp),
  ):
    some = read_jsonl(f'code/{name}.jsonl', {})[:rows]
    tests = [convert(row) for row in some]
    programs = [code_sources.reference(row) for row in some]
    began = time.perf_counter()
    count = Counter(
      str(grade.verdict)
      for grade in code_runner.run_tests_batch(programs, tests, sandbox)
    )
    secs = time.perf_counter() - began
    print(
      f'  {name}: {count["correct"]} of {len(some)} solutions pass, '
      f'{len(some) / secs:.0f} a second; {dict(count)}'
    )
    pairs = [
      (mutant, test)
      for row, test in list(zip(some, tests))[::4]
      for mutant in mutants.of(
        row['prompt'] * ('entry_point' in row) + row['solution']
      )
    ]
    grades = code_runner.run_tests_batch(
      [program for program, _ in pairs], [test for _, test in pairs], sandbox
    )
    caught = sum(grade.verdict != 'correct' for grade in grades)
    print(
      f'    mutants of every fourth: {caught} of {len(pairs)} caught, '
      f'{caught / len(pairs):.1%}'
    )
  short = code_sources.stdio({'id': 'short', 'inputs': ['3'], 'outputs': ['4']})
  runs = 500
  for name, share in (('clean', 0), ('5 % endless loops', SHARE)):
    programs = ['print(int(input()) + 1)'] * runs
    for i in range(int(runs * share)):
      programs[i * 20] = 'while True: pass'
    began = time.perf_counter()
    code_runner.run_tests_batch(
      programs,
      [short] * runs,
      sandbox,
      code_runner.GradingOptions(case_secs=1.0),
    )
    secs = time.perf_counter() - began
    print(f'  {runs} short programs, {name}: {runs / secs:.0f} a second')
  code_grader.shutdown()


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--rows', type=int, help='of each file; all without it')
  options = parser.parse_args()
  print(f'{len(os.sched_getaffinity(0))} cores')
  mathematics(options.rows)
  code(options.rows)


if __name__ == '__main__':
  main()
