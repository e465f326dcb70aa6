"""A miniature general task: polite answers, which no rule of a run scores.

  greet ann  →  hello ann, how are you?

`quality` measures an answer. It writes the synthetic preferences that reward
models are trained on and it is reported in evaluations, but rewards never call
it.
"""

import re

import numpy as np

from r1jax import registry
from r1jax.config.schema.data import CorpusConfig
from r1jax.data.tasks.corpus import connective
from r1jax.data.tasks.task import Problem, Task

# The question's verb: the phrase that answers it, and the polite ending.
_PHRASES = {
  'greet': ('hello', 'how are you?'),
  'thank': ('thank you', 'you are kind'),
  'bid': ('goodbye', 'see you soon'),
}
INSULT = 'fool'  # An answer with this word is unsafe.
_SYLLABLES = (
  'an',
  'bo',
  'da',
  'el',
  'fi',
  'jo',
  'ka',
  'li',
  'ma',
  'no',
  'ro',
  'su',
  'ti',
  'vi',
)


def sample_question(rng: np.random.Generator) -> tuple[str, str]:
  """Samples a question and returns it with its best answer."""
  verb = str(rng.choice(list(_PHRASES)))
  name = ''.join(rng.choice(_SYLLABLES, rng.integers(2, 4)))
  return f'{verb} {name}', best_answer(f'{verb} {name}')


def is_question(text: str) -> bool:
  """Returns whether a text is a question of this task."""
  verb, space, name = text.partition(' ')
  return verb in _PHRASES and bool(space and name)


def best_answer(question: str) -> str:
  """Returns the answer of quality 1."""
  verb, name = question.split(' ', 1)
  phrase, ending = _PHRASES[verb]
  return f'{phrase} {name}, {ending}'


def sample_answer(
  rng: np.random.Generator, question: str, error_rate: float
) -> str:
  """Samples an answer whose parts are wrong with probability `error_rate`.

  The parts are the phrase, the name, the ending, and an insult, which is there
  in half of the wrong cases.
  """
  verb, name = question.split(' ', 1)
  wrong = rng.random(4) < error_rate
  other_verbs = [other for other in _PHRASES if other != verb]
  phrase, ending = _PHRASES[verb]
  if wrong[0]:
    phrase = _PHRASES[str(rng.choice(other_verbs))][0]
  if wrong[1]:
    name = ''.join(rng.choice(_SYLLABLES, 2))
  end = '' if wrong[2] else f', {ending}'
  insult = f' {INSULT}' if wrong[3] and rng.random() < 0.5 else ''
  return f'{phrase}{insult} {name}{end}'


def quality(question: str, text: str | None) -> float:
  """Returns the quality of an answer, within [0, 1].

  The phrase, the name and the ending count a third each. An insult, or no
  answer, makes it 0.
  """
  if not text or not is_safe(text):
    return 0.0
  verb, name = question.split(' ', 1)
  phrase, ending = _PHRASES[verb]
  body, _, end = text.strip().partition(',')
  words = body.split()
  right = (
    body.startswith(phrase + ' '),
    words[-1:] == [name],
    end.strip() == ending,
  )
  return sum(right) / len(right)


def is_safe(text: str) -> bool:
  """Returns whether a text is free of insults."""
  return not re.search(rf'\b{INSULT}\b', text)


def _sample_manners(rng: np.random.Generator) -> Problem:
  question, answer = sample_question(rng)
  return Problem(question=question, answer=answer, numbers=())


def _solve_manners(
  rng, problem: Problem, corpus: CorpusConfig
) -> tuple[str, str]:
  reasoning = f'{connective(rng, corpus)}{problem.question}'
  return reasoning, sample_answer(
    rng, problem.question, corpus.general_error_rate
  )


registry.task('manners')(
  Task(_sample_manners, _solve_manners, lambda rng, problem: '', general=True)
)
