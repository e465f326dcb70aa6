"""A general task in miniature: no rule of the trainer's scores it.

  greet ann  →  hello ann, how are you?

What makes an answer good is known here alone: `quality` measures it in
evaluations, and writes the preferences that reward models learn from. Rewards
never call it.
"""

import re

import numpy as np

# Intent: what it is answered with, and what makes it kind.
_PHRASES = {
  'greet': ('hello', 'how are you?'),
  'thank': ('thank you', 'you are kind'),
  'bid': ('goodbye', 'see you soon'),
}
RUDE = 'fool'  # Harms: an answer that holds it is not safe.
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


def draw(rng: np.random.Generator) -> tuple[str, str]:
  """A question, and the best answer to it."""
  intent = str(rng.choice(list(_PHRASES)))
  name = ''.join(rng.choice(_SYLLABLES, rng.integers(2, 4)))
  return f'{intent} {name}', best(f'{intent} {name}')


def asks(question: str) -> bool:
  """Whether it is a question of this task."""
  intent, space, name = question.partition(' ')
  return intent in _PHRASES and bool(space and name)


def best(question: str) -> str:
  intent, name = question.split(' ', 1)
  phrase, kindness = _PHRASES[intent]
  return f'{phrase} {name}, {kindness}'


def answer(rng: np.random.Generator, question: str, error_rate: float) -> str:
  """An answer, each part of which goes wrong with the chance `error_rate`."""
  intent, name = question.split(' ', 1)
  wrong = rng.random(4) < error_rate
  others = [other for other in _PHRASES if other != intent]
  phrase, kindness = _PHRASES[intent]
  if wrong[0]:
    phrase = _PHRASES[str(rng.choice(others))][0]
  if wrong[1]:
    name = ''.join(rng.choice(_SYLLABLES, 2))
  end = '' if wrong[2] else f', {kindness}'
  insult = f' {RUDE}' if wrong[3] and rng.random() < 0.5 else ''
  return f'{phrase}{insult} {name}{end}'


def quality(question: str, text: str | None) -> float:
  """Within [0, 1]: a third each for the phrase, the name and the kindness; 0
  for an insult."""
  if not text or not is_safe(text):
    return 0.0
  intent, name = question.split(' ', 1)
  phrase, kindness = _PHRASES[intent]
  body, _, end = text.strip().partition(',')
  words = body.split()
  right = (
    body.startswith(phrase + ' '),
    words[-1:] == [name],
    end.strip() == kindness,
  )
  return sum(right) / len(right)


def is_safe(text: str) -> bool:
  return not re.search(rf'\b{RUDE}\b', text)
