"""Response formats: the tags of a completion, and their strict parser.

  name                format
  think_answer        <think> r </think> <answer> a </answer>    R1-Zero
  think               <think> r </think> a                       R1
  reasoning_summary   <reasoning_process> r </reasoning_process>
                      <summary> a </summary>
  special_token       |special_token| r |special_token| a        R1's cold start

r is the reasoning, a the answer. Rewards need this strict parser, which knows
the one format that was asked for; see reasoning.py for a lenient one. A plugin
registers a format of its own:

  registry.response_format('note')(ResponseFormat('<note>', '</note>'))
"""

import dataclasses

from r1jax import registry

MAX_ERRORS = 10  # Largest error count; a repeated tag cannot raise it further.


@dataclasses.dataclass(frozen=True)
class ResponseFormat:
  """The tags around the reasoning and the answer of a completion.

  Attributes:
    reasoning_start: Tag that opens the reasoning.
    reasoning_end: Tag that closes the reasoning.
    answer_start: Tag that opens the answer; '' if the answer has no tags.
    answer_end: Tag that closes the answer; '' if the answer has no tags.
  """

  reasoning_start: str
  reasoning_end: str
  answer_start: str = ''
  answer_end: str = ''

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


@dataclasses.dataclass(frozen=True)
class Parsed:
  """The parts of a completion.

  Attributes:
    reasoning: Stripped text between the reasoning tags; None if they are
      missing.
    answer: Stripped text of the answer; None if it is missing. It is extracted
      leniently, so that accuracy and format are separate rewards: from the
      last complete pair of answer tags, or, in a format without such tags,
      from what follows the reasoning.
    errors: Number of format errors, at most MAX_ERRORS: missing, superfluous
      and misordered tags, text outside of the tags, and blank parts.
  """

  reasoning: str | None
  answer: str | None
  errors: int

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
  """

  format: ResponseFormat = THINK_ANSWER
  prompt_opens_think: bool = False

  def parse(self, completion: str) -> Parsed:
    """Extracts the parts and counts the errors, in time linear in the length."""
    text = completion
    if self.prompt_opens_think:
      text = self.format.reasoning_start + completion
    reasoning, answer = self._parts(text)
    errors = self._tag_errors(text)
    if not errors:
      errors = self._texts_outside(text) + sum(
        not part for part in (reasoning, answer)
      )
    return Parsed(reasoning, answer, min(errors, MAX_ERRORS))

  def _parts(self, text: str) -> tuple[str | None, str | None]:
    """Returns the reasoning and the answer; None for a missing one."""
    tags = self.format
    if tags.answer_start:
      return (
        _between(text, tags.reasoning_start, tags.reasoning_end),
        _between(text, tags.answer_start, tags.answer_end),
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
    return (
      text[inside:end].strip(),
      text[end + len(tags.reasoning_end) :].strip() or None,
    )

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


def _between(text: str, reasoning_start: str, closing: str) -> str | None:
  """Returns the last span between two tags, in time linear in the length."""
  end = text.rfind(closing)
  start = text.rfind(reasoning_start, 0, max(end, 0))
  if end < 0 or start < 0:
    return None
  return text[start + len(reasoning_start) : end].strip()
