"""Several sources in one stream, in fixed proportions."""

from collections.abc import Sequence
import zlib

import grain

from r1jax.errors import UserError
from r1jax.records import Prompt


class Mixture(Sequence):
  """Endless: prompt i is a function of the sources, the seed and i alone.

  Every source goes round by itself, shuffled anew each time, and a short one
  comes round more often. Sources alternate evenly, not by chance, so that any
  stretch of the stream has the proportions (to within one percent of each).

  Attributes:
    dataset: The stream as Grain has it.
  """

  def __init__(
    self,
    sources: Sequence[Sequence[Prompt]],
    proportions: Sequence[float],
    seed: int,
    shuffle: Sequence[bool],
  ):
    """Makes the stream.

    Args:
      sources: Of prompts.
      proportions: One a source, above 0.
      seed: Of the shuffles.
      shuffle: Whether to, a source: not one that is random or ordered already.
    """
    parts = []
    for i, (source, shuffled) in enumerate(zip(sources, shuffle, strict=True)):
      part = grain.MapDataset.source(source)
      if shuffled:  # Sources of one length are not shuffled in one way.
        part = part.shuffle(zlib.crc32(f'{seed}-{i}'.encode()))
      parts.append(part.repeat())
    self.dataset = grain.MapDataset.mix(parts, list(proportions))

  def __len__(self) -> int:
    return len(self.dataset)

  def __getitem__(self, index: int) -> Prompt:
    return self.dataset[index]


def proportions(
  sizes: Sequence[int], weights: Sequence[float | None], temperature: float
) -> list[float]:
  """pᵢ ∝ wᵢ^(1/T), or nᵢ^(1/T) where no weights are given.

  Sizes 8,000 and 500: T = 1 → 0.94, 0.06; T = 2 → 0.8, 0.2; T → ∞ → 0.5, 0.5.

  Raises:
    UserError: a weight or the temperature is not above 0, or only some sources
      have weights.
  """
  given = [weight is not None for weight in weights]
  if any(given) and not all(given):
    raise UserError('data: mixture: give every source a weight, or none')
  base = [float(w) for w in weights] if all(given) else list(map(float, sizes))
  if min(base) <= 0 or temperature <= 0:
    raise UserError(
      'data: mixture: weights and mixture_temperature must be above 0, got '
      f'{base} and {temperature}'
    )
  largest = max(base)  # Divided by first: a power of it might overflow.
  raised = [(value / largest) ** (1 / temperature) for value in base]
  return [value / sum(raised) for value in raised]


def parse(parts: Sequence[str]) -> dict[str, float | None]:
  """('gsm8k:0.7', 'math') → {'gsm8k': 0.7, 'math': None}.

  Raises:
    UserError: a weight is no number, or a name comes twice.
  """
  found: dict[str, float | None] = {}
  for part in parts:
    if not isinstance(part, str):
      raise UserError(f"data: mixture: {part!r} is not 'name' or 'name:weight'")
    name, colon, weight = part.partition(':')
    try:
      value = float(weight) if colon else None
    except ValueError as error:
      raise UserError(
        f"data: mixture: {part!r} is not 'name:weight'"
      ) from error
    if name in found:
      raise UserError(f'data: mixture: {name!r} comes twice')
    found[name] = value
  return found
