"""Language consistency: scripts, sentences, and what is no word."""

import pytest

from r1jax.errors import UserError
from r1jax.rewards import language


@pytest.mark.parametrize(
  'text,code,share',
  [
    ('First add 3 and 4', 'en', 1),
    ('First 加上 3 and 4', 'en', 2 / 3),
    ('首先把三和四相加，得到七', 'zh', 1),
    ('首先 add 三和四', 'zh', 2.5 / 3.5),  # Five characters, one word.
    ('まず三と四を足します', 'ja', 1),
    ('Сначала сложим три и four', 'ru', 3 / 4),  # One letter is no word.
    ('', 'en', 1),
    ('3+4=7', 'en', 1),
    ('x = y + z', 'en', 1),
    ('We use `für alle` and $f_{über}$ and \\frac{a}{b}.', 'en', 1),
    ('We write\n```python\nпечать = "привет"\n```\nand are done.', 'en', 1),
    ('It costs $3 and\n`über 加上', 'en', 4 / 5),  # Never closed.
    ('See https://пример.рф/страница for it.', 'en', 1),
    (
      'The sum is seven. Also ist das Ergebnis gleich sieben und gut.',
      'en',
      4 / 12,
    ),
    (
      'The sum is seven. Also ist das Ergebnis gleich sieben und gut.',
      'de',
      8 / 12,
    ),
    ('Il faut donc additionner les deux nombres entiers.', 'en', 0),
    ('Поэтому ответ равен семи, и мы закончили.', 'en', 0),
  ],
)
def test_share_of_the_target_language(text, code, share):
  assert language.consistency(text, code) == pytest.approx(share, abs=1e-6)


def test_english_mathematics_is_english():
  text = (
    'Let x be the number of apples. Then 3x + 4 = 19, so x = 5. Wait, '
    'let me check: 3 * 5 = 15 and 15 + 4 = 19. Hence the derivative of '
    'sin x vanishes at pi/2. Therefore the polynomial has no real '
    'roots. By Vieta, the product of the roots is c/a. QED.'
  )
  assert language.consistency(text, 'en') == 1


def test_hostile_text_takes_linear_time():
  for text in (
    '`' * 200_000,
    '$' * 200_001,
    '```' * 70_000,
    '\\[' * 100_000,
    '加' * 200_000,
    'a ' * 100_000,
    '<a' * 100_000,
  ):
    assert 0 <= language.consistency(text, 'en') <= 1


def test_an_unknown_language_is_refused():
  with pytest.raises(UserError, match="unknown 'xx'; there are ar, bg"):
    language.check('xx')
