"""Reward models, against chance and against what needs no model.

  R1JAX_DATA=data python experiments/reward_models/run.py --out=runs/judges

Four of them: helpful and safe, each on the synthetic task `manners` and on half
of the test file of hh-rlhf, the other half of which is held out. Of the real
text a BPE of 2,048 tokens is learnt from the training half, and the last 128
tokens of prompt and response are read. Writes results.csv.
"""

import json
from pathlib import Path
import subprocess
import sys
import time

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

import study

from r1jax import registry
from r1jax.config.schema.preferences import SyntheticPreferencesConfig
from r1jax.data import preferences, readers, splits
from r1jax.data.text import response_formats
from r1jax.train import metrics

CONFIG = 'reward_tiny'
SHARE, VOCAB = 0.5, 2048
FILES = {
  'helpful': 'pref/hh_helpful_base_test',
  'safe': 'pref/hh_harmless_base_test',
}
_BRIEF = registry.template.get('r1_zero_brief')


def trained(workdir: Path, changes: dict[str, object]) -> tuple[dict, float]:
  """The last evaluation, and seconds."""
  began = time.monotonic()
  subprocess.run(
    [
      sys.executable,
      '-m',
      'r1jax.cli.main',
      'train',
      f'--config={CONFIG}',
      f'--workdir={workdir}',
      *(f'--config.{key}={value}' for key, value in changes.items()),
    ],
    check=True,
  )
  lines = metrics.read(workdir / 'reward_model' / 'metrics.jsonl')
  return lines[-1], time.monotonic() - began


def bayes(how: preferences.Synthetic, seed: int, count: int) -> float:
  """The accuracy of one who knows every chance: the mean of the larger."""
  parser, chances = response_formats.ResponseParser(), []
  for row in preferences.synthetic_pairs(
    how, _BRIEF, splits.HELD_OUT, seed, count
  ):
    p = preferences.preference_probability(
      how,
      row.prompt.question,
      *(parser.parse(text).answer for text in (row.chosen, row.rejected)),
    )
    chances.append(max(p, 1 - p))
  return float(np.mean(chances))


def bpe(path: str, folder: Path):
  """Learns a tokenizer from the rows that are not held out."""
  texts = []
  for row in readers.rows(readers.files(path)):
    if not preferences.is_eval_row(row.fields['id'], SHARE):
      texts += [row.fields[key] for key in ('prompt', 'chosen', 'rejected')]
  core = tokenizers.Tokenizer(models.BPE())
  core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  core.decoder = decoders.ByteLevel()
  core.train_from_iterator(
    texts,
    trainers.BpeTrainer(
      vocab_size=VOCAB,
      special_tokens=['<eos>'],
      initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    ),
  )
  folder.mkdir(parents=True, exist_ok=True)
  core.save(str(folder / 'tokenizer.json'))
  (folder / 'tokenizer_config.json').write_text(
    json.dumps({'eos_token': '<eos>'})
  )


def length_wins(path: str) -> tuple[float, float, int]:
  """On the held-out half, the rule for which the other half votes: the longer
  response is the chosen one, or the shorter.

  Returns:
    Accuracy of the rule on pairs, and on single responses, of which those are
    called chosen that are on that side of the median; and how many pairs.
  """
  lengths = {False: [], True: []}
  for row in readers.rows(readers.files(path)):
    lengths[preferences.is_eval_row(row.fields['id'], SHARE)].append(
      [len(row.fields[key]) for key in ('chosen', 'rejected')]
    )
  train, held = (np.array(lengths[out]) for out in (False, True))
  sign = np.sign(np.sign(train[:, 0] - train[:, 1]).sum())
  pairs = ((1 + sign * np.sign(held[:, 0] - held[:, 1])) / 2).mean()
  side = sign * np.sign(held - np.median(train))
  single = ((1 + side * np.array([1, -1])) / 2).mean()
  return float(pairs), float(single), len(held)


def main():
  out, seeds = study.flags(__doc__)
  rows, commit = [], study.commit()

  def add_row(name, seed, last, secs, **baselines):
    half = 1.96 * last['eval/accuracy_stderr']
    accuracy = last['eval/accuracy']
    rows.append(
      {
        'commit': commit,
        'model': name,
        'seed': seed,
        'accuracy': round(accuracy, 4),
        'low': round(accuracy - half, 4),
        'high': round(accuracy + half, 4),
        'loss': round(last['loss'], 4),
        **baselines,
        'wall_secs': round(secs),
      }
    )
    print(rows[-1], flush=True)

  for seed in seeds:
    for kind in FILES:
      changes = {'seed': seed, 'reward_model.kind': kind}
      if kind == 'safe':  # It reads the thought too.
        changes['reward_model.max_tokens'] = 96
      last, secs = trained(out / f'manners_{kind}_{seed}', changes)
      if kind == 'helpful':
        best = bayes(SyntheticPreferencesConfig(0.4, 8.0), seed, 1024)
        plain = 0.5
      else:
        best, safe = (
          1.0,
          np.mean(
            [
              row.safe
              for row in preferences.synthetic_responses(
                SyntheticPreferencesConfig(0.4, 8.0),
                _BRIEF,
                splits.HELD_OUT,
                seed,
                1024,
              )
            ]
          ),
        )
        plain = round(float(max(safe, 1 - safe)), 4)
      add_row(
        f'manners, {kind}',
        seed,
        last,
        secs,
        baseline=plain,
        best=round(best, 4),
        pairs=1024,
      )
  for seed in seeds:
    for kind, path in FILES.items():
      folder = out / f'bpe_{kind}'
      bpe(path, folder)
      last, secs = trained(
        out / f'hh_{kind}_{seed}',
        {
          'seed': seed,
          'reward_model.kind': kind,
          'reward_model.data': f'("{path}",)',
          'reward_model.eval_share': SHARE,
          'reward_model.max_eval_rows': 0,
          'reward_model.num_train_epochs': 2,
          'reward_model.batch_size': 32,
          'reward_model.eval_steps': 1000,
          'reward_model.max_tokens': 128,
          'reward_model.truncate_long': True,
          'data.max_bad_row_share': 0.02,
          'model.vocab_size': VOCAB,
          'model.initializer_range': 0.02,
          'reward_model.optimizer.learning_rate': 1e-3,
          'tokenizer.source': folder,
        },
      )
      pairs, single, count = length_wins(path)
      add_row(
        f'hh-rlhf, {kind}',
        seed,
        last,
        secs,
        baseline=round(pairs if kind == 'helpful' else single, 4),
        best='',
        pairs=count,
      )
  study.write_csv(HERE / 'results.csv', rows)


if __name__ == '__main__':
  main()
