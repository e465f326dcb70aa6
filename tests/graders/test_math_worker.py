"""Which answers are equal: notation, values, sets, relations, words."""

import json
from pathlib import Path
import random

import pytest
import sympy

from r1jax.graders import answer_text, math_worker
from r1jax.graders.verdict import Verdict


def _grade(answer: str, gold: str) -> Verdict:
  golds = answer_text.candidates(gold, is_gold=True)
  return math_worker.handle(
    {'answers': answer_text.candidates(answer) or [], 'golds': golds}
  )


# Answer, gold answer and whether they are equal.
_CASES = {
  'half_read': [
    ('1-\\mathrm{e}^{-2}', '1-\\mathrm{e}^{-3}', False),
    ('1-\\mathrm{e}^{-3}', '1-e^{-3}', True),
    ('0.\\overline{3}', '0.\\overline{7}', False),
    ('0.\\overline{3}', '\\frac13', True),
    ('0.\\overline{9}', '1', True),
    ('0.1\\overline{6}', '\\frac16', True),
    ('2', '2007 + \\frac\\pi 2', False),
    ('2007+\\frac{\\pi}{2}', '2007 + \\frac\\pi 2', True),
    ('2007', '2007 + \\frac\\pi 2', False),
    ('\\mathrm{arcsin}(x)', '\\mathrm{arccos}(x)', False),
    ('\\operatorname{arcsin}x', '\\arcsin x', True),
    ('\\lfloor 2.5 \\rfloor', '\\lfloor 3.5\\rfloor', False),
    ('\\lfloor 2.5 \\rfloor', '2', True),
    ('\\lceil 2.5 \\rceil', '3', True),
    ('x^{\\prime}+2', 'x^{\\prime}+3', False),
    ('\\overline{AB}', '\\overline{CD}', False),
    ('\\vec{v}+2', '\\vec{u}+2', False),
    ('\\hat{x}', '\\hat{y}', False),
    ('3\\,\\mathrm{e}^{2x}', '3\\mathrm{e}^{3x}', False),
    ('a_{1}+2', 'a_{2}+2', False),
    ('x\\bmod 5', 'x \\bmod 7', False),
    ('\\sqrt[3]{5}', '\\sqrt[4]{5}', False),
    ('5\\sqrt[3]{2}', '5\\sqrt{2}', False),
    ('\\log_2 5', '\\log_3 5', False),
    ('\\log_{2}{8}', '3', True),
    ('\\ln 5', '\\log 5', False),
    ('\\frac{1}{2}\\ln(x+1)+C', '\\frac{1}{2}\\ln(x+2)+C', False),
    ('2^{x+1}', '2^{x+2}', False),
    ('\\int_0^1 x\\,dx', '\\int_0^2 x\\,dx', False),
    ('\\sum_{k=1}^{n} k', '\\sum_{k=1}^{n} k^2', False),
    ('\\sum_{k=1}^{9}k^2', '285', True),
    ('\\lim_{x\\to0}x', '\\lim_{x\\to1}x', False),
    ('\\mathbb{R}', '\\mathbb{Z}', False),
    ('x\\in\\mathbb{R}', 'x\\in\\mathbb{Z}', False),
    (
      '\\begin{cases}x&x>0\\\\-x&x<0\\end{cases}',
      '\\begin{cases}x&x>0\\\\x&x<0\\end{cases}',
      False,
    ),
    ('3 foo(2) bar', '3', False),
    ('5 + \\text{something}', '5', False),
    ('2 @ 3', '2', False),
  ],
  'distinct': [
    ('x^2+1=0', 'x=x+1', False),
    ('x^2+1=0', 'x^2+2=0', False),
    ('0=1', '1=2', False),
    ('x=x+1', 'x=x+2', False),
    ('x^2+1=0', '2x^2+2=0', True),
    ('\\frac1{2^{98}}', '\\frac1{2^{99}}', False),
    ('1.6\\times10^{-19}', '6.63\\times10^{-34}', False),
    ('1.6\\times 10^{-19}', '1.6e-19', True),
    ('10^{-30}', '10^{-31}', False),
    ('10^{-30}', '0', False),
    ('\\frac{1}{2004!}', '\\frac{1}{2006!}', False),
    ('e^{-100}', 'e^{-101}', False),
    ('e^{-100}', '0', False),
    ('\\sqrt2+\\sqrt3-\\sqrt{5+2\\sqrt6}', '0', True),
    ('2^{4950}+1', '2^{4950}', False),
    ('0.0000001', '0.0000002', False),
    ('1000000', '1000001', False),
    ('\\frac{1000000}{3}', '\\frac{1000001}{3}', False),
    ('1234567.1', '1234567.2', False),
    ('204_5', '204_7', False),
    ('204_{5}', '204_5', True),
    ('1112112_3', '1112122_3', False),
    ('10101_2', '21', False),
    ('x\\equiv 3\\pmod 7', 'x\\equiv 4 \\pmod 7', False),
    ('x\\equiv 3\\pmod 7', 'x\\equiv 10 \\pmod{7}', True),
    ('x\\equiv 3\\pmod 7', 'x\\equiv 3 \\pmod 5', False),
    ('x\\equiv 3\\ (\\text{mod }7)', 'x\\equiv 3 \\pmod 7', True),
    ('n \\equiv 1 \\mod 4', 'n\\equiv 1\\pmod{4}', True),
    ('1,1,2', '1,2,2', False),
    ('1,1,2', '1,2', False),
    ('\\{1,1,2\\}', '\\{1,2,2\\}', False),
    ('\\{1,2\\}', '\\{2,1\\}', True),
    ('(1,2)', '(2,1)', False),
    ('\\{1,2\\}', '(2,1)', False),
    ('\\{1,2\\}', '(1,2)', False),
    ('1,2', '(2,1)', False),
    ('1,2', '(1,2)', True),
    ('2,1', '1,2', True),
    ('1,2,3,\\ldots', '1,2,4,\\ldots', False),
    ('1,2,\\ldots,10', '1,2,\\ldots,20', False),
    ('1,2,\\dots,10', '1,2,...,10', True),
    ('1,2,\\ldots', '1,2', False),
    ('x=1,y=2', 'x=2,y=1', False),
    ('x=1,y=2', 'y=2,x=1', True),
    ('x=3', 'y=3', False),
    ('x+y=3', 'x+y=4', False),
    ('x>2', 'x>3', False),
    ('x>2', 'x\\ge2', False),
    ('y>2', 'x>2', False),
  ],
  'ordinary_notation': [
    ('18 dollars', '18', True),
    ('There are 7 students left', '7', True),
    ('**18**', '18', True),
    ('€18', '18', True),
    ('\\[18\\]', '18', True),
    ('\\(1,250\\)', '1250', True),
    ('\\$18.50', '18.5', True),
    ('18€', '18', True),
    ('£18', '18', True),
    ('USD 18', '18', True),
    ('x>2', '(2,\\infty)', True),
    ('(2,\\infty)', 'x>2', True),
    ('2<x\\le 5', '(2,5]', True),
    ('x\\le2 \\text{ or } x>5', '(-\\infty,2]\\cup(5,\\infty)', True),
    ('\\{x|x>2\\}', 'x>2', True),
    ('\\{x \\mid x>2\\}', '(2,\\infty)', True),
    ('\\{x\\in\\mathbb{R}: x>2\\}', '(2,\\infty)', True),
    ('x\\in(2,\\infty)', 'x>2', True),
    ('x\\ne3', '(-\\infty,3)\\cup(3,\\infty)', True),
    ('\\mathbb{R}', '(-\\infty,\\infty)', True),
    ('2x>4', 'x>2', True),
    ('-x<-2', 'x>2', True),
    ('x<2', '(2,\\infty)', False),
    ('|x|<2', '(-2,2)', True),
    ('5e3', '5000', True),
    ('3 1/2', '3.5', True),
    ('3\\frac12', '\\frac72', True),
    ('1 000', '1000', True),
    ('½', '0.5', True),
    ('x²', 'x^2', True),
    ('√2', '\\sqrt2', True),
    ('\\varnothing', '\\emptyset', True),
    ('\\{\\}', '\\emptyset', True),
    ('\\mathrm{e}^2', 'e^2', True),
    ('12.5\\%', '12.5', True),
    ('12.5\\%', '0.125', True),
    ('\\boxed{1} and \\boxed{2}', '1,2', True),
    ('$\\boxed{1}$, $\\boxed{2}$', '2,1', True),
    ('x³+1', 'x^3+1', True),
    ('π/2', '\\frac{\\pi}{2}', True),
    ('2π', '2\\pi', True),
    ('3×4', '12', True),
    ('10⁻³', '0.001', True),
    ('x₁+1', 'x_1+1', True),
    ('x ≤ 5', 'x\\leq 5', True),
    ('1.5 × 10^3', '1500', True),
    ('60°', '60', True),
    ('60^\\circ', '60', True),
    ('60 degrees', '60', True),
    ('∞', '\\infty', True),
    ('−5', '-5', True),
    ('sqrt(2)/2', '\\frac{\\sqrt2}{2}', True),
    ('2^(1/2)', '\\sqrt2', True),
    ('x**2', 'x^2', True),
    ('1,250', '1250', True),
    ('1{,}250', '1250', True),
    ('1\\,250', '1250', True),
    ('$1,250.00', '1250', True),
    ('25 percent', '25\\%', True),
    ('25%', '\\frac14', True),
    ('7 students', '7', True),
    ('7 apples', '7', True),
    ('5 hours', '5', True),
    ('12 inches', '12', True),
    ('3.5 miles per hour', '3.5', True),
    ('40 square feet', '40', True),
    ('15 cm^2', '15', True),
    ('15\\text{ cm}^2', '15', True),
    ('15\\,\\mathrm{cm}^2', '15', True),
    ('8 oranges and bananas', '8', True),
    ('approximately 5', '5', True),
    ('about 12 cookies', '12', True),
    ('x = 5', '5', True),
    ('The answer is 42.', '42', True),
    ('answer: 42', '42', True),
    ('So the total is 42 apples.', '42', True),
    ('She has $42 left.', '42', True),
    ('42.', '42', True),
    ('4.50', '4.5', True),
    ('\\text{42}', '42', True),
    ('$42$', '42', True),
    ('\\text{Answer: }42', '42', True),
    ('five', '5', True),
    ('5 cm', '5 m', False),
    ('500 cm', '5 m', True),
    ('7 students', '8', False),
    ('There are 8 students left', '7', False),
    ('18 dollars', '81', False),
  ],
  'exponents': [
    ('x^{\\frac{15}{4}}', 'x^{15/4}', True),
    ('e^{0.05t}', 'e^{t/20}', True),
    ('2^{2^5}', '4294967296', True),
    ('(1+\\frac{0.06}{12})^{120}', '1.005^{120}', True),
    ('\\binom52', '10', True),
    ('\\binom{10}{3}', '120', True),
    ('{10 \\choose 3}', '120', True),
    ('1000e^{-0.000121t}', '1000e^{-0.000122t}', False),
    ('5^{5^2}', '5^{25}', True),
    ('(x+1)^{20}', '(1+x)^{20}', True),
    ('10^{100}', '10^{101}', False),
    ('\\frac{20!}{18!}', '380', True),
    ('2^{100}', '4^{50}', True),
    ('C(5,2)', '10', False),
  ],
  'text': [
    ('sirPa', 'Paris', False),
    ('Paris', '\\text{Paris}', True),
    ('paris', 'Paris', True),
    ('\\text{(C)}', 'C', True),
    ('B', 'C', False),
    ('yes', '\\text{Yes}', True),
    ('no', '\\text{Yes}', False),
  ],
  'others': [
    ('\\frac{1}{x+1}', '\\frac{1}{x+2}', False),
    ('(x-1)(x+2)', 'x^2+x-2', True),
    ('\\sin 2x', '2\\sin x\\cos x', True),
    ('\\sin^2x+\\cos^2x', '1', True),
    ('\\tan^{-1}x', '\\arctan x', True),
    ('\\sqrt{x^2}', 'x', False),
    ('\\sqrt{x^2}', '|x|', True),
    ('\\frac{\\sqrt2}{2}', '\\frac{1}{\\sqrt2}', True),
    ('\\ln(x^2)', '2\\ln x', True),
    ('x^2+C', 'x^2+c', True),
    ('y=2x+1', '2x+1', True),
    ('2x+1', 'y=2x+1', True),
    ('y=2x+1', 'y-2x=1', True),
    ('2x+4y-3=0', 'y=-\\frac12x+\\frac34', True),
    ('f(x)=x+1', 'x+1', True),
    ('3 \\pm \\sqrt2', '3+\\sqrt2, 3-\\sqrt2', True),
    ('x=\\pm 2', '2,-2', True),
    ('\\pm2', '2', False),
    ('[1,2]', '(1,2)', False),
    ('1:2', '\\frac12', True),
    ('2:4', '1:2', True),
    ('-3', '3', False),
    ('\\begin{pmatrix}1\\\\2\\end{pmatrix}', '(1,2)', True),
    (
      '\\begin{bmatrix}1&2\\\\3&4\\end{bmatrix}',
      '\\begin{pmatrix}1&2\\\\3&5\\end{pmatrix}',
      False,
    ),
    ('\\langle 1,2\\rangle', '(1,2)', True),
    ('i', '\\sqrt{-1}', True),
    ('(1+i)^2', '2i', True),
    ('e^{i\\pi}', '-1', True),
    ('1/0', '2', False),
    ('5!', '5', False),
    ('120', '5!', True),
    ('\\frac{10\\sqrt{10.5}}{27}', '\\frac{5\\sqrt{42}}{27}', True),
    ('3.14', '\\pi', False),
    ('3.141593', '\\pi', True),
    ('0.333', '\\frac13', False),
    ('0.333333', '\\frac13', True),
    ('x=2 \\text{ and } x=-3', '-3,2', True),
    ('x = 2 or x = -3', '\\{-3,2\\}', True),
    ('(2,-3)', '(2, -3)', True),
    ('\\left(2,-3\\right)', '(2,-3)', True),
    ('no solution', '\\emptyset', True),
    ('\\text{No real solutions}', '\\text{no solution}', True),
    ('50', '50\\%', True),
    ('0.5', '50\\%', True),
    ('\\frac{50}{100}', '50\\%', True),
    ('500', '50\\%', False),
    ('4:30 PM', '\\text{4:30 p.m.}', True),
    ('4:30 AM', '\\text{4:30 p.m.}', False),
    ('9 a.m.', '9 p.m.', False),
  ],
}


@pytest.mark.parametrize('kind', _CASES)
def test_answers_are_equal_when_they_mean_the_same(kind):
  wrong = [
    (answer, gold, is_equal)
    for answer, gold, is_equal in _CASES[kind]
    if (_grade(answer, gold) is Verdict.CORRECT) != is_equal
  ]
  assert wrong == []


_NOUNS = (
  'dollars students apples people miles hours minutes cookies books eggs cats '
  'marbles pages points pounds inches feet cups days weeks years tickets boxes '
  'cents gallons bottles children women oranges ways times'
).split()


@pytest.mark.parametrize(
  'form', ['{} {}', '${}$ {}', '{} \\text{{ {}}}', '{}\\ {}']
)
def test_any_noun_may_follow_a_number(form):
  answers = [form.format(18, noun) for noun in _NOUNS]
  assert [a for a in answers if _grade(a, '18') != 'correct'] == []
  assert [a for a in answers if _grade(a, '81') != 'wrong'] == []


@pytest.mark.parametrize(
  'gold',
  [
    '5 4.6',
    '\\frac{1}{',
    '}{',
    '\\frac',
    '[3',
    '2 \\foo 3',
    'x + ',
    '3 \\cdot',
    '\\sqrt',
    '(1,2',
    '',
  ],
)
def test_what_is_not_read_whole_is_not_read(gold):
  assert math_worker.handle({'golds': [gold]}) == Verdict.UNPARSABLE
  assert _grade(gold, '3') == Verdict.UNPARSABLE
  assert _grade('3', gold or '?') != Verdict.CORRECT


@pytest.mark.parametrize(
  'answer',
  [
    '9^9^9',
    '10^{10^{10}}',
    '(10^{999})^{999}',
    '10000000!',
    '(10!)!',
    '2^{100000000}',
    '\\frac{1}{100000!}',
    '\\binom{99999}{50000}',
    '\\prod_{k=1}^{99999} k',
    'e^{e^{e^{10}}}',
    '\\sin(10^{40})',
    '\\sum_{i=1}^{400}\\sum_{j=1}^{400} ij',
    '\\sqrt{2}^{99999999999}',
    '(' * 60 + '1' + ')' * 60,
    '1.5e4999 \\cdot 1.5e4999 \\cdot 1.5e4999',
  ],
)
def test_what_costs_too_much_is_refused(answer):
  assert _grade(answer, '72') == Verdict.REFUSED


def test_random_expressions_agree_with_sympy():
  rng = random.Random(0)
  leaves = {'x': X, 'y': Y, '2': 2, '3': 3, '\\pi': sympy.pi, '7': 7}

  def draw(depth):
    if not depth:
      text = rng.choice(list(leaves))
      return text, sympy.sympify(leaves[text])
    (left, a), (right, b) = draw(depth - 1), draw(rng.randrange(depth))
    kind = rng.randrange(5)
    if kind == 0:
      power = rng.randrange(1, 4)
      return f'({left})^{{{power}}}', a**power
    if kind == 1:
      return f'({left})({right})', a * b
    if kind == 2:
      return f'\\frac{{{left}}}{{{right}}}', a / b
    if kind == 3:
      return f'{left}-({right})', a - b
    return f'{left}+{right}', a + b

  drawn = [draw(rng.randrange(3)) for _ in range(150)]
  drawn = [
    (text, value) for text, value in drawn if value.is_finite is not False
  ]
  for text, value in drawn:
    other = sympy.latex(sympy.expand(value))
    assert _grade(other, text) == Verdict.CORRECT, (other, text)
  for (a, value), (b, other) in zip(drawn, drawn[1:]):
    equal = sympy.simplify(value - other) == 0
    assert (_grade(a, b) == Verdict.CORRECT) == equal, (a, b)


X, Y = sympy.symbols('x y')
# Labels of public suites that no grader could follow: a list in another order
# is an order there and none elsewhere, a formula must not be broken over lines,
# or a false chain of equations is right.
_PUBLIC = Path(__file__).with_name('public_cases.jsonl')


def test_cases_of_public_suites():
  """Cases from the tests of Math-Verify (Apache-2.0), lighteval (MIT) and the
  MATH data (MIT), with the labels that they have there."""
  cases = [json.loads(line) for line in _PUBLIC.read_text().splitlines()]
  missed = surprising = 0
  for case in cases:
    is_right = _grade(case['answer'], case['gold']) == Verdict.CORRECT
    missed += case['label'] and not is_right
    surprising += is_right and not case['label'] and not case['disputed']
  assert len(cases) > 250
  assert surprising == 0
  assert missed <= 0.04 * len(cases)
