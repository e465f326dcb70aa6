"""Multiple choice: options in an order of their own for each problem.

  A red gem? [ruby, jade, onyx], the first is right
→ Answer the following multiple-choice question … one of A, B or C.

  A red gem?

  A) onyx
  B) ruby
  C) jade                                                    gold answer: B

The order is a function of the seed and the problem's id alone, so it is the
same in every run, process and version of Python. A file in which the right
option always comes first, as in GPQA, gives no answer away.
"""

from collections.abc import Sequence
import hashlib
import string

LETTERS = string.ascii_uppercase[:10]  # The grader `choice` reads no others.
_SEED = 0


def order(count: int, name: str, seed: int = _SEED) -> list[int]:
  """Returns the indices of a problem's options in the order of display.

  Args:
    count: Number of options.
    name: Id of the problem.
    seed: Another seed gives another order.
  """

  def key(index: int) -> bytes:
    return hashlib.sha256(f'{seed}/{name}/{index}'.encode()).digest()

  return sorted(range(count), key=key)


def multiple_choice(
  name: str, question: str, options: Sequence[str], right: int
) -> dict[str, str]:
  """Returns the fields of a multiple-choice question with shuffled options.

  Args:
    name: Id of the problem.
    question: The question without its options.
    options: Texts of 2 to 10 options.
    right: Index of the right one.

  Returns:
    {'id': …, 'question': …, 'answer': the letter of the right option}.

  Raises:
    ValueError: the question is empty, or the options are not so many texts with
      the right one among them.
  """
  if not isinstance(question, str) or not question.strip():
    raise ValueError(f'needs a question, got {question!r:.100}')
  if not 2 <= len(options) <= len(LETTERS):
    raise ValueError(f'needs 2 to {len(LETTERS)} options, got {len(options)}')
  blank = [i for i, each in enumerate(options) if not str(each or '').strip()]
  if blank:
    raise ValueError(f'has no text in option {blank[0] + 1}')
  if type(right) is not int or not 0 <= right < len(options):
    raise ValueError(
      f'has {right!r:.100} as its right option, of {len(options)}'
    )
  shown = order(len(options), name)
  *others, last = list(LETTERS[: len(options)])
  lines = [
    f'{letter}) {str(options[index]).strip()}'
    for letter, index in zip(LETTERS, shown)
  ]
  return {
    'id': name,
    'question': (
      'Answer the following multiple-choice question with the letter of the '
      f'right option, one of {", ".join(others)} or {last}.\n\n'
      f'{question.strip()}\n\n' + '\n'.join(lines)
    ),
    'answer': LETTERS[shown.index(right)],
  }
