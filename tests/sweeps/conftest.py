"""A sweep whose runs are files that a test writes."""

import json
from pathlib import Path

import pytest

from r1jax.sweeps import attempts, grid, plan


class Folder:
  """The folder of a sweep over rl.group_size = 4 and 8, without any run."""

  def __init__(self, out: Path, seeds=(0, 1, 2), **changes):
    axes = (grid.parse_axis('rl.group_size=4,8'),)
    self.out = out
    self.sweep = plan.Sweep(
      **{
        'command': 'train',
        'config': 'r1_zero_tiny',
        'overrides': ('--config.rl.max_steps=2',),
        'axes': axes,
        'seeds': seeds,
        'points': grid.points(axes, ''),
        'stages': ('rl',),
      }
      | changes
    )

  def place(self, point: int, seed: int) -> Path:
    return plan.folder(self.out, self.sweep.points[point], seed)

  def add(self, point: int, seed: int, lines, code=0, secs=10.0, stage='rl'):
    """Writes what a run leaves that ends with an exit code."""
    place = self.place(point, seed)
    folder = place / stage
    folder.mkdir(parents=True, exist_ok=True)
    (folder / 'metrics.jsonl').write_text(
      ''.join(json.dumps(line) + '\n' for line in lines)
    )
    begin = {'began': 1000.0, 'cores': 1}
    end = {'ended': 1000.0 + secs, 'exit_code': code}
    (place / attempts.FILE).write_text(
      f'{json.dumps(begin)}\n{json.dumps(end)}\n'
    )
    if code == 0:
      self.lineage(place)
    return place

  def lineage(self, folder: Path):
    (folder / 'lineage.json').write_text(
      json.dumps(
        {
          'stages': ['rl'],
          'config_sha256': 'c' * 64,
          'commit': '0123456789abcdef+',
          'inputs': {},
          'output': {'path': 'rl/model.safetensors', 'sha256': 'o' * 64},
        }
      )
    )


@pytest.fixture
def folder(tmp_path) -> Folder:
  return Folder(tmp_path / 'out')


def lines(*values, metric='eval/pass@1') -> list[dict]:
  """Returns lines of metrics.jsonl, one a step."""
  return [{'step': i, 'loss': 9.0, metric: v} for i, v in enumerate(values)]
