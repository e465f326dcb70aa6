"""Completions for a person: prompts from flags, a file or the terminal."""

from collections import Counter
from collections.abc import Iterable
import sys
from typing import NamedTuple, TextIO
import zlib

import jax
import numpy as np

from r1jax.data.text import reasoning
from r1jax.errors import UserError
from r1jax.rollout import assemble
from r1jax.rollout.engine import Engine
from r1jax.rollout.sampling import Sampling
from r1jax.rollout.scheduler import Completion, Request
from r1jax.stages.build.parts import Parts


class Question(NamedTuple):
  """What a person asks, and what errors call it."""

  text: str
  name: str


class Completer:
  """Completes questions in the template of a run, under one policy.

  A sample depends on the question, the seed, and how often the same question
  was asked before; on no other question.
  """

  def __init__(
    self,
    parts: Parts,
    engine: Engine,
    params,
    how: Sampling,
    samples: int,
    key: jax.Array,
  ):
    self._parts, self._how, self._key = parts, how, key
    self._samples = samples
    self._session = engine.session(params)
    self._longest = engine.config.context_tokens - how.max_new_tokens
    self._asked: Counter[str] = Counter()

  def answer(self, questions: Iterable[Question], echo: bool = True) -> bool:
    """Prints every completion; one alone is streamed as it is drawn.

    A question that cannot be served is told, and the others go on.

    Args:
      questions: In their order.
      echo: Print each before its completions.

    Returns:
      Whether all of them were served.
    """
    taken: dict[Completion, str] = {}
    all_served = True
    for question in questions:
      try:
        asked = self._requests(question)
        taken |= {
          self._session.submit(request): _heading(
            question.text * echo, g, self._samples
          )
          for g, request in enumerate(asked)
        }
      except UserError as error:
        print(f'r1jax: {error}', file=sys.stderr)
        all_served = False
    if len(taken) == 1:
      self._stream(*taken.items())
      return all_served
    waiting = iter(taken.items())  # Told in the order in which they were asked.
    head = next(waiting, None)
    for _ in self._session:
      while head and head[0].finish:
        self._tell(*head)
        head = next(waiting, None)
    return all_served

  def _requests(self, question: Question) -> list[Request]:
    try:
      prompt = self._prompt(question.text)
    except UserError as error:
      raise UserError(f'{question.name}: {error}') from error
    before = self._asked[question.text]
    self._asked[question.text] += 1
    (keys_G2,) = assemble.sample_keys(
      self._key,
      [np.uint32(zlib.crc32(question.text.encode()))],
      self._samples,
      [before * self._samples],
    )
    return [
      Request(name=question.name, prompt=prompt, key=key, sampling=self._how)
      for key in keys_G2
    ]

  def _prompt(self, question: str) -> np.ndarray:
    if not question.strip():
      raise UserError('the prompt is empty')
    text = self._parts.tokenizer.prompt(self._parts.template.render(question))
    if len(text) > self._longest:
      raise UserError(
        f'the prompt has {len(text)} tokens, more than max_prompt_tokens = '
        f'{self._longest}; raise --config.data.max_prompt_tokens'
      )
    return np.array(text, np.int32)

  def _stream(self, item: tuple[Completion, str]):
    completion, heading = item
    print(heading, end='')
    shown = ''
    for _ in self._session:
      # Half a character is shown when the other half is there.
      text = self._text(completion).rstrip('\ufffd')
      print(text[len(shown) :], end='', flush=True)
      shown = text
    print()
    print(self._read(completion))

  def _tell(self, completion: Completion, heading: str):
    print(
      f'{heading}{self._text(completion)}\n{self._read(completion)}\n',
      flush=True,
    )

  def _read(self, completion: Completion) -> str:
    """The reasoning and the answer apart, where they can be told."""
    text = self._text(completion)
    read = reasoning.split(text, self._parts.reader.opens_think)
    lines = [
      f'  {name:<8} {part}'
      for name, part in (('thought:', read.reasoning), ('answer:', read.answer))
      if part
    ]
    malformed = ', malformed' * (not self._parts.reader.parse(text).well_formed)
    lines.append(
      f'  ({len(completion.tokens)} tokens, {completion.finish}{malformed})'
    )
    return '\n'.join(lines)

  def _text(self, completion: Completion) -> str:
    tokens = completion.tokens
    if tokens and tokens[-1] in self._how.stop_ids:
      tokens = tokens[:-1]
    return self._parts.tokenizer.decode(tokens)


def _heading(question: str, sample: int, samples: int) -> str:
  named = [question] * bool(question) + [f'#{sample + 1}'] * (samples > 1)
  return ' '.join(named) + '\n' * bool(named)


def questions_of(prompts: list[str], path: str) -> list[Question]:
  """From --prompt flags and the lines of a file.

  Raises:
    UserError: the file cannot be read, or holds nothing.
  """
  asked = [Question(prompt, repr(prompt)) for prompt in prompts]
  if not path:
    return asked
  try:
    with open(path, encoding='utf-8') as file:
      return asked + lines_of(file, path)
  except OSError as error:
    raise UserError(f'sample: cannot read {path}: {error}') from error


def lines_of(file: TextIO, where: str) -> list[Question]:
  """A question a line; an error names its number.

  Raises:
    UserError: it holds nothing, or what is no text.
  """
  try:
    lines = [line.rstrip('\n') for line in file]
    if lines:
      lines[0] = lines[0].removeprefix('\ufeff')
  except UnicodeDecodeError as error:
    raise UserError(f'sample: cannot read {where}: {error}') from error
  if not lines:
    raise UserError(f'sample: {where} holds no question')
  return [
    Question(line, f'{where}:{number}') for number, line in enumerate(lines, 1)
  ]
