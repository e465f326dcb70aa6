"""How a process finds its place among those of a run."""

from jax._src import clusters
import pytest

from r1jax.errors import UserError
from r1jax.launch import cluster

_TOLD = dict(coordinator='a:1', num_processes='4', process_id='2')


def test_without_a_cluster_a_process_is_alone():
  assert cluster.place({}, {}, on_tpu=False) is None
  one = _TOLD | dict(num_processes='1', process_id='0')
  assert cluster.place(one, {}, on_tpu=False) is None
  alone = {'num_processes': '1'}
  assert cluster.place(alone, {'SLURM_STEP_NUM_TASKS': '2'}, True) is None
  batch = {'SLURM_NTASKS': '8', 'SLURM_STEP_NUM_TASKS': '1'}
  assert cluster.place({}, batch, on_tpu=False) is None
  assert cluster.place({}, {'TPU_WORKER_HOSTNAMES': 'a'}, on_tpu=False) is None


def test_flags_come_before_the_environment():
  env = {
    'JAX_COORDINATOR_ADDRESS': 'b:2',
    'JAX_NUM_PROCESSES': '8',
    'JAX_PROCESS_ID': '0',
    'SLURM_STEP_NUM_TASKS': '3',
  }
  found = cluster.place(_TOLD, env, on_tpu=True)
  assert found == cluster.Place('flags', 'a:1', 4, 2)
  found = cluster.place({}, env, on_tpu=True)
  assert found == cluster.Place('environment', 'b:2', 8, 0)


@pytest.mark.parametrize(
  'env, on_tpu, source, method',
  [
    ({'SLURM_STEP_NUM_TASKS': '2'}, False, 'Slurm', 'slurm'),
    ({'OMPI_COMM_WORLD_SIZE': '2'}, False, 'Open MPI', 'ompi'),
    ({'TPU_WORKER_HOSTNAMES': 'a,b'}, True, 'GKE', 'gketpu'),
    (
      {'TPU_WORKER_HOSTNAMES': 'a', 'MEGASCALE_NUM_SLICES': '2'},
      True,
      'GKE',
      'gketpu',
    ),
    ({}, True, 'the metadata of the TPU slice', 'gcetpu'),
  ],
)
def test_what_jax_can_ask_is_left_to_it(env, on_tpu, source, method):
  found = cluster.place({}, env, on_tpu)
  assert found == cluster.Place(source, method=method)


def test_jax_knows_the_methods():
  known = {each.name for each in clusters.ClusterEnv._cluster_types}
  assert {'slurm', 'ompi', 'gketpu', 'gcetpu'} <= known


@pytest.mark.parametrize(
  'changes, error',
  [
    (
      dict(process_id=None),
      'flags give .*num_processes = 4, but no process_id',
    ),
    (dict(process_id='4'), 'process_id = 4 must lie within 0 and .* = 3'),
    (dict(num_processes='two'), "'two'"),
    (dict(coordinator='a'), 'must be HOST:PORT'),
  ],
)
def test_flags_that_do_not_fit_are_named(changes, error):
  given = {k: v for k, v in (_TOLD | changes).items() if v is not None}
  with pytest.raises(UserError, match=error):
    cluster.place(given, {}, on_tpu=False)


def test_flags_are_taken_out_of_the_arguments():
  args = ['--config=x', '--coordinator=a:1', '--num_processes', '2', '-h']
  others, given = cluster.taken_flags(args)
  assert others == ['--config=x', '-h']
  assert given == {'coordinator': 'a:1', 'num_processes': '2'}
  with pytest.raises(UserError, match='process_id needs a value'):
    cluster.taken_flags(['--process_id'])
