"""Response formats: the tags of a completion, and their strict parser.

  name                format
  think_answer        <think> r </think> <answer> a </answer>    R1-Zero
  think               <think> r </think> a                       R1
  reasoning_summary   <reasoning_process> r </reasoning_process>
                      <summary> a </summary>
  special_token       |special_token| r |special_token| a        R1's cold start
  boxed               … \\boxed{a} …                             plain models
  plain               … The answer is a | #### a | \\boxed{a}     plain models

r is the reasoning, a the answer. In the last two formats a thought between
<think> and </think> may precede the text but need not, and final_answer.py finds
the answer, as it does for the graders of the other formats. Rewards need this strict
parser, which knows the one format that was asked for; see reasoning.py for a
lenient one. A plugin registers a format of its own:

  registry.response_format('note')(ResponseFormat('<note>', '</note>'))
"""

from collections.abc import Callable
import dataclasses
import re

from r1jax import registry
from r1jax.data.text import final_answer
from r1jax.data.text.tokenizer import UNKNOWN

MAX_ERRORS = 10  # Largest error count; a repeated tag cannot raise it further.


@dataclasses.dataclass(frozen=True)
class ResponseFormat:
  """The tags around the reasoning and the answer of a completion.

  Attributes:
    reasoning_start: Tag that opens the reasoning.
    reasoning_end: Tag that closes the reasoning.
    answer_start: Tag that opens the answer; '' if the answer has no tags.
    answer_end: Tag that closes the answer; '' if the answer has no tags.
    find_answer: Finds the final answer in a text without tags, or returns None
      if it has none. A format with such a function has no answer tags, and its
      reasoning may be missing.
  """

  reasoning_start: str
  reasoning_end: str
  answer_start: str = ''
  answer_end: str = ''
  find_answer: Callable[[str], str | None] | None = None

  @property
  def tags(self) -> tuple[str, ...]:
    """The tags of the format, in the order of a well-formed completion."""
    return tuple(
      filter(
        None,
        (
          self.reasoning_start,
          self.reasoning_end,
          self.answer_start,
          self.answer_end,
        ),
      )
    )


THINK_ANSWER = registry.response_format('think_answer')(
  ResponseFormat('<think>', '</think>', '<answer>', '</answer>')
)
registry.response_format('think')(ResponseFormat('<think>', '</think>'))
registry.response_format('reasoning_summary')(
  ResponseFormat(
    '<reasoning_process>', '</reasoning_process>', '<summary>', '</summary>'
  )
)
registry.response_format('special_token')(  # DeepSeek-R1 section 2.3.1.
  ResponseFormat('|special_token|', '|special_token|')
)
registry.response_format('boxed')(
  ResponseFormat('<think>', '</think>', find_answer=final_answer.boxed)
)
registry.response_format('plain')(
  ResponseFormat('<think>', '</think>', find_answer=final_answer.stated)
)


@dataclasses.dataclass(frozen=True)
class Parsed:
  """The parts of a completion.

  Attributes:
    reasoning: Stripped text between the reasoning tags; None if they are
      missing.
    answer: Stripped text of the answer; None if it is missing. It is extracted
      leniently, so that accuracy and format are separate rewards: from the
      last complete pair of answer tags outside of the reasoning, or, in a
      format without such tags, from what follows the reasoning. Reasoning that
      is never closed has no answer, whatever it holds.
    errors: Number of format errors, at most MAX_ERRORS: missing, superfluous
      and misordered tags, text outside of the tags, blank parts, and tokens
      that are no text.
    response: Stripped text that a reader is meant to see: the answer, or, in a
      format that finds the answer in a text, all of that text.
  """

  reasoning: str | None
  answer: str | None
  errors: int
  response: str | None = None

  @property
  def well_formed(self) -> bool:
    """Whether the completion has no format errors."""
    return not self.errors


@dataclasses.dataclass(frozen=True)
class ResponseParser:
  """Parses completions of one response format.

  Attributes:
    format: The expected format.
    prompt_opens_think: Whether the prompt ends in the tag that opens the
      reasoning, so that completions lack it.
    prompt_start: Reasoning that the prompt opens and closes, such as
      '<think>\\n\\n</think>\\n\\n'; '' if it does not.
  """

  format: ResponseFormat = THINK_ANSWER
  prompt_opens_think: bool = False
  prompt_start: str = ''

  def parse(self, completion: str) -> Parsed:
    """Extracts the parts and counts the errors, in time linear in the length."""
    text = self.prompt_start + completion
    if self.prompt_opens_think:
      text = self.format.reasoning_start + completion
    if self.format.find_answer:
      return self._parse_untagged(text, self.format.find_answer)
    reasoning, answer = self._parts(text)
    errors = self._tag_errors(text)
    if not errors:
      needed = (answer,) if self.prompt_start else (reasoning, answer)
      errors = (
        self._texts_outside(text)
        + sum(not part for part in needed)
        + (UNKNOWN in text)
      )
    return Parsed(reasoning, answer, min(errors, MAX_ERRORS), answer)

  def _parse_untagged(
    self, text: str, find_answer: Callable[[str], str | None]
  ) -> Parsed:
    """Parses a text whose reasoning may be missing and whose answer is found."""
    tags = self.format
    start, end = text.find(tags.reasoning_start), text.rfind(tags.reasoning_end)
    reasoning, response = None, text
    if end >= 0:
      inside = start + len(tags.reasoning_start) if 0 <= start < end else 0
      reasoning = text[inside:end].strip()
      response = text[end + len(tags.reasoning_end) :]
    if tags.reasoning_start in response:  # It is never closed.
      _, _, reasoning = response.partition(tags.reasoning_start)
      return Parsed(reasoning.strip(), None, 1)
    answer = find_answer(response)
    errors = (not answer) + (UNKNOWN in text)
    return Parsed(reasoning, answer, errors, response.strip() or None)

  def _parts(self, text: str) -> tuple[str | None, str | None]:
    """Returns the reasoning and the answer; None for a missing one."""
    tags = self.format
    if tags.answer_start:
      return (
        _between(text, tags.reasoning_start, tags.reasoning_end),
        tagged_answer(text, tags),
      )
    start = text.find(tags.reasoning_start)
    inside = start + len(tags.reasoning_start)
    # The last tag closes, since reasoning may mention the tag.
    end = (
      text.find(tags.reasoning_end, inside)
      if tags.reasoning_start == tags.reasoning_end
      else text.rfind(tags.reasoning_end)
    )
    if start < 0 or end < inside:
      return None, None
    answer = text[end + len(tags.reasoning_end) :]
    if tags.reasoning_start != tags.reasoning_end:
      # Reasoning that is opened once more and left open is no answer.
      answer = answer.partition(tags.reasoning_start)[0]
    return text[inside:end].strip(), answer.strip() or None

  def _tag_errors(self, text: str) -> int:
    """Counts missing, superfluous and misordered tags."""
    tags = self.format.tags
    wrong = sum(abs(text.count(tag) - tags.count(tag)) for tag in set(tags))
    offsets = [text.find(tag) for tag in dict.fromkeys(tags)]
    return wrong + sum(
      0 <= later < before for before, later in zip(offsets, offsets[1:])
    )

  def _texts_outside(self, text: str) -> int:
    """Counts texts before, between and after the tagged parts.

    Args:
      text: A completion without tag errors.
    """
    tags = self.format
    before, _, rest = text.partition(tags.reasoning_start)
    texts = [before]
    if tags.answer_start:
      between, _, rest = rest.partition(tags.reasoning_end)[2].partition(
        tags.answer_start
      )
      texts += [between, rest.partition(tags.answer_end)[2]]
    return sum(bool(outside.strip()) for outside in texts)


def _between(text: str, opening: str, closing: str) -> str | None:
  """Returns the last span between two tags, in time linear in the length."""
  end = text.rfind(closing)
  start = text.rfind(opening, 0, max(end, 0))
  if end < 0 or start < 0:
    return None
  return text[start + len(opening) : end].strip()


def tagged_answer(text: str, tags: ResponseFormat) -> str | None:
  """Returns the last span between answer tags outside of the reasoning.

  '<think> a <answer>6</answer> b </think> <answer>7</answer>' → '7'
  '<think> a <answer>6</answer>' → None

  Reasoning lasts from its tag to the next one that closes it, or to the end.
  """
  # Longer tags come first, in case that one begins with another.
  marks = sorted(set(tags.tags), key=len, reverse=True)
  inside, start, span = False, -1, None
  for match in re.finditer('|'.join(map(re.escape, marks)), text):
    mark = match[0]
    if mark == tags.reasoning_start and not inside:
      inside = True
    elif mark == tags.reasoning_end:
      inside = False
    elif not inside:
      if mark == tags.answer_end and start >= 0:
        span = slice(start, match.start())
      if mark == tags.answer_start:
        start = match.end()
  return None if span is None else text[span].strip()
