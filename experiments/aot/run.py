"""Compiles the steps of real sizes for TPU slices that are not there.

  pip install -e '.[tpu]'
  python experiments/aot/run.py            # all rows, an hour of two cores
  python experiments/aot/run.py --rows=distill_7b_v5e,zero_671b_v5p

Each row is one call of `r1jax aot`, whose JSON goes to results/ROW.json. The
table is written anew from all files that are there.
"""

import argparse
import csv
import json
import os
from pathlib import Path
import subprocess
import sys

FOLDER = Path(__file__).parent
_LONG = ('--completion_tokens=8000', '--config.rollout.max_num_seqs=2048')
_SHORT = ('--completion_tokens=4000',)


def _zero(data: int) -> tuple[str, ...]:
  """R1-Zero on so many chips, with constant work a chip: 8 samples each."""
  return (
    f'--config.rl.prompts_per_step={data * 32}',
    f'--config.rollout.max_num_seqs={data * 2048 // 4}',
    '--completion_tokens=8000',
    '--config.mesh.data=1',
    f'--config.mesh.fsdp={data}',
  )


ROWS: dict[str, tuple[str, ...]] = {
  'zero_671b_v5p': ('r1_zero_671b', 'v5p:8x8x16', *_LONG),
  'zero_671b_2_slices': (
    'r1_zero_671b',
    'v5p:8x8x8',
    '--slices=2',
    '--config.mesh.fsdp=2',
    *_LONG,
  ),
  'zero_671b_v7x': (
    'r1_zero_671b',
    'v7x:8x8x8',
    '--config.mesh.fsdp=4',
    *_LONG,
  ),
  # NVIDIA's published step of NeMo RL: 512 samples of at most 1,536 tokens.
  'v3_short_v5p': (
    'r1_zero_671b',
    'v5p:4x8x8',
    '--config.mesh.fsdp=1',
    '--config.rl.prompts_per_step=32',
    '--config.rl.group_size=16',
    '--config.rl.num_minibatches=1',
    '--config.data.max_prompt_tokens=512',
    '--config.rl.max_new_tokens=1024',
    '--config.rollout.max_num_seqs=512',
    '--prompt_tokens=100',
    '--completion_tokens=645',
  ),
  'distill_1.5b_v5e': ('grpo_distill:1.5b', 'v5e:2x4', *_SHORT),
  'distill_7b_v5e': ('grpo_distill:7b', 'v5e:16x16', *_SHORT),
  'distill_7b_v6e': ('grpo_distill:7b', 'v6e:16x16', *_SHORT),
  'distill_32b_v5e': ('grpo_distill:32b', 'v5e:16x16', *_SHORT),
  'distill_32b_v6e': ('grpo_distill:32b', 'v6e:16x16', *_SHORT),
  'weak_256': ('r1_zero_671b', 'v5p:4x8x8', *_zero(1)),
  'weak_512': ('r1_zero_671b', 'v5p:8x8x8', *_zero(2)),
  'weak_1024': ('r1_zero_671b', 'v5p:8x8x16', *_zero(4)),
  'weak_2048': ('r1_zero_671b', 'v5p:8x16x16', *_zero(8)),
}
_COLUMNS = (
  'row',
  'slices',
  'program',
  'peak_gb',
  'together_gb',
  'compute_ms',
  'hbm_ms',
  'ici_ms',
  'dcn_ms',
  'sent_gb',
  'calls',
  'seconds',
  'compile_secs',
  'host_gb',
)


def compile_row(name: str) -> int:
  """Calls `r1jax aot` for a row; returns its exit code."""
  config, topology, *flags = ROWS[name]
  (FOLDER / 'results').mkdir(exist_ok=True)
  command = [
    sys.executable,
    '-m',
    'r1jax.cli.main',
    'aot',
    f'--config={config}',
    f'--topology={topology}',
    f'--json={FOLDER / "results" / name}.json',
    *flags,
  ]
  print(f'{name}: r1jax {" ".join(command[3:])}', flush=True)
  env = os.environ | {'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': ''}
  return subprocess.run(command, env=env).returncode


def table() -> list[dict[str, object]]:
  """Returns a row for each program of each file in results/."""
  rows: list[dict[str, object]] = []
  for path in sorted((FOLDER / 'results').glob('*.json')):
    found = json.loads(path.read_text())
    shares = {share['program']: share for share in found['step']}
    for program in found['programs']:
      cost, share = program['cost'], shares.get(program['label'], {})
      each = lambda key, share=share: (
        1e3 * share.get(key, 0) / max(share.get('calls', 1), 1e-9)
      )
      rows.append(
        {
          'row': path.stem,
          'slices': f'{found["slices"]} × {found["topology"]}',
          'program': program['label'],
          'peak_gb': round(program['peak_bytes'] / 1e9, 2),
          'together_gb': round(program['together_bytes'] / 1e9, 2),
          'compute_ms': f'{each("compute_seconds"):.4g}',
          'hbm_ms': f'{each("hbm_seconds"):.4g}',
          'ici_ms': f'{each("ici_seconds"):.4g}',
          'dcn_ms': f'{each("dcn_seconds"):.4g}',
          'sent_gb': round((cost['ici_bytes'] + cost['dcn_bytes']) / 1e9, 3),
          'calls': round(share.get('calls', 0)),
          'seconds': f'{share.get("seconds", 0):.4g}',
          'compile_secs': round(program['compile_secs']),
          'host_gb': round(program['host_bytes'] / 1e9, 1),
        }
      )
  return rows


def main():
  """Compiles the rows that are asked for, and writes results.csv."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--rows', default=','.join(ROWS), help='names of rows')
  names = parser.parse_args().rows.split(',')
  for name in names:
    if name not in ROWS:
      parser.error(f'{name!r} is none of {", ".join(ROWS)}')
  codes = {name: compile_row(name) for name in names}
  rows = table()
  with open(FOLDER / 'results.csv', 'w', newline='') as file:
    writer = csv.DictWriter(file, _COLUMNS)
    writer.writeheader()
    writer.writerows(rows)
  failed = {name: code for name, code in codes.items() if code}
  if failed:
    sys.exit(f'rows that did not compile or do not fit: {failed}')


if __name__ == '__main__':
  main()
