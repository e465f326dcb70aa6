"""Training questions that meet an evaluation: found by their words.

DeepSeek-R1 decontaminates by 10-gram overlap (second version, appendix D.1).
It is a blunt rule, meant to be: "where m and n are relatively prime positive
integers find" is ten words too, and a question that has them goes.
"""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import re
import unicodedata

from r1jax.records import Prompt

N = 10  # Words.


@dataclasses.dataclass(frozen=True)
class Match:
  """A training question and an evaluation question that share words.

  Attributes:
    train_id: Of the one.
    evaluation: The set of the other.
    eval_id: The other; the first of the set where several share the words.
    words: What they share: N words, or fewer if that is the whole of both.
  """

  train_id: str
  evaluation: str
  eval_id: str
  words: str


def words(text: str) -> list[str]:
  """'Let $x^2=4$, \\frac{1}{2}…' → ['let', 'x', '2', '4', 'frac', '1', '2']."""
  return _WORD.findall(unicodedata.normalize('NFKC', text).casefold())


_WORD = re.compile(r'[^\W_]+')


def ngrams(text: str, n: int = N) -> Iterator[tuple[str, ...]]:
  """Every n words in a row; a shorter text as a whole."""
  found = words(text)
  for start in range(max(len(found) - n, 0) + 1):
    yield tuple(found[start : start + n])


def find_matches(
  train: Sequence[Prompt],
  evaluations: Mapping[str, Sequence[Prompt]],
  n: int = N,
) -> list[Match]:
  """One match for each training question and evaluation set that share words.

  A text of fewer than n words has one gram, all of it, which only an equal
  text has.
  """
  owner = {}  # Gram → evaluation set → the first question that has it.
  for name, prompts in evaluations.items():
    for prompt in prompts:
      for gram in ngrams(prompt.question, n):
        owner.setdefault(gram, {}).setdefault(name, prompt.id)
  found = []
  for prompt in train:
    seen = set()
    for gram in ngrams(prompt.question, n):
      for name, eval_id in owner.get(gram, {}).items():
        if gram and name not in seen:  # No words: nothing in common.
          seen.add(name)
          found.append(Match(prompt.id, name, eval_id, ' '.join(gram)))
  return found


def report(name: str, rows: int, found: Sequence[Match]) -> dict:
  """What was found in one training set, ready for JSON."""
  counts: dict[str, int] = {}
  for match in found:
    counts[match.evaluation] = counts.get(match.evaluation, 0) + 1
  return {
    'train': name,
    'rows': rows,
    'removed': len({match.train_id for match in found}),
    'by_evaluation': counts,
    'matches': [dataclasses.asdict(match) for match in found],
  }


def summary(told: dict) -> str:
  """The report in one line."""
  pairs = ', '.join(
    f'{name} {count}' for name, count in sorted(told['by_evaluation'].items())
  )
  return (
    f'data: {told["train"]}: {told["removed"]} of {told["rows"]} rows '
    f'share {N} words with an evaluation and are not trained on'
    + (f' ({pairs})' if pairs else '')
  )
