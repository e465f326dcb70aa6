"""r1jax eval --suite and r1jax compare, on real suites and through the commands."""

import dataclasses
import json

import jax
import pyarrow.parquet as pq
import pytest

from r1jax import files
from r1jax.cli import main
from r1jax.errors import UserError
from r1jax.evaluate import suites
from r1jax.graders import dispatch
from r1jax.runs import suite_evaluation
from r1jax.stages.build import parts as build
from r1jax.stages.build import sampler
from tests.configs import small
from tests.conftest import ROOT, run_config
from tests.evaluate.test_suite_run import FakeEngine

_SMALL = (
  f'--config={ROOT}/tests/configs/small.py',
  '--config.init=random',
  '--config.mesh.data=8',
  '--config.eval.num_problems=4',
  '--config.eval.num_samples=2',
  '--config.rl.max_new_tokens=8',
)
_SUITES = 'math500', 'aime24', 'amc23'


@pytest.fixture
def qwen(shared, monkeypatch):
  """A config with Qwen2.5's tokenizer, whose policy is not looked at."""
  monkeypatch.setenv('R1JAX_DATA', str(shared / 'data'))
  config = run_config(small.get_config())
  source = str(shared / 'data/tokenizer/qwen2.5')
  return config, source


def _evaluated(config, source, out, monkeypatch, text, wanted):
  config = _with(config, source)
  parts = build.parts(config)
  monkeypatch.setattr(
    sampler, 'engine', lambda *_: FakeEngine(text, parts.tokenizer)
  )
  suite_evaluation.evaluate(config, parts, dict, 'fake', str(out), wanted)
  return parts


def _with(config, source):
  return dataclasses.replace(
    config,
    tokenizer=dataclasses.replace(config.tokenizer, source=source),
    data=dataclasses.replace(config.data, template='r1_zero'),
    model=dataclasses.replace(
      config.model, vocab_size=152064, max_position_embeddings=40960
    ),
  )


@pytest.mark.slow
def test_whole_suites_agree_with_an_independent_count(
  qwen, shared, tmp_path, monkeypatch
):
  """The grader, run over the stored completions, counts what was reported.

  Three of four completions box an answer: the gold answer, that of another
  problem, or a number; the last one says nothing.
  """
  golds = {
    name: [
      json.loads(line)['answer']
      for line in (shared / f'data/math/{_FILES[name]}').open()
    ]
    for name in _SUITES
  }

  def text(request):
    s, p, g = request.name
    own = golds[_SUITES[s]]
    said = (own[p], own[(p + 1) % len(own)], str(p), '')[(p + g) % 4]
    return f'<think>{p}</think> <answer>{said}</answer>'

  wanted = suite_evaluation.Wanted(suites.named(','.join(_SUITES)), 4)
  parts = _evaluated(*qwen, tmp_path / 'out', monkeypatch, text, wanted)
  results = json.loads((tmp_path / 'out/results.json').read_text())['suites']
  for name in _SUITES:
    table = pq.read_table(tmp_path / f'out/{name}/completions.parquet')
    records = table.to_pylist()
    assert len(records) == 4 * len(golds[name])
    items = []
    for record in records:
      answer = parts.parser.parse(record['completion']).answer
      items.append((answer, golds[name][record['problem']], 'math'))
    right = [verdict == 'correct' for verdict in dispatch.verdicts(items)]
    own = results[name]
    assert own['num_problems'] == own['available'] == len(golds[name])
    assert own['pass_at_1']['mean'] == pytest.approx(sum(right) / len(right))
    by_problem = [right[i : i + 4] for i in range(0, len(right), 4)]
    assert own['pass_at_k']['4'] == pytest.approx(
      sum(map(any, by_problem)) / len(by_problem)
    )
    assert [p['correct'] for p in own['problems']] == list(map(sum, by_problem))
    assert sum(right) >= len(right) / 4


_FILES = {
  'math500': 'math500.jsonl',
  'aime24': 'aime24.jsonl',
  'amc23': 'amc23.jsonl',
}


def test_a_template_without_tags_asks_for_a_box(qwen, tmp_path, monkeypatch):
  """The question itself stays what it was."""
  config, source = qwen
  config = dataclasses.replace(
    config, data=dataclasses.replace(config.data, response_format='plain')
  )
  wanted = suite_evaluation.Wanted(suites.named('aime24'), 1, 3, 40)
  out = tmp_path / 'out'
  monkeypatch.setattr(
    build, 'parser', lambda *_: build.response_formats.ResponseParser(_PLAIN)
  )
  _evaluated(config, source, out, monkeypatch, lambda _: '\\boxed{1}', wanted)
  records = pq.read_table(out / 'aime24/completions.parquet').to_pylist()
  assert len(records) == 3
  for record in records:
    assert suites.BOXED in record['prompt']
    assert suites.BOXED not in record['question']
  table = (out / 'results.md').read_text()
  assert 'first 3 of 30' in table


_PLAIN = build.response_formats.registry.response_format.get('plain')


def _eval(out, *args):
  main.run(['eval', *_SMALL, '--suite=arithmetic', f'--out={out}', *args])


@pytest.mark.slow
def test_two_policies_are_measured_and_compared(tmp_path, capsys):
  """More completions of each problem are added; another policy is refused."""
  one, other = tmp_path / 'one', tmp_path / 'other'
  _eval(one)
  printed = capsys.readouterr().out
  assert 'completions have at most 8 tokens, fewer than the 32768' in printed
  assert 'tokens/s; the device worked' in printed
  first = json.loads((one / 'results.json').read_text())['suites']['arithmetic']
  assert first['num_samples'] == 2 and first['num_problems'] == 4
  before = pq.read_table(one / 'arithmetic/completions.parquet').to_pylist()
  _eval(one, '--config.eval.num_samples=4')
  assert '8 of 16 completions are there already' in capsys.readouterr().out
  after = pq.read_table(one / 'arithmetic/completions.parquet').to_pylist()
  assert [r for r in after if r['sample'] < 2] == before
  _eval(one, '--config.eval.num_samples=4')
  assert 'tokens/s; the device' not in capsys.readouterr().out
  with pytest.raises(UserError, match='belongs to another config: seed is 0'):
    _eval(one, '--config.seed=1')
  _eval(other, '--config.seed=1')
  capsys.readouterr()
  main.run(['compare', str(one), str(other), f'--out={tmp_path}/c.json'])
  assert 'McNemar p' in capsys.readouterr().out
  compared = json.loads((tmp_path / 'c.json').read_text())['suites']
  assert compared[0]['num_problems'] == 4
  page = (one / 'results.html').read_text()
  assert page.count('</html>') == 1 and 'arithmetic-held_out-0-3' in page
  jax.clear_caches()


@pytest.mark.slow
def test_a_folder_of_something_else_is_not_touched(tmp_path):
  files_there = tmp_path / 'notes.txt'
  files.write_text(files_there, 'mine')
  with pytest.raises(UserError, match='is not empty and holds no run'):
    _eval(tmp_path)
  assert files_there.read_text() == 'mine'


@pytest.mark.parametrize(
  'args,part',
  [
    (['--suite=math5000'], "unknown 'math5000'; did you mean 'math500'"),
    (['--suite=gsm8k,gsm8k'], 'gsm8k is named twice'),
    (['--suite=aime24'], 'get it from'),
    (['--suite=hh_helpful'], 'hh_helpful has no rule that grades'),
    (['--out=x'], '--out is the folder of --suite'),
    (
      ['--suite=arithmetic', '--config.data.task=gsm8k'],
      'data.task has no effect',
    ),
    (['--suite=arithmetic', '--config.eval.search.kind=best_of_n'], 'search'),
    (['--suite=arithmetic', '--out=gs://bucket/x'], 'of this host alone'),
    (['--suite=arithmetic', '--model=x'], 'give --model or --config, not both'),
  ],
)
def test_a_wrong_evaluation_says_what_is_wrong(
  args, part, tmp_path, monkeypatch
):
  monkeypatch.setenv('R1JAX_DATA', str(tmp_path))
  monkeypatch.chdir(tmp_path)
  with pytest.raises(UserError, match=part):
    main.run(['eval', *_SMALL, *args])
  assert not list(tmp_path.iterdir())


def _results(folder, **suites_found):
  folder.mkdir()
  (folder / 'results.json').write_text(json.dumps({'suites': suites_found}))
  return str(folder)


@pytest.mark.parametrize(
  'one,other,args,part',
  [
    (None, {}, (), 'one has no results.json'),
    ({'a': 1}, {'b': 1}, (), 'they share no suite'),
    ({'a': 1}, {'a': 1}, ('--suite=c',), "no suite 'c' in both; they share a"),
  ],
)
def test_a_wrong_comparison_says_what_is_wrong(
  tmp_path, one, other, args, part
):
  folders = [
    str(tmp_path / name)
    if found is None
    else _results(tmp_path / name, **found)
    for name, found in (('one', one), ('other', other))
  ]
  with pytest.raises(UserError, match=part):
    main.run(['compare', *folders, *args])
  with pytest.raises(UserError, match='usage: r1jax compare A B'):
    main.run(['compare', folders[0]])
