"""Noisy documents of synthetic tasks, on which a base model is pre-trained."""

import numpy as np

from r1jax import registry
from r1jax.config.schema.data import CorpusConfig
from r1jax.data.splits import TRAIN
from r1jax.data.tasks.task import sample_problem

# The word that introduces a correction, and the words that may open a step, in
# English and in the second language of a bilingual corpus.
CORRECTION_WORDS = 'wait', 'стой'
_CONNECTIVES = ('so', 'then', 'now'), ('так', 'вот', 'тут')


def sample_document(
  rng: np.random.Generator, task: str, corpus: CorpusConfig
) -> tuple[str, str]:
  """Samples a (question, response) pair of the corpus, of the training split."""
  definition = registry.task.get(task)
  problem = sample_problem(rng, task, TRAIN)
  if definition.general:
    reasoning, answer = definition.write_solution(rng, problem, corpus)
  elif rng.random() < corpus.guess_share:
    right = rng.random() < corpus.guess_accuracy
    answer = (
      problem.answer if right else definition.sample_wrong_answer(rng, problem)
    )
    reasoning = answer
  else:
    reasoning, answer = definition.write_solution(rng, problem, corpus)
    if rng.random() < corpus.retracted_guess_share:
      guess = definition.sample_wrong_answer(rng, problem)
      reasoning = f'{guess} {correction_word(rng, corpus)} {reasoning}'
  parts = ['<think>', reasoning, '</think>', '<answer>', answer, '</answer>']
  if rng.random() < corpus.malformed_share:
    del parts[int(rng.choice([0, 2, 3, 5]))]  # One of the tags.
  return problem.question, ''.join(parts)


def correction_word(rng: np.random.Generator, corpus: CorpusConfig) -> str:
  """Samples the word that introduces a correction, of either language."""
  rate = corpus.language_mixing_rate
  return CORRECTION_WORDS[bool(rate and rng.random() < rate)]


def connective(rng: np.random.Generator, corpus: CorpusConfig) -> str:
  """Samples a word and a space to open a step, or the empty string."""
  if not corpus.connective_rate or rng.random() >= corpus.connective_rate:
    return ''
  words = _CONNECTIVES[bool(rng.random() < corpus.language_mixing_rate)]
  return f'{words[rng.integers(len(words))]} '
