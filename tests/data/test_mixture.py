"""Mixtures and curricula: proportions, order, resumption."""

from collections import Counter
import itertools
import json

import pytest

from r1jax.data import batching, curriculum, mixture
from r1jax.errors import UserError
from r1jax.records import Prompt


def _source(name: str, count: int) -> list[Prompt]:
  return [
    Prompt(id=f'{name}{i}', text='', question='', answer='', source=name)
    for i in range(count)
  ]


def _mixture(seed=3, shares=(0.6, 0.4), **kwargs) -> mixture.Mixture:
  return mixture.Mixture(
    [_source('a', 9), _source('b', 5)],
    shares,
    seed,
    **dict(shuffle=(True, True)) | kwargs,
  )


def _ids(data, count: int) -> list[str]:
  return [prompt.id for prompt in itertools.islice(data, count)]


def _endless(seed=3):
  return batching.prompt_stream(_mixture(seed), 0, shuffle=True)


def test_any_stretch_has_the_proportions_and_each_source_goes_round():
  ids = _ids(_endless(), 150)
  assert ids == [_mixture()[i].id for i in range(150)]  # By index, alike.
  for start in range(0, 100, 7):
    count = Counter(id_[0] for id_ in ids[start : start + 50])
    assert abs(count['a'] - 30) <= 1
  for name, size in (('a', 9), ('b', 5)):
    own = [id_ for id_ in ids if id_[0] == name]
    rounds = [own[i : i + size] for i in range(0, len(own) - size, size)]
    for one in rounds:
      assert len(set(one)) == size  # Each once before any comes twice.
    assert rounds[0] != rounds[1]  # In another order each time.


def test_the_order_is_a_function_of_the_seed():
  assert _ids(_endless(), 40) == _ids(_endless(), 40) != _ids(_endless(4), 40)


@pytest.mark.parametrize('stop', [0, 1, 13, 40])
def test_a_mixture_resumes_bit_for_bit(stop):
  whole = _ids(_endless(), 60)
  data = _endless()
  _ids(data, stop)
  position = json.loads(json.dumps(data.get_state()))  # As a checkpoint does.
  resumed = _endless()
  resumed.set_state(position)
  assert _ids(resumed, 20) == whole[stop : stop + 20]


def test_temperature_flattens_the_shares():
  sizes, none = [8000, 500], [None, None]
  assert mixture.proportions(sizes, none, 1) == pytest.approx([16 / 17, 1 / 17])
  assert mixture.proportions(sizes, none, 2) == pytest.approx([0.8, 0.2])
  assert mixture.proportions(sizes, none, 1e9) == pytest.approx([0.5, 0.5])
  assert mixture.proportions(sizes, [1, 3], 1) == pytest.approx([0.25, 0.75])
  assert mixture.proportions(sizes, [1, 9], 2) == pytest.approx([0.25, 0.75])
  tiny = mixture.proportions([2**31, 1], none, 0.01)  # No overflow.
  assert tiny[0] == 1.0


def test_wrong_weights_are_named():
  assert mixture.parse(('a:0.5', 'b')) == {'a': 0.5, 'b': None}
  for parts, message in ((('a:x',), "'a:x' is not"), (('a', 'a:1'), 'twice')):
    with pytest.raises(UserError, match=message):
      mixture.parse(parts)
  for weights, temperature, message in (
    ([1, None], 1, 'every source a weight'),
    ([1, 0], 1, 'above 0'),
    ([1, 2], 0, 'above 0'),
  ):
    with pytest.raises(UserError, match=message):
      mixture.proportions([1, 1], weights, temperature)


def _rates(path, *rates) -> dict[str, float]:
  path.write_text(
    ''.join(
      json.dumps({'id': f'a{i}', 'pass_rate': rate}) + '\n'
      for i, rate in enumerate(rates)
    )
  )
  return curriculum.read_pass_rates(str(path))


def test_a_curriculum_keeps_the_measured_middle(tmp_path):
  rates = _rates(tmp_path / 'rates.jsonl', 0, 0.125, 0.5, 0.875, 1)
  kept = curriculum.filter_by_pass_rate(_source('a', 7), rates, 0.125, 0.875)
  assert [p.id for p in kept] == ['a1', 'a2', 'a3']  # a5, a6: not measured.
  assert len(curriculum.filter_by_pass_rate(_source('a', 7), rates, 0, 1)) == 5


def test_easy_ones_come_first_and_equals_in_random_order(tmp_path):
  rates = _rates(tmp_path / 'rates.jsonl', *[0.25, 0.75] * 6)
  order = [
    p.id for p in curriculum.sort_by_pass_rate(_source('a', 12), rates, 0)
  ]
  assert [rates[id_] for id_ in order] == [0.75] * 6 + [0.25] * 6
  assert order[:6] != sorted(order[:6])
  assert order == [
    p.id for p in curriculum.sort_by_pass_rate(_source('a', 12), rates, 0)
  ]
  ordered = mixture.Mixture(
    [curriculum.sort_by_pass_rate(_source('a', 12), rates, 0)],
    [1.0],
    0,
    [False],
  )
  assert _ids(batching.prompt_stream(ordered, 0, shuffle=True), 24) == order * 2


@pytest.mark.parametrize(
  'line,message',
  [
    ('{"id": "a", "pass_rate": 1.5}', "of 'a' is not within 0 and 1: 1.5"),
    ('{"id": "a", "pass_rate": NaN}', 'not within 0 and 1: nan'),
    ('{"id": "a"}', "rates.jsonl:1 needs .* float 'pass_rate'"),
    ('', 'has no rows'),
  ],
)
def test_wrong_rates_are_named(tmp_path, line, message):
  (tmp_path / 'rates.jsonl').write_text(line)
  with pytest.raises(UserError, match=message):
    curriculum.read_pass_rates(str(tmp_path / 'rates.jsonl'))
