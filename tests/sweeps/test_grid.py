"""Grids, seeds and baselines of a sweep: how they are read and named."""

import re
import shlex

import pytest

from r1jax.errors import UserError
from r1jax.sweeps import grid
from tests.conftest import ROOT


def _points(*flags, name='tiny'):
  return grid.points([grid.parse_axis(flag) for flag in flags], name)


@pytest.mark.parametrize(
  'text, items',
  [
    ('4,8,16', ['4', '8', '16']),
    (' 4 , 8', ['4', '8']),
    ('("a","b"),("c",)', ['("a","b")', '("c",)']),
    ('[1,2],{3,4}', ['[1,2]', '{3,4}']),
    ('((1,2),3),4', ['((1,2),3)', '4']),
    ('(")",1),2', ['(")",1)', '2']),
    (r'("a\"),(b",1),2', [r'("a\"),(b",1)', '2']),
    ('"Hello, you",Hi', ['Hello, you', 'Hi']),
    ('\'a "b", c\',d', ['a "b", c', 'd']),
    ('"say ""a, b""",c', ['say "a, b"', 'c']),
    ('"",x', ['', 'x']),
    ('it\'s,5" wide', ["it's", '5" wide']),
    (r'\boxed,\n', [r'\boxed', r'\n']),
    ('"a(b",c', ['a(b', 'c']),
  ],
)
def test_commas_in_quotes_and_brackets_belong_to_a_value(text, items):
  assert grid.split(text) == items


@pytest.mark.parametrize(
  'text, part',
  [
    ('rl.kl_coef', 'give KEY=VALUE'),
    ('=3', 'give KEY=VALUE'),
    ('rl kl=3', 'give KEY=VALUE'),
    ('rl.kl_coef=', 'rl.kl_coef has no values'),
    ('rl.kl_coef=  ', 'rl.kl_coef has no values'),
    ('rl.kl_coef=1,,2', 'a value is empty'),
    ('rl.kl_coef=1,', 'a value is empty'),
    ('rl.stop=(1,2', 'a bracket has no end'),
    ('rl.stop=("a,2)', 'a quote has no end'),
    ('rl.stop="a', 'must end with its quote'),
    ('rl.stop="a"b,c', 'must end with its quote'),
    ('rl.a,rl.b=1,2', 'several keys take values in brackets'),
    ('rl.a,rl.b=(1,2),(3,)', 'a value is empty'),
    ('rl.a,rl.b=(1,2),(3,4,5)', '(3,4,5) has 3 values for 2 keys'),
  ],
)
def test_a_grid_that_is_wrong_names_its_flag(text, part):
  with pytest.raises(UserError) as caught:
    grid.parse_axis(text)
  message = str(caught.value)
  assert message.startswith('--grid') and part in message
  assert '\n' not in message


def test_the_grid_is_a_product_with_the_last_key_fastest():
  found = _points('rl.group_size=4,8', 'rl.kl_coef=0,0.001')
  assert [point.name for point in found] == [
    'group_size=4,kl_coef=0',
    'group_size=4,kl_coef=0.001',
    'group_size=8,kl_coef=0',
    'group_size=8,kl_coef=0.001',
  ]
  assert found[1].overrides() == [
    '--config.rl.group_size=4',
    '--config.rl.kl_coef=0.001',
  ]


def test_keys_that_change_together_are_one_axis():
  found = _points('rl.a,data.mixture=(1,("x","y")),(2,"z, w")', 'rl.b=5,6')
  assert [dict(point.values) for point in found] == [
    {'rl.a': '1', 'data.mixture': '("x","y")', 'rl.b': '5'},
    {'rl.a': '1', 'data.mixture': '("x","y")', 'rl.b': '6'},
    {'rl.a': '2', 'data.mixture': 'z, w', 'rl.b': '5'},
    {'rl.a': '2', 'data.mixture': 'z, w', 'rl.b': '6'},
  ]
  assert found[0].name == 'a=1,mixture=x-y,b=5'


def test_without_a_grid_there_is_one_point():
  assert _points() == (grid.Point('tiny', {}),)


@pytest.mark.parametrize(
  'flags, part',
  [
    (['rl.a=1', 'rl.a=2'], 'rl.a is given twice'),
    (['rl.a=1', 'rl.b,rl.a=(1,2)'], 'rl.a is given twice'),
    (['rl.a=4,8,4'], 'rl.a: 4 is there twice'),
  ],
)
def test_a_key_or_value_that_comes_twice_is_refused(flags, part):
  with pytest.raises(UserError, match=part):
    _points(*flags)


def test_short_names_tell_keys_apart():
  keys = ['rl.kl_coef', 'rl.optimizer.lr', 'rl.critic.lr', 'optimizer.lr']
  assert grid.short_names(keys) == {
    'rl.kl_coef': 'kl_coef',
    'rl.optimizer.lr': 'rl.optimizer.lr',
    'rl.critic.lr': 'critic.lr',
    'optimizer.lr': 'optimizer.lr',
  }


def test_folders_have_plain_names_of_their_own():
  values = ('/data/a', '/data-a', 'x' * 300, 'x' * 301, '-1e-3', 'α')
  names = [point.name for point in _points(f'data.path={",".join(values)}')]
  assert len(set(names)) == len(values)
  for name in names:
    assert len(name) < 100
    assert set(name) <= set('abcdefghijklmnopqrstuvwxyz0123456789=~.+-_'), name
  assert names[4] == 'path=-1e-3'
  long = _points(*(f'rl.key{i}={"y" * 40},z' for i in range(9)))
  assert max(len(point.name) for point in long) < 255
  assert len({point.name for point in long}) == 2**9


@pytest.mark.parametrize(
  'text, seeds',
  [
    ('3', (0, 1, 2)),
    ('0,1,5', (0, 1, 5)),
    ('7,', (7,)),
    ('2, 1', (2, 1)),
    ('1', (0,)),
  ],
)
def test_seeds(text, seeds):
  assert grid.parse_seeds(text) == seeds


@pytest.mark.parametrize('text', ['', '0', 'a', '-1,', '1,1', '1,,2', '1.5'])
def test_seeds_that_are_wrong(text):
  with pytest.raises(UserError, match=f'^--seeds={text}: '):
    grid.parse_seeds(text)


@pytest.mark.parametrize(
  'text, name',
  [
    ('rl.group_size=8,rl.kl_coef=0', 'group_size=8,kl_coef=0'),
    ('kl_coef=0.0, group_size=4', 'group_size=4,kl_coef=0'),
    ('group_size=8,kl_coef=0.001', 'group_size=8,kl_coef=0.001'),
  ],
)
def test_a_baseline_is_found_by_keys_and_values(text, name):
  points = _points('rl.group_size=4,8', 'rl.kl_coef=0,0.001')
  assert grid.find(text, points).name == name


def test_a_baseline_may_have_commas_or_leave_keys_out():
  points = _points('data.mixture=("a","b"),"c, d"')
  assert grid.find('mixture=("a", "b")', points) == points[0]
  assert grid.find('data.mixture="c, d"', points) == points[1]
  assert grid.find(points[1].name, points) == points[1]


@pytest.mark.parametrize(
  'text, part',
  [
    ('rl.grop_size=4', "did you mean 'rl.group_size'"),
    ('group_size=4', "'group_size=4' is 2 of the grid points"),
    ('group_size=5', 'is none of the grid points group_size=4,kl_coef=0;'),
    ('group_size', 'is not the name of a grid point'),
  ],
)
def test_a_baseline_that_is_no_point(text, part):
  points = _points('rl.group_size=4,8', 'rl.kl_coef=0,0.001')
  with pytest.raises(UserError) as caught:
    grid.find(text, points)
  assert part in str(caught.value)


def test_the_grids_of_the_documentation_are_read():
  text = (ROOT / 'docs/sweeps.md').read_text()
  found = [
    grid.parse_axis(shlex.split(span)[1])
    for span in re.findall(r'^\| `(--grid .*?)` \|', text, re.M)
  ]
  assert [axis.values for axis in found] == [
    (('4',), ('8',)),
    (('("gsm8k","math")',), ('("gsm8k",)',)),
    (('Hello, you',), ('Hi',), ('',)),
    (('0', '0'), ('0.001', '40')),
  ]
