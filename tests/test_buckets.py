"""Copies of buckets on this host, against a stand-in of Google Cloud Storage."""

import os

import pytest

from r1jax import buckets
from r1jax.data import readers
from r1jax.errors import UserError
from r1jax.runs import workdir
from tests import fake_gcs


@pytest.fixture
def cache(tmp_path, monkeypatch):
  monkeypatch.setenv('R1JAX_CACHE', str(tmp_path / 'cache'))
  return tmp_path / 'cache'


@pytest.fixture
def bucket(cache, monkeypatch):
  """The objects of gs://bucket by name."""
  gcsfs = pytest.importorskip('gcsfs')
  with fake_gcs.serving('bucket', 'locked') as server:
    for name, value in server.environment().items():
      monkeypatch.setenv(name, value)
    server.read_only.add('locked')
    gcsfs.GCSFileSystem.clear_instance_cache()
    buckets._filesystem.cache_clear()
    # An error that the stand-in gives is not tried again for half a minute.
    monkeypatch.setattr(gcsfs.GCSFileSystem, 'retries', 1)
    yield _Objects(server)
  buckets._filesystem.cache_clear()


class _Objects:
  def __init__(self, server: fake_gcs.Server):
    self.all = server.buckets['bucket']

  def put(self, name: str, text: str):
    self.all[name] = fake_gcs.Object('bucket', name, text.encode())

  def texts(self) -> dict[str, str]:
    return {name: each.content.decode() for name, each in self.all.items()}


def test_a_url_has_one_place_on_a_host(cache):
  place = buckets.path('gs://b/runs/zero/')
  assert place == cache / 'buckets/gs/b/runs/zero'
  assert buckets.url(place / 'rl') == 'gs://b/runs/zero/rl'
  assert buckets.shown(place) == 'gs://b/runs/zero'
  assert buckets.url(cache / 'other') is None


def test_files_of_a_disk_are_as_they_are(cache, tmp_path):
  file = tmp_path / 'a.txt'
  file.write_text('x')
  assert buckets.given(str(file)) == file and buckets.exists(file)
  assert buckets.home(file) == file
  buckets.push(tmp_path)
  assert file.read_text() == 'x'


@pytest.mark.parametrize(
  'url, error',
  [
    ('http://owner/model', 'written in folders and gs://, not http://'),
    ('https://a/b', 'not https://'),
    ('gs://bucket', 'give gs://BUCKET/PATH'),
    ('gs://bucket/../a', 'give gs://BUCKET/PATH'),
  ],
)
def test_other_urls_are_refused_by_name(cache, url, error):
  with pytest.raises(UserError, match=error):
    buckets.path(url)


def test_what_is_not_supported_makes_no_folder(cache, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(UserError, match='no checkpoints to s3://'):
    workdir.Workdir('s3://b/run', {})
  with pytest.raises(UserError, match='a folder of this host alone'):
    buckets.local('gs://b/out')
  assert not list(tmp_path.iterdir())


def test_a_missing_package_is_named_with_its_extra(cache, monkeypatch):
  buckets._filesystem.cache_clear()
  monkeypatch.setitem(buckets._PACKAGES, 'gs', ('no_such_package', 'gcs'))
  with pytest.raises(UserError, match=r"pip install -e '.\[gcs\]'"):
    buckets.given('gs://b/file')


def test_a_copy_becomes_as_its_folder_is(bucket):
  bucket.put('d/a.txt', 'one')
  bucket.put('d/deep/b.txt', 'two')
  bucket.put('d/checkpoints/1/x', 'large')
  place = buckets.given('gs://bucket/d')
  assert (place / 'deep/b.txt').read_text() == 'two'
  assert not (place / 'checkpoints').exists()
  before = os.stat(place / 'deep/b.txt').st_ino
  bucket.put('d/a.txt', 'new')
  bucket.put('d/c.txt', 'three')
  (place / 'stale.txt').write_text('not in the bucket')
  buckets.fetch(place)
  assert (place / 'a.txt').read_text() == 'new'
  assert sorted(path.name for path in place.glob('*.txt')) == ['a.txt', 'c.txt']
  assert os.stat(place / 'deep/b.txt').st_ino == before  # Not fetched again.


def test_a_folder_of_a_bucket_becomes_as_its_copy_is(bucket):
  bucket.put('run/gone.txt', 'x')
  bucket.put('run/checkpoints/1/x', 'stays')
  place = buckets.path('gs://bucket/run')
  place.mkdir(parents=True)
  (place / 'metrics.jsonl').write_text('1\n')
  buckets.push(place)
  assert bucket.texts() == {
    'run/metrics.jsonl': '1\n',
    'run/checkpoints/1/x': 'stays',
  }
  generation = bucket.all['run/metrics.jsonl'].fields['generation']
  buckets.push(place)
  assert bucket.all['run/metrics.jsonl'].fields['generation'] == generation
  with open(place / 'metrics.jsonl', 'a') as file:
    file.write('2\n')
  buckets.push(place)
  assert bucket.texts()['run/metrics.jsonl'] == '1\n2\n'


def test_a_run_whose_folder_another_one_claims_writes_no_more(bucket):
  first = workdir.Workdir('gs://bucket/run', {'seed': 0})
  (first.path / 'metrics.jsonl').write_text('1\n')
  buckets.push(first.path)
  buckets.claim(first.path, 'the token of a run on another host')
  (first.path / 'metrics.jsonl').write_text('2\n')
  with pytest.raises(UserError, match='another run has begun to write to gs:'):
    buckets.push(first.path)
  assert bucket.texts()['run/metrics.jsonl'] == '1\n'


def test_a_run_on_another_host_finds_what_the_first_has_left(
  bucket, tmp_path, monkeypatch
):
  first = workdir.Workdir('gs://bucket/run', {'seed': 0})
  buckets.push(first.path)
  monkeypatch.setenv('R1JAX_CACHE', str(tmp_path / 'other host'))
  with pytest.raises(UserError, match='belongs to another config: seed is 0'):
    workdir.Workdir('gs://bucket/run', {'seed': 1})
  second = workdir.Workdir('gs://bucket/run', {'seed': 0})
  assert second.path != first.path
  assert (second.path / 'config.json').exists()


def test_copies_of_a_run_that_is_going_on_here_are_left_alone(bucket):
  run = workdir.Workdir('gs://bucket/run', {'seed': 0})
  buckets.push(run.path)
  (run.path / 'metrics.jsonl').write_text('not pushed yet')
  assert (buckets.given('gs://bucket/run') / 'metrics.jsonl').exists()


def test_a_folder_with_other_things_is_refused_and_not_brought(bucket, cache):
  bucket.put('data/rows.jsonl', '{}')
  with pytest.raises(UserError, match='holds other things than a run'):
    workdir.Workdir('gs://bucket/data', {})
  assert not (cache / 'buckets/gs/bucket/data/rows.jsonl').exists()
  assert list(bucket.all) == ['data/rows.jsonl']


@pytest.mark.parametrize('name', ['locked', 'absent'])
def test_a_bucket_that_cannot_be_written_to_is_one_line(bucket, name):
  with pytest.raises(UserError, match=f'cannot write to gs://{name}/run') as e:
    workdir.Workdir(f'gs://{name}/run', {})
  assert '\n' not in str(e.value)


def test_data_are_found_by_url_suffix_pattern_and_root(bucket, monkeypatch):
  bucket.put('data/train-0.jsonl', '{"a": 0}\n')
  bucket.put('data/train-1.jsonl', '{"a": 1}\n')
  values = lambda path: [
    row.fields['a'] for row in readers.rows(readers.files(path))
  ]
  assert values('gs://bucket/data/train-1') == [1]
  assert values('gs://bucket/data/train-*.jsonl') == [0, 1]
  assert values('gs://bucket/data') == [0, 1]
  monkeypatch.setenv('R1JAX_DATA', 'gs://bucket/data')
  assert values('train-0') == [0]
  with pytest.raises(UserError, match='no train-9, nor in R1JAX_DATA=gs://'):
    values('train-9')
