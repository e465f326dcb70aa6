"""Bad input: one clear line, exit code 2, nothing written or lost."""

import subprocess
import sys

import flax
import jax
import pytest

import r1jax
from r1jax.cli import config_file, main
from r1jax.cli.commands import sample
from r1jax.errors import UserError
from r1jax.runs import run as stages_run
from r1jax.stages import pretrain
from tests.configs import small
from tests.conftest import ROOT, run_config

_SMALL = f'--config={ROOT}/tests/configs/small.py'


# Tests see eight devices; every batch divides over them.
_EIGHT = ('--config.mesh.data=8', '--config.rl.prompts_per_step=8')
_ODD_ROWS = '--config.pretrain.length_tokens=127'


def _refused(tmp_path, *args):
  """The error of a train command; asserts that nothing was written."""
  workdir = tmp_path / 'run'
  with pytest.raises(UserError) as caught:
    main.run(['train', _SMALL, f'--workdir={workdir}', *_EIGHT, *args])
  assert not workdir.exists()
  message = str(caught.value)
  assert '\n' not in message
  return message


@pytest.mark.parametrize(
  'args,parts',
  [
    (['--config.rl.grop_size=8'], ['rl.grop_size', 'rl.group_size']),
    (['--config.r1.max_steps=8'], ['r1.max_steps', 'rl']),
    (['--config.rl.group_size=many'], ['group_size', 'many']),
    (
      ['--config.rl.group_size=many', '--config.rl.temperature=hot'],
      ['rl.group_size=many', 'rl.temperature=hot'],
    ),
    (['--confg.rl.group_size=2'], ['confg.rl.group_size']),
    (['--config.rl.group_size=1'], ['rl.group_size = 1 must be at least 2']),
    (['--config.rl.temperature=0.0'], ['rl.temperature = 0.0 must be above 0']),
    (
      ['--config.rl.old_logp_source=none'],
      ["rl.old_logp_source = 'none' must be one of 'rollout'"],
    ),
    (['--config.rl.reward.acuracy=1.0'], ['acuracy', 'accuracy']),
    (
      ['--config.rl.num_minibatches=3'],
      ['32 does not divide', 'rl.num_minibatches = 3'],
    ),
    (
      ['--config.rl.max_new_tokens=200'],
      ['max_new_tokens = 200', 'max_position_embeddings = 128'],
    ),
    (
      ['--config.data.max_prompt_tokens=5'],
      ['arithmetic-train-0-0', '11 tokens', 'max_prompt_tokens = 5'],
    ),
    (['--config.model.vocab_size=50'], ['106 ids', 'vocab_size = 50']),
    (['--config.tokenizer.source=no/where'], ['no/where']),
    (['--config.data.task=algebra'], ["'algebra'", 'arithmetic']),
    (['--config.data.task=gsm8'], ["unknown 'gsm8'; did you mean 'gsm8k'?"]),
    (['--config.data.mixture=("gsm8k","mth")'], ["did you mean 'math'?"]),
    (['--config.data.mixture=("gsm8k:x",)'], ["'gsm8k:x' is not"]),
    (['--config.data.decontaminate=("countdown",)'], ["'countdown_file'?"]),
    (
      ['--config.data.sort_by_pass_rate=True'],
      ['data.sort_by_pass_rate = True needs pass_rates'],
    ),
    (
      ['--config.data.max_bad_row_share=1.5'],
      ['data.max_bad_row_share = 1.5 must be', 'below 1'],
    ),
    (['--config.data.template=chat'], ['has no chat template', '.jinja']),
    (['--config.data.system=Hello'], ['takes no data.system']),
    (
      ['--config.data.task=hh_helpful', '--config.stages=("rl",)'],
      ['no pref/hh_helpful_base_train', 'hh-rlhf'],
    ),
    (['--config.data.template=r2'], ["'r2'", 'r1_zero']),
    (
      [
        '--config.data.task=math',
        '--config.data.path=none.jsonl',
        '--config.stages=("rl",)',
      ],
      ['none.jsonl', 'R1JAX_DATA'],
    ),
    (
      ['--config.init=none.safetensors', '--config.stages=("rl",)'],
      ['none.safetensors'],
    ),
    (
      ['--config.init=shipped'],
      ['is of another model', 'model.num_hidden_layers is 4 there and 2 here'],
    ),
    (
      ['--config.stages=("rl","pretrain")'],
      ['stages: pretrain begins with random parameters: put it first'],
    ),
    (['--config.mesh.tensor=3'], ['tensor=3', '8 devices']),
    (
      ['--config.mesh.data=1', '--config.mesh.expert=8'],
      ['E = 4', 'expert × tensor = 8'],
    ),
    (
      ['--config.mesh.data=4', '--config.mesh.sequence=2', _ODD_ROWS],
      ['pretrain.length_tokens = 127', 'sequence × tensor = 2', 'make it 128'],
    ),
    (
      ['--config.mesh.data=2', '--config.mesh.sequence=4'],
      ['num_attention_heads = 2', 'tensor × sequence = 4'],
    ),
    (
      ['--config.rollout.max_num_seqs=0'],
      ['rollout.max_num_seqs = 0 must be at least 1'],
    ),
    (
      ['--config.rollout.speculative=True'],
      ['model.num_nextn_predict_layers is 0'],
    ),
    (
      ['--config.rl.oversample=0.0'],
      ['rl.oversample = 0.0 must be at least 1'],
    ),
    (
      ['--config.rl.oversample=2.0', '--config.rl.old_logp_source=recompute'],
      ['oversample = 2.0 needs old_logp_source'],
    ),
    (
      ['--config.rollout.kv_cache_tokens=20'],
      ['kv_cache_tokens = 20 holds no request', 'max_model_len = 28'],
    ),
    (['--config.model.n_group=3'], ['n_group = 3', 'n_routed_experts = 4']),
    (['--config.corpus.slip_rate=2.0'], ['slip_rate', '2.0']),
    (['--config.pretrain.length_tokens=20'], ['length_tokens = 20']),
    (
      ['--config.pretrain.length_tokens=129'],
      ['pretrain.length_tokens = 129', 'model.max_position_embeddings = 128'],
    ),
    (
      [
        '--config.model.num_nextn_predict_layers=2',
        '--config.pretrain.length_tokens=3',
      ],
      [
        'length_tokens = 3',
        'model.num_nextn_predict_layers = 2',
        'they need 4',
      ],
    ),
    (
      ['--config.rl.mtp_loss_weight=0.3'],
      ['mtp_loss_weight = 0.3', 'model.num_nextn_predict_layers is 0'],
    ),
    (['--config.rl.eval_steps=0'], ['rl.eval_steps = 0 must be at least 1']),
    (['--config.rl.row_tokens=-1'], ['rl.row_tokens = -1 must be at least 0']),
    (
      ['--config.rl.row_tokens=9'],
      ['rl.row_tokens = 9 is less than the longest sample'],
    ),
    (
      ['--config.rl.microbatch_tokens=100'],
      ['rl.microbatch_tokens = 100 is no multiple of'],
    ),
    (['--config.seed=-1'], ['seed = -1 must be at least 0']),
    (
      ['--config.rl.group_size=0', '--config.rl.temperature=-1'],
      ['rl.group_size = 0 must be', 'rl.temperature = -1.0 must be'],
    ),
    (
      ['--config.rl.grop_size=8', '--config.rl.temprature=1'],
      ['rl.grop_size (did you mean rl.group_size?)', 'rl.temprature'],
    ),
    (
      ['--config.stages=("pretrain","rl","sft","rl")'],
      ['stages:', 'names a stage twice'],
    ),
    (
      ['--config.stages=("pretrain","reward_model","rl")'],
      ['stages: reward_model leaves no policy'],
    ),
    (['extra'], ["'extra'"]),
  ],
  ids=lambda value: ' '.join(value) if value[0].startswith('-') else '',
)
def test_bad_input_is_one_line_that_names_it(tmp_path, args, parts):
  message = _refused(tmp_path, *args)
  for part in parts:
    assert part in message


def test_a_dataset_that_is_not_there_is_named_with_its_origin(
  tmp_path, monkeypatch
):
  monkeypatch.setenv('R1JAX_DATA', str(tmp_path))
  message = _refused(
    tmp_path, '--config.data.task=countdown_file', '--config.stages=("rl",)'
  )
  for part in (
    'no countdown/countdown_train',
    f'R1JAX_DATA={tmp_path}',
    'get it from liumy2010/UFT',
    'question, nums, target',
  ):
    assert part in message


def test_a_malformed_data_file_is_named_with_its_line(tmp_path):
  path = tmp_path / 'rows.jsonl'
  path.write_text('{"id": "a", "question": "q", "answer": "1"}\noops\n')
  message = _refused(
    tmp_path,
    '--config.data.task=math',
    f'--config.data.path={path}',
    '--config.stages=("rl",)',
  )
  assert f'{path}:2' in message


def test_a_long_row_of_a_file_is_named(tmp_path):
  path = tmp_path / 'rows.jsonl'
  path.write_text(
    '{"id": "row-a", "question": "%s", "answer": "1"}\n' % ('9' * 100)
  )
  message = _refused(
    tmp_path,
    '--config.data.task=math',
    f'--config.data.path={path}',
    f'--config.data.eval_path={path}',
    '--config.stages=("rl",)',
    '--config.init=random',
  )
  assert 'row-a has 102 tokens' in message


def test_a_folder_that_is_not_a_run_is_not_touched(tmp_path):
  (tmp_path / 'thesis.txt').write_text('mine')
  with pytest.raises(UserError, match='is not empty and holds no run'):
    main.run(['train', _SMALL, f'--workdir={tmp_path}', *_EIGHT])
  assert [p.name for p in tmp_path.iterdir()] == ['thesis.txt']


def test_a_workdir_that_is_a_file_or_broken_is_named(tmp_path):
  (tmp_path / 'file').write_text('mine')
  with pytest.raises(UserError, match='is a file'):
    main.run(['train', _SMALL, f'--workdir={tmp_path / "file"}', *_EIGHT])
  (tmp_path / 'run').mkdir()
  (tmp_path / 'run' / 'config.json').write_text('{"rl":')
  with pytest.raises(UserError, match='cannot read .*config.json'):
    main.run(['train', _SMALL, f'--workdir={tmp_path / "run"}', *_EIGHT])


@pytest.mark.parametrize(
  'argv,part',
  [
    (['trian'], "unknown command 'trian'"),
    (['train'], '--config=CONFIG'),
    (
      ['train', '--config=r1_zero_tny'],
      "'r1_zero_tny'; did you mean 'r1_zero_t",
    ),
    (['train', '--config=none.py'], 'none.py'),
    (['sample', _SMALL, '--prompts=none.txt'], 'cannot read none.txt'),
    (['sample', _SMALL, '--prompts=/dev/null'], 'holds no question'),
    (['sample', _SMALL, '--prompts=/bin/sh'], 'cannot read /bin/sh: '),
    (['eval', _SMALL, '--workdir=no/run'], 'no/run holds no run'),
  ],
)
def test_a_wrong_command_says_what_is_missing(argv, part):
  with pytest.raises(UserError, match=part):
    main.run(argv)


@pytest.mark.parametrize(
  'body,reason',
  [
    ('rate = learning_rate', "1: NameError: name 'learning_rate' is not"),
    ('\ndef get_config():\n  return 1 / 0', '3: ZeroDivisionError: division'),
    (
      'def get_config():\n  return open("none.txt")',
      '2: FileNotFoundError: [Errno 2] No such file',
    ),
    ('import r1jax.nothing', '1: ModuleNotFoundError: No module named'),
    ('def get_config()', "1: SyntaxError: expected ':'"),
    (
      'def get_config():\n  raise ValueError("one\\ntwo")',
      '2: ValueError: one two',
    ),
    ('assert False', '1: AssertionError'),
    ('{}["lr"]', '1: KeyError: lr'),
    ('raise SystemExit(3)', '1: SystemExit: 3'),
    (
      'from r1jax.checkpoints import convert\nconvert.model_config_of("no/weights")',
      '2: weights: no file no/weights',
    ),
    (
      'from r1jax.config import base\n\n\ndef get_config():\n'
      '  config = base.get_config()\n  config.sed = 1\n  return config',
      '6: AttributeError: \'Key "sed" does not exist',
    ),
    ('seed = 1', 'bad.py: this file has no function get_config()'),
    ('def get_config():\n  return {}', 'bad.py: get_config() returns no'),
  ],
  ids=lambda value: value.split('\n')[-1][:30],
)
def test_a_config_file_that_fails_is_named_with_its_line(
  tmp_path, body, reason
):
  path = tmp_path / 'bad.py'
  path.write_text(body)
  with pytest.raises(UserError) as caught:
    main.run(['config', f'--config={path}'])
  message = str(caught.value)
  assert message.startswith(f'config: {path}:')
  assert reason in message and '\n' not in message


def test_help_and_config(capsys):
  main.run(['--help'])
  shown = capsys.readouterr().out
  for command in main.COMMANDS:
    assert f'\n  {command} ' in shown
  main.run(['config', _SMALL, '--config.rl.group_size=2'])
  assert 'group_size: 2' in capsys.readouterr().out
  main.run(['train', '--help'])
  assert '--workdir' in capsys.readouterr().out


def test_help_explains_keys_and_sections(capsys):
  main.run(['config', '--help'])
  shown = capsys.readouterr().out
  assert '--config' in shown and '\nrl (section)\n' in shown
  main.run(['config', '--help', 'rl'])
  shown = capsys.readouterr().out
  assert shown.startswith('rl (section)\n') and '\nrl.group_size (' in shown
  main.run(['config', '--help', 'rl.group_size'])
  shown = capsys.readouterr().out
  assert shown.startswith('rl.group_size (int, default 16')
  assert 'rl.temperature' not in shown
  with pytest.raises(UserError, match="mean 'rl.group_size'") as caught:
    main.run(['config', '--help', 'rl.grop_size'])
  assert len(str(caught.value)) < 100


def test_docs_writes_the_page_of_all_keys(capsys, tmp_path):
  main.run(['docs', f'--out={tmp_path}/new'])
  page = (tmp_path / 'new/config.md').read_text()
  assert page == (ROOT / 'docs/config.md').read_text()
  (tmp_path / 'file').write_text('mine')
  with pytest.raises(UserError, match='docs: cannot write'):
    main.run(['docs', f'--out={tmp_path}/file'])
  with pytest.raises(UserError, match='usage: r1jax docs'):
    main.run(['docs', 'extra'])


def test_exit_code_and_no_traceback():
  done = subprocess.run(
    [sys.executable, '-m', 'r1jax.cli.main', 'train', '--config=none.py'],
    capture_output=True,
    text=True,
    cwd=ROOT,
  )
  assert done.returncode == 2
  assert done.stderr == 'r1jax: config: no file none.py\n'


def test_a_kept_base_that_is_broken_is_named(tmp_path, monkeypatch):
  monkeypatch.setenv('R1JAX_CACHE', str(tmp_path / 'cache'))
  config = small.get_config()
  config.stages = ('pretrain',)
  config = run_config(config)
  kept = pretrain.base_file(config)
  kept.parent.mkdir(parents=True)
  kept.write_bytes(b'half')
  with pytest.raises(UserError, match=f'is broken; remove {kept} to make it'):
    stages_run.train(config, str(tmp_path / 'run'))
  assert not (tmp_path / 'run/pretrain').exists()


def _stage(*args, file='tests/configs/small_judged.py'):
  """The config and the workdir of `r1jax sample --stage=…`."""
  args = [f'--config={ROOT}/{file}', *args]
  values, holder = config_file.config_flags_of(args)
  sample.define_flags(values)
  config_file.define_stage_flag(values)
  config = config_file.load(values, holder, args)
  return config_file.select_stage(config, values), values.workdir


def test_a_stage_is_the_pipeline_s_with_its_files_and_seed():
  config, workdir = _stage(
    '--stage=reasoning', '--workdir=W', '--config.seed=3'
  )
  assert workdir == 'W/reasoning' and config.seed == 3
  assert config.rl.reward_models.safe == 'W/safe/reward_model/model.safetensors'
  with pytest.raises(
    UserError, match='reasoning.init is the output of liked; give --workdir'
  ):
    _stage('--stage=reasoning')
  with pytest.raises(UserError, match="unknown 'reason'; did you mean"):
    _stage('--stage=reason')
  with pytest.raises(UserError, match="stage: unknown 'warm'"):
    _stage('--stage=reasoning', '--workdir=W', '--config.reasoning.init=@warm')
  # Its data are another stage's, which sampling from its base does not read.
  assert _stage('--stage=sft', file='configs/pipeline_r1.py')[1] == ''


def test_version_names_the_package_and_what_it_runs_on(capsys):
  main.run(['--version'])
  assert capsys.readouterr().out == (
    f'r1jax {r1jax.__version__}, jax {jax.__version__}, '
    f'flax {flax.__version__}\n'
  )
