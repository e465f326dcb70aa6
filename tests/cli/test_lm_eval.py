"""lm-evaluation-harness drives a policy of r1jax, without a network."""

import json
import sys

import pytest
import yaml

from r1jax.cli import main
from r1jax.cli.commands import lm_eval
from r1jax.errors import UserError

_TASK = {
  'task': 'sums',
  'dataset_path': 'json',
  'test_split': 'test',
  'doc_to_text': '{{question}}=',
  'metadata': {'version': 1},
}
_TASKS = {
  'sums_generated': {
    'output_type': 'generate_until',
    'doc_to_target': '{{answer}}',
    'generation_kwargs': {
      'until': ['\n'],
      'max_gen_toks': 8,
      'do_sample': False,
    },
    'metric_list': [{'metric': 'exact_match', 'aggregation': 'mean'}],
  },
  'sums_chosen': {
    'output_type': 'multiple_choice',
    'doc_to_choice': ['1', '2', '{{answer}}'],
    'doc_to_target': 2,
    'metric_list': [{'metric': 'acc', 'aggregation': 'mean'}],
  },
  'sums_perplexity': {
    'output_type': 'loglikelihood_rolling',
    'doc_to_text': '',
    'doc_to_target': '{{question}}',
    'metric_list': [{'metric': 'bits_per_byte'}],
  },
}


@pytest.mark.slow
def test_the_harness_generates_chooses_and_scores(tmp_path, monkeypatch):
  pytest.importorskip('lm_eval', reason='needs the extra lm_eval')
  monkeypatch.setenv('HF_HUB_OFFLINE', '1')
  monkeypatch.setenv('HF_DATASETS_OFFLINE', '1')
  monkeypatch.setenv('HF_HOME', str(tmp_path / 'hf'))
  rows = [{'question': f'{i}+3', 'answer': str(i + 3)} for i in range(6)]
  data = tmp_path / 'rows.jsonl'
  data.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  for name, task in _TASKS.items():
    text = yaml.safe_dump(
      _TASK
      | task
      | {'task': name, 'dataset_kwargs': {'data_files': {'test': str(data)}}}
    )
    (tmp_path / f'{name}.yaml').write_text(text)
  main.run(
    [
      'lm-eval',
      '--model_args',
      'config=r1_zero_tiny,init=shipped,compilation_cache_dir=',
      '--tasks',
      ','.join(_TASKS),
      '--include_path',
      str(tmp_path),
      '--output_path',
      str(tmp_path / 'out.json'),
    ]
  )
  [path] = tmp_path.glob('out*.json')
  results = json.loads(path.read_text())['results']
  assert set(_TASKS) <= results.keys()
  assert 0 <= results['sums_generated']['exact_match,none'] <= 1
  assert results['sums_perplexity']['bits_per_byte,none'] > 0


@pytest.mark.parametrize(
  'args,part',
  [
    (['--model', 'hf', '--tasks', 'x'], 'r1jax here, not hf'),
    (['--model=vllm'], 'r1jax here, not vllm'),
  ],
)
def test_another_model_is_refused(args, part):
  with pytest.raises(UserError, match=part):
    lm_eval._with_model(args)
  assert lm_eval._with_model(['--tasks', 'x'])[:2] == ['--model', 'r1jax']


def test_the_harness_that_is_not_installed_is_named(monkeypatch):
  monkeypatch.setitem(sys.modules, 'lm_eval', None)
  with pytest.raises(UserError, match=r"pip install -e '.\[lm_eval\]'"):
    main.run(['lm-eval', '--tasks', 'gsm8k'])


@pytest.mark.parametrize(
  'kwargs,part', [({'num_beams': 4}, 'the sampler has no num_beams')]
)
def test_what_the_sampler_cannot_do_is_refused(kwargs, part):
  plain = {'until': [], 'max_gen_toks': 4, 'temperature': 0.0}
  with pytest.raises(UserError, match=part):
    lm_eval._sampling(plain | kwargs, (2,))
  params = lm_eval._sampling(plain | {'until': ['a', ''], 'top_p': 0.9}, (2,))
  assert params.stop_strings == ('a',) and params.top_p == 0.9
