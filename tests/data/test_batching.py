"""Padding, packing and position."""

import json

import numpy as np
import pytest

from r1jax import registry
from r1jax.config.schema.data import CorpusConfig
from r1jax.data import batching, datasets, splits
from r1jax.data.text import tokenizer
from r1jax.errors import UserError
from r1jax.records import Prompt

_CORPUS = CorpusConfig(
  guess_share=0.5,
  guess_accuracy=0.2,
  slip_rate=0.1,
  corrected_slip_share=0.5,
  retracted_guess_share=0.2,
  malformed_share=0.1,
)


def _prompt(text: str) -> Prompt:
  return Prompt(id='row-1', text=text, question=text, answer='', source='')


def test_prompts_are_padded_on_the_left():
  text = tokenizer.load('character')
  batch = batching.pad_prompts([_prompt('12'), _prompt('1234')], text, 5)
  assert batch.valid_PT.tolist() == [[0, 0, 0, 1, 1], [0, 1, 1, 1, 1]]
  assert batch.tokens_PT[0, 3:].tolist() == text.encode('12')


def test_a_long_or_empty_prompt_is_named():
  text = tokenizer.load('character')
  with pytest.raises(UserError, match='row-1 has 6 tokens.*max_prompt_tokens'):
    batching.pad_prompts([_prompt('123456')], text, 5)
  with pytest.raises(UserError, match='row-1 is empty'):
    batching.pad_prompts([_prompt('')], text, 5)


def test_a_row_that_the_tokenizer_cannot_read_is_named_with_its_line(tmp_path):
  path = tmp_path / 'rows.jsonl'
  path.write_text(
    '{"id": "a", "question": "1+1", "answer": "2"}\n'
    '{"id": "b", "question": "1+é", "answer": "3"}\n'
  )
  rows = datasets.TemplatedPrompts(
    datasets.read(registry.dataset.get('math'), splits.TRAIN, str(path)),
    registry.template.get('r1_zero_brief'),
  )
  text = tokenizer.load('character')
  with pytest.raises(UserError) as caught:
    batching.check_prompts(rows, text, 32)
  assert str(caught.value).startswith(f'data: {path}:2: prompt b: ')
  assert "no 'é'" in str(caught.value)
  with pytest.raises(UserError, match='rows.jsonl:1: prompt a has '):
    batching.check_prompts(rows, text, 2)
  with pytest.raises(UserError, match="data: prompt row-1: .* no 'é'"):
    batching.pad_prompts([_prompt('é')], text, 5)


def test_packing_shifts_within_documents():
  """The example of TokenBatch, to the number."""
  documents = map(
    batching.Document, ([7, 8, 9], [4, 5], [1, 2, 3, 4, 5], [6], [7] * 6)
  )
  batch = batching.pack(lambda: next(documents), 2, 6, pad_id=0)
  assert batch.tokens_BT.tolist() == [[7, 8, 9, 4, 5, 0], [1, 2, 3, 4, 5, 6]]
  assert batch.target_BT[0].tolist() == [8, 9, 0, 5, 0, 0]
  assert batch.weight_BT.tolist() == [[1, 1, 0, 1, 0, 0], [1, 1, 1, 1, 0, 0]]
  assert batch.segment_BT.tolist() == [[1, 1, 1, 2, 2, 0], [1, 1, 1, 1, 1, 2]]
  assert batch.position_BT.tolist() == [[0, 1, 2, 0, 1, 0], [0, 1, 2, 3, 4, 0]]


def test_a_document_longer_than_a_row_is_an_error():
  with pytest.raises(UserError, match='document of 7 tokens'):
    batching.pack(lambda: batching.Document([1] * 7), 1, 6, 0)


def _corpus(seed=0):
  return batching.SyntheticCorpusBatches(
    {'arithmetic': 1.0},
    _CORPUS,
    registry.template.get('r1_zero_brief'),
    tokenizer.load('character'),
    4,
    96,
    seed,
    50,
  )


def test_a_corpus_batch_is_a_function_of_seed_and_index():
  a, b = _corpus()[7], _corpus()[7]
  np.testing.assert_array_equal(a.tokens_BT, b.tokens_BT)
  assert (a.tokens_BT != _corpus(1)[7].tokens_BT).any()
  assert (a.tokens_BT != _corpus()[8].tokens_BT).any()


def test_a_corpus_may_mix_its_tasks():
  text = tokenizer.load('character')
  corpus = batching.SyntheticCorpusBatches(
    {'arithmetic': 0.7, 'manners': 0.3},
    _CORPUS,
    registry.template.get('r1_zero_brief'),
    text,
    64,
    96,
    0,
    1,
  )
  written = text.decode(corpus[0].tokens_BT.reshape(-1))
  polite = (
    written.count('greet') + written.count('thank') + written.count('bid ')
  )
  assert 0.2 < polite / written.count('User:') / 2 < 0.4  # Asked and thought.


def test_two_streams_switch_and_go_on_where_they_were():
  def streams():
    return batching.TwoPhaseStream(
      *(
        batching.prompt_stream(
          [_prompt(f'{name}{i}') for i in range(3)], 0, shuffle=False
        )
        for name in 'ab'
      ),
      2,
    )

  data = streams()
  taken = [p.text for step in (1, 2, 3, 4) for p in data.next_prompts(step, 2)]
  assert taken == ['a0', 'a1', 'a2', 'a0', 'b0', 'b1', 'b2', 'b0']
  again = streams()
  again.set_state(json.loads(json.dumps(data.get_state())))
  assert [
    again.next_prompts(1, 1)[0].text,
    again.next_prompts(3, 1)[0].text,
  ] == ['a1', 'b1']


def test_iterators_go_on_where_they_were():
  data = batching.token_batches(_corpus())
  for _ in range(3):
    next(data)
  position = data.get_state()
  want = next(data)
  again = batching.token_batches(_corpus())
  again.set_state(position)
  np.testing.assert_array_equal(next(again).tokens_BT, want.tokens_BT)


def test_file_prompts_shuffle_repeat_and_resume():
  rows = [_prompt(str(i)) for i in range(10)]
  make = lambda: batching.prompt_stream(rows, seed=1, shuffle=True)
  data = make()
  seen = [next(data).text for _ in range(20)]
  texts = [p.text for p in rows]
  assert sorted(seen[:10]) == sorted(seen[10:]) == sorted(texts)
  assert texts != seen[:10] != seen[10:]  # Each epoch has its own order.
  again = make()
  for _ in range(4):
    next(again)
  position = again.get_state()
  resumed = make()
  resumed.set_state(position)
  assert [next(resumed).text for _ in range(4)] == seen[4:8]
