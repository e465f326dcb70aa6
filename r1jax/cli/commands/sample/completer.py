"""Samples completions of questions and prints them."""

from collections import Counter
from collections.abc import Iterable
import logging
import zlib

import jax
import numpy as np

from r1jax.cli.commands.sample.questions import Question
from r1jax.data.text import reasoning
from r1jax.data.text.tokenizer import UNKNOWN
from r1jax.errors import UserError
from r1jax.rollout import assemble
from r1jax.rollout.engine import Engine
from r1jax.rollout.sampling import SamplingParams
from r1jax.rollout.scheduler import Completion, Request
from r1jax.stages.build.parts import Parts

_log = logging.getLogger(__name__)


class Completer:
  """Completes questions with one policy, in the template of its run.

  A sample depends on the question, the seed, and how often the same question
  came before; not on other questions.
  """

  def __init__(
    self,
    parts: Parts,
    engine: Engine,
    params,
    sampling: SamplingParams,
    num_samples: int,
    key: jax.Array,
  ):
    """Args:
    parts: Tokenizer, template and response format.
    engine: The sampler.
    params: Parameters of the policy.
    sampling: How tokens are sampled.
    num_samples: Completions of each question.
    key: Seeds all samples.
    """
    self._parts, self._sampling, self._key = parts, sampling, key
    self._num_samples = num_samples
    self._session = engine.session(params)
    self._max_prompt_tokens = (
      engine.config.max_model_len - sampling.max_new_tokens
    )
    self._occurrences: Counter[str] = Counter()

  def complete(
    self, questions: Iterable[Question], show_questions: bool = True
  ) -> bool:
    """Prints every completion in order; a single one is streamed.

    A question that cannot be completed is reported on stderr; the others are
    completed.

    Args:
      questions: The questions.
      show_questions: Print each question before its completions.

    Returns:
      Whether all questions were completed.
    """
    headings: dict[Completion, str] = {}
    all_completed = True
    for question in questions:
      try:
        requests = self._requests(question)
        headings |= {
          self._session.submit(request): _heading(
            question.text * show_questions, sample, self._num_samples
          )
          for sample, request in enumerate(requests)
        }
      except UserError as error:
        _log.warning('%s', error)
        all_completed = False
    if len(headings) == 1:
      self._stream(*headings.items())
      return all_completed
    waiting = iter(headings.items())
    head = next(waiting, None)
    for _ in self._session:
      while head and head[0].finish_reason:
        completion, heading = head
        print(
          f'{heading}{self._text(completion)}\n{self._summary(completion)}\n',
          flush=True,
        )
        head = next(waiting, None)
    return all_completed

  def _requests(self, question: Question) -> list[Request]:
    """One request a sample of a question."""
    try:
      prompt = self._prompt_ids(question.text)
    except UserError as error:
      raise UserError(f'{question.name}: {error}') from error
    earlier = self._occurrences[question.text]
    self._occurrences[question.text] += 1
    (keys_G2,) = assemble.sample_keys(
      self._key,
      [np.uint32(zlib.crc32(question.text.encode()))],
      self._num_samples,
      [earlier * self._num_samples],
    )
    return [
      Request(
        name=question.name,
        prompt=prompt,
        key=key,
        sampling_params=self._sampling,
      )
      for key in keys_G2
    ]

  def _prompt_ids(self, question: str) -> np.ndarray:
    """Token ids of the templated question."""
    if not question.strip():
      raise UserError('the prompt is empty')
    ids = self._parts.tokenizer.encode_prompt(
      self._parts.template.render(question)
    )
    if len(ids) > self._max_prompt_tokens:
      raise UserError(
        f'the prompt has {len(ids)} tokens, more than max_prompt_tokens = '
        f'{self._max_prompt_tokens}; raise --config.data.max_prompt_tokens'
      )
    return np.array(ids, np.int32)

  def _stream(self, item: tuple[Completion, str]):
    """Prints a completion as its tokens are sampled."""
    completion, heading = item
    print(heading, end='')
    shown = ''
    for _ in self._session:
      text = self._text(completion)
      if not completion.finish_reason:
        text = text.rstrip(UNKNOWN)  # The bytes of a character are incomplete.
      print(text[len(shown) :], end='', flush=True)
      shown = text
    print()
    print(self._summary(completion))

  def _summary(self, completion: Completion) -> str:
    """Reasoning and answer apart, where they can be, and how it ended."""
    text = self._text(completion)
    response = reasoning.split(self._opening(text) + text)
    lines = [
      f'  {name:<8} {part}'
      for name, part in (
        ('thought:', response.reasoning),
        ('answer:', response.answer),
      )
      if part
    ]
    malformed = ', malformed' * (not self._parts.parser.parse(text).well_formed)
    lines.append(
      f'  ({len(completion.tokens)} tokens, {completion.finish_reason}{malformed})'
    )
    return '\n'.join(lines)

  def _opening(self, text: str) -> str:
    """The beginning of a response that the prompt holds, if the text does not repeat it."""
    parser = self._parts.parser
    tag = parser.format.reasoning_start * parser.prompt_opens_think
    return (
      '' if tag and text.strip().startswith(tag) else tag or parser.prompt_start
    )

  def _text(self, completion: Completion) -> str:
    """The text so far, without a stop token."""
    tokens = completion.tokens
    if tokens and tokens[-1] in self._sampling.stop_token_ids:
      tokens = tokens[:-1]
    return self._parts.tokenizer.decode(tokens)


def _heading(question: str, sample: int, num_samples: int) -> str:
  """The line above a completion: the question, and its number of several."""
  words = [question] * bool(question)
  words += [f'#{sample + 1}'] * (num_samples > 1)
  return ' '.join(words) + '\n' * bool(words)
