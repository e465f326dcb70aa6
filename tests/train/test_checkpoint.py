"""Checkpoints that broke: none is loaded, and the last good one is found."""

import json
import logging
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax import files
from r1jax.errors import UserError
from r1jax.train import manifest
from r1jax.train.checkpoint import BROKEN, Checkpointer
from r1jax.train.retention import Retention

_RUN = 'digest of a config'


def _state(step: int):
  return {
    'a': jnp.arange(300.0) + step,
    'b': {'c': jnp.full((3, 5), step, jnp.bfloat16), 'n': jnp.int32(step)},
  }


def _target(**changes):
  device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device),
    _state(0) | changes,
  )


def _open(place, limit=3, seed=0, run=_RUN, **options):
  retention = options.pop('retention', Retention(limit))
  return Checkpointer(place / 'checkpoints', retention, seed, (run,), **options)


def _save(place, *steps, values=None, **options):
  with _open(place, **options) as checkpoints:
    checkpoints.restore(_target())
    for step in steps:
      value = (values or {}).get(step)
      checkpoints.save(step, _state(step), {'data': {'at': step}}, value)


def _assert_restores(place, step: int, **options):
  with _open(place, **options) as checkpoints:
    found, state, host = checkpoints.restore(_target())
  assert found == step and host['data'] == {'at': step}
  jax.tree.map(np.testing.assert_array_equal, state, _state(step))


def _steps(place) -> list[int]:
  names = [path.name for path in (place / 'checkpoints').iterdir()]
  return sorted(map(int, names))


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
  """A folder with the checkpoints of steps 2 and 4."""
  place = tmp_path_factory.mktemp('saved')
  _save(place, 2, 4)
  return place


@pytest.fixture
def copy(saved, tmp_path):
  shutil.copytree(saved, tmp_path / 'run')
  return tmp_path / 'run'


def _flip(path):
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 1
  path.write_bytes(content)


def _truncate(path):
  path.write_bytes(path.read_bytes()[:-2])


def _all_files(place):
  root = place / 'checkpoints/4'
  return [path for path in sorted(root.rglob('*')) if path.is_file()]


_DAMAGES = {
  'flipped': (_flip, 'has other bytes than were written'),
  'cut off': (_truncate, 'is cut off'),
  'deleted': (lambda path: path.unlink(), 'is missing'),
}


@pytest.mark.parametrize('damage', _DAMAGES)
def test_no_broken_file_is_loaded_and_the_last_good_step_is_found(
  saved, tmp_path, caplog, damage
):
  """Each file but Orbax's two marks, which no array depends on."""
  harm, text = _DAMAGES[damage]
  root = saved / 'checkpoints/4'
  names = [str(path.relative_to(root)) for path in _all_files(saved)]
  assert any(name.startswith('state/d/') for name in names)
  for i, name in enumerate(names):
    place = tmp_path / str(i)
    shutil.copytree(saved, place)
    harm(place / 'checkpoints/4' / name)
    caplog.clear()
    if name in ('commit_success.txt', '_CHECKPOINT_METADATA'):
      with _open(place) as checkpoints:
        step, state, _ = checkpoints.restore(_target())
      jax.tree.map(np.testing.assert_array_equal, state, _state(step))
      continue
    with caplog.at_level(logging.WARNING):
      _assert_restores(place, 2)
    (record,) = caplog.records
    message = record.getMessage()
    assert '\n' not in message and 'step 4 in ' in message
    assert 'goes on from step 2' in message
    if name != manifest.FILE:
      assert f'{name} {text}' in message
    assert _steps(place) == [2] and (place / BROKEN / '4').is_dir()


def test_the_step_of_a_broken_checkpoint_is_saved_again(copy):
  for _ in range(2):  # It may break twice.
    _flip(copy / 'checkpoints/4/host/metadata')
    _save(copy, 4)
    _assert_restores(copy, 4)
  assert {path.name for path in (copy / BROKEN).iterdir()} == {'4', '4_2'}


def test_a_reader_leaves_a_broken_checkpoint_where_it_is(copy, caplog):
  _flip(copy / 'checkpoints/4/host/metadata')
  with caplog.at_level(logging.WARNING):
    _assert_restores(copy, 2, read_only=True)
  assert 'it stays there' in caplog.text
  assert _steps(copy) == [2, 4] and not (copy / BROKEN).exists()


def test_where_none_is_whole_each_is_named_and_nothing_moves(copy):
  _flip(copy / 'checkpoints/4/host/metadata')
  _truncate(copy / 'checkpoints/2/state/_METADATA')
  with pytest.raises(UserError) as caught, _open(copy) as checkpoints:
    checkpoints.restore(_target())
  message = str(caught.value)
  assert '\n' not in message and 'no checkpoint in ' in message
  assert 'step 4: host/metadata has other bytes than were written' in message
  assert 'step 2: state/_METADATA is cut off' in message
  assert _steps(copy) == [2, 4]


def test_arrays_that_are_wrong_in_whole_files_are_named(copy, caplog):
  """What went wrong before the files were hashed: their hashes are right."""
  other = copy.parent / 'other'
  with _open(other) as checkpoints:
    wrong = _state(4)
    wrong['b']['c'] = wrong['b']['c'].at[2, 2].add(0.5)
    checkpoints.save(4, wrong, {'data': {'at': 4}})
  shutil.rmtree(copy / 'checkpoints/4/state')
  shutil.copytree(other / 'checkpoints/4/state', copy / 'checkpoints/4/state')
  (copy / 'checkpoints/4' / manifest.FILE).unlink()
  manifest.write(copy / 'checkpoints/4')
  with caplog.at_level(logging.WARNING):
    _assert_restores(copy, 2)
  assert 'b/c is not what was saved (checksum ' in caplog.text
  assert 'a is not' not in caplog.text


@pytest.mark.parametrize(
  'target, text',
  [
    (
      _target(a=jax.ShapeDtypeStruct((300,), jnp.bfloat16)),
      'a has dtype float32 there and bfloat16 here',
    ),
    (
      _target(a=jax.ShapeDtypeStruct((301,), jnp.float32)),
      r'a has shape \[300\] there and \[301\] here',
    ),
    (_target(d=jax.ShapeDtypeStruct((1,), jnp.float32)), 'd is missing'),
    ({'a': _target()['a']}, 'b/c is unknown'),
  ],
)
def test_another_state_is_refused_and_not_cast(copy, target, text):
  with pytest.raises(UserError, match=text), _open(copy) as checkpoints:
    checkpoints.restore(target)
  assert _steps(copy) == [2, 4]


def test_checkpoints_of_another_run_are_refused(copy):
  with pytest.raises(UserError, match='has seed 0, the config 1'):
    _assert_restores(copy, 4, seed=1)
  with pytest.raises(UserError, match='by a run with another config'):
    _assert_restores(copy, 4, run='another')


def test_a_file_that_may_not_be_read_is_no_broken_one(copy, monkeypatch):
  def refuse(path):
    raise PermissionError(13, 'Permission denied', str(path))

  monkeypatch.setattr(files, 'digest', refuse)
  with pytest.raises(UserError, match='cannot read .* Permission denied'):
    _assert_restores(copy, 4)
  assert _steps(copy) == [2, 4]


def test_a_checkpoint_of_an_older_version_is_used_with_a_warning(copy, caplog):
  root = copy / 'checkpoints/4'
  (root / manifest.FILE).unlink()
  host = json.loads((root / 'host/metadata').read_text())
  del host['leaves'], host['config_sha256']
  (root / 'host/metadata').write_text(json.dumps(host))
  with caplog.at_level(logging.WARNING):
    _assert_restores(copy, 4)
  assert 'kept no checksums' in caplog.text


def test_the_list_has_every_file_that_an_array_needs(saved):
  root = saved / 'checkpoints/4'
  listed = json.loads((root / manifest.FILE).read_text())
  names = {str(path.relative_to(root)) for path in _all_files(saved)}
  unlisted = {manifest.FILE, 'commit_success.txt', '_CHECKPOINT_METADATA'}
  assert listed.keys() == names - unlisted
  assert manifest.problems(root) == []


def test_processes_share_the_files_that_they_check(copy):
  root = copy / 'checkpoints/4'
  listed = json.loads((root / manifest.FILE).read_text())
  for name in listed:
    _flip(root / name)
  found = [manifest.problems(root, share, 3) for share in range(3)]
  assert all(found)
  assert sorted(sum(found, [])) == sorted(manifest.problems(root))


def test_a_save_that_was_cut_off_is_cleaned_up(copy):
  left = copy / 'checkpoints/5.orbax-checkpoint-tmp'
  shutil.copytree(copy / 'checkpoints/4', left)
  _save(copy, 6)
  assert not left.exists() and _steps(copy) == [2, 4, 6]


def test_a_restore_onto_another_mesh_has_the_same_checksums(copy):
  mesh = jax.make_mesh((4,), ('x',))
  target = _target()
  sharded = jax.NamedSharding(mesh, jax.P('x'))
  target['a'] = jax.ShapeDtypeStruct((300,), jnp.float32, sharding=sharded)
  with _open(copy) as checkpoints:
    step, state, _ = checkpoints.restore(target)
  assert step == 4 and len(state['a'].sharding.device_set) == 4


_VALUES = {1: 0.2, 2: 0.9, 3: 0.1, 4: float('nan'), 5: 0.3, 6: 0.9, 7: 0.2}


@pytest.mark.parametrize(
  'retention, kept',
  [
    (Retention(2), [6, 7]),
    (Retention(1, keep_period=3), [3, 6, 7]),
    (Retention(1, metric='eval/x'), [6, 7]),  # Of equal ones, the last.
    (Retention(1, metric='eval/x', lower_is_better=True), [3, 7]),
    (Retention(1, 5, 'eval/x', True), [3, 5, 7]),
  ],
)
@pytest.mark.parametrize('resumed', [False, True])
def test_the_last_the_best_and_every_so_many_are_kept(
  tmp_path, retention, kept, resumed
):
  """A run that goes on knows the metrics of the checkpoints from before."""
  parts = [[1, 2, 3], [4, 5], [6, 7]] if resumed else [range(1, 8)]
  for steps in parts:
    _save(tmp_path, *steps, values=_VALUES, retention=retention)
  assert _steps(tmp_path) == kept
  best = {False: (6, 0.9), True: (3, 0.1)}[retention.lower_is_better]
  with _open(tmp_path, retention=retention) as checkpoints:
    checkpoints.restore(_target())
    assert checkpoints.best() == (best if retention.metric else None)
