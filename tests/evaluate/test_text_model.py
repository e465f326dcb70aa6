"""Texts are scored as the logits of transformers say, and completed up to stops."""

import jax
import numpy as np
import pytest

from r1jax.checkpoints import convert, hf_config, weights
from r1jax.data.text import tokenizer
from r1jax.errors import UserError
from r1jax.evaluate.text_model import Prompted, TextModel, TokenPair
from r1jax.model.transformer import Transformer
from r1jax.rollout.engine import Engine
from r1jax.rollout.sampling import SamplingParams
from r1jax.rollout.sizes import EngineConfig
from tests.conftest import from_dict, one_device

_TEXT = tokenizer.load('character')
_GREEDY = SamplingParams(
  max_new_tokens=16, stop_token_ids=_TEXT.stop_ids, temperature=0.0
)


@pytest.fixture(scope='module')
def oracle(shared, tmp_path_factory):
  """A model of transformers as a TextModel, and its reference logits."""
  folder = shared / 'oracle' / 'qwen2'
  imported = tmp_path_factory.mktemp('imported')
  convert.import_hf(folder, imported)
  fields = hf_config.read_config(folder) | dict(
    dtype='float32', remat='none', max_position_embeddings=128
  )
  model = Transformer(from_dict(fields), one_device())
  engine = Engine(
    model,
    EngineConfig(max_num_seqs=4, max_model_len=48, decode_steps=4),
    detokenize=_TEXT.decode,
  )
  text = TextModel(model, weights.load(imported, model), engine, _TEXT)
  return text, np.load(folder / 'reference.npz')


def test_scores_are_sums_of_the_reference_log_probabilities(oracle):
  """Also for several widths, one token, and none."""
  text, reference = oracle
  tokens = reference['tokens_a']
  logits = reference['logits_a'].astype(np.float64)
  logp = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
  cases = [(0, 10, 30), (1, 1, 96), (0, 60, 61), (1, 40, 40), (1, 5, 64)]
  found = text.score(
    [TokenPair(tokens[b, :i], tokens[b, i:j]) for b, i, j in cases]
  )
  for (b, i, j), score in zip(cases, found):
    own = [logp[b, t - 1, tokens[b, t]] for t in range(i, j)]
    assert score.logp == pytest.approx(sum(own), abs=2e-3)
    best = [logp[b, t - 1].argmax() == tokens[b, t] for t in range(i, j)]
    assert score.is_greedy == all(best)


def test_the_likeliest_continuation_is_greedy(oracle):
  text, reference = oracle
  best = int(reference['logits_a'][0, 19].argmax())
  context = reference['tokens_a'][0, :20]
  yes, no = text.score(
    [TokenPair(context, [best]), TokenPair(context, [best ^ 1])]
  )
  assert yes.is_greedy and not no.is_greedy and yes.logp > no.logp


def test_a_long_context_loses_its_beginning_and_never_its_continuation(oracle):
  text, _ = oracle
  long = list(np.arange(text.max_length + 40) % 90)
  whole, cut = text.score(
    [TokenPair(long, [3, 4]), TokenPair(long[42:], [3, 4])]
  )
  assert whole.logp == pytest.approx(cut.logp, abs=1e-4)
  with pytest.raises(UserError, match='exceeds the model'):
    text.score([TokenPair([1], long)])


def test_spaces_between_context_and_continuation_belong_to_the_latter(oracle):
  text, _ = oracle
  pair = text.pair('1+1 = ', '2')
  assert _TEXT.decode(pair.continuation) == ' 2'
  assert list(pair.context)[-3:] == _TEXT.encode('1 =')
  alone = text.pair('', '2')
  assert list(alone.context) == [text.prefix_id] == [_TEXT.stop_ids[0]]
  assert list(alone.continuation) == _TEXT.encode('2')


def test_completions_are_greedy_and_end_before_a_stop_string(oracle):
  text, _ = oracle
  key = jax.random.key(0)
  [whole] = text.complete([Prompted('1+1=', _GREEDY)], key)
  assert len(whole) > 2
  stop = whole[2:4]
  stopped, long = text.complete(
    [
      Prompted(
        '1+1=',
        SamplingParams(
          max_new_tokens=16,
          stop_token_ids=_TEXT.stop_ids,
          stop_strings=(stop,),
          temperature=0.0,
        ),
      ),
      Prompted('9' * 100, _GREEDY),
    ],
    key,
  )
  assert stopped == whole[: whole.index(stop)] and long is not None
