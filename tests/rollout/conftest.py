"""A small model and its engine, for tests of the rollout engine."""

import dataclasses

import jax
import numpy as np
import pytest

from r1jax.records import PromptBatch
from r1jax.rollout.engine import Engine
from r1jax.rollout.sampling import SamplingParams
from r1jax.rollout.scheduler import Request
from r1jax.rollout.sizes import EngineConfig
from tests.conftest import make, small_config

PARAMS = SamplingParams(max_new_tokens=10, stop_token_ids=(2, 5))
SIZES = EngineConfig(
  max_num_seqs=8, max_model_len=32, block_size=4, decode_steps=4
)


def two_prompts():
  """Two prompts of different length, left-padded."""
  tokens = np.array([[0, 0, 0, 9, 11], [7, 8, 9, 4, 12]], np.int32)
  valid = np.array([[0, 0, 0, 1, 1], [1, 1, 1, 1, 1]], bool)
  return PromptBatch(
    tokens_PT=tokens, valid_PT=valid, id_P=np.array([17, 4], np.uint32)
  )


def request_of(prompt, seed: int = 0, **changes) -> Request:
  key = np.asarray(jax.random.key_data(jax.random.key(seed)))
  return Request(
    name=f'#{seed}',
    prompt=np.asarray(prompt, np.int32),
    key=key,
    sampling_params=dataclasses.replace(PARAMS, **changes),
  )


@pytest.fixture(scope='module')
def small():
  """A model, its parameters, and an engine that compiles once."""
  model, params = make(small_config())
  return model, params, Engine(model, SIZES, detokenize=text_of)


def text_of(ids) -> str:
  return ''.join(chr(97 + i) if i < 26 else '_' for i in ids)


def sample_three(engine, params, key, prompts=None, how=PARAMS):
  return engine.generate(params, prompts or two_prompts(), 3, how, key)
