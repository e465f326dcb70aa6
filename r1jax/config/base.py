"""Every key that a config may have, with its meaning and unit.

A key that is not declared here is an error; one that comes new changes nothing
where it is False, 0 or empty, so that older runs go on. Values are R1-Zero's
where they are published (DeepSeek-R1, second version, section 2); the clip
range of R1-Zero is not, so 0.2 stands there, the usual one.
"""

import ml_collections

from r1jax.config import models


def optimizer(learning_rate: float) -> dict:
  return dict(
    learning_rate=learning_rate,  # Peak learning rate.
    warmup_steps=0,  # Updates of linear warm-up from 0.
    # 'constant', or 'cosine' down to learning_rate · min_lr_ratio.
    lr_scheduler_type='constant',
    min_lr_ratio=0.1,
    adam_beta1=0.9,
    adam_beta2=0.95,
    weight_decay=0.1,  # Decoupled; applied to matrices only.
    max_grad_norm=1.0,  # Gradients are clipped to this global norm.
    moment_dtype='float32',  # Adam's moments; 'bfloat16' as in V3.
  )


def _one_pass(learning_rate: float, **values) -> dict:
  """What all stages share that go through data once, or a few times."""
  return (
    dict(
      gradient_accumulation_steps=1,  # Microbatches per update.
      routed_bias_update_rate=1e-3,  # γ of the routing bias (V3 section 4.2).
      router_aux_loss_coef=1e-4,  # α of the sequence-wise balance loss.
      optimizer=optimizer(learning_rate),
      save_steps=500,  # Steps between checkpoints.
      save_total_limit=2,  # Checkpoints to keep.
      logging_steps=10,  # Steps between lines of metrics.jsonl.
    )
    | values
  )


def _supervised(learning_rate: float, **values) -> dict:
  """What pre-training and fine-tuning share."""
  return (
    _one_pass(
      learning_rate,
      # λ, the weight of the multi-token prediction loss, at first and after
      # this fraction of the steps (V3: after 10T of 14.8T tokens).
      mtp=dict(loss_weight=0.3, final_loss_weight=0.1, switch_fraction=0.68),
    )
    | values
  )


def _preferences(learning_rate: float, **values) -> dict:
  """What reward models and DPO share."""
  return (
    _one_pass(
      learning_rate,
      # Training data: preference files (data/preferences.py), names of
      # datasets (data/sources.py), and the synthetic task with a number of
      # rows, as in 'manners:2000'.
      data=(),
      # Evaluation data, named the same way. If it is empty, each entry of
      # `data` is split: a file keeps eval_share of its rows for evaluation (by
      # the hash of their ids); datasets and tasks have a held-out split.
      eval_data=(),
      eval_share=0.05,
      max_eval_rows=512,  # Per entry of the evaluation data; 0: no limit.
      # Preferences of the task 'manners': the probability that a part of a
      # response is wrong, and the slope s of the simulated annotator, who
      # prefers a to b with probability σ(s · (quality(a) − quality(b))).
      synthetic_preferences=dict(error_rate=0.4, sharpness=8.0),
      num_train_epochs=1,
      # Padded lengths in tokens: a batch takes the smallest bucket that fits
      # it. The last one is the limit of prompt and response together.
      length_buckets=(1024, 2048, 4096, 8192),
      eval_steps=50,  # Steps; also before the first and at the end.
    )
    | values
  )


def get_config() -> ml_collections.ConfigDict:
  config = ml_collections.ConfigDict()
  config.seed = 0
  # The stages, in order: some of those in r1jax/runs/run.py.
  config.stages = ('pretrain', 'rl')
  # What the first stage starts from: 'shipped' with the package; 'pretrain',
  # made by the stage of that name, or found if this config made it before;
  # 'random'; or weights of ours: a
  # .safetensors file, or a folder that import-hf wrote.
  config.init = 'pretrain'

  config.model = models.deepseek_v3()
  config.model.max_position_embeddings = 1024 + 32768  # Prompt and completion.
  config.mesh = dict(data=-1, fsdp=1, tensor=1, expert=1)  # −1: what is left.
  # 'character', 'bilingual' (Cyrillic too), or the folder of a Hugging Face
  # tokenizer.
  config.tokenizer = dict(source='character')

  config.data = dict(
    # The training and evaluation data: a synthetic task of data/tasks.py, or
    # a dataset of data/sources.py.
    task='arithmetic',
    # Files that replace the dataset's own and have the same fields: JSONL,
    # Parquet, or a folder of either; relative to $R1JAX_DATA or to the working
    # directory.
    path='',  # Training rows.
    eval_path='',  # Evaluation rows.
    # Training sources that replace `task`, each 'name' or 'name:weight'.
    mixture=(),
    mixture_temperature=1.0,  # T: shares ∝ weight^(1/T), or size^(1/T).
    # Evaluation datasets to decontaminate against: a training question that
    # shares a 10-gram of words with their held-out questions is removed.
    decontaminate=(),
    # Largest share of a training set's rows that may be dropped as malformed;
    # 0: a malformed row is an error. An evaluation question is never dropped.
    max_bad_row_share=0.0,
    pass_rates='',  # A JSONL file with the fields id and pass_rate.
    min_pass_rate=0.0,  # Train on prompts whose pass rate lies within these.
    max_pass_rate=1.0,
    sort_by_pass_rate=False,  # Easiest prompts first, instead of shuffled.
    # Tags that a completion must have, see data/text/response_formats.py:
    # 'think_answer' (R1-Zero's), 'think' (R1's), 'reasoning_summary' or
    # 'special_token'.
    response_format='think_answer',
    # Prompt template: a name of data/text/template.py; 'chat' for the
    # tokenizer's own chat template; or a .jinja file.
    template='r1_zero',
    system='',  # System message, for chat templates.
    # Text that the prompt ends with and every completion so begins with, such
    # as '<think>\n' for R1.
    response_prefix='',
    # Text that ends a reasoning step (data/text/steps.py), for tree search and
    # process reward models.
    step_delimiter='\n\n',
    max_prompt_tokens=1024,  # A longer prompt counts as a malformed row.
  )
  # The noisy synthetic corpus that the base model is pre-trained on. Shares
  # and rates lie within 0 and 1; see CorpusConfig in data/tasks.py.
  config.corpus = dict(
    tasks=(),  # 'name' or 'name:weight' each; empty: data.task alone.
    guess_share=0.75,  # Documents that guess without reasoning.
    guess_accuracy=0.12,  # Guesses that are right.
    slip_rate=0.08,  # Probability that a reasoning step goes wrong.
    corrected_slip_share=0.5,  # Slips that are corrected after "wait".
    retracted_guess_share=0.4,  # Reasoning that first retracts a guess.
    malformed_share=0.06,  # Documents that lack a tag.
    connective_rate=0.0,  # Probability that a step opens with a word.
    language_mixing_rate=0.0,  # … that the word is of the second language.
    general_error_rate=0.0,  # … that a part of a 'manners' answer is wrong.
  )

  config.pretrain = _supervised(
    2.2e-4,
    max_steps=2000,
    batch_size=64,  # Rows of packed documents.
    length_tokens=128,  # Of a row.
  )
  # Fine-tuning on demonstrations; the values are of R1's second SFT.
  config.sft = _supervised(
    5e-5,
    # Files of demonstrations (data/demonstrations.py), and synthetic tasks
    # with how many of their documents: 'arithmetic:1000'.
    data=(),
    num_train_epochs=2,
    batch_size=128,  # Rows of packed documents.
    length_tokens=32768,
    # w: the loss is w · (mean over reasoning rows) + (1 − w) · (mean over
    # general rows); −1: the mean over all tokens.
    reasoning_loss_weight=-1.0,
    # Distillation from a teacher's distributions, see algos/distill.py: a
    # weights file of r1jax, which is run during training; or 'stored', for
    # distributions in the data. '' trains on the text alone.
    teacher_model='',
    distillation_alpha=0.0,  # α, the weight of the KL; 1 − α is the text's.
    distillation_temperature=1.0,  # τ of the KL.
    mtp=dict(loss_weight=0.1, final_loss_weight=0.1, switch_fraction=1.0),
  )
  # A reward model; the values are R1's (second version, section 3.1): 66,000
  # pairs for helpfulness, 106,000 labelled responses for safety. It needs
  # config.model.scalar_head.
  config.reward_model = _preferences(
    6e-6,
    kind='helpful',  # From pairs; or 'safe', from single responses.
    batch_size=256,  # Pairs, or responses.
    margin=0.0,  # m of algos/reward_model.py; only for pairs.
    center_rewards_coefficient=0.0,  # c of the same; only for pairs.
    # Whether a sequence beyond the last length bucket loses its beginning, as
    # it does when the reward model is used; otherwise it is a malformed row.
    cut_long=False,
    score_batch_size=16,  # Responses per call when it scores.
  )
  # Direct preference optimisation of config.init, which is also the reference.
  # R1 has no such stage; the values are of the paper (arXiv 2305.18290, B).
  config.dpo = _preferences(
    1e-6,
    batch_size=64,  # Pairs.
    beta=0.1,  # β.
    loss_type='sigmoid',  # Or 'ipo'.
    label_smoothing=0.0,  # ε; only for 'sigmoid'.
    # Weigh groups by their loss, see algos/dpo.py. Every row needs a group: its
    # field 'group', its dataset's name, or the kind of a 'manners' request.
    group_robust=False,
    group_dro_step_size=0.01,  # η, the step size of the group weights.
  )
  config.dpo.optimizer.warmup_steps = 150
  # Rejection sampling: completions of config.init, of which the good ones are
  # kept to learn from. How long they may be is in config.rl.
  config.rejection_sampling = dict(
    num_prompts=0,  # The first so many of the training prompts; 0: all of them.
    num_samples=4,  # A prompt.
    temperature=1.0,
    top_p=1.0,
    prompts_per_chunk=256,  # Between two saves.
    # The filters. A truncated completion is always dropped.
    require_correct=True,  # Drop what a rule finds wrong.
    require_format=True,  # Drop what breaks data.response_format.
    min_language=0.0,  # Least share of the question's language.
    max_repetition=1.0,  # Largest share of repeated 4-grams of words.
    max_tokens=0,  # Of a completion; 0: any.
    forbidden_substrings=(),  # Texts that must not be in it, such as '```'.
    reward_model='',  # A reward model, and its least score.
    min_score=0.0,
    deduplicate=True,
    max_per_prompt=1,  # m.
    sort_by_score=False,  # The m of the highest scores, not the first m.
    # Rows for dpo.data: each that is kept before one that is wrong or
    # malformed, of the same prompt.
    pairs=False,
    max_reasoning_rows=0,  # So many of what is left, by chance; 0: all.
    # Rows to mix in: files of demonstrations, or synthetic tasks, with how
    # many of each: 'manners:200'.
    extra_data=(),
    top_logprobs=0,  # Keep the checkpoint's O likeliest tokens, to distil from.
  )
  # Labels for the steps of config.init's thoughts, from its own continuations.
  # How long these may be is in config.rl.
  config.label_steps = dict(
    num_prompts=0,  # The first so many of the training prompts; 0: all of them.
    num_samples=4,  # Thoughts a prompt.
    num_continuations=8,  # n, of each step (Math-Shepherd: N = 8).
    temperature=1.0,
    top_p=1.0,
    prompts_per_chunk=64,  # Between two saves.
  )
  # A process reward model, from what label_steps has left. It needs
  # config.model.scalar_head.
  config.prm = _one_pass(
    1e-5,
    data=(),  # Files that the stage label_steps wrote.
    eval_share=0.1,  # Share of the questions that is kept for evaluation.
    labels='soft',  # Or 'hard', see algos/prm.py.
    num_train_epochs=1,
    batch_size=64,  # Thoughts.
    # Padded lengths in tokens: a batch takes the smallest bucket that fits it.
    # The last one is the limit of prompt and completion together.
    length_buckets=(1024, 2048, 4096, 8192),
    eval_steps=50,  # Steps; also before the first and after the last.
    score_batch_size=16,  # Responses per call when it scores.
  )
  # A step is a rollout and its updates. R1-Zero counts updates: 10,400 of 32
  # questions × 16 samples, made 8,192 samples at a time, 16 updates a rollout;
  # the reference is replaced every 400 updates.
  config.rl = dict(
    max_steps=650,
    prompts_per_step=512,
    group_size=16,  # G.
    # Partial rollouts: prompts_per_step · oversample groups are in flight, and
    # a step ends as soon as prompts_per_step of them are complete. The others
    # continue in the next step with the tokens sampled so far. 1: every group
    # is sampled and trained on in the same step.
    oversample=1.0,
    # Drop a group if its first token was sampled by a policy more than so many
    # steps old; 0: never.
    max_staleness=0,
    # Train only on groups whose samples are neither all right nor all wrong,
    # and sample more groups until there are enough (DAPO section 3.2), in at
    # most so many rounds. Then the remaining groups of the batch are masked.
    dynamic_sampling=False,
    dynamic_sampling_max_rounds=4,
    # Use general prompts of data.mixture, which reward models score, after so
    # many steps: R1's second RL stage has them in its last 400 of 1,700.
    general_prompts_after_steps=0,
    max_new_tokens=32768,
    temperature=1.0,
    num_minibatches=16,  # Updates per rollout.
    gradient_accumulation_steps=1,  # Microbatches per update.
    # The policy loss, see algos/policy_loss.py; the settings of papers are in
    # r1jax/config/algorithms.py.
    policy_loss='clip',  # Or 'cispo'.
    importance_sampling_level='token',  # Or 'sequence' (GSPO).
    clip_ratio_low=0.2,  # ε_low.
    clip_ratio_high=0.2,  # ε_high.
    # δ, an upper bound of the ratio whatever the sign of the advantage; above
    # 1 + clip_ratio_high, or 0 for no bound.
    delta=0.0,
    # 'token-mean' (DAPO), 'seq-mean-token-mean' (GRPO) or
    # 'seq-mean-token-sum-norm' (Dr. GRPO).
    loss_agg_mode='token-mean',
    kl_coef=0.001,  # β; 0 keeps no reference policy.
    kl_estimator='k3',  # Or 'k1', 'k2'.
    kl_in_reward=False,  # Subtract the KL from rewards, not from the loss.
    kl_importance_weighted=False,  # Multiply the KL estimate by the ratio.
    # Importance-sampling correction for the difference between the sampler's
    # and the trainer's probabilities: 'none', 'truncate' or 'mask' by their
    # ratio per 'token' or per 'sequence'.
    rollout_is='none',
    rollout_is_level='token',
    rollout_is_threshold=2.0,
    # Advantages: relative to the group's other samples, 'grpo'; or generalized
    # advantage estimation from a value function, 'gae' (PPO).
    adv_estimator='grpo',
    ppo=dict(  # See algos/gae.py.
      gamma=1.0,  # γ.
      lam=1.0,  # λ; R1's comparison has 0.95 as well.
      # Value after a truncated completion: 'zero', or 'bootstrap' from the
      # value of its last state.
      truncated_value='zero',
      whiten_advantages=True,  # To mean 0 and deviation 1 per step.
      # The value function: a 'separate' transformer, or a scalar head on the
      # policy's trunk, 'shared'.
      critic='separate',
      # Initial weights of a separate critic: a weights file of r1jax with a
      # scalar head, such as a reward model's; '' copies the policy's and adds a
      # new head.
      critic_init='',
      # Learning rate of a separate critic; its other optimizer settings are
      # rl.optimizer's.
      critic_learning_rate=1e-5,
      critic_warmup_steps=0,  # First steps, which train only the critic.
      vf_coef=0.5,  # Weight of the value loss with a shared critic.
      cliprange_value=0.2,  # ε of value clipping; 0 turns it off.
    ),
    # Leave completions without an end out of the loss.
    mask_truncated_completions=False,
    # Every so many steps, reference ← α · policy + (1 − α) · reference. α = 1
    # replaces the reference by the policy.
    ref_model_sync_steps=25,
    ref_model_mixup_alpha=1.0,
    scale_rewards=True,  # Divide a group's advantages by its deviation.
    # Old log-probabilities: the sampler's, 'rollout'; or the trainer's own,
    # 'recompute', where sampler and trainer differ.
    old_logp_source='rollout',
    # Training sends each token to the experts that the sampler sent it to.
    routing_replay=False,
    routed_bias_update_rate=1e-3,
    router_aux_loss_coef=0.0,
    mtp_loss_weight=0.0,  # λ; above 0 the MTP modules are trained as well.
    # Weights of the parts of the reward (rewards/reward_manager.py), for rows
    # that a rule can verify.
    reward=dict(
      accuracy=1.0,
      format=1.0,
      format_errors=0.0,
      language=0.0,
      overlong=0.0,
      cosine=0.0,
      repetition=0.0,
      helpful=0.0,
      safe=0.0,
      prm=0.0,
    ),
    # Weights of the parts for general rows, which no rule can verify.
    general_reward=dict(
      format=0.0,
      format_errors=0.0,
      language=0.0,
      overlong=0.0,
      repetition=0.0,
      helpful=0.0,
      safe=0.0,
    ),
    # Weights files of the models that score parts of the reward: 'helpful' and
    # 'safe' from the stage reward_model, 'prm' from the stage prm.
    reward_models=dict(helpful='', safe='', prm=''),
    # How the scores of a thought's steps become one: 'min', 'product', 'mean' or
    # 'last'.
    prm_aggregation='min',
    overlong_buffer_tokens=4096,  # Length of DAPO's soft overlong buffer.
    repetition_n=4,  # n of the n-grams of words.
    # Score a program that fails some of its tests by the share of them that it
    # passes; otherwise it scores 0.
    code_partial_credit=False,
    # The run stops if a larger share of a step's samples has no score.
    max_unscorable_share=0.2,
    optimizer=optimizer(3e-6),
    eval_steps=100,  # Steps; also before the first and after the last.
    save_steps=100,
    save_total_limit=2,
    num_logged_completions=8,  # Training completions saved per evaluation.
  )
  # The rollout engine. Samples do not depend on these sizes, except for
  # kv_cache_int8 and speculative.
  config.rollout = dict(
    max_num_seqs=512,  # Most sequences that decode at once.
    block_size=16,  # Tokens in one block of the KV cache.
    decode_steps=16,  # Forward passes per call of the decode program.
    max_num_batched_tokens=2048,  # Prompt tokens that one prefill call computes.
    kv_cache_tokens=0,  # Tokens in the whole KV cache; 0: enough for all.
    # Store the KV cache in 8 bits. The policy that samples is then close to
    # the trained one, but not equal; rl.old_logp_source = 'recompute' and
    # rl.rollout_is correct for that.
    kv_cache_int8=False,
    # Speculative decoding: the first MTP module drafts a token ahead. Samples
    # have the same distribution, but a seed gives other samples.
    speculative=False,
  )
  config.eval = dict(
    num_problems=128,
    num_samples=8,  # k, a problem.
    temperature=0.6,  # DeepSeek-R1 section 3.
    top_p=0.95,
    # How `r1jax eval` uses more than one sample: 'none' reports pass@1 alone;
    # 'vote' and 'best_of_n' select one of n samples, for every power of two n
    # up to eval.num_samples, by majority or by a process reward model; 'mcts' is
    # tree search, see rollout/mcts.py.
    search=dict(
      kind='none',
      process_reward_model='',  # Weights that the stage prm left.
      budget_tokens=65536,  # Most tokens generated per problem.
      max_step_tokens=1024,  # Most of one step; a longer one is continued.
      # Part of the budget that is kept to complete a partial completion, as
      # long as there is no answer.
      answer_reserve_tokens=32768,
      expansion_width=4,  # Next steps sampled when a node is expanded.
      c_puct=1.0,  # Exploration constant of PUCT.
      # α of progressive widening; 0: every node is expanded once.
      widening_alpha=0.5,
      leaf_batch_size=1,  # Nodes of a tree expanded in one iteration.
      num_simulations=256,  # Most of one tree.
      # How a node is evaluated: 'step' scores it with the process reward
      # model, 'rollout' scores one completion of it, and 'rule' grades that
      # completion against the gold answer. The last is an upper bound that no
      # search without the answer reaches.
      leaf_value='step',
      # The answer of most 'visits', or of the highest 'value'.
      answer_selection='visits',
    ),
  )
  return config.lock()  # From here on, a new key is an error.
