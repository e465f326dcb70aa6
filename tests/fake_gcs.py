"""A stand-in of Google Cloud Storage: as much of its JSON API as runs need.

  python -m tests.fake_gcs PORT BUCKET…

Objects are in memory. They have generations, and requests with preconditions
fail as there (https://cloud.google.com/storage/docs/json_api/v1/objects). gcsfs
finds it by STORAGE_EMULATOR_HOST, TensorStore by TENSORSTORE_GCS_HTTP_URL.
"""

import base64
import contextlib
import datetime
import hashlib
import http.server
import itertools
import json
import re
import sys
import threading
from urllib import parse

BUCKET = re.compile(r'/storage/v1/b/([^/]+)')
OBJECTS = re.compile(r'/(?:upload/|download/)?storage/v1/b/([^/]+)/o(?:/(.+))?')


class Object:
  """One generation of an object."""

  _generations = itertools.count(int(1e15))

  def __init__(self, bucket: str, name: str, content: bytes):
    self.content = content
    now = datetime.datetime.now(datetime.UTC)
    stamp = (
      now.strftime('%Y-%m-%dT%H:%M:%S.') + f'{now.microsecond // 1000:03d}Z'
    )
    md5 = base64.b64encode(hashlib.md5(content).digest()).decode()
    self.fields = {
      'kind': 'storage#object',
      'bucket': bucket,
      'name': name,
      'size': str(len(content)),
      'generation': str(next(self._generations)),
      'metageneration': '1',
      'contentType': 'application/octet-stream',
      'md5Hash': md5,
      'timeCreated': stamp,
      'updated': stamp,
    }


class Handler(http.server.BaseHTTPRequestHandler):
  """Answers requests; the server has `buckets`, `lock` and `uploads`."""

  protocol_version = 'HTTP/1.1'
  server: 'Server'

  def log_message(self, *_):
    pass

  def _answer(self, code: int, content: bytes = b'', **headers):
    self.send_response(code)
    for name, value in headers.items():
      self.send_header(name.replace('_', '-'), value)
    self.send_header('Content-Length', str(len(content)))
    self.end_headers()
    self.wfile.write(content)

  def _json(self, value: dict):
    self._answer(
      200, json.dumps(value).encode(), Content_Type='application/json'
    )

  def _fail(self, code: int, text: str):
    error = {'error': {'code': code, 'message': text}}
    self._answer(code, json.dumps(error).encode())

  def _handle(self, body: bytes = b''):
    url = parse.urlsplit(self.path)
    self.query = dict(parse.parse_qsl(url.query))
    if url.path.startswith('/batch'):
      return self._batch(body)
    if match := BUCKET.fullmatch(url.path):  # Orbax asks if it has folders.
      return self._json({'kind': 'storage#bucket', 'name': match[1]})
    match = OBJECTS.fullmatch(url.path)
    if not match:
      return self._fail(404, f'no such method: {url.path}')
    bucket, name = match[1], parse.unquote(match[2] or '')
    if bucket not in self.server.buckets:
      return self._fail(404, 'The specified bucket does not exist.')
    if bucket in self.server.read_only and self.command != 'GET':
      return self._fail(403, 'the caller does not have storage.objects.create')
    with self.server.lock:
      self._on_objects(bucket, name, body)

  do_GET = do_DELETE = _handle

  def do_POST(self):
    self._handle(self.rfile.read(int(self.headers.get('Content-Length', 0))))

  do_PUT = do_POST

  def _on_objects(self, bucket: str, name: str, body: bytes):
    objects = self.server.buckets[bucket]
    if 'upload_id' in self.query:
      return self._resumed(bucket, body)
    if self.command == 'POST':
      return self._upload(bucket, body)
    if not name:
      return self._list(objects)
    if name not in objects:
      return self._fail(404, f'No such object: {bucket}/{name}')
    generation = objects[name].fields['generation']
    if self.query.get('ifGenerationMatch', generation) != generation:
      return self._fail(412, 'precondition failed')
    if self.command == 'DELETE':
      del objects[name]
      return self._answer(204)
    if self.query.get('ifGenerationNotMatch') == generation:
      return self._answer(304)
    if self.query.get('alt') != 'media':
      return self._json(objects[name].fields)
    self._media(objects[name])

  def _media(self, found: Object):
    content, code, headers = found.content, 200, {}
    ranges = re.fullmatch(r'bytes=(\d*)-(\d*)', self.headers.get('Range', ''))
    if ranges:
      first, last = ranges.groups()
      size = len(content)
      start = int(first) if first else max(0, size - int(last))
      end = min(size, int(last) + 1) if first and last else size
      if start >= size and size:
        return self._fail(416, 'range')
      content, code = content[start:end], 206
      headers['Content_Range'] = f'bytes {start}-{end - 1}/{size}'
    self._answer(
      code,
      content,
      x_goog_generation=found.fields['generation'],
      x_goog_metageneration='1',
      **headers,
    )

  def _list(self, objects: dict[str, Object]):
    prefix = self.query.get('prefix', '')
    delimiter = self.query.get('delimiter')
    first, end = self.query.get('startOffset', ''), self.query.get('endOffset')
    items, prefixes = [], set()
    for name in sorted(objects):
      if not name.startswith(prefix) or name < first or (end and name >= end):
        continue
      head, found, _ = name[len(prefix) :].partition(delimiter or '\0')
      if delimiter and found:
        prefixes.add(prefix + head + delimiter)
      else:
        items.append(objects[name].fields)
    self._json(
      {'kind': 'storage#objects', 'items': items, 'prefixes': sorted(prefixes)}
    )

  def _upload(self, bucket: str, body: bytes):
    kind = self.query.get('uploadType')
    if kind == 'resumable':
      name = self.query.get('name') or json.loads(body)['name']
      key = str(len(self.server.uploads))
      self.server.uploads[key] = (name, bytearray())
      host = self.headers['Host']
      where = f'http://{host}/upload/storage/v1/b/{bucket}/o?upload_id={key}'
      return self._answer(200, Location=where)
    name = self.query.get('name')
    if kind == 'multipart':
      boundary = self.headers['Content-Type'].partition('boundary=')[2]
      mark = b'--' + boundary.strip('"\'').encode()
      _, fields, rest, *_ = body.split(mark)
      name = json.loads(fields.split(b'\n\n', 1)[-1].split(b'\r\n\r\n')[-1])[
        'name'
      ]
      separator = b'\r\n\r\n' if b'\r\n\r\n' in rest else b'\n\n'
      body = rest.split(separator, 1)[1].removesuffix(b'\n').removesuffix(b'\r')
    self._store(bucket, name, body)

  def _resumed(self, bucket: str, body: bytes):
    name, content = self.server.uploads[self.query['upload_id']]
    content += body
    span = self.headers.get('Content-Range', '')
    if span.endswith('/*'):
      return self._answer(308, Range=f'bytes=0-{len(content) - 1}')
    self._store(bucket, name, bytes(content))

  def _store(self, bucket: str, name: str, content: bytes):
    objects = self.server.buckets[bucket]
    there = objects[name].fields['generation'] if name in objects else '0'
    if self.query.get('ifGenerationMatch', there) != there:
      return self._fail(412, 'precondition failed')
    objects[name] = Object(bucket, name, content)
    self._json(objects[name].fields)

  def _batch(self, body: bytes):
    """Deletes the objects of a batch request."""
    boundary = self.headers['Content-Type'].partition('boundary=')[2]
    mark, parts = boundary.strip('"'), []
    with self.server.lock:
      for path in re.findall(rb'DELETE (\S+)', body):
        match = OBJECTS.fullmatch(parse.urlsplit(path.decode()).path)
        assert match
        self.server.buckets[match[1]].pop(parse.unquote(match[2]), None)
        parts.append(
          f'--{mark}\r\nContent-Type: application/http\r\n\r\n'
          'HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n\r\n'
        )
    text = ''.join(parts) + f'--{mark}--'
    self._answer(
      200, text.encode(), Content_Type=f'multipart/mixed; boundary={mark}'
    )


class Server(http.server.ThreadingHTTPServer):
  """The stand-in.

  Attributes:
    buckets: The objects of each bucket by name.
    read_only: Buckets that refuse to be written to.
  """

  daemon_threads = True
  request_queue_size = 128

  def __init__(self, port: int = 0, *buckets: str):
    super().__init__(('localhost', port), Handler)
    self.buckets: dict[str, dict[str, Object]] = {name: {} for name in buckets}
    self.read_only: set[str] = set()
    self.uploads: dict[str, tuple[str, bytearray]] = {}
    self.lock = threading.RLock()

  def handle_error(self, request, client_address):
    """Says nothing of clients that have gone."""
    if not isinstance(sys.exc_info()[1], ConnectionError):
      super().handle_error(request, client_address)

  def environment(self) -> dict[str, str]:
    """Returns the variables by which clients find it."""
    url = f'http://localhost:{self.server_address[1]}'
    return {
      'STORAGE_EMULATOR_HOST': url,
      'TENSORSTORE_GCS_HTTP_URL': url,
      # It would ask whether the bucket has folders, with credentials.
      'GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT': 'false',
    }


@contextlib.contextmanager
def serving(*buckets: str):
  """Serves buckets while it is open; yields the server."""
  server = Server(0, *buckets)
  thread = threading.Thread(target=server.serve_forever, daemon=True)
  thread.start()
  try:
    yield server
  finally:
    server.shutdown()
    server.server_close()


if __name__ == '__main__':
  Server(int(sys.argv[1]), *sys.argv[2:]).serve_forever()
