"""Demonstrations: files to rows, rows to packed and weighted batches."""

import json

import numpy as np
import pytest

from r1jax import registry
from r1jax.config.schema.data import CorpusConfig
from r1jax.data import demonstrations, packing
from r1jax.data.batching import Document
from r1jax.data.quarantine import Quarantine
from r1jax.data.text import chat, template, tokenizer
from r1jax.errors import UserError
from r1jax.records import Demonstration, TopLogprobs

_BRIEF = registry.template.get('r1_zero_brief')
_TEXT = tokenizer.load('bilingual')


def _file(folder, *rows):
  path = folder / 'rows.jsonl'
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  return str(path)


def _row(**changes):
  return dict(id='a', question='1+1', response='<think>2</think>') | changes


def test_a_row_becomes_prompt_and_response(tmp_path):
  path = _file(tmp_path, _row(), _row(id='b', general=True))
  first, second = demonstrations.read(path, _BRIEF)
  assert first.prompt == 'User:1+1Assistant:'
  assert first.response == '<think>2</think>'
  assert (first.general, second.general) == (False, True)


def test_a_prefill_is_not_told_twice(tmp_path):
  path = _file(tmp_path, _row())
  for opened in (
    registry.template.get('r1_zero_open'),
    template.SingleTurnTemplate('{question}', response_prefix='<think>'),
  ):
    (found,) = demonstrations.read(path, opened)
    assert found.prompt.endswith('<think>') and found.response == '2</think>'


def test_conversations_keep_their_turns(tmp_path):
  turns = [
    {'role': 'user', 'content': 'hi'},
    {'role': 'assistant', 'content': 'yes?'},
    {'role': 'user', 'content': '1+1'},
  ]
  path = _file(tmp_path, {'id': 'a', 'messages': turns, 'response': '2'})
  asks = chat.ChatTemplate(
    "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}",
    '',
    '<eos>',
  )
  (found,) = demonstrations.read(path, asks)
  assert found.prompt == '[user]hi[assistant]yes?[user]1+1'
  assert found.messages[1].content == 'yes?'


def test_rows_of_other_columns_have_ids_of_their_place(tmp_path):
  """Columns that are not named stay what they are called, but for `messages`."""
  path = _file(
    tmp_path,
    {'problem': '1+1', 'solution': '<think>a</think>2', 'messages': 'none'},
    {'id': 7, 'problem': '1+2', 'solution': '3'},
  )
  named = {'question': 'problem', 'response': 'solution'}
  first, second = demonstrations.read(path, _BRIEF, named=named)
  assert (first.question, first.response) == ('1+1', '<think>a</think>2')
  assert first.id.endswith('rows.jsonl:1') and second.id == '7'
  with pytest.raises(UserError, match="no column 'answer'; it has problem, so"):
    demonstrations.read(path, _BRIEF, named={'response': 'answer'})


def test_a_conversation_of_another_column_ends_in_the_response(tmp_path):
  turns = [
    {'role': 'user', 'content': '1+1'},
    {'role': 'assistant', 'content': '2'},
  ]
  path = _file(tmp_path, {'conversations': turns})
  (found,) = demonstrations.read(
    path, _BRIEF, named={'messages': 'conversations'}
  )
  assert found.response == '2' and '1+1' in found.prompt


@pytest.mark.parametrize(
  'change, said',
  [
    (dict(response=''), "needs a non-empty str 'response'"),
    (dict(question=''), "needs a 'question' or 'messages'"),
    (dict(messages=[{'role': 'user'}]), "needs 'messages' of 'role'"),
    (dict(teacher={'kept': 2}), "has a broken 'teacher'"),
    (dict(id='first'), "repeats the id 'first'"),
  ],
)
def test_a_bad_row_is_named_or_dropped(tmp_path, change, said):
  path = _file(tmp_path, _row(id='first'), _row(**change))
  with pytest.raises(UserError) as caught:
    demonstrations.read(path, _BRIEF)
  assert 'rows.jsonl:2' in str(caught.value) and said in str(caught.value)
  quarantine = Quarantine(0.5)
  assert len(demonstrations.read(path, _BRIEF, quarantine=quarantine)) == 1
  assert len(quarantine.dropped) == 1


def test_a_teacher_survives_a_file_bit_for_bit(tmp_path):
  rng = np.random.default_rng(0)
  known = TopLogprobs(
    rng.integers(0, 99, (3, 4)).astype(np.int32),
    rng.normal(size=(3, 4)).astype(np.float32),
    1.0,
  )
  path = _file(
    tmp_path, _row(response='23', teacher=demonstrations.encode_teacher(known))
  )
  (found,) = demonstrations.read(path, _BRIEF)
  np.testing.assert_array_equal(found.teacher.ids_TO, known.ids_TO)
  np.testing.assert_array_equal(found.teacher.logp_TO, known.logp_TO)
  (made,) = packing.to_documents([found], _TEXT, 64, Quarantine())
  prompt = len(_TEXT.encode_prompt(found.prompt))
  np.testing.assert_array_equal(made.top.logp_TO[prompt:], known.logp_TO)
  assert (made.top.logp_TO[:prompt] == -np.inf).all()


def _demonstration(name, response, general=False):
  return Demonstration(
    id=name,
    question='1',
    prompt='User:1Assistant:',
    response=response,
    general=general,
  )


def test_only_the_response_and_its_end_are_learnt():
  (made,) = packing.to_documents(
    [_demonstration('a', '23')], _TEXT, 64, Quarantine()
  )
  assert made.ids[-1] == _TEXT.stop_ids[0]
  assert made.weight_T.tolist() == [0] * 3 + [1] * 3
  batch = packing.PackedBatches([made], 1, 8, 0, 0, 1)[0]
  # The last prompt token predicts the response's first.
  assert batch.weight_BT.tolist() == [[0, 0, 1, 1, 1, 0, 0, 0]]
  assert batch.target_BT[0, 2:5].tolist() == made.ids[3:]


@pytest.mark.parametrize('share', [0.8, 1.0, 0.0])
def test_the_mean_is_the_share_of_each_kind(share):
  """Σ w·x / N = α · mean(x over reasoning) + (1 − α) · mean(x over general)."""
  rows = [
    _demonstration('a', '234567'),
    _demonstration('b', '2', True),
    _demonstration('c', '23', True),
  ]
  made = packing.to_documents(rows, _TEXT, 64, Quarantine(), share)
  rng = np.random.default_rng(0)
  values = [rng.normal(size=len(d.ids)) for d in made]
  own = [d.weight_T > 0 for d in made]
  prompt = 3
  reasoning = values[0][prompt:].mean()
  general = np.concatenate([v[prompt:] for v in values[1:]]).mean()
  tokens = sum(len(v) - prompt for v in values)
  got = sum((d.weight_T * v).sum() for d, v in zip(made, values)) / tokens
  np.testing.assert_allclose(
    got, share * reasoning + (1 - share) * general, rtol=1e-6
  )
  assert own[0][prompt:].all() == (share > 0)


def test_a_kind_with_a_share_but_no_rows_is_an_error():
  with pytest.raises(UserError, match='general rows have a share of 0.2'):
    packing.to_documents(
      [_demonstration('a', '2')], _TEXT, 64, Quarantine(), 0.8
    )


@pytest.mark.parametrize('rows, length', [(1, 9), (3, 9), (2, 17), (4, 64)])
def test_every_pass_has_every_document_once(rows, length):
  rng = np.random.default_rng(1)
  documents = [Document([i + 1] * int(rng.integers(1, 9))) for i in range(23)]
  corpus = packing.PackedBatches(documents, rows, length, 0, seed=3, epochs=2)
  tokens = np.concatenate(
    [corpus[i].tokens_BT.reshape(-1) for i in range(len(corpus))]
  )
  counted = np.bincount(tokens, minlength=24)[1:]
  assert counted.tolist() == [2 * len(d.ids) for d in documents]
  first = lambda seed: (
    packing.PackedBatches(documents, 64, 64, 0, seed, epochs=1)[0].tokens_BT
  )
  np.testing.assert_array_equal(first(3), first(3))
  assert (first(3) != first(4)).any()


def test_a_document_that_no_row_holds_is_named():
  with pytest.raises(
    UserError,
    match='demonstration a has 13 tokens, more than length_tokens = 9',
  ):
    packing.to_documents(
      [_demonstration('a', '123456789')], _TEXT, 9, Quarantine()
    )


def test_synthetic_rows_are_a_function_of_the_seed_and_speak_one_language():
  corpus = CorpusConfig(
    guess_share=0,
    guess_accuracy=0,
    slip_rate=0,
    corrected_slip_share=1,
    retracted_guess_share=0,
    malformed_share=0,
    connective_rate=1.0,
  )
  first = demonstrations.synthetic('arithmetic', corpus, _BRIEF, 0, 5)
  assert first == demonstrations.synthetic('arithmetic', corpus, _BRIEF, 0, 5)
  assert first != demonstrations.synthetic('arithmetic', corpus, _BRIEF, 1, 5)
  assert all(d.response.isascii() for d in first)
  mixed = demonstrations.synthetic(
    'arithmetic',
    CorpusConfig(**{**corpus.__dict__, 'language_mixing_rate': 0.5}),
    _BRIEF,
    0,
    9,
  )
  assert not all(d.response.isascii() for d in mixed)
