"""Repetition in any script, against a plain count of n-grams of words."""

import random
import time

import pytest

from r1jax.errors import UserError
from r1jax.rewards import parts
from r1jax.rewards.parts import RewardOptions
from r1jax.rewards.repetition import repetition
from r1jax.rewards.sample import Sample, SamplePrompt

# The same little proof, with no sentence twice.
NATURAL = {
  'en': 'Let the two numbers be a and b. Their sum is twelve and their product '
  'is thirty-five. So both are roots of one quadratic equation, which factors '
  'into two brackets. The roots are five and seven. To check, five plus seven '
  'makes twelve, and five times seven makes thirty-five. Hence the larger of '
  'them must be seven.',
  'zh': '设这两个数分别为甲和乙。它们的和是十二，积是三十五，所以都是同一个二次方程的根。'
  '把方程分解成两个括号相乘，得到五和七。检验一下：五加七等于十二，五乘七得三十五，'
  '全部符合题意。因此较大的那个数应该是七。',
  'ja': '二つの数をそれぞれ甲と乙とおく。和は十二で、積は三十五だから、どちらも同じ二次方程式'
  'の解になる。左辺を因数に分けると、五と七が得られる。確かめてみよう。五足す七は十二、'
  '五掛ける七は三十五となり、条件をすべて満たす。したがって大きいほうは七である。',
  'th': 'ให้จำนวนทั้งสองเป็นกและข ผลบวกเท่ากับสิบสองส่วนผลคูณเท่ากับสามสิบห้า '
  'ดังนั้นทั้งคู่เป็นรากของสมการกำลังสองเดียวกัน แยกตัวประกอบแล้วได้ห้าและเจ็ด '
  'ลองตรวจดู เมื่อนำมาบวกกันจะได้สิบสอง และเมื่อคูณกันจะได้สามสิบห้าตามที่โจทย์บอก '
  'จำนวนที่มากกว่าจึงเป็นเจ็ด',
  'ar': 'ليكن العددان أ وب. مجموعهما اثنا عشر وحاصل ضربهما خمسة وثلاثون، إذن هما '
  'جذرا معادلة تربيعية واحدة. بتحليل المعادلة إلى قوسين نجد خمسة وسبعة. '
  'للتحقق: خمسة زائد سبعة يساوي اثني عشر، وخمسة في سبعة تساوي خمسة وثلاثين. '
  'إذن العدد الأكبر هو سبعة.',
  'mixed': '设 $f(x)=x^2-12x+35$，then factor it: $(x-5)(x-7)=0$. したがって x は '
  '5 または 7 です。We check `assert 5 + 7 == 12` 和 `5 * 7 == 35`，全部成立。',
  'code': 'def solve(total, product):\n  for a in range(total):\n    b = total - a\n'
  '    if a * b == product:\n      return max(a, b)\n\nprint(solve(12, 35))\n',
  'latex': '\\begin{align} x^2-12x+35 &= 0 \\\\ (x-5)(x-7) &= 0 \\\\ x &\\in '
  '\\{5,7\\} \\end{align} so that $\\max\\{5,7\\}=7$ is what we want',
}
LANGUAGES = ('zh', 'ja', 'th', 'ar')


@pytest.mark.parametrize('name', NATURAL)
def test_ordinary_text_hardly_repeats_and_a_loop_does(name):
  text = NATURAL[name]
  assert -0.12 <= repetition(text, 4) <= 0
  for times in (3, 10):
    looped = repetition(text * times, 4)
    assert looped == pytest.approx(1 / times - 1, abs=0.15)
  assert repetition(text + '\n' + text[-20:] * 100, 4) < -0.4


@pytest.mark.parametrize(
  'unit',
  [
    '哈',
    '嗯，',
    '等一下，让我想想。',
    'ほげ',
    'ﾊﾟ',
    'データ',
    'ก',
    'ซ้ำๆ',
    'ລາວ',
    'ខ្មែរ',
    'မြန်မာ',
    'هه',
    'تكرار ',
    'كِتَابٌ ',
    '하',
    'a',
    'ha',
    'wait ',
    'wait\n',
    '=',
    '-',
    '！',
    '。',
    '😂',
    '𠮷',
    'x=1,',
    '\\frac{1}{2}+',
    '\\\\',
    '((',
    '0',
    '3',
    'if x: pass;',
    'Q==',
    '哈 ',
    '哈\u200b',
    'ab哈',
  ],
)
def test_a_unit_that_goes_on_and_on_is_seen_in_every_script(unit):
  assert repetition(unit * 800, 4) < -0.95
  assert repetition(unit * 800, 1) < -0.95
  assert repetition(NATURAL['en'] + ' ' + unit * 3000, 4) < -0.4


def _count(words, n):
  grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
  return len(set(grams)) / len(grams) - 1 if grams else 0


def test_words_are_counted_as_n_grams_of_words():
  rng = random.Random(0)
  for _ in range(100):
    words = [
      rng.choice('abcdefä') * rng.randint(1, 3)
      for _ in range(rng.randint(0, 50))
    ]
    for n in (1, 2, 3, 4):
      got = repetition(rng.choice(' \n\t').join(words), n)
      assert got == pytest.approx(_count(words, n), abs=1e-12)


def test_characters_are_counted_as_n_grams_of_twice_as_many():
  rng = random.Random(0)
  for _ in range(50):
    text = ''.join(rng.choice('一二三四五') for _ in range(rng.randint(0, 60)))
    for n in (1, 2, 3):
      assert repetition(text, n) == pytest.approx(_count(text, 2 * n))


def test_hand_made_cases():
  assert repetition('a b a b a b', 2) == pytest.approx(-0.6)
  assert repetition('哈哈哈哈哈', 2) == pytest.approx(-0.5)
  assert (
    repetition('one', 2) == repetition('', 1) == repetition('哈哈哈', 2) == 0
  )
  assert repetition('一二三四五六七八九十', 4) == 0
  with pytest.raises(UserError, match='n must be at least 1'):
    repetition('ab', 0)


def test_a_line_of_dashes_weighs_no_more_than_its_words():
  text = NATURAL['en']
  assert repetition(text + '\n' + '-' * 60, 4) > repetition(text, 4) - 0.2


def test_the_part_of_the_reward_reads_the_completion():
  options = RewardOptions(100, 20, 4, 1.0)
  for name in LANGUAGES:
    sample = Sample(
      completion=NATURAL[name] * 10,
      reasoning=None,
      answer=None,
      gold='7',
      prompt=SamplePrompt('1', '', '', 'math'),
      num_tokens=9,
    )
    assert parts.repetition(sample, options) < -0.8


def test_long_texts_take_linear_time():
  began = time.process_time()
  for unit in ('a', '哈', 'a ', '\u200b', '\u0e34'):
    repetition(unit * (40_000 // len(unit)), 4)
  assert time.process_time() - began < 60  # A quadratic count takes far longer.
