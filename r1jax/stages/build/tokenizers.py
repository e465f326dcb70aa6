"""Whether two models' tokens mean the same."""

from pathlib import Path

from r1jax.checkpoints import weights
from r1jax.config.schema.run import RunConfig
from r1jax.data import readers
from r1jax.data.text import tokenizer
from r1jax.data.text.tokenizer import Tokenizer
from r1jax.errors import UserError


def check_same_tokens(key: str, path: Path, config: RunConfig, ours: Tokenizer):
  """Refuses a model whose tokens differ from those of the run.

  Of an imported model only the size of the vocabulary is known.

  Args:
    key: The key of the config that names the model, for errors.
    path: Its weights.
    config: The run.
    ours: The run's tokenizer.

  Raises:
    UserError: the tokens differ; names the first one that does.
  """
  recorded = weights.metadata(path).get('config', {})
  source = recorded.get('tokenizer.source')
  if source is None:
    size = recorded['model.vocab_size']
    if size != config.model.vocab_size:
      raise UserError(
        f'{key}: {path} has a vocabulary of {size}, this model '
        f'{config.model.vocab_size}'
      )
    return
  if source == config.tokenizer.source:
    return
  theirs = tokenizer.load(
    source if source in tokenizer.BUILT_IN else str(readers.resolve(source))
  )
  if difference := ours.first_difference(theirs):
    raise UserError(
      f'{key}: {path} has the tokenizer {source}, this model '
      f'{config.tokenizer.source}: {difference}'
    )
