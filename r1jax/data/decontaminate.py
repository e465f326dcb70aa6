"""Decontamination: training questions that share an n-gram with an evaluation.

DeepSeek-R1 decontaminates by 10-gram overlap (second version, appendix D.1).
The rule is deliberately strict: "where m and n are relatively prime positive
integers find" is a 10-gram of many problems, and a training question that
contains it is removed.
"""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import re
import unicodedata

from r1jax.records import Prompt

NGRAM_WORDS = 10


@dataclasses.dataclass(frozen=True)
class Match:
  """A training question and an evaluation question that share an n-gram.

  Attributes:
    train_id: Id of the training question.
    evaluation: Name of the evaluation set.
    eval_id: Id of the first question in the set that has the n-gram.
    words: The n-gram; fewer than n words if they are the whole of both
      questions.
  """

  train_id: str
  evaluation: str
  eval_id: str
  words: str


def words(text: str) -> list[str]:
  """Returns the words of a text, without case and punctuation.

  'Let $x^2=4$, \\frac{1}{2}…' → ['let', 'x', '2', '4', 'frac', '1', '2']
  """
  return _WORD.findall(unicodedata.normalize('NFKC', text).casefold())


_WORD = re.compile(r'[^\W_]+')


def ngrams(text: str, n: int = NGRAM_WORDS) -> Iterator[tuple[str, ...]]:
  """Yields the n-grams of words of a text; a shorter text is a single one."""
  all_words = words(text)
  for start in range(max(len(all_words) - n, 0) + 1):
    yield tuple(all_words[start : start + n])


def find_matches(
  train: Sequence[Prompt],
  evaluations: Mapping[str, Sequence[Prompt]],
  n: int = NGRAM_WORDS,
) -> list[Match]:
  """Finds the training questions that share an n-gram with an evaluation.

  A question of fewer than n words matches only a question of the same words.

  Args:
    train: The training questions.
    evaluations: The evaluation questions, by the name of their set.
    n: Number of words.

  Returns:
    One match per training question and evaluation set.
  """
  owner: dict = {}  # N-gram → evaluation set → the first question that has it.
  for name, prompts in evaluations.items():
    for prompt in prompts:
      for gram in ngrams(prompt.question, n):
        owner.setdefault(gram, {}).setdefault(name, prompt.id)
  found_matches = []
  for prompt in train:
    seen = set()
    for gram in ngrams(prompt.question, n):
      for name, eval_id in owner.get(gram, {}).items():
        if gram and name not in seen:  # Questions without words share nothing.
          seen.add(name)
          found_matches.append(Match(prompt.id, name, eval_id, ' '.join(gram)))
  return found_matches


def report(name: str, rows: int, found_matches: Sequence[Match]) -> dict:
  """Returns the JSON report of one training set.

  Args:
    name: Name of the training set.
    rows: Its number of rows.
    found_matches: Its matches.
  """
  counts: dict[str, int] = {}
  for match in found_matches:
    counts[match.evaluation] = counts.get(match.evaluation, 0) + 1
  return {
    'train': name,
    'rows': rows,
    'removed': len({match.train_id for match in found_matches}),
    'by_evaluation': counts,
    'matches': [dataclasses.asdict(match) for match in found_matches],
  }


def summary(json_report: dict) -> str:
  """Returns a report in one line."""
  pairs = ', '.join(
    f'{name} {count}'
    for name, count in sorted(json_report['by_evaluation'].items())
  )
  return (
    f'data: {json_report["train"]}: {json_report["removed"]} of {json_report["rows"]} rows '
    f'share {NGRAM_WORDS} words with an evaluation and are not trained on'
    + (f' ({pairs})' if pairs else '')
  )
