"""The forms of a completion, and the strict reading that rewards need.

<think> r </think> <answer> a </answer>                    R1-Zero's
<think> r </think> a                                       R1's own
<reasoning_process> r </reasoning_process> <summary> a </summary>
|special_token| r |special_token| a                        of the cold start
"""

import dataclasses

from r1jax.errors import unknown

MAX_ERRORS = 10  # Counted; a completion that repeats a tag ends here.


@dataclasses.dataclass(frozen=True)
class Form:
  """Tags around the thought, and around the answer where it has some."""

  opening: str
  closing: str
  answer_opening: str = ''
  answer_closing: str = ''

  @property
  def tags(self) -> tuple[str, ...]:
    return tuple(
      filter(
        None,
        (self.opening, self.closing, self.answer_opening, self.answer_closing),
      )
    )


FORMS = {
  'think_answer': Form('<think>', '</think>', '<answer>', '</answer>'),
  'think': Form('<think>', '</think>'),
  'reasoning_summary': Form(
    '<reasoning_process>', '</reasoning_process>', '<summary>', '</summary>'
  ),
  'special_token': Form('|special_token|', '|special_token|'),
}


@dataclasses.dataclass(frozen=True)
class Parsed:
  """A completion read back; a part that is missing is None.

  Attributes:
    thought: Between its tags.
    answer: Read leniently, so that accuracy and format are separate signals:
      from the LAST complete pair of answer tags; without such tags, what comes
      after the thought.
    errors: Of the form: tags that are missing or too many, tags out of order,
      text outside of them, a part that is blank. At most MAX_ERRORS.
  """

  thought: str | None
  answer: str | None
  errors: int

  @property
  def well_formed(self) -> bool:
    return not self.errors


@dataclasses.dataclass(frozen=True)
class Reader:
  """Reads completions of one form.

  Attributes:
    form: Which.
    opens_think: The prompt itself opened the thought.
  """

  form: Form = FORMS['think_answer']
  opens_think: bool = False

  def parse(self, completion: str) -> Parsed:
    """Linear in len(completion), whatever tags it repeats."""
    text = completion
    if self.opens_think:
      text = self.form.opening + completion
    thought, answer = self._parts(text)
    errors = self._misplaced(text)
    if not errors:
      errors = self._outside(text) + sum(not part for part in (thought, answer))
    return Parsed(thought, answer, min(errors, MAX_ERRORS))

  def _parts(self, text: str) -> tuple[str | None, str | None]:
    form = self.form
    if form.answer_opening:
      return (
        _between(text, form.opening, form.closing),
        _between(text, form.answer_opening, form.answer_closing),
      )
    start = text.find(form.opening)
    inside = start + len(form.opening)
    # The last one closes: a thought may speak of the tag.
    end = (
      text.find(form.closing, inside)
      if form.opening == form.closing
      else text.rfind(form.closing)
    )
    if start < 0 or end < inside:
      return None, None
    return (
      text[inside:end].strip(),
      text[end + len(form.closing) :].strip() or None,
    )

  def _misplaced(self, text: str) -> int:
    """Tags missing, too many, or out of order."""
    tags = self.form.tags
    wrong = sum(abs(text.count(tag) - tags.count(tag)) for tag in set(tags))
    places = [text.find(tag) for tag in dict.fromkeys(tags)]
    return wrong + sum(
      0 <= later < before for before, later in zip(places, places[1:])
    )

  def _outside(self, text: str) -> int:
    """Texts before the thought, between the parts, and after the answer, where
    every tag is in its place."""
    form = self.form
    before, _, rest = text.partition(form.opening)
    texts = [before]
    if form.answer_opening:
      between, _, rest = rest.partition(form.closing)[2].partition(
        form.answer_opening
      )
      texts += [between, rest.partition(form.answer_closing)[2]]
    return sum(bool(outside.strip()) for outside in texts)


def get(name: str) -> Form:
  if name not in FORMS:
    raise unknown('data: form', name, FORMS)
  return FORMS[name]


def _between(text: str, opening: str, closing: str) -> str | None:
  """The last span between the tags: linear in len(text), no backtracking."""
  end = text.rfind(closing)
  start = text.rfind(opening, 0, max(end, 0))
  if end < 0 or start < 0:
    return None
  return text[start + len(opening) : end].strip()
