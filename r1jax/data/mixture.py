"""Mixtures: several sources in one stream, in fixed proportions."""

from collections.abc import Sequence
import zlib

from r1jax.errors import UserError
from r1jax.records import Prompt


class Mixture(Sequence):
  """An endless stream of prompts from several sources.

  Prompt i is a function of the sources, the seed and i alone. Every source is
  repeated on its own and shuffled anew each time, so a short one repeats more
  often. Sources alternate evenly, not at random, so that any long stretch of
  the stream has the proportions (each to within one percent).

  Attributes:
    dataset: The stream as a Grain MapDataset.
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
      sources: The prompts of each source.
      proportions: The share of each source, above 0.
      seed: Seed of the shuffling.
      shuffle: Whether to shuffle each source; False for one that is random, or
        that has an order to keep.
    """
    import grain  # It takes long, and a command that only samples needs none.

    parts = []
    for i, (source, shuffled) in enumerate(zip(sources, shuffle, strict=True)):
      part = grain.MapDataset.source(source)
      if shuffled:  # Sources of equal length get different permutations.
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
  """Returns the shares pᵢ ∝ wᵢ^(1/T), or ∝ nᵢ^(1/T) without weights.

  Sizes 8,000 and 500: T = 1 → 0.94, 0.06; T = 2 → 0.8, 0.2; T → ∞ → 0.5, 0.5.

  Args:
    sizes: n, the number of prompts of each source.
    weights: w, the weight of each source, or None for all of them.
    temperature: T.

  Raises:
    UserError: a weight or the temperature is not above 0, or only some sources
      have weights.
  """
  given = [float(weight) for weight in weights if weight is not None]
  if 0 < len(given) < len(weights):
    raise UserError('data: mixture: give every source a weight, or none')
  base = given or [float(size) for size in sizes]
  if min(base) <= 0 or temperature <= 0:
    raise UserError(
      'data: mixture: weights and mixture_temperature must be above 0, got '
      f'{base} and {temperature}'
    )
  largest = max(base)  # Normalises first, since a power might overflow.
  raised = [(value / largest) ** (1 / temperature) for value in base]
  return [value / sum(raised) for value in raised]


def parse(parts: Sequence[str]) -> dict[str, float | None]:
  """Parses a list of names with optional weights.

  ('gsm8k:0.7', 'math') → {'gsm8k': 0.7, 'math': None}

  Raises:
    UserError: a weight is no number, or a name comes twice.
  """
  weights: dict[str, float | None] = {}
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
    if name in weights:
      raise UserError(f'data: mixture: {name!r} comes twice')
    weights[name] = value
  return weights
