"""Repositories of the Hugging Face hub: hf://OWNER/NAME[@REVISION][/PATH].

Datasets have `datasets/` before the owner, as in the URLs of the hub's own file
system: hf://datasets/openai/gsm8k/main/train-00000-of-00001.parquet. Files go
to the hub's cache (HF_HOME), where they stay for other runs and for runs
without a network (HF_HUB_OFFLINE=1). A gated repository needs HF_TOKEN.
"""

from collections.abc import Iterator
import contextlib
import functools
import logging
import os
from pathlib import Path
import re
from typing import Any, NamedTuple

from r1jax import files
from r1jax.errors import UserError

_log = logging.getLogger(__name__)

SCHEME = 'hf'
_FORM = 'hf://[datasets/]OWNER/NAME[@REVISION][/PATH]'
_URL = re.compile(
  r'hf://(?P<kind>datasets/)?(?P<owner>[^/@]+)/(?P<name>[^/@]+)'
  r'(@(?P<revision>[^/]+))?(/(?P<path>.*))?'
)
# Weights, config and tokenizer of a model, but no other formats of them.
_OF_MODELS = ('*.safetensors', '*.json', '*.jinja', '*.txt', '*.model')
_NOT_OF_MODELS = ('original/*', 'onnx/*', 'metal/*')


class Place(NamedTuple):
  """A place on the hub.

  Attributes:
    repository: OWNER/NAME.
    kind: 'model' or 'dataset'.
    revision: A branch, tag or commit; None for the main branch.
    path: A file, folder or pattern in it; '' for all that is of use.
  """

  repository: str
  kind: str
  revision: str | None
  path: str


def place_of(url: str) -> Place:
  """Returns the place that a URL names.

  Raises:
    UserError: it has another form.
  """
  match = _URL.fullmatch(url.rstrip('/'))
  path = (match and match['path']) or ''
  if not match or '..' in path.split('/'):
    raise UserError(f'{url}: the form of a repository is {_FORM}')
  kind = 'dataset' if match['kind'] else 'model'
  repository = f'{match["owner"]}/{match["name"]}'
  return Place(repository, kind, match['revision'], path)


@functools.cache  # A run reads one state of a repository.
def fetch(url: str) -> Path:
  """Returns the file or folder of this host with what a URL names.

  It need not exist, where the repository has no such file.

  Raises:
    UserError: the repository cannot be read.
  """
  place = place_of(url)
  patterns: dict[str, Any] = {}
  if place.path:
    patterns = {'allow_patterns': [place.path, f'{place.path}/*']}
  elif place.kind == 'model':
    patterns = {
      'allow_patterns': list(_OF_MODELS),
      'ignore_patterns': list(_NOT_OF_MODELS),
    }
  return _snapshot(url, place, **patterns) / place.path


def matches(url: str) -> list[str]:
  """Returns the URLs of the files that a pattern matches, in order.

  Raises:
    UserError: the repository cannot be read.
  """
  place = place_of(url)
  folder = _snapshot(url, place, allow_patterns=[place.path])
  stem = url.rstrip('/').removesuffix(place.path)
  return [
    stem + path.relative_to(folder).as_posix()
    for path in sorted(folder.glob(place.path))
  ]


def _snapshot(url: str, place: Place, **patterns: Any) -> Path:
  """Brings files of a repository to the cache; returns its folder there."""
  try:
    import huggingface_hub
  except ImportError as error:
    raise UserError(
      f'{url}: huggingface_hub is not installed; pip install huggingface_hub'
    ) from error
  with _errors(url, place):
    folder = huggingface_hub.snapshot_download(
      place.repository,
      repo_type=place.kind,
      revision=place.revision,
      endpoint=os.environ.get('HF_ENDPOINT'),
      **patterns,
    )
  found = Path(str(folder))
  _log.info('%s is commit %s', url, found.name[:12])
  return found


@contextlib.contextmanager
def _errors(url: str, place: Place) -> Iterator[None]:
  """Turns errors of the hub into one line that says what to do."""
  from huggingface_hub import errors

  try:
    yield
  except errors.GatedRepoError as error:
    raise UserError(
      f'{url}: the {place.kind} {place.repository} is gated; accept its terms '
      'on its page, and set HF_TOKEN to a token that may read it'
    ) from error
  except errors.RevisionNotFoundError as error:
    raise UserError(
      f'{url}: {place.repository} has no revision {place.revision!r}'
    ) from error
  except errors.RepositoryNotFoundError as error:
    raise UserError(
      f'{url}: the hub has no {place.kind} {place.repository}; if it is '
      'private, set HF_TOKEN to a token that may read it'
    ) from error
  except errors.LocalEntryNotFoundError as error:
    raise UserError(
      f'{url}: the hub cannot be reached, and {place.repository} is not in the '
      'cache; run this once with a network (and without HF_HUB_OFFLINE), or '
      'name a folder'
    ) from error
  except errors.HFValidationError as error:
    raise UserError(f'{url}: the form of a repository is {_FORM}') from error
  except Exception as error:  # Its HTTP client, which may change, has its own.
    if files.is_disk_full(error):
      raise
    text = ' '.join(str(error).split())[:200] or type(error).__name__
    raise UserError(f'cannot read {url}: {text}') from error
