"""Loss of the same small model trained with BF16 and with FP8 products.

  python experiments/fp8/run.py --out=runs/fp8 --seeds=3

DeepSeek-V3 section 3.3 and appendix B.1: the relative difference of the loss
stays below 0.25 %. Runs `r1jax sweep`, and writes results.csv and curves.png
beside this file.
"""

import argparse
from pathlib import Path
import shutil

from r1jax.sweeps import report, script

HERE = Path(__file__).parent
SIZE = {
  'pretrain.max_steps': 1500,
  'pretrain.logging_steps': 5,
  'pretrain.batch_size': 64,
  'pretrain.save_steps': 500,
  'model.hidden_size': 128,
  'model.num_hidden_layers': 2,
  'model.q_lora_rank': 64,
  'model.kv_lora_rank': 64,
  'model.moe_intermediate_size': 128,
  'model.dtype': 'bfloat16',
}
LATE = 40  # Lines that the final loss is the mean of: 200 steps.


def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--out', required=True, type=Path)
  parser.add_argument('--seeds', default='3')
  args = parser.parse_args()
  runs = script.sweep(
    args.out,
    'pretrain_tiny',
    grid=['model.fp8=False,True'],
    seeds=args.seeds,
    changes=SIZE,
    flags=[f'--last_lines={LATE}'],
  )
  half = len(runs) // 2
  rows = []
  for bf16, fp8 in zip(runs[:half], runs[half:], strict=True):
    before, after = (run.value('loss', LATE) for run in (bf16, fp8))
    rows.append(
      {
        'commit': fp8.commit,
        'seed': fp8.seed,
        'loss_bf16': round(before, 5),
        'loss_fp8': round(after, 5),
        'relative_difference': round(after / before - 1, 5),
      }
    )
  report.write_csv(HERE / 'results.csv', rows)
  shutil.copy(args.out / 'curves.png', HERE / 'curves.png')


if __name__ == '__main__':
  main()
