"""The record that a reward reads: one completion and all that is known of it.

  @registry.reward('brevity')
  def brevity(sample):
    return -sample.num_tokens / 1000

This module is light, since the workers that run rewards import it.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any

from r1jax.message import Message


@dataclasses.dataclass(frozen=True)
class SamplePrompt:
  """The prompt of a sample.

  Attributes:
    id: Identifier, unique within its source.
    text: The templated prompt, exactly as the tokenizer sees it.
    question: The question without the template.
    source: Name of the grader of the answer, such as 'math'; 'general' for a
      prompt whose answers no rule can verify.
    language: ISO 639 code of the language in which the answer is expected.
    messages: The conversation that leads to the answer if it has several
      messages; empty if the question is all of it.
    fields: All fields of the dataset's row; empty for a synthetic task.
  """

  id: str
  text: str
  question: str
  source: str
  language: str = 'en'
  messages: tuple[Message, ...] = ()
  fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Sample:
  """One completion, its prompt and the grade of its answer.

  Attributes:
    completion: The text that the policy wrote, without the stop token.
    reasoning: The reasoning in it; None if its tags are missing.
    answer: The answer in it; None if it is missing.
    gold: The reference answer.
    prompt: The prompt.
    num_tokens: Number of tokens of the completion, with the stop token.
    finish_reason: 'stop' for a completion that ended by itself, 'length' for
      one that was cut off; '' where it is not known.
    format_errors: Number of errors of the response format; 0 if it is right.
    accuracy: Score of the answer by its grader, within [0, 1]; None where no
      rule can verify it, or where the grader failed.
    verdict: The grader's verdict: 'correct', 'wrong', 'unparsable', 'refused',
      'timeout' or 'crash'; 'general' where no rule can verify the answer.
  """

  completion: str
  reasoning: str | None
  answer: str | None
  gold: str
  prompt: SamplePrompt
  num_tokens: int
  finish_reason: str = ''
  format_errors: int = 0
  accuracy: float | None = None
  verdict: str = 'general'

  def to_json(self) -> dict[str, Any]:
    """Converts the record to JSON, for a worker process."""
    prompt = dict(vars(self.prompt), messages=list(self.prompt.messages))
    return dict(vars(self), verdict=str(self.verdict), prompt=prompt)

  @classmethod
  def from_json(cls, saved: dict[str, Any]) -> 'Sample':
    """Restores a record from `to_json`."""
    prompt = saved['prompt']
    messages = tuple(Message(*turn) for turn in prompt['messages'])
    return cls(
      **saved | {'prompt': SamplePrompt(**prompt | {'messages': messages})}
    )
