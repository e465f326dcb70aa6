"""Synthetic problems: right, split by content, in the stated proportions."""

import dataclasses

import numpy as np
import pytest

from r1jax import registry
from r1jax.config.schema.data import CorpusConfig
from r1jax.data import datasets, splits
from r1jax.data.tasks import manners
from r1jax.data.tasks.corpus import CORRECTION_WORDS, sample_document
from r1jax.data.tasks.task import problem_at
from r1jax.data.text import tokenizer
from r1jax.data.text.response_formats import ResponseParser
from r1jax.errors import UserError
from r1jax.graders import dispatch

_CLEAN = CorpusConfig(
  guess_share=0,
  guess_accuracy=0,
  slip_rate=0,
  corrected_slip_share=0,
  retracted_guess_share=0,
  malformed_share=0,
)


# The tasks of all sizes of zebra puzzles are the same code; see test_zebra.py.
_TASKS = sorted(name for name in registry.task if 'zebra_' not in name)


@pytest.mark.parametrize('task', _TASKS)
def test_problems_are_a_function_of_seed_and_index(task):
  count = 5 if task == 'zebra' else 50
  one = [problem_at(task, splits.TRAIN, 3, i) for i in range(count)]
  two = [problem_at(task, splits.TRAIN, 3, i) for i in reversed(range(count))]
  assert one == two[::-1]
  assert one != [problem_at(task, splits.TRAIN, 4, i) for i in range(count)]


@pytest.mark.parametrize('task', [x for x in _TASKS if x != 'zebra'])
def test_train_and_held_out_never_meet(task):
  rng = np.random.default_rng(0)
  train = {
    problem_at(task, splits.TRAIN, s, i).question
    for s in (0, 1)
    for i in range(1000)
  }
  train |= {sample_document(rng, task, _CLEAN)[0] for _ in range(1000)}
  held = {
    problem_at(task, splits.HELD_OUT, s, i).question
    for s in (0, 1)
    for i in range(200)
  }
  assert not train & held


def test_arithmetic_answers_are_right():
  for i in range(300):
    made = problem_at('arithmetic', splits.TRAIN, 0, i)
    assert str(eval(made.question)) == made.answer  # Digits, + and - alone.
    assert int(made.answer) >= 0


@pytest.mark.parametrize('task', ['arithmetic', 'countdown'])
def test_clean_thoughts_arrive_at_the_right_answer(task):
  prompts = datasets.SyntheticPrompts(
    task, splits.TRAIN, 0, registry.template.get('r1_zero_brief')
  )
  rng, family = np.random.default_rng(0), registry.task.get(task)
  for i in range(200):
    made = problem_at(task, splits.TRAIN, 0, i)
    _, answer = family.write_solution(rng, made, _CLEAN)
    right, guessed = dispatch.verdicts(
      [
        (text, prompts[i].answer, task)
        for text in (answer, family.wrong_answer(rng, made))
      ]
    )
    assert right.score == 1 and guessed.score == 0


def test_the_corpus_has_the_stated_proportions():
  corpus = CorpusConfig(
    guess_share=0.6,
    guess_accuracy=0.2,
    slip_rate=0.1,
    corrected_slip_share=0.5,
    retracted_guess_share=0.3,
    malformed_share=0.05,
  )
  rng = np.random.default_rng(0)
  direct = right = repaired = slipped = broken = steps = taken_back = 0
  total = 6000
  for _ in range(total):
    question, response = sample_document(rng, 'arithmetic', corpus)
    read = ResponseParser().parse(response)
    if not read.well_formed:
      broken += 1
      continue
    if '=' not in read.reasoning:
      direct += 1
      right += read.answer == str(eval(question))
      continue
    first = read.reasoning.split(' ')[0]
    taken_back += '=' not in first
    chain = [w for w in read.reasoning.split(' ') if '=' in w]
    for word, after in zip(chain, read.reasoning.split(' ')[1:] + ['']):
      left, value = word.split('=')
      slipped += eval(left) != int(value)
    repaired += read.reasoning.count('wait') - ('=' not in first)
    steps += 4
  thoughts = total - direct - broken
  assert abs(broken / total - 0.05) < 0.01
  assert abs(direct / (total - broken) - 0.6) < 0.02
  assert abs(right / direct - 0.2) < 0.02
  assert abs(slipped / steps - 0.1) < 0.012
  assert abs(repaired / slipped - 0.5) < 0.05
  assert abs(taken_back / thoughts - 0.3) < 0.03


def test_two_languages_mix_in_the_stated_proportions():
  corpus = dataclasses.replace(
    _CLEAN,
    slip_rate=0.3,
    corrected_slip_share=1.0,
    connective_rate=0.5,
    language_mixing_rate=0.25,
  )
  rng = np.random.default_rng(0)
  words, steps = [], 0
  for _ in range(500):
    thought = (
      ResponseParser()
      .parse(sample_document(rng, 'arithmetic', corpus)[1])
      .reasoning
    )
    words += [word for word in thought.split() if '=' not in word]
    steps += 4
  repairs = sum(word in CORRECTION_WORDS for word in words)
  foreign = sum(not word.isascii() for word in words)
  assert abs((len(words) - repairs) / steps - 0.5) < 0.03
  assert abs(foreign / len(words) - 0.25) < 0.03
  tokenizer.load('bilingual').encode(' '.join(words))
  with pytest.raises(UserError, match='the character tokenizer has no'):
    tokenizer.load('character').encode(' '.join(words))


def test_the_best_manners_are_best_and_an_insult_is_worth_nothing():
  rng = np.random.default_rng(0)
  found = []
  for _ in range(300):
    question, best = manners.sample_question(rng)
    assert manners.quality(question, best) == 1
    assert manners.sample_answer(rng, question, 0.0) == best
    answer = manners.sample_answer(rng, question, 0.5)
    found.append(manners.quality(question, answer))
    assert manners.is_safe(answer) or found[-1] == 0
  assert manners.quality('greet ann', None) == 0
  assert manners.quality('greet ann', 'hello ann') == 2 / 3
  assert manners.quality('greet ann', 'hello bo, you are kind') == 1 / 3
  assert manners.quality('greet ann', 'hello fool ann, how are you?') == 0
  assert len(set(found)) > 3 and 0.2 < np.mean(found) < 0.6


def test_general_rows_are_known_by_their_source():
  rows = datasets.SyntheticPrompts(
    'manners', splits.TRAIN, 0, registry.template.get('r1_zero_brief')
  )
  assert rows[0].source == datasets.GENERAL


def test_wrong_names_and_shares_are_refused():
  with pytest.raises(UserError, match="unknown 'algebra'"):
    registry.task.get('algebra')
  with pytest.raises(UserError, match='slip_rate = 1.5 must be'):
    CorpusConfig(
      guess_share=0,
      guess_accuracy=0,
      slip_rate=1.5,
      corrected_slip_share=0,
      retracted_guess_share=0,
      malformed_share=0,
    )
