"""Every key that a config may have, with its meaning and unit.

A key that is not declared here is an error. Values are R1-Zero's where they
are published (DeepSeek-R1, second version, section 2); the clip range of
R1-Zero is not, so 0.2 stands there, the usual one.
"""

import ml_collections

from configs import models


def optimizer(learning_rate: float) -> dict:
  return dict(
      learning_rate=learning_rate,  # Peak.
      warmup_steps=0,  # Updates, linear from 0.
      decay='constant',  # Or 'cosine', down to learning_rate · final_ratio.
      final_ratio=0.1,
      beta1=0.9,
      beta2=0.95,
      weight_decay=0.1,  # On matrices only.
      clip_norm=1.0,  # Of the global gradient.
      moment_dtype='float32',  # Or 'bfloat16', as V3.
  )


def get_config() -> ml_collections.ConfigDict:
  config = ml_collections.ConfigDict()
  config.seed = 0
  # The stages, in order: 'pretrain', 'rl'.
  config.stages = ('pretrain', 'rl')
  # The base model that RL starts from: 'shipped' with the package; 'pretrain',
  # made by the stage of that name, or found if this config made it before;
  # 'random'; or weights of ours: a
  # .safetensors file, or a folder that import-hf wrote.
  config.init = 'pretrain'

  config.model = models.deepseek_v3()
  config.model.max_context = 1024 + 32768  # Prompt and completion.
  config.mesh = dict(data=-1, fsdp=1, tensor=1, expert=1)  # −1: what is left.
  # 'character', or the folder of a Hugging Face tokenizer.
  config.tokenizer = dict(source='character')

  config.data = dict(
      # What is trained on and evaluated: a synthetic task of r1jax/data/
      # tasks.py, or a dataset of r1jax/data/sources.py.
      task='arithmetic',
      # Other files with a dataset's fields, instead of its own: JSONL, Parquet,
      # or a folder of either; relative to $R1JAX_DATA or to here.
      path='',  # To train on.
      eval_path='',  # To evaluate on.
      # Trained on instead of the task: 'name' or 'name:weight' each.
      mixture=(),
      mixture_temperature=1.0,  # T: shares ∝ w^(1/T), or size^(1/T).
      # Datasets whose held-out questions no training question may share ten
      # words with; one that does is removed.
      decontaminate=(),
      # The largest share of a training set's rows that may be dropped as bad;
      # 0: a bad row is an error. An evaluation set is never cut.
      quarantine=0.0,
      pass_rates='',  # A JSONL file of id and pass_rate.
      pass_rate_low=0.0,  # Train on prompts whose rate lies within these.
      pass_rate_high=1.0,
      easy_first=False,  # In the order of pass rates instead of shuffled.
      # Of r1jax/data/template.py; 'chat', the tokenizer's own; or a .jinja
      # file.
      # How a completion is to be formed, see data/forms.py: 'think_answer',
      # 'think' (R1's own), 'reasoning_summary' or 'special_token'.
      form='think_answer',
      template='r1_zero',
      system='',  # A system message, for chat templates.
      prefill='',  # Begins every completion, as '<think>\n' does R1's.
      max_prompt_tokens=1024,  # A longer prompt is a bad row.
  )
  # The noisy web that the base model reads: see r1jax/data/tasks.py.
  config.corpus = dict(
      direct=0.75, direct_right=0.12, slip=0.08, noticed=0.5, reconsidered=0.4,
      malformed=0.06)

  config.pretrain = dict(
      steps=2000,
      batch_size=64,  # Rows of packed documents.
      length_tokens=128,  # Of a row.
      microbatches=1,  # Gradients are summed over them.
      balance_speed=1e-3,  # γ of the routing bias (V3 section 4.2).
      balance_loss=1e-4,  # α of the sequence-wise balance loss.
      # λ of multi-token prediction, and what it becomes after a share of the
      # steps (V3: after 10T of 14.8T tokens).
      mtp=dict(weight=0.3, later_weight=0.1, switch_share=0.68),
      optimizer=optimizer(2.2e-4),
      checkpoint_every=500,  # Steps.
      keep_checkpoints=2,
      log_every=10,  # Steps a line in metrics.jsonl.
  )
  # A step is a rollout and its updates. R1-Zero counts updates: 10,400 of 32
  # questions × 16 samples, made 8,192 samples at a time, 16 updates a rollout;
  # the reference is replaced every 400 updates.
  config.rl = dict(
      steps=650,
      prompts_per_step=512,
      group_size=16,  # G.
      # A step samples more groups than it trains on, and ends when this share
      # of them is complete; the others go on in the next step with what they
      # have drawn. 1: every group is sampled and trained on in one step.
      complete_share=1.0,
      max_new_tokens=32768,
      temperature=1.0,
      minibatches=16,  # Updates a rollout.
      microbatches=1,  # Gradients of one update are summed over them.
      # The objective, see algos/grpo.py; configs/algorithms.py has the papers'.
      surrogate='clip',  # Or 'cispo'.
      ratio='token',  # Or of the 'sequence' (GSPO).
      clip_low=0.2,  # ε_low.
      clip_high=0.2,  # ε_high.
      clip_most=0.0,  # δ, of any ratio; 0 for none.
      norm='token',  # Or 'sequence' (GRPO), 'constant' (Dr. GRPO).
      kl_coef=0.001,  # β; 0 keeps no reference policy.
      kl='k3',  # Its estimator; or 'k1', 'k2'.
      kl_in='loss',  # Or in the 'reward', before the advantages.
      kl_corrected=False,  # Weigh it by the ratio, for its true gradient.
      # Where the sampler's probabilities are not the trainer's: 'none',
      # 'truncate' or 'mask' by their ratio, of a 'token' or a 'sequence'.
      mismatch='none',
      mismatch_level='token',
      mismatch_cap=2.0,
      overlong='train',  # Or 'mask' completions that were cut off.
      reference_every=25,  # Steps between replacements of the reference.
      # Above 0 the reference is a moving average instead: d · reference +
      # (1 − d) · policy after each step.
      reference_decay=0.0,
      scale_by_std=True,  # Advantages are divided by the group's deviation.
      # Where old log-probabilities come from: 'rollout', as sampled, or
      # 'recompute', by the trainer, where sampler and trainer differ.
      old_logp='rollout',
      # Training sends each token to the experts that the sampler sent it to.
      routing_replay=False,
      balance_speed=1e-3,
      balance_loss=0.0,
      mtp_weight=0.0,  # λ; above 0, look-ahead modules go on learning.
      # Weights of the parts, see rewards/combine.py; of rows that a rule can
      # verify, and of general ones.
      reward=dict(
          accuracy=1.0, format=1.0, format_errors=0.0, language=0.0,
          overlong=0.0, cosine=0.0, repetition=0.0),
      general_reward=dict(
          format=0.0, format_errors=0.0, language=0.0, overlong=0.0,
          repetition=0.0),
      overlong_buffer_tokens=4096,  # Where a long answer begins to cost.
      repetition_n=4,  # Words.
      # What a program is worth that fails some of its tests: nothing, since it
      # must pass 'all'; or the 'share' that it passes.
      code_credit='all',
      max_unscored=0.2,  # A larger share without a score stops the run.
      optimizer=optimizer(3e-6),
      eval_every=100,  # Steps; also before the first and after the last.
      checkpoint_every=100,
      keep_checkpoints=2,
      train_samples=8,  # Training completions saved at each evaluation.
  )
  # The sampler. What it draws does not depend on these sizes.
  config.rollout = dict(
      rows=512,  # Completions that decode at once.
      page_tokens=16,  # Of a page of the cache.
      chunk_steps=16,  # Forward passes between two looks of the host.
      prefill_tokens=2048,  # Of prompts, that one call reads.
      cache_tokens=0,  # Of the whole cache; 0: as many as all rows may need.
      cache_int8=False,  # Keep the cache in 8 bits.
      # Guess a token ahead with the first look-ahead module. Samples have the
      # same distribution; a run draws others.
      speculative=False,
  )
  config.eval = dict(
      num_problems=128,
      samples=8,  # k, a problem.
      temperature=0.6,  # DeepSeek-R1 section 3.
      top_p=0.95,
  )
  return config.lock()  # From here on, a new key is an error.
