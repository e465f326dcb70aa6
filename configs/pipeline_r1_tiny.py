"""The whole of DeepSeek-R1 in miniature, on a laptop CPU.

Two families of problems that rules can verify, arithmetic and countdown; a
general task that only reward models judge, manners; and a corpus in which English
and a second language are mixed.

  r1jax pipeline --config=pipeline_r1_tiny --workdir=runs/r1
"""

from ml_collections import ConfigDict

from r1jax.config import base, models


def _config(kind: str, init: str) -> ConfigDict:
  """Returns the config that all stages share."""
  config = base.get_config()
  config.stages = (kind,)
  config.init = init
  config.model = models.tiny() | dict(
    vocab_size=144, max_position_embeddings=160
  )
  config.tokenizer.source = 'bilingual'
  config.data.template = 'r1_zero_brief'
  config.data.max_prompt_tokens = 20
  config.data.step_delimiter = ' '
  config.corpus.update(
    tasks=('arithmetic:0.55', 'countdown:0.25', 'manners:0.2'),
    connective_rate=0.8,
    language_mixing_rate=0.4,
    general_error_rate=0.35,
  )
  config.rl.max_new_tokens = 96
  config.eval.update(num_problems=96, num_samples=8, temperature=1.0, top_p=1.0)
  return config


def _pretrain() -> ConfigDict:
  config = _config('pretrain', 'pretrain')
  config.pretrain.update(
    max_steps=1500,
    batch_size=72,
    length_tokens=128,
    save_steps=300,
    router_aux_loss_coef=0.0,
  )
  config.pretrain.optimizer.update(
    learning_rate=2e-3, warmup_steps=100, lr_scheduler_type='cosine'
  )
  return config


def _sft(init: str, *data: str) -> ConfigDict:
  config = _config('sft', init)
  config.corpus.update(  # Demonstrations are clean, and in one language.
    guess_share=0.0,
    slip_rate=0.02,
    corrected_slip_share=1.0,
    retracted_guess_share=0.0,
    malformed_share=0.0,
    connective_rate=1.0,
    language_mixing_rate=0.0,
    general_error_rate=0.0,
  )
  config.sft.update(
    data=data,
    num_train_epochs=3,
    batch_size=16,
    length_tokens=128,
    logging_steps=5,
    router_aux_loss_coef=0.0,
  )
  config.sft.optimizer.update(
    learning_rate=1e-3,
    warmup_steps=10,
    lr_scheduler_type='cosine',
    weight_decay=0.0,
  )
  return config


def _rl(init: str, steps: int) -> ConfigDict:
  config = _config('rl', init)
  config.data.mixture = ('arithmetic:0.6', 'countdown:0.4')
  config.rl.update(
    max_steps=steps,
    prompts_per_step=32,
    group_size=16,
    num_minibatches=2,
    ref_model_sync_steps=40,
    eval_steps=10,
    save_steps=20,
  )
  config.rl.optimizer.update(
    learning_rate=1e-4,
    warmup_steps=5,
    lr_scheduler_type='cosine',
    weight_decay=0.0,
  )
  return config


def _judge(kind: str) -> ConfigDict:
  """A reward model of its own: it never saw a rule."""
  config = _config('reward_model', 'random')
  config.model.update(
    num_hidden_layers=2,
    first_k_dense_replace=2,
    hidden_size=64,
    q_lora_rank=32,
    kv_lora_rank=16,
    intermediate_size=192,
    scalar_head=True,
  )
  config.reward_model.update(
    kind=kind,
    data=('manners:6000',),
    max_eval_rows=512,
    batch_size=64,
    max_tokens=96,
    num_train_epochs=2,
    eval_steps=100,
    save_steps=100,
    router_aux_loss_coef=0.0,
  )
  config.reward_model.optimizer.update(
    learning_rate=3e-3, warmup_steps=20, lr_scheduler_type='cosine'
  )
  return config


def _rejection_sampling(init: str, *general: str) -> ConfigDict:
  """Right, well formed, in one language; one of four samples a prompt."""
  config = _config('rejection_sampling', init)
  config.data.mixture = ('arithmetic:0.5', 'countdown:0.5')
  config.corpus.update(
    general_error_rate=0.0,
    connective_rate=1.0,
    language_mixing_rate=0.0,
    malformed_share=0.0,
  )
  config.rejection_sampling.update(
    num_prompts=1200,
    num_samples=4,
    min_language=0.95,
    max_repetition=0.5,
    extra_data=general,
  )
  return config


def _final() -> ConfigDict:
  """RL for all scenarios: general prompts come in late."""
  config = _rl('@sft', 50)
  config.data.mixture = ('arithmetic:0.45', 'countdown:0.35', 'manners:0.2')
  config.rl.general_prompts_after_steps = 35
  config.rl.reward.language = 0.5
  config.rl.reward_models.update(helpful='@helpful', safe='@safe')
  config.rl.general_reward.update(
    helpful=0.3, safe=1.0, format=1.0, language=0.5
  )
  return config


def _dense(config: ConfigDict) -> ConfigDict:
  """The small student: dense, with grouped queries, as Qwen and Llama are."""
  config.model = models.llama3_1_8b() | dict(
    num_hidden_layers=2,
    first_k_dense_replace=2,
    hidden_size=80,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=20,
    intermediate_size=240,
    vocab_size=144,
    max_position_embeddings=160,
    initializer_range=0.02,
    rope=models.rope(1e4, 'halves'),
    dtype='float32',
    remat='none',
  )
  return config


def get_config() -> ConfigDict:
  pipeline = ConfigDict(
    dict(
      stages=(
        'base',
        'zero',
        'cold_start',
        'reasoning',
        'rejection_sampled',
        'sft',
        'helpful',
        'safe',
        'final',
        'distillation_data',
        'student_base',
        'student',
        'student_rl',
      ),
      seed=0,
      evaluations=('arithmetic', 'countdown', 'manners'),
    )
  )
  # R1-Zero: the base, and rules.
  pipeline.base = _pretrain()
  pipeline.zero = _rl('@base', 70)
  # R1: a cold start, reasoning, rejection sampling, SFT of the base again, and
  # all scenarios.
  pipeline.cold_start = _sft('@base', 'arithmetic:600', 'countdown:400')
  pipeline.reasoning = _rl('@cold_start', 50)
  pipeline.reasoning.rl.reward.language = 0.5
  pipeline.rejection_sampled = _rejection_sampling('@reasoning', 'manners:400')
  pipeline.sft = _sft('@base', '@rejection_sampled')
  pipeline.helpful, pipeline.safe = _judge('helpful'), _judge('safe')
  pipeline.final = _final()
  # Distillation, and the same student without a teacher.
  pipeline.distillation_data = _rejection_sampling('@final', 'manners:400')
  pipeline.student_base = _dense(_pretrain())
  pipeline.student = _dense(_sft('@student_base', '@distillation_data'))
  pipeline.student_rl = _dense(_rl('@student_base', 50))
  return pipeline
