"""Programs compiled for an absent slice, and what is printed of them."""

import contextlib
import json
import os
from pathlib import Path
import re
import subprocess
import sys

import jax
import pytest

from r1jax import chips
from r1jax.cli import main
from r1jax.config import algorithms
from r1jax.errors import UserError
from r1jax.launch import aot, aot_report, topology
from r1jax.model import blocked
from r1jax.runs import stage_list
from r1jax.sharding import Layout, make_mesh
from r1jax.stages import memory
from r1jax.stages.stage import ProgramKind
from tests.configs import small
from tests.conftest import ROOT, one_device, run_config


def _small(**changes):
  config = small.get_config()
  config.mesh.update(data=2, fsdp=2, tensor=1, expert=2)
  config.rl.prompts_per_step = 8
  # One row a sample.
  config.rl.row_tokens = (
    config.data.max_prompt_tokens + config.rl.max_new_tokens
  )
  config.model.update(changes)
  return config


def _compiled(config):
  layout = Layout(make_mesh(config.mesh, jax.devices()))
  return [
    aot.compile_program(program, chips.CHIPS['v5p'], 'these', cache=False)
    for program in stage_list.programs(run_config(config), layout)
    if program.kind is ProgramKind.UPDATE
  ]


@pytest.mark.slow
def test_an_update_is_compiled_and_measured_without_its_arrays():
  """Experts on a mesh: what a device is given, and how much of it fits."""
  config = _small()
  (found,) = _compiled(config)
  c, T = config.rl, config.data.max_prompt_tokens + config.rl.max_new_tokens
  assert found.tokens == 8 * c.group_size // c.num_minibatches * T
  model = run_config(config).model
  held = memory.parameters_per_device(model, Layout(make_mesh(config.mesh)))
  state_bytes = 3 * 4 * held  # Weights and two moments.
  batch_bytes = 40 * found.tokens // 8  # Nine arrays of 4 bytes, one of 1.
  assert state_bytes < found.arguments_bytes < state_bytes + batch_bytes
  assert found.peak_bytes > found.arguments_bytes
  assert found.compile_secs > 0 and found.host_bytes > 1e8


def test_flops_of_a_dense_update_are_those_of_paper_and_pencil():
  """Every product by hand; attention's core is in it, there is no kernel."""
  config = _small(first_k_dense_replace=2)
  (found,) = _compiled(config)
  m, T = config.model, config.rl.row_tokens
  rows, N = found.tokens // T, m.num_attention_heads
  J, U = m.qk_nope_head_dim + m.qk_rope_head_dim, m.v_head_dim
  layer = (
    m.hidden_size * (m.q_lora_rank + m.kv_lora_rank + m.qk_rope_head_dim)
    + N
    * (
      m.q_lora_rank * J
      + m.kv_lora_rank * (m.qk_nope_head_dim + U)
      + U * m.hidden_size
    )
    + 3 * m.hidden_size * m.intermediate_size
  )
  head = m.hidden_size * m.vocab_size
  products = 6 * rows * T * (m.num_hidden_layers * layer + head)
  # One block of the blocked kernel: two products, and five for the gradient.
  t = blocked.block_tokens(T)
  assert T <= t < T + 8
  core = (
    2 * rows * m.num_hidden_layers * N * t * t * ((J + U) + (3 * J + 2 * U))
  )
  assert found.cost.flops == dict(dense=products + core, grouped=0, kernel=0)
  norms = m.hidden_size + m.num_hidden_layers * (
    2 * m.hidden_size + m.q_lora_rank + m.kv_lora_rank
  )  # N counts them too.
  assert found.model_flops == 6 * found.tokens * (
    m.num_hidden_layers * layer + head + norms
  )
  pairs = rows * sum(t + 1 for t in range(T))
  assert (
    found.attention_flops == 3 * 2 * m.num_hidden_layers * N * (J + U) * pairs
  )


# As the compiler writes it; ours are the rows, not the two lines above them.
_REPORT = """Memory Space: default (color=0)
Total bytes: 61462150656 (57.24GiB)
  cumulative_size;       size;       offset; used_by_n_values; shapes_list
  ------------------------------------------------------------
   19.07GiB( 66%);   19.07GiB;            0;               12; f32[128,40000]
   23.84GiB( 83%);    4.77GiB;  20480000000;                3; 2×bf16[7,9]
"""


def _aot(capsys, monkeypatch, *args):
  """The command with these devices as the slice: exit code and output."""
  monkeypatch.setattr(topology, 'devices', lambda name, slices: jax.devices())
  try:
    main.run(
      [
        'aot',
        f'--config={ROOT}/tests/configs/small.py',
        '--topology=v5p:2x2x2',
        '--config.rl.prompts_per_step=8',
        *args,
      ]
    )
  except SystemExit as stop:
    return stop.code, capsys.readouterr().out
  return 0, capsys.readouterr().out


@pytest.mark.slow
def test_what_does_not_fit_exits_with_3_and_names_the_buffers(
  capsys, monkeypatch
):
  def fail(self, compiler_options):
    folder = Path(compiler_options['xla_dump_to'])
    (folder / 'module_0.jit_step.x.memory-usage-report.txt').write_text(_REPORT)
    raise jax.errors.JaxRuntimeError(
      'RESOURCE_EXHAUSTED: E1001:\nRan out of vmem for %splash.\n' + 'x' * 999
    )

  monkeypatch.setattr(jax.stages.Lowered, 'compile', fail)
  code, printed = _aot(capsys, monkeypatch)
  assert code == aot_report.DOES_NOT_FIT == 3
  reason, *rest = printed.splitlines()
  assert reason.startswith(
    'v5p:2x2x2: weights to sample with: RESOURCE_EXHAUSTED: E1001: Ran out of vmem for %splash. xx'
  )
  assert len(reason) < 300
  assert rest == [
    'the largest buffers are',
    '  19.07GiB  f32[128,40000]',
    '   4.77GiB  2×bf16[7,9]',
  ]


def test_another_failure_of_the_compiler_is_not_called_a_lack_of_memory(
  capsys, monkeypatch
):
  def fail(self, compiler_options):
    raise jax.errors.JaxRuntimeError('INTERNAL: no idea')

  monkeypatch.setattr(jax.stages.Lowered, 'compile', fail)
  with pytest.raises(jax.errors.JaxRuntimeError, match='no idea'):
    _aot(capsys, monkeypatch)


def _table(printed: str) -> dict[str, list[float]]:
  """Numbers by row: {'peak': [4.55, 102.0], ...}."""
  number = r'(?<![\w.])\d[\d,]*(?:\.\d+)?(?:e[+-]\d+)?(?![\w·])'
  return {
    line[:16].strip(): [
      float(x.replace(',', '')) for x in re.findall(number, line[16:])
    ]
    for line in printed.splitlines()[1:]
  }


@pytest.mark.parametrize('kernel', [0.0, 8e15])
def test_the_table_sets_each_flop_count_beside_its_yardstick(
  capsys, monkeypatch, kernel
):
  cost = aot.Cost(
    flops=dict(dense=1e16, grouped=5e15, kernel=kernel),
    hbm_bytes=3e12,
    ici_bytes=6e9,
    dcn_bytes=0.0,
    ici_secs=0.01,
    dcn_secs=0.0,
  )

  def compiled(program, chip, place, cache):
    assert (chip.name, place, cache) == ('v5p', 'v5p:2x2x2', True)
    return aot.Compiled(
      label=program.label,
      kind=program.kind,
      tokens=4_194_304,
      row_tokens=1024,
      microbatches=1,
      beside={'reference policy': 10**9},
      devices=8,
      passes=3,
      arguments_bytes=2 * 10**9,
      temporaries_bytes=5 * 10**9,
      peak_bytes=6 * 10**9,
      cost=cost,
      fixed=cost,
      collectives=[('all-gather', 8, 'ici', 6e9)],
      model_flops=1e16,
      attention_flops=2e15,
      compile_secs=3.0,
      host_bytes=10**9,
    )

  monkeypatch.setattr(aot, 'compile_program', compiled)
  code, printed = _aot(capsys, monkeypatch, '--programs=update')
  rows = _table(printed)
  assert code == 0
  assert printed.startswith(
    'v5p:2x2x2: 8 devices; GRPO update: 4,194,304 tokens\n'
  )
  assert rows['arguments'] == [2] and rows['temporaries'] == [5]
  assert rows['peak'] == [6, 102.0]
  assert rows['together'] == [7, 1]
  assert rows['matmul FLOPs'] == [1.5e16, 1.5, 1e16]
  assert rows['HBM traffic'] == [3000] and rows['ICI'] == [6, 8]
  # 1.5e16 FLOPs and half of a kernel at 459e12 a second and chip, 3e12 bytes at
  # 2765e9.
  compute = round((1.5e16 + kernel / 2) / 8 / 459e12 * 1e3)
  assert rows['at least'] == [compute, compute, 1085, 10]
  if kernel:
    assert rows['attention'] == [8e15, 4, 3, 2e15]
    assert 'not among them' in printed
  else:
    assert rows['attention'] == [3, 2e15]
    assert 'among them: it runs in no kernels' in printed
  assert max(map(len, printed.splitlines())) <= 80


@pytest.mark.slow
@pytest.mark.parametrize(
  'topology,vocab_size,code,parts',
  [
    ('v5p:2x2x1', 1024, 0, ['v5p:2x2x1: 4 devices', 'in kernels']),
    (
      'v5e:2x2',
      40_000_000,
      aot_report.DOES_NOT_FIT,
      ['Ran out of memory on HBM', 'GiB  ', ',40000000]'],
    ),
  ],
)
def test_the_tpu_compiler_says_whether_it_fits(
  topology, vocab_size, code, parts
):
  """In a process of its own, whose environment asks for no TPU."""
  pytest.importorskip('libtpu')
  env = dict(
    os.environ,
    JAX_PLATFORMS='cpu',
    XLA_FLAGS='',
    TPU_SKIP_MDS_QUERY='1',
    ALLOW_MULTIPLE_LIBTPU_LOAD='1',
    JAX_COMPILATION_CACHE_DIR=jax.config.jax_compilation_cache_dir,
    JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS='0.5',
  )
  done = subprocess.run(
    [
      sys.executable,
      '-m',
      'r1jax.cli.main',
      'aot',
      '--config=tests/configs/small_tpu.py',
      f'--topology={topology}',
      f'--config.model.vocab_size={vocab_size}',
    ],
    env=env,
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=300,
  )
  assert done.returncode == code, done.stderr
  for part in parts:
    assert part in done.stdout
  if not code:
    rows = _table(done.stdout)
    assert 1.1 < rows['matmul FLOPs'][1] < 1.6
    assert rows['attention'][0] > rows['attention'][3]


@pytest.mark.parametrize('name', ['v9:2x2', 'v5p', 'v5p:8', 'v5p:8x8x'])
def test_a_wrong_topology_is_named(name):
  with pytest.raises(UserError, match='v5p:8x8x16'):
    topology.devices(name)


def test_without_the_compiler_the_fix_is_named():
  try:
    import libtpu  # noqa: F401
  except ImportError:
    with pytest.raises(UserError, match=r"pip install -e '\.\[tpu\]'"):
      main.run(['aot', '--config=r1_zero_671b', '--topology=v5p:2x2x1'])
  else:
    pytest.skip('libtpu is installed here')


def _stage(name: str, **changes):
  config = _small(scalar_head=name == 'reward_model')
  config.stages = (name,)
  config[name].update(
    dict(batch_size=8, max_tokens=128, row_tokens=256) | changes
  )
  return config


def _ppo(**changes):
  config = _small(scalar_head=changes.get('critic') == 'shared')
  config.rl.update(algorithms.ppo())
  config.rl.ppo.update(changes)
  return config


@pytest.mark.slow
@pytest.mark.parametrize(
  'config,kinds,tokens',
  [
    (_stage('reward_model'), ['reward model'], 16 * 128),
    (
      _stage('reward_model', kind='safe', row_tokens=128),
      ['reward model'],
      8 * 128,
    ),
    (_stage('dpo', group_robust=True), ['DPO'], 16 * 128),
    (_ppo(critic='separate'), ['PPO policy', 'PPO critic'], None),
    (_ppo(critic='shared'), ['PPO policy'], None),
  ],
  ids=['pairs', 'labels', 'robust dpo', 'ppo', 'ppo, shared'],
)
def test_other_stages_are_compiled_too(
  capsys, monkeypatch, config, kinds, tokens
):
  """What the command prints of each program, on these devices."""
  monkeypatch.setattr(topology, 'devices', lambda name, slices: jax.devices())
  request = aot_report.Request('v5p:2x2x2', kinds=('update',), cache=False)
  assert aot_report.show(run_config(config), request) == 0
  printed = capsys.readouterr().out
  found = re.findall(r'devices; (.*) update: ([\d,]+) tokens', printed)
  assert [kind for kind, _ in found] == kinds
  for _, count in found:
    assert tokens in (None, int(count.replace(',', '')))
  for row in re.findall(r'= ([\d.]+) × 6·N', printed):
    assert 0.5 < float(row) < 8  # A reference and small heads, at most.


@pytest.mark.slow
def test_all_programs_of_a_step_are_compiled_once(
  capsys, monkeypatch, tmp_path
):
  """PPO with a separate critic has one of each kind, and a second call none."""
  monkeypatch.setattr(topology, 'devices', lambda name, slices: jax.devices())
  monkeypatch.setenv('R1JAX_CACHE', str(tmp_path))
  config = _ppo(critic='separate')
  config.rl.kl_coef = 0.1
  config = run_config(config)
  request = aot_report.Request('v5p:2x2x2', json=tmp_path / 'step.json')
  assert aot_report.show(config, request) == 0
  first = capsys.readouterr().out
  labels = re.findall(r'^v5p:2x2x2: 8 devices; ([^:,]+)', first, re.M)
  assert labels == [
    'weights to sample with',
    'prefill',
    'decode',
    'log-probs of a policy',
    'values',
    'PPO policy update',
    'PPO critic update',
  ]
  found = json.loads((tmp_path / 'step.json').read_text())
  for program in found['programs']:
    assert program['together_bytes'] > program['peak_bytes'] > 0
  calls = {share['program']: share['calls'] for share in found['step']}
  c = config.rl
  assert calls['PPO policy update'] == c.num_minibatches
  samples = c.prompts_per_step * c.oversample * c.group_size
  decoded = next(p for p in found['programs'] if p['kind'] == 'decode')
  assert next(v for k, v in calls.items() if k.startswith('decode')) == (
    samples * c.max_new_tokens / decoded['tokens']
  )
  monkeypatch.setattr(aot, '_compile', None)  # It is not called again.
  assert aot_report.show(config, request) == 0
  assert capsys.readouterr().out == first


def test_a_wrong_question_costs_no_compile(monkeypatch, tmp_path):
  monkeypatch.setattr(aot, 'compile_program', None)
  config = run_config(_small())
  for changes, message in (
    (dict(topology='v4:2x2x2', slices=2), 'between slices of v4'),
    (dict(completion_tokens=1e6), 'exceed data.max_prompt_tokens'),
    (dict(json=tmp_path / 'none' / 'x.json'), 'no folder'),
  ):
    asked = dict(topology='v5p:2x2x2') | changes
    with pytest.raises(UserError, match=message):
      aot_report.show(config, aot_report.Request(**asked))


def test_what_has_no_update_is_refused():
  config = _small()
  config.stages = ('rejection_sampling',)
  with pytest.raises(
    UserError, match="the stage 'rejection_sampling' trains nothing"
  ):
    stage_list.updates(run_config(config), one_device())
  with pytest.raises(UserError, match="critic = 'shared' needs model.scalar"):
    config = _ppo(critic='shared')
    config.model.scalar_head = False
    stage_list.updates(run_config(config), one_device())


_COMPLAINT = (
  'Failed to find host bounds for accelerator type: WARNING: could not\n'
  'WARNING: Logging before InitGoogle() is written to STDERR\n'
  'E0000 00:00:1795960437.457616   29141 common_lib.cc:906] INVALID_ARGUMENT: '
  'Error: unexpected worker hostname\n'
  '=== Source Location Trace: === \n'
  'learning/45eac/tfrc/runtime/libtpu_init_utils.cc:370\n'
)


@pytest.mark.parametrize(
  'error, shown',
  [
    (None, ''),
    (aot.DoesNotFit('too large', []), ''),
    (UserError('aot: no such slice'), ''),
    (RuntimeError('a fault of the compiler'), _COMPLAINT),
  ],
)
def test_what_libtpu_logs_of_an_absent_tpu_is_not_shown(capfd, error, shown):
  with contextlib.suppress(aot.DoesNotFit, UserError, RuntimeError):
    with topology.quiet_compiler(aot.DoesNotFit):
      os.write(2, _COMPLAINT.encode())
      print('a warning of a library', file=sys.stderr)
      if error:
        raise error
  print('after', file=sys.stderr)
  assert capfd.readouterr().err == (
    'a warning of a library\n' + shown + 'after\n'
  )
