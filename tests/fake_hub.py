"""A stand-in of the Hugging Face hub: as much of its API as reading needs."""

import contextlib
import hashlib
import http.server
import json
import re
import threading
from urllib import parse

_INFO = re.compile(r'/api/(models|datasets)/([^/]+/[^/]+)(?:/revision/(.+))?')
_TREE = re.compile(r'/api/(models|datasets)/([^/]+/[^/]+)/tree/([^/]+)/?')
_FILE = re.compile(r'/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)')


class Handler(http.server.BaseHTTPRequestHandler):
  """Answers requests from the server's `repositories`."""

  protocol_version = 'HTTP/1.1'
  server: 'Server'

  def log_message(self, *_):
    pass

  def do_HEAD(self):
    self._answer(False)

  def do_GET(self):
    self._answer(True)

  def _answer(self, with_body: bool):
    self.server.requests.append(self.path)
    path = parse.unquote(parse.urlsplit(self.path).path)
    if match := _FILE.fullmatch(path):
      kind = 'datasets' if match[1] else 'models'
      self._file(kind, match[2], match[3], match[4], with_body)
    elif match := _TREE.fullmatch(path):
      self._with(match[1], match[2], match[3], self._tree)
    elif match := _INFO.fullmatch(path):
      self._with(match[1], match[2], match[3] or 'main', self._info)
    else:
      self._send(404, b'{}')

  def _with(self, kind: str, name: str, revision: str, send):
    if repository := self._repository(kind, name, revision):
      send(name, repository)

  def _repository(self, kind, name, revision) -> dict[str, bytes] | None:
    repository = self.server.repositories.get((kind, name))
    if name in self.server.gated:
      self._send(403, b'{}', {'X-Error-Code': 'GatedRepo'})
    elif repository is None:
      self._send(401, b'{}', {'X-Error-Code': 'RepoNotFound'})
    elif revision not in ('main', _sha(repository)):
      self._send(404, b'{}', {'X-Error-Code': 'RevisionNotFound'})
    else:
      return repository
    return None

  def _info(self, name: str, repository: dict[str, bytes]):
    found = {
      'id': name,
      'sha': _sha(repository),
      'siblings': [{'rfilename': each} for each in repository],
    }
    self._send(200, json.dumps(found).encode())

  def _tree(self, name: str, repository: dict[str, bytes]):
    found = [
      {'type': 'file', 'path': each, 'size': len(data), 'oid': _etag(data)}
      for each, data in repository.items()
    ]
    self._send(200, json.dumps(found).encode())

  def _file(self, kind, name, revision, file, with_body):
    repository = self._repository(kind, name, revision)
    if repository is None:
      return
    if file not in repository:
      self._send(404, b'', {'X-Error-Code': 'EntryNotFound'})
      return
    data = repository[file]
    headers = {'ETag': f'"{_etag(data)}"', 'X-Repo-Commit': _sha(repository)}
    self._send(200, data, headers, with_body)

  def _send(self, code, body, headers=None, with_body=True):
    self.send_response(code)
    for name, value in (headers or {}).items():
      self.send_header(name, value)
    self.send_header('Content-Length', str(len(body)))
    self.end_headers()
    if with_body and self.command != 'HEAD':
      self.wfile.write(body)


class Server(http.server.ThreadingHTTPServer):
  """The hub, with files by kind ('models', 'datasets') and OWNER/NAME."""

  def __init__(self):
    super().__init__(('localhost', 0), Handler)
    self.repositories: dict[tuple[str, str], dict[str, bytes]] = {}
    self.gated: set[str] = set()
    self.requests: list[str] = []

  @property
  def url(self) -> str:
    return f'http://localhost:{self.server_address[1]}'


def _etag(data: bytes) -> str:
  return hashlib.sha1(data).hexdigest()


def _sha(repository: dict[str, bytes]) -> str:
  return hashlib.sha1(repr(sorted(repository.items())).encode()).hexdigest()


@contextlib.contextmanager
def served():
  """Runs the hub in a thread; yields the server."""
  server = Server()
  thread = threading.Thread(target=server.serve_forever, daemon=True)
  thread.start()
  try:
    yield server
  finally:
    server.shutdown()
    server.server_close()
    thread.join()
