"""Between ConfigDicts and the typed config: nothing lost, every error named."""

import dataclasses

import ml_collections
import pytest

from r1jax.config import base, models
from r1jax.config.load import load, model_config, replace, to_config_dict
from r1jax.config.schema.model import ModelConfig
from r1jax.config.schema.rl import RLConfig
from r1jax.config.schema.run import RunConfig
from r1jax.config.schema.section import narrow
from r1jax.config.schema.training import MTPConfig, OptimizerConfig, SFTConfig
from r1jax.errors import UserError


def test_a_config_comes_back_as_it_was():
  config = base.get_config()
  assert load(config, RunConfig) == RunConfig()
  config.rl.group_size = 8
  config.sft.data = ('a.jsonl', 'arithmetic:10')
  run = load(config, RunConfig)
  assert run.rl.group_size == 8
  assert run.sft.data == ('a.jsonl', 'arithmetic:10')
  again = to_config_dict(run)
  assert again.to_dict() == config.to_dict()


def test_every_wrong_key_is_named_at_once():
  config = base.get_config()
  config.rl.group_size = 0
  config.rl.loss_agg_mode = 'token_mean'
  config.rl.optimizer.adam_beta2 = 1.0
  config.eval.top_p = 1.5
  config.model.n_group = 7
  with pytest.raises(UserError) as raised:
    load(config, RunConfig)
  text = str(raised.value)
  assert '\n' not in text
  for part in (
    'rl.group_size = 0 must be at least 1',
    "rl.loss_agg_mode = 'token_mean' must be one of 'token-mean', ",
    "; did you mean 'token-mean'?",
    'rl.optimizer.adam_beta2 = 1.0 must be at least 0 and below 1',
    'eval.top_p = 1.5 must be above 0 and at most 1',
    'model.n_group = 7 does not divide n_routed_experts = 256',
  ):
    assert part in text


def test_unknown_missing_and_mistyped_keys_are_errors():
  values = base.get_config().to_dict()
  values['rl']['grup_size'] = values['rl'].pop('group_size')
  values['rl']['max_steps'] = '80'
  values['rollout']['speculative'] = 1
  values['mesh'] = 3
  with pytest.raises(UserError) as raised:
    load(values, RunConfig, 'mine.py')
  text = str(raised.value)
  assert text.startswith('mine.py: ')
  assert 'rl.grup_size is unknown; did you mean rl.group_size?' in text
  assert (
    'rl.group_size is missing; change a section by config.rl.update(…)' in text
  )
  assert "rl.max_steps = '80' must be of type int" in text
  assert 'rollout.speculative = 1 must be of type bool' in text
  assert 'mesh must be a section, got 3' in text


def test_integers_become_floats_and_nothing_else_is_converted():
  config = base.get_config()
  values = config.to_dict()
  values['rl']['kl_coef'] = 0
  assert load(values, RunConfig).rl.kl_coef == 0.0
  assert isinstance(load(values, RunConfig).rl.kl_coef, float)
  values['rl']['kl_coef'] = True
  with pytest.raises(UserError, match='kl_coef = True must be of type float'):
    load(values, RunConfig)
  values['rl']['kl_coef'] = float('nan')
  with pytest.raises(UserError, match='kl_coef = nan must be at least 0'):
    load(values, RunConfig)


def test_names_of_plugins_are_welcome_where_a_mapping_is_open(plugin):
  plugin("""
    @registry.reward('brevity')
    def brevity(sample):
      return -sample.num_tokens
  """)
  config = base.get_config()
  config.rl.reward.brevity = 0.5
  assert load(config, RunConfig).rl.reward['brevity'] == 0.5
  with pytest.raises((KeyError, AttributeError)):
    config.rl.brevity = 0.5


def test_a_section_built_in_code_is_checked_too():
  with pytest.raises(UserError, match='learning_rate = -1.0 must be above 0'):
    OptimizerConfig(learning_rate=-1.0)
  with pytest.raises(UserError, match='switch_fraction'):
    dataclasses.replace(MTPConfig(), switch_fraction=2.0)
  with pytest.raises(UserError, match='mtp_depth = 3 must be 0 or .* = 2'):
    ModelConfig(num_nextn_predict_layers=2, mtp_depth=3)
  with pytest.raises(UserError, match='group_size = 1 must be at least 2'):
    RLConfig(group_size=1)


@pytest.mark.parametrize(
  'section, changes, message',
  [
    (RLConfig, dict(keep_period=150), 'a multiple of save_steps = 100'),
    (
      RLConfig,
      dict(metric_for_best_model='eval/pass@1', eval_steps=30),
      'save_steps = 100 must be a multiple of eval_steps = 30',
    ),
    (
      SFTConfig,
      dict(metric_for_best_model='eval/loss'),
      "is 'eval/loss', and this stage evaluates nothing",
    ),
    (
      SFTConfig,
      dict(metric_for_best_model='loss', logging_steps=7),
      'save_steps = 500 must be a multiple of logging_steps = 7',
    ),
  ],
)
def test_checkpoints_that_could_not_be_kept_are_refused(
  section, changes, message
):
  with pytest.raises(UserError, match=message):
    section(**changes)


@pytest.mark.parametrize(
  'section, changes',
  [
    (RLConfig, dict(keep_period=300, metric_for_best_model='reward')),
    (RLConfig, dict(metric_for_best_model='eval/pass@1', eval_steps=50)),
    (SFTConfig, dict(metric_for_best_model='loss', lower_is_better=True)),
  ],
)
def test_checkpoints_that_can_be_kept_are_accepted(section, changes):
  assert section(**changes).metric_for_best_model in changes.values()


def test_values_are_replaced_by_dotted_keys():
  run = replace(RunConfig(), {'rl.group_size': 4, 'data.task': 'countdown'})
  assert (run.rl.group_size, run.data.task) == (4, 'countdown')
  assert run.rl.prompts_per_step == RunConfig().rl.prompts_per_step
  with pytest.raises(UserError):
    replace(RunConfig(), {'rl.ppo.gamma': 1.5})


def test_narrow_takes_the_fields_that_a_dataclass_declares():
  @dataclasses.dataclass(frozen=True)
  class Sizes:
    group_size: int
    max_new_tokens: int
    extra: str

  sizes = narrow(Sizes, RLConfig(group_size=8), extra='x')
  assert sizes == Sizes(8, RLConfig().max_new_tokens, 'x')


@pytest.mark.parametrize(
  'name',
  [
    'deepseek_v3',
    'deepseek_v3_yarn',
    'qwen2_5_math_1_5b',
    'qwen2_5_32b',
    'qwen3_8b',
    'llama3_1_8b',
    'llama3_3_70b',
    'tiny',
  ],
)
def test_every_named_size_is_a_model(name):
  assert model_config(getattr(models, name)())


@pytest.mark.parametrize(
  'changes, message',
  [
    (dict(head_dim=7), 'head_dim = 7 must be even'),
    (dict(num_key_value_heads=3), 'does not divide num_attention_heads'),
    (dict(attention='mha'), "attention = 'mha' must be one of 'mla', 'gqa'"),
    (dict(first_k_dense_replace=99), 'must be at most num_hidden_layers'),
    (dict(vocab_size=0), 'vocab_size = 0 must be at least 1'),
  ],
)
def test_a_model_that_cannot_be_is_refused(changes, message):
  with pytest.raises(UserError, match=message):
    model_config(models.llama3_1_8b() | changes)


def test_a_config_dict_stays_a_config_dict():
  assert isinstance(base.get_config(), ml_collections.ConfigDict)
