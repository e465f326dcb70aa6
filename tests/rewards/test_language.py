"""Language consistency: scripts, sentences, and what is no word."""

import pytest

from r1jax.errors import UserError
from r1jax.rewards import language
from tests.rewards.test_repetition import LANGUAGES, NATURAL


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
    # Chinese and Japanese share characters.
    ('首先把三和四相加，得到七，所以答案是七', 'ja', 0),
    ('まず三と四を足すと七になるので、答えは七です', 'zh', 0),
    ('データを分析する', 'ja', 1),
    ('ﾃﾞｰﾀを分析する', 'ja', 1),
    ('因数分解', 'ja', 1),  # Too short to tell.
    ('首先，把三和四相加。まず三と四を足すと七になる', 'zh', 8 / 21),
    # Marks belong to their letters.
    ('كِتَابٌ جَدِيدٌ and more', 'ar', 2 / 4),
    ('हिन्दी में लिखा and more', 'hi', 3 / 5),
    ('e\u0301te\u0301 chaud', 'ru', 0),
    ('می\u200cشود and more', 'fa', 1 / 3),
    ('เราจะบวกเลขกัน and more', 'th', 3.5 / 5.5),
    # Names of mathematics are no language.
    ('在三角形ABC中，AB长5 cm，sin值为0.5', 'zh', 1),
    ('\\begin{align} x &= \\mathrm{area} \\end{align} 所以面积相等', 'zh', 1),
    ('所以 𝑥𝑦 的值为七', 'zh', 1),
    ('ดังนั้น sin x มีค่าเท่ากับ 1/2', 'th', 1),
    ('إذن طول الضلع AB يساوي 5 cm', 'ar', 1),
    ('したがって x=7 が求める値である', 'ja', 1),
    ('因此 therefore 答案是七', 'zh', 3 / 4),
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


@pytest.mark.parametrize('code', ['en', *LANGUAGES])
def test_a_proof_is_in_its_own_language_alone(code):
  own = NATURAL[code]
  for other in ('en', *LANGUAGES):
    share = language.consistency(own, other)
    assert share == 1 if other == code else share < 0.05, (code, other)


@pytest.mark.parametrize('code', LANGUAGES)
def test_a_mix_is_as_long_in_every_language(code):
  """Half of a thought in English is about half of its words."""
  text = NATURAL[code] + '\n' + NATURAL['en']
  assert 0.35 < language.consistency(text, code) < 0.65
  assert 0.35 < language.consistency(text, 'en') < 0.65
