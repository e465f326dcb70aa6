"""Whether two models' tokens mean the same."""

import logging
from pathlib import Path

import numpy as np

from r1jax.checkpoints import weights
from r1jax.config.schema.run import RunConfig
from r1jax.data import readers
from r1jax.data.text import tokenizer, tokenizer_files
from r1jax.data.text.tokenizer import Tokenizer
from r1jax.errors import UserError

_log = logging.getLogger(__name__)


def check_same_tokens(key: str, path: Path, config: RunConfig, ours: Tokenizer):
  """Refuses a model that reads a token of the run as another one.

  Args:
    key: The key of the config that names the model, for errors.
    path: Its weights.
    config: The run.
    ours: The run's tokenizer.

  Raises:
    UserError: the tokens differ; names the first one that does.
  """
  theirs = _tokenizer_of(key, path, config, ours)
  if theirs and (difference := ours.first_difference(theirs)):
    raise _differ(key, path, config, theirs, difference)


def shared_token_ids(
  key: str, path: Path, config: RunConfig, ours: Tokenizer
) -> np.ndarray | None:
  """Returns the ids that a teacher and the run have in common, int32.

  The rows of an embedding say nothing: they are padded, to other sizes for
  other sizes of one family.

  Args: see check_same_tokens.

  Returns:
    The ids; None if the tokenizer of the teacher is not known.

  Raises:
    UserError: an id is one token here and another one there, or the teacher has
      no row for a token that the run has.
  """
  theirs = _tokenizer_of(key, path, config, ours)
  if theirs is None:
    return None
  if conflict := ours.first_conflict(theirs):
    raise _differ(key, path, config, theirs, conflict)
  rows = weights.metadata(path)['config']['model.vocab_size']
  if ours.vocab_size > rows:
    raise UserError(
      f'{key}: {path} has a vocabulary of {rows}, too few for the '
      f'{ours.vocab_size} ids of {config.tokenizer.source}'
    )
  shared = ours.shared_ids(theirs)
  if missing := ours.first_difference(theirs):
    _log.warning(
      '%s: %s has %d of our %d tokens; what it makes of the others is chance (%s)',
      key,
      path,
      len(shared),
      ours.num_tokens,
      missing,
    )
  return shared


def _tokenizer_of(
  key: str, path: Path, config: RunConfig, ours: Tokenizer
) -> Tokenizer | None:
  """Returns the tokenizer that a model records, or that lies beside it.

  Raises:
    UserError: there is none, and the vocabularies differ in size.
  """
  recorded = weights.metadata(path).get('config', {})
  source = recorded.get('tokenizer.source')
  folder = path if path.is_dir() else path.parent
  if source is None and tokenizer_files.has_tokenizer(folder):
    source = str(folder)
  if source == config.tokenizer.source:
    return ours
  if source is not None:
    built_in = source in tokenizer.BUILT_IN
    return tokenizer.load(source if built_in else str(readers.resolve(source)))
  size = recorded['model.vocab_size']
  remedy = f'put its tokenizer.json and tokenizer_config.json into {folder}'
  if size != config.model.vocab_size:
    raise UserError(
      f'{key}: {path} has a vocabulary of {size}, this model '
      f'{config.model.vocab_size}, and no tokenizer to compare; {remedy}'
    )
  _log.warning(
    '%s: %s has no tokenizer to compare with ours, so that its %d tokens are '
    'taken to be the same; %s',
    key,
    path,
    size,
    remedy,
  )
  return None


def _differ(
  key: str, path: Path, config: RunConfig, theirs: Tokenizer, difference: str
) -> UserError:
  return UserError(
    f'{key}: {path} has the tokenizer {theirs.source}, this model '
    f'{config.tokenizer.source}: {difference}'
  )
