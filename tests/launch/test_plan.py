"""Meshes that are proposed for a config and so many chips."""

import dataclasses
import math

import pytest

from r1jax import chips
from r1jax.cli import main
from r1jax.errors import UserError
from r1jax.launch import info, plan
from r1jax.launch.roofline import Lengths, lengths_of
from tests.configs import small
from tests.conftest import run_config

_V5E, _LENGTHS = chips.CHIPS['v5e'], Lengths(16, 8)


def _config(**changes):
  config = small.get_config()
  config.rl.prompts_per_step = 8
  config.model.update(changes)
  return run_config(config)


@pytest.mark.parametrize('devices, count', [(1, 1), (8, 35), (12, 75)])
def test_every_split_of_the_devices_comes_once(devices, count):
  found = [tuple(mesh.values()) for mesh in plan.meshes(devices)]
  assert len(found) == len(set(found)) == count
  assert all(math.prod(sizes) == devices for sizes in found)


def test_plans_fit_divide_and_come_in_order():
  config = _config()
  found = plan.propose(config, _V5E, 8, _LENGTHS, 100)
  assert len(found) > 3
  seconds = [each.seconds for each in found]
  assert seconds == sorted(seconds) and seconds[0] > 0
  heads, experts = (
    config.model.num_attention_heads,
    config.model.n_routed_experts,
  )
  for each in found:
    sizes = each.mesh
    assert math.prod(sizes.values()) == 8
    assert heads % (sizes['tensor'] * sizes['sequence']) == 0
    assert experts % (sizes['tensor'] * sizes['expert']) == 0
    assert 0 < each.update_bytes < _V5E.hbm_bytes
    # Weights, moments and reference lie beside what sampling needs.
    layout = plan.abstract_layout(sizes)
    held = info.training_bytes(config, layout)
    kept = held['in all'] - held['gradients, float32']
    assert each.sampling_bytes > kept


def test_a_dense_model_gets_no_expert_axis():
  config = _config(
    first_k_dense_replace=2, n_routed_experts=0, num_experts_per_tok=0,
    n_group=0, topk_group=0, n_shared_experts=0, moe_intermediate_size=0,
  )  # fmt: skip
  for each in plan.propose(config, _V5E, 8, _LENGTHS, 100):
    assert each.mesh['expert'] == 1


def test_the_hbm_of_a_chip_is_what_a_plan_may_use():
  tiny = dataclasses.replace(_V5E, hbm_bytes=100_000)
  with pytest.raises(UserError, match='none of .* meshes of 8 devices fits'):
    plan.propose(_config(), tiny, 8, _LENGTHS, 5)


def test_more_bandwidth_makes_decoding_faster_and_not_updates():
  config = _config()
  fast = dataclasses.replace(_V5E, hbm_bytes_per_sec=2 * _V5E.hbm_bytes_per_sec)
  one, two = (
    {tuple(x.mesh.values()): x for x in plan.propose(*args, _LENGTHS, 100)}
    for args in ((config, _V5E, 4), (config, fast, 4))
  )
  for mesh, each in one.items():
    assert two[mesh].decode.hbm == pytest.approx(each.decode.hbm / 2)
    assert two[mesh].update.compute == each.update.compute


@pytest.mark.parametrize(
  'args, message',
  [
    (['--chips=8', '--chip=v9'], "'v9' is none of v4, v5e"),
    ([], '--chips: say how many'),
    (['--chips=8', '--completion_tokens=1e9'], 'exceed data.max_prompt_tokens'),
  ],
)
def test_a_wrong_question_is_named(args, message):
  with pytest.raises(UserError, match=message):
    main.run(['plan', '--config=tests/configs/small.py', *args])


def test_sampling_by_host_is_not_planned():
  with pytest.raises(UserError, match="rollout.scope = 'host' is not planned"):
    main.run(
      [
        'plan',
        '--config=tests/configs/small.py',
        '--config.rollout.scope=host',
        '--chips=8',
      ]
    )


def test_a_stage_that_is_not_rl_is_refused():
  with pytest.raises(UserError, match="the last stage is 'sft'"):
    main.run(
      [
        'plan',
        '--config=tests/configs/small.py',
        "--config.stages=('sft',)",
        '--chips=8',
      ]
    )


def test_the_command_prints_a_mesh_to_copy(capsys):
  main.run(
    [
      'plan',
      '--config=tests/configs/small.py',
      '--config.rl.prompts_per_step=8',
      '--chips=8',
      '--chip=v5e',
    ]
  )
  printed = capsys.readouterr().out
  assert printed.startswith('8 v5e chips, 17.2 GB a device; ')
  assert printed.splitlines()[-1].startswith('config.mesh.update(data=')


def test_mean_lengths_are_the_longest_by_default():
  config = _config()
  longest = config.data.max_prompt_tokens, config.rl.max_new_tokens
  assert dataclasses.astuple(lengths_of(config, None, None)) == longest
  assert lengths_of(config, 3, 2) == Lengths(3, 2)
