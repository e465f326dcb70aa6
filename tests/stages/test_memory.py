"""The predicted memory of an update is what XLA allots; 'auto' fits it."""

import dataclasses

import jax
import pytest

from r1jax.cli import main
from r1jax.config import models
from r1jax.config.schema.model import REMAT_POLICIES
from r1jax.errors import UserError
from r1jax.sharding import Layout, make_mesh
from r1jax.stages import memory
from r1jax.stages.rl import RL
from r1jax.stages.sft import SFT
from tests.configs import small
from tests.conftest import one_device, run_config

_DENSE = dict(
  attention='gqa',
  vocab_size=512,
  hidden_size=256,
  intermediate_size=1024,
  num_hidden_layers=4,
  first_k_dense_replace=4,
  n_routed_experts=0,
  num_attention_heads=8,
  num_key_value_heads=4,
  head_dim=32,
)
_EXPERTS = models.tiny() | dict(num_hidden_layers=6)


def _config(remat='none', layers=None, tokens=512, rows=2, **model):
  """GRPO on rows of so many tokens; prompts of 64."""
  config = small.get_config()
  config.data.max_prompt_tokens = 64
  config.rl.update(
    max_new_tokens=tokens - 64,
    row_tokens=tokens,
    microbatch_tokens=rows * tokens,
    prompts_per_step=8,
    group_size=8,
    num_minibatches=1,
  )
  config.model.update(layers or _DENSE)
  config.model.update(remat=remat, max_position_embeddings=4096, **model)
  if config.model.num_nextn_predict_layers:
    config.rl.mtp_loss_weight = 0.1
  return run_config(config)


@pytest.mark.slow
@pytest.mark.parametrize(
  'layers,sizes',
  [
    (_DENSE, dict(tokens=1024, rows=2)),
    (_EXPERTS, dict(tokens=1024, rows=2)),
    (_EXPERTS, dict(tokens=512, rows=3, vocab_size=30_000)),
    (
      _EXPERTS | dict(num_nextn_predict_layers=1, mtp_depth=3),
      dict(tokens=1024, rows=2),
    ),
  ],
  ids=['dense', 'experts', 'large vocabulary', 'MTP of three tokens'],
)
@pytest.mark.parametrize('remat', ['none', 'attention', 'block'])
def test_the_prediction_is_what_the_compiler_allots(layers, sizes, remat):
  (update,) = RL.update(_config(remat, layers, **sizes), one_device())
  found = memory.predict(update, remat)
  compiled = update.step.lower(*update.arguments).compile().memory_analysis()
  want = compiled.argument_size_in_bytes + compiled.temp_size_in_bytes
  assert found.total == pytest.approx(want, rel=0.15)
  assert found.state == pytest.approx(compiled.argument_size_in_bytes, rel=0.01)


def test_each_policy_needs_less_than_the_one_before():
  (update,) = RL.update(_config(), one_device())
  totals = [memory.predict(update, remat).total for remat in REMAT_POLICIES]
  assert totals == sorted(totals, reverse=True)
  assert len(set(totals)) == len(totals)
  for limit, remat in zip(totals, REMAT_POLICIES):
    assert memory.choose([update], limit) == remat
  assert memory.choose([update], 0) == REMAT_POLICIES[-1]


def test_more_tokens_at_once_and_fewer_devices_need_more():
  total = lambda layout, **sizes: (
    memory.predict(RL.update(_config(**sizes), layout)[0], 'none').activations
  )
  one = total(one_device())
  assert total(one_device(), rows=4) == pytest.approx(2 * one, rel=0.05)
  two = Layout(make_mesh(dict(data=2), jax.devices()[:2]))
  assert total(two, rows=4) == pytest.approx(one, rel=0.05)


def test_microbatches_of_sft_are_parts_of_a_batch():
  config = _config()
  sft = lambda parts: dataclasses.replace(
    config,
    sft=dataclasses.replace(
      config.sft,
      batch_size=8,
      length_tokens=256,
      gradient_accumulation_steps=parts,
    ),
  )
  whole, parts = (
    memory.predict(SFT.update(sft(n), one_device())[0], 'none') for n in (1, 4)
  )
  assert parts.activations < 0.3 * whole.activations
  assert parts.gradients == 2 * whole.gradients


def test_auto_leaves_room_for_what_else_is_held(caplog):
  """A limit that an update fits alone, but not beside sampling and reference."""
  config = _config('auto')
  (update,) = RL.update(_config(), one_device())
  alone = memory.predict(update, 'none').total
  with caplog.at_level('INFO'):
    found = memory.chosen(config, one_device(), [RL], alone)
  assert found.model.remat != 'none'
  assert "model.remat = 'auto' is" in caplog.text
  found = memory.chosen(config, one_device(), [RL], 10 * alone)
  assert found.model.remat == 'none'
  named = _config('block')
  assert memory.chosen(named, one_device(), [RL], 0) is named


def test_auto_needs_the_update_of_each_stage():
  class Silent(RL):
    name = 'silent'

    @classmethod
    def update(cls, config, layout, **options):
      raise UserError('it trains in its own way')

  with pytest.raises(UserError, match="auto' needs the update of 'silent'"):
    memory.chosen(_config('auto'), one_device(), [Silent], 1 << 40)


@pytest.mark.slow
def test_info_shows_every_policy(capsys):
  main.run(['info', '--config=r1_zero_tiny', '--config.model.remat=auto'])
  printed = capsys.readouterr().out
  assert 'GRPO update, ' in printed
  for remat in REMAT_POLICIES:
    assert f'model.remat = {remat!r}' in printed
