"""Curves and a summary of a finished run: curves.png and summary.txt."""

from pathlib import Path

from r1jax.train import metrics


def write(directory: Path, k: int):
  """Draws curves.png and writes and prints summary.txt from metrics.jsonl."""
  rows = metrics.read(directory / 'metrics.jsonl')
  evals = [row for row in rows if 'eval/format' in row]
  _draw(
    [row for row in rows if 'reward' in row], evals, k, directory / 'curves.png'
  )
  text = summary(rows[-1]['step'], evals[0], evals[-1], k)
  (directory / 'summary.txt').write_text(text)
  print(text, end='')


def write_loss(directory: Path):
  """Draws loss.png from the metrics.jsonl of a supervised stage."""
  rows = metrics.read(directory / 'metrics.jsonl')
  figure = _figure((6, 3.4))
  axis = figure.subplots()
  axis.plot([row['step'] for row in rows], [row['loss'] for row in rows], lw=1)
  axis.set(xlabel='step', ylabel='loss (nats a token)', yscale='log')
  axis.grid(alpha=0.3, which='both')
  figure.tight_layout()
  figure.savefig(directory / 'loss.png', dpi=110)


def write_preferences(directory: Path):
  """Draws curves.png and writes and prints summary.txt, from the metrics.jsonl
  of a stage that learns from preferences."""
  rows = metrics.read(directory / 'metrics.jsonl')
  figure = _figure((9, 3.4))
  left, right = figure.subplots(1, 2)
  for axis, keys in (
    (left, ['loss']),
    (
      right,
      sorted(
        {key for row in rows for key in row if key.startswith('eval/accuracy')}
        - {'eval/accuracy_stderr'}
      ),
    ),
  ):
    for key in keys:
      some = [row for row in rows if key in row]
      axis.plot(
        [row['step'] for row in some],
        [row[key] for row in some],
        label=key,
        lw=1,
      )
    axis.set_xlabel('step')
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
  figure.tight_layout()
  figure.savefig(directory / 'curves.png', dpi=110)
  first, *_, last = (row for row in rows if 'eval/accuracy' in row)
  text = (
    f'accuracy         {first["eval/accuracy"]:.3f} → '
    f'{last["eval/accuracy"]:.3f}  (± {last["eval/accuracy_stderr"]:.3f},'
    f' {last["step"]} steps)\n'
  )
  (directory / 'summary.txt').write_text(text)
  print(text, end='')


def _figure(size: tuple[float, float]):
  """Returns an empty figure of a width and height in inches."""
  # Imported last, so that no first step waits for it. No pyplot: a notebook
  # keeps its own.
  from matplotlib.figure import Figure

  return Figure(figsize=size)


def summary(steps: int, first: dict, last: dict, k: int) -> str:
  def line(name: str, key: str, digits: int = 3) -> str:
    return f'{name:<16} {first[key]:.{digits}f} → {last[key]:.{digits}f}'

  measured = [f'steps            {steps}']
  if 'eval/pass@1' in last:  # General problems have no right answers.
    measured = [
      line('pass@1', 'eval/pass@1')
      + f'  (± {last["eval/pass@1_stderr"]:.3f}, {steps} steps)',
      line(f'cons@{k}', f'eval/cons@{k}'),
    ]
    if k > 1 and f'eval/pass@{k}' in last:
      measured.append(line(f'pass@{k}', f'eval/pass@{k}'))
  elif 'eval/quality' in last:
    measured.append(line('quality', 'eval/quality'))
  return (
    '\n'.join(
      [
        *measured,
        line('format', 'eval/format'),
        line('response length', 'eval/completions/mean_length', 1) + ' tokens',
        line('self-corrections', 'eval/completions/self_correction'),
      ]
    )
    + '\n'
  )


def _draw(train: list[dict], evals: list[dict], k: int, path: Path):
  figure = _figure((16, 3.4))
  axes = figure.subplots(1, 4)
  steps = [row['step'] for row in train]
  eval_steps = [row['step'] for row in evals]

  def trace(axis, key, label):
    axis.plot(steps, [row[key] for row in train], label=label, lw=1)

  def mark(axis, key, label):
    if key in evals[-1]:
      axis.plot(
        eval_steps, [row[key] for row in evals], 'o-', label=label, ms=4
      )

  trace(axes[0], 'rewards/accuracy/mean', 'accuracy')
  trace(axes[0], 'rewards/format/mean', 'format')
  axes[0].set_title('reward')
  mark(axes[1], f'eval/cons@{k}', f'cons@{k}')
  mark(axes[1], 'eval/pass@1', 'pass@1')
  mark(axes[1], 'eval/quality', 'quality')
  axes[1].set_title('held-out problems')
  trace(axes[2], 'completions/mean_length', 'training')
  mark(axes[2], 'eval/completions/mean_length', 'held-out')
  axes[2].set_title('response length (tokens)')
  trace(axes[3], 'completions/self_correction', 'training')
  mark(axes[3], 'eval/completions/self_correction', 'held-out')
  axes[3].set_title('share with a self-correction')
  for axis in axes:
    axis.set_xlabel('step')
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
  for axis in axes[:2]:
    axis.set_ylim(-0.02, 1.02)
  figure.tight_layout()
  figure.savefig(path, dpi=110)
