"""Loss of the same small model trained with BF16 and with FP8 products.

  python experiments/fp8/run.py --out=runs/fp8 --seeds=0,1,2

DeepSeek-V3 section 3.3 and appendix B.1: the relative difference of the loss
stays below 0.25 %. Writes results.csv and curves.png beside this file.
"""

from pathlib import Path
import sys

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

import study

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
VARIANTS = {'bf16': False, 'fp8': True}
LATE = 40  # Lines that the final loss is the mean of: 200 steps.


def main():
  out, seeds = study.flags(__doc__)
  runs = {name: {} for name in VARIANTS}
  for name, fp8 in VARIANTS.items():
    for seed in seeds:
      lines, _ = study.pretrain(
        'pretrain_tiny',
        out / f'{name}_{seed}',
        SIZE | {'seed': seed, 'model.fp8': fp8},
      )
      runs[name][seed] = lines
  rows = []
  for seed in seeds:
    loss = {
      name: study.smoothed([x['loss'] for x in of[seed]], LATE)
      for name, of in runs.items()
    }
    rows.append(
      {'commit': study.commit(), 'seed': seed}
      | {f'loss_{name}': round(value, 5) for name, value in loss.items()}
      | {'relative_difference': round(loss['fp8'] / loss['bf16'] - 1, 5)}
    )
  study.write_csv(HERE / 'results.csv', rows)
  study.plot(
    HERE / 'curves.png',
    {'loss': {name: list(of.values()) for name, of in runs.items()}},
  )


if __name__ == '__main__':
  main()
