"""The traffic of compiled programs, counted from their text."""

import glob
from pathlib import Path
import re

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
import pytest

from r1jax.launch import hlo, traffic
from r1jax.sharding import make_mesh

_N = 8  # Devices.


def _module(run, *args, folder: Path) -> hlo.Module:
  options = {'xla_dump_to': str(folder), 'xla_dump_hlo_as_text': True}
  jax.jit(run).lower(*args).compile(compiler_options=options)
  (path,) = glob.glob(f'{folder}/*after_optimizations.txt')
  return hlo.Module(Path(path).read_text())


def _sharded(run):
  return jax.shard_map(
    run,
    mesh=make_mesh(dict(data=_N)),
    in_specs=PartitionSpec('data'),
    out_specs=PartitionSpec('data'),
    check_vma=False,
  )


@pytest.mark.parametrize(
  'kind, run, sent',
  [
    # 64 numbers a device, 4 bytes each.
    ('all-reduce', lambda x: jax.lax.psum(x, 'data'), 2 * 7 / 8 * 256),
    ('all-gather', lambda x: jax.lax.all_gather(x, 'data'), 7 * 256),
    (
      'all-to-all',
      lambda x: jax.lax.all_to_all(
        x.reshape(8, 8), 'data', 0, 0, tiled=True
      ).reshape(-1),
      7 / 8 * 256,
    ),
    (
      'collective-permute',
      lambda x: jax.lax.ppermute(
        x, 'data', [(i, (i + 1) % 8) for i in range(8)]
      ),
      256,
    ),
  ],
)
def test_a_collective_sends_its_share_of_bytes(tmp_path, kind, run, sent):
  module = _module(_sharded(run), jnp.ones(64 * _N), folder=tmp_path)
  found = traffic.count(module).sent_bytes
  assert {c.kind: size for c, size in found.items()} == {kind: sent}


def test_a_collective_in_a_scan_counts_as_often_as_it_runs(tmp_path):
  def run(x):
    return jax.lax.scan(
      lambda x, _: (jax.lax.psum(x, 'data') / 8, None), x, length=5
    )[0]

  module = _module(_sharded(run), jnp.ones(64 * _N), folder=tmp_path)
  (sent,) = traffic.count(module).sent_bytes.values()
  assert sent == 5 * 2 * 7 / 8 * 256


@pytest.mark.parametrize(
  'scope, trips, fill, times',
  [('', 3.0, 1.0, 3), ('loop_4', 3.0, 1.0, 4), ('upto_8', 3.0, 0.25, 2)],
)
def test_the_length_of_a_dynamic_loop_is_given_or_named(
  tmp_path, scope, trips, fill, times
):
  def run(x):
    with jax.named_scope(scope or 'of_data'):
      return jax.lax.while_loop(
        lambda x: x.sum() < 9.0, lambda x: jax.lax.psum(x, 'data'), x
      )

  module = _module(_sharded(run), jnp.ones(64 * _N), folder=tmp_path)
  (sent,) = traffic.count(module, trips, fill).sent_bytes.values()
  assert sent == times * 2 * 7 / 8 * 256


def test_a_slice_of_a_stack_moves_and_not_the_stack(tmp_path):
  """A scan over layers reads each layer's matrix once."""

  def run(w_LDD, x):
    return jax.lax.scan(lambda x, w: (jnp.tanh(w @ x), None), x, w_LDD)[0]

  L, D = 6, 512
  module = _module(run, jnp.ones((L, D, D)), jnp.ones((D, 4)), folder=tmp_path)
  read = traffic.count(module).hbm_bytes
  assert 4 * L * D * D <= read < 3.2 * 4 * L * D * D  # Copied out, and read.


_TEXT = """HloModule jit_f, is_scheduled=true

%fused (param_0: bf16[4,8], param_1: s32[]) -> bf16[1,8] {
  %param_0 = bf16[4,8]{1,0:T(8,128)} parameter(0)
  %param_1 = s32[]{:T(128)} parameter(1)
  %zero = s32[]{:T(128)} constant(0)
  ROOT %slice = bf16[1,8]{1,0} dynamic-slice(%param_0, %param_1, %zero), dynamic_slice_sizes={1,8}
}

%put (param_0: f32[16,4], param_1: f32[1,4], param_2: s32[]) -> f32[16,4] {
  %param_0 = f32[16,4]{1,0} parameter(0)
  %param_1 = f32[1,4]{1,0} parameter(1)
  %param_2 = s32[] parameter(2)
  %zero = s32[] constant(0)
  ROOT %update = f32[16,4]{1,0} dynamic-update-slice(%param_0, %param_1, %param_2, %zero)
}

ENTRY %main (a: bf16[4,8], i: s32[], x: f32[16,4], y: f32[1,4]) -> bf16[8,8] {
  %a = bf16[4,8]{1,0:T(8,128)} parameter(0)
  %i = s32[]{:T(128)} parameter(1)
  %x = f32[16,4]{1,0} parameter(2)
  %y = f32[1,4]{1,0:S(1)} parameter(3)
  %row = bf16[1,8]{1,0:T(8,128)S(1)} fusion(%a, %i), kind=kLoop, calls=%fused
  %changed = f32[16,4]{1,0} fusion(%x, %y, %i), kind=kLoop, calls=%put
  ROOT %g = bf16[8,8]{1,0} all-gather(%row), channel_id=1, replica_groups=[2,4]<=[2,4]T(1,0), dimensions={0}, use_global_device_ids=true
}
"""


def test_fast_memory_and_what_is_changed_in_place_do_not_count():
  moved = traffic.count(hlo.Module(_TEXT))
  row, index, update = 8 * 2, 4, 4 * 4
  of_row = row + index  # The row goes to VMEM, S(1).
  of_put = 2 * update + index  # 1 of 16 rows is written, and y is in VMEM.
  gathered = 8 * 8 * 2
  assert moved.hbm_bytes == of_row + of_put + gathered
  ((collective, sent),) = moved.sent_bytes.items()
  assert collective == traffic.Collective('all-gather', (0, 4, 1, 5))
  assert sent == 3 * row


_BETWEEN = """HloModule jit_f

ENTRY %main (a: f32[100]) -> f32[100] {
  %a = f32[100]{0} parameter(0)
  %token = token[] after-all()
  %send = (f32[100]{0}, u32[]{:S(2)}, token[]) send(%a, %token), channel_id=2, is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime",_xla_megascale_reduce_operation="SUM",_xla_megascale_target="{1,2,3,4}x{0:3}",_xla_megascale_transfer_type="ALL_REDUCE"}
  %sent = token[] send-done(%send), channel_id=2, is_host_transfer=true
  %recv = (f32[100]{0}, u32[]{:S(2)}, token[]) recv(%token), channel_id=1, is_host_transfer=true
  %got = (f32[100]{0}, token[]) recv-done(%recv), channel_id=1, is_host_transfer=true
  ROOT %b = f32[100]{0} get-tuple-element(%got), index=0
}
"""


def test_what_goes_between_slices_is_read_from_the_sends_to_their_runtime():
  """The text is an all-reduce of four slices as the compiler writes it."""
  sent = traffic.count(hlo.Module(_BETWEEN)).sent_bytes
  assert sent == {traffic.Collective('all-reduce', (), 4): 2 * 3 / 4 * 400}


def test_a_send_to_one_device_of_another_slice_is_sent_once():
  """The text is a permutation whose pairs lie in two slices."""
  text = re.sub(
    '_xla_megascale_reduce_operation.*"ALL_REDUCE"',
    '_xla_megascale_target={{100000->200000},{200000->100000}},'
    '_xla_megascale_transfer_type="ONE_TO_ONE"',
    _BETWEEN,
  )
  sent = traffic.count(hlo.Module(text)).sent_bytes
  assert sent == {traffic.Collective('collective-permute', (), 2): 400}


def test_a_send_in_an_unknown_form_is_refused():
  text = _BETWEEN.replace('_xla_megascale_target', 'other')
  with pytest.raises(ValueError, match='a send to slices in an unknown form'):
    traffic.count(hlo.Module(text))


@pytest.mark.parametrize(
  'text, group',
  [
    ('{{0,2},{1,3}}', (0, 2)),
    ('[2,2]<=[4]', (0, 1)),
    ('[2,2]<=[2,2]T(1,0)', (0, 2)),
    ("mesh['x'=2,'y'=3] {'y'}", (0, 1, 2)),
    ("mesh['x'=2,'y'=3] {'x'}", (0, 3)),
    ("mesh['x'=4,'y'=2], device_ids=([2,4]T(1,0)) {'y'}", (0, 4)),
  ],
)
def test_groups_of_devices_are_read_in_all_forms(text, group):
  assert traffic.replica_groups(text) == group


def test_an_unknown_form_of_groups_is_an_error():
  with pytest.raises(ValueError, match='unknown form'):
    traffic.replica_groups('everyone')
