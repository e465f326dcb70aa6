"""Loss of the same small model trained with BF16 and with FP8 products.

  python experiments/fp8/run.py --out=runs/fp8 --seeds=0,1,2

DeepSeek-V3 section 3.3 and appendix B.1: the relative difference of the loss
stays below 0.25 %. Writes results.csv and curves.png beside this file.
"""

from pathlib import Path
import sys

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

import study  # noqa: E402: found beside the studies.

SIZE = {  # Wide enough for several tiles of 128 in every product.
    'pretrain.steps': 700, 'pretrain.log_every': 5, 'pretrain.batch_size': 64,
    'model.dtype': 'bfloat16', 'model.d_model': 256, 'model.num_layers': 3,
    'model.num_heads': 4, 'model.q_lora_rank': 128, 'model.kv_lora_rank': 128,
    'model.ffn_dim': 512, 'model.expert_ffn_dim': 128}
LATE = 20  # Lines that the final loss is the mean of: 100 steps.


def main():
  out, seeds = study.flags(__doc__)
  rows, runs = [], {'bf16': [], 'fp8': []}
  for seed in seeds:
    found = {}
    for name in runs:
      lines, secs = study.pretrain(
          'configs/pretrain_tiny.py', out / f'{name}_{seed}', SIZE | {
              'seed': seed, 'model.fp8': name == 'fp8'})
      runs[name].append(lines)
      found[name] = study.smoothed([x['loss'] for x in lines], LATE), secs
    (plain, plain_secs), (fp8, fp8_secs) = found['bf16'], found['fp8']
    rows.append({
        'commit': study.commit(), 'seed': seed, 'loss_bf16': round(plain, 5),
        'loss_fp8': round(fp8, 5),
        'relative_difference': round((fp8 - plain) / plain, 5),
        'secs_bf16': round(plain_secs), 'secs_fp8': round(fp8_secs)})
    study.write_csv(HERE / 'results.csv', rows)
  study.plot(HERE / 'curves.png', {'loss': runs})


if __name__ == '__main__':
  main()
