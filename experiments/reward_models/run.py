"""Reward models, against chance and against what needs no model.

  R1JAX_DATA=data python experiments/reward_models/run.py --out=runs/judges --seeds=1

Four of them: helpful and safe, each on the synthetic task `manners` and on half
of the test file of hh-rlhf, the other half of which is held out. Of the real
text a BPE of 2,048 tokens is learnt from the training half, and the last 128
tokens of prompt and response are read. Runs `r1jax sweep` for either text, and writes
results.csv.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from r1jax import registry
from r1jax.config.schema.preferences import SyntheticPreferencesConfig
from r1jax.data import preferences, readers, splits
from r1jax.data.text import response_formats
from r1jax.sweeps import report, script
from r1jax.sweeps.results import Result

HERE = Path(__file__).parent
CONFIG = 'reward_tiny'
SHARE, VOCAB = 0.5, 2048
FILES = {
  'helpful': 'pref/hh_helpful_base_test',
  'safe': 'pref/hh_harmless_base_test',
}
# The reward model of safety reads the thought too.
MAX_TOKENS = {'helpful': 64, 'safe': 96}
HH = {
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
}
MANNERS = SyntheticPreferencesConfig(0.4, 8.0)
_BRIEF = registry.template.get('r1_zero_brief')


def bayes(how: SyntheticPreferencesConfig, seed: int, count: int) -> float:
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


def row(name: str, run: Result, **baselines) -> dict:
  """The last evaluation of a reward model, with its 95 % interval."""
  accuracy = run.value('eval/accuracy')
  half = 1.96 * run.value('eval/accuracy_stderr')
  return {
    'commit': run.commit,
    'model': name,
    'seed': run.seed,
    'accuracy': round(accuracy, 4),
    'low': round(accuracy - half, 4),
    'high': round(accuracy + half, 4),
    'loss': round(run.value('loss'), 4),
    **baselines,
    'wall_secs': run.wall_secs and round(run.wall_secs),
  }


def manners_row(kind: str, run: Result) -> dict:
  if kind == 'helpful':
    plain, best = 0.5, bayes(MANNERS, run.seed, 1024)
  else:
    responses = preferences.synthetic_responses(
      MANNERS, _BRIEF, splits.HELD_OUT, run.seed, 1024
    )
    safe = np.mean([each.safe for each in responses])
    plain, best = round(float(max(safe, 1 - safe)), 4), 1.0
  return row(
    f'manners, {kind}', run, baseline=plain, best=round(best, 4), pairs=1024
  )


def hh_row(kind: str, run: Result) -> dict:
  pairs, single, count = length_wins(FILES[kind])
  baseline = round(pairs if kind == 'helpful' else single, 4)
  return row(f'hh-rlhf, {kind}', run, baseline=baseline, best='', pairs=count)


def by_kind(runs: list[Result]) -> list[tuple[str, Result]]:
  """Returns runs with their kind, a seed after another."""
  half = len(runs) // 2
  found = [('helpful', run) for run in runs[:half]]
  found += [('safe', run) for run in runs[half:]]
  return sorted(found, key=lambda each: each[1].seed)


def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--out', required=True, type=Path)
  parser.add_argument('--seeds', default='3')
  args = parser.parse_args()
  kinds = ','.join(f'({kind},{n})' for kind, n in MAX_TOKENS.items())
  manners = script.sweep(
    args.out / 'manners',
    CONFIG,
    grid=[f'reward_model.kind,reward_model.max_tokens={kinds}'],
    seeds=args.seeds,
  )
  for kind, path in FILES.items():
    bpe(path, args.out / f'bpe_{kind}')
  sources = ','.join(
    f'({kind},("{path}",),"{args.out / f"bpe_{kind}"}")'
    for kind, path in FILES.items()
  )
  hh = script.sweep(
    args.out / 'hh',
    CONFIG,
    grid=[f'reward_model.kind,reward_model.data,tokenizer.source={sources}'],
    seeds=args.seeds,
    changes=HH,
  )
  report.write_csv(
    HERE / 'results.csv',
    [manners_row(*each) for each in by_kind(manners)]
    + [hh_row(*each) for each in by_kind(hh)],
  )


if __name__ == '__main__':
  main()
