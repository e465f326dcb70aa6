"""Reinforcement learning: `config.rl`."""

from collections.abc import Iterator
import dataclasses

from r1jax.config.conditions import above, is_empty, is_set, none_of, one_of
from r1jax.config.field import Change, key, section
from r1jax.config.run_conditions import experts, general_prompts, samples
from r1jax.config.schema.rewards import RewardConfig
from r1jax.config.schema.section import Problem, Section
from r1jax.config.schema.training import (
  CheckpointConfig,
  LoadBalancingConfig,
  OptimizerConfig,
  RowsConfig,
  warmup_problem,
)


@dataclasses.dataclass(frozen=True)
class PolicyLossConfig(Section):
  """The loss of a policy update, see algos/policy_loss.py."""

  policy_loss: str = key(
    'clip',
    "The surrogate: 'clip' (PPO, GRPO), 'cispo' (arXiv 2506.13585, eq. 4), or "
    'one that a plugin registers.',
    registered=('policy_loss',),
  )
  importance_sampling_level: str = key(
    'token',
    "What the ratio ρ is of: each 'token', or the whole 'sequence', the "
    "geometric mean of its tokens' (GSPO, arXiv 2507.18071, eq. 7).",
    choices=('token', 'sequence'),
  )
  clip_ratio_low: float = key(
    0.2,
    'ε_low: ρ is clipped below 1 − ε_low.',
    at_least=0,
    only_if=none_of('policy_loss', 'cispo'),
  )
  clip_ratio_high: float = key(
    0.2, 'ε_high: ρ is clipped above 1 + ε_high.', at_least=0
  )
  delta: float = key(
    0.0,
    'δ, the largest ratio whatever the sign of the advantage (two-sided '
    'clipping, arXiv 2505.07291, section 3.4); above 1 + clip_ratio_high, or '
    '0 for none.',
    at_least=0,
    only_if=none_of('policy_loss', 'cispo'),
  )
  loss_agg_mode: str = key(
    'token-mean',
    "How token losses are averaged: over all tokens, 'token-mean' (DAPO); "
    "within each sequence and then over sequences, 'seq-mean-token-mean' "
    '(GRPO); summed over tokens and divided by sequences × max_new_tokens, '
    "'seq-mean-token-sum-norm' (Dr. GRPO).",
    choices=('token-mean', 'seq-mean-token-mean', 'seq-mean-token-sum-norm'),
  )
  kl_coef: float = key(
    0.001, 'β, the weight of the KL; 0 keeps no reference policy.', at_least=0
  )
  kl_estimator: str = key(
    'k3',
    'Estimator of the KL to the reference policy, see algos/common.py.',
    choices=('k1', 'k2', 'k3'),
    only_if=is_set('kl_coef').warned,
  )
  kl_importance_weighted: bool = key(
    False,
    'Whether the KL is weighted by ρ, which makes its gradient that of the '
    "policy's own KL (DeepSeek-V3.2, section 3.1).",
    only_if=(is_set('kl_coef').warned, is_empty('rl.kl_in_reward')),
  )
  rollout_is: str = key(
    'none',
    "Correction where the sampler's probabilities are not the trainer's: "
    "importance weights π_trainer / π_sampler, 'truncate'd at the threshold, "
    "or 1 within [1/threshold, threshold] and 0 beyond, 'mask'. It needs "
    "old_logp_source = 'recompute'.",
    choices=('none', 'truncate', 'mask'),
  )
  rollout_is_level: str = key(
    'token',
    "Whether the correction is of each 'token', or of the whole 'sequence', "
    'the product over its tokens.',
    choices=('token', 'sequence'),
    only_if=none_of('rollout_is', 'none'),
  )
  rollout_is_threshold: float = key(
    2.0,
    'C, the threshold of rollout_is.',
    at_least=1,
    only_if=none_of('rollout_is', 'none'),
  )

  def conflicts(self) -> Iterator[Problem]:
    yield from super().conflicts()
    if 0 < self.delta <= 1 + self.clip_ratio_high:
      yield (
        'delta',
        f'must be above 1 + clip_ratio_high = {1 + self.clip_ratio_high:g}, '
        'or 0 for none',
      )


@dataclasses.dataclass(frozen=True)
class GAEConfig(Section):
  """Generalised advantage estimation (arXiv 1506.02438), see algos/gae.py."""

  gamma: float = key(
    1.0, 'γ, by which a later reward counts less.', at_least=0, at_most=1
  )
  lam: float = key(
    1.0, "λ; R1's comparison has 0.95 as well.", at_least=0, at_most=1
  )
  truncated_value: str = key(
    'zero',
    'Value after a completion that was cut off: nothing, or that of the state '
    'it was left in.',
    choices=('zero', 'bootstrap'),
  )
  whiten_advantages: bool = key(
    True, 'Whether the advantages of a step get mean 0 and deviation 1.'
  )
  cliprange_value: float = key(
    0.2,
    'How far a value may move from the one that the advantages were made with '
    'before its error counts unclipped; 0 for no bound.',
    at_least=0,
  )


@dataclasses.dataclass(frozen=True)
class PPOConfig(GAEConfig):
  """Values and their training where adv_estimator = 'gae'."""

  critic: str = key(
    'separate',
    "The value function: a transformer of its own, 'separate', or a scalar "
    "head on the policy's trunk, 'shared'.",
    choices=('separate', 'shared'),
  )
  critic_init: str = key(
    '',
    'Initial weights of a separate critic: ours, with a scalar head, such as a '
    "reward model's; '' for the policy's, with a new head.",
  )
  critic_learning_rate: float = key(
    1e-5,
    'Peak learning rate of a separate critic; the rest is rl.optimizer.',
    above=0,
    only_if=one_of('critic', 'separate'),
  )
  critic_warmup_steps: int = key(
    0,
    'First steps, which train a separate critic alone.',
    unit='steps',
    at_least=0,
  )
  vf_coef: float = key(
    0.5,
    "Weight of the value loss where critic = 'shared'.",
    at_least=0,
    only_if=one_of('critic', 'shared'),
  )

  def conflicts(self) -> Iterator[Problem]:
    if self.critic == 'shared':
      for name in ('critic_init', 'critic_warmup_steps'):
        if getattr(self, name):
          yield (
            name,
            "needs critic = 'separate': a shared trunk begins and learns with "
            'the policy',
          )


@dataclasses.dataclass(frozen=True)
class RLConfig(
  PolicyLossConfig,
  RewardConfig,
  RowsConfig,
  LoadBalancingConfig,
  CheckpointConfig,
):
  """Reinforcement learning, the stage `rl`. A step is a rollout and its updates.

  R1-Zero counts updates: 10,400 of 32 questions × 16 samples, made 8,192
  samples at a time, 16 updates a rollout; the reference is replaced every 400
  updates.
  """

  max_steps: int = key(
    650, 'Number of steps.', unit='steps', at_least=1, change=Change.STEPS
  )
  prompts_per_step: int = key(512, 'Prompts of a step.', at_least=1)
  group_size: int = key(16, 'G, completions of each prompt.', at_least=1)
  oversample: float = key(
    1.0,
    'Ratio of the groups in flight to prompts_per_step: 1.5 samples half more. '
    'A step ends when prompts_per_step groups are complete; the others are '
    'continued in the next step (partial rollouts).',
    at_least=1,
  )
  max_staleness: int = key(
    0,
    'A group is dropped if its first token is of a policy more than so many '
    'steps old; 0 drops none.',
    unit='steps',
    at_least=0,
    only_if=above('oversample', 1),
  )
  one_step_off_policy: bool = key(
    False,
    'Whether the samples of a step are drawn under the policy that the step '
    'before began with, while that step updates it: with '
    'rollout.sampling_devices both take place at once. Tokens are then one step '
    "old; rl.old_logp_source = 'recompute' and rollout_is correct it.",
  )
  in_flight_renewal: float = key(
    1.0,
    "The share of a process's groups that are complete when those in progress "
    'go on under the policy that the step has made meanwhile (in-flight weight '
    'updates, arXiv 2509.19128); 1 lets them end under the older one. The '
    'samples then depend on the number of processes.',
    at_least=0,
    at_most=1,
    only_if=is_set('one_step_off_policy'),
  )
  dynamic_sampling: bool = key(
    False,
    'Whether only groups whose samples are not all right or all wrong are '
    'trained on, and more are sampled until there are enough (DAPO section '
    '3.2).',
  )
  dynamic_sampling_max_rounds: int = key(
    4,
    'Rounds of dynamic sampling, at most; then the rest of the batch counts '
    'for nothing.',
    at_least=1,
    only_if=is_set('dynamic_sampling'),
  )
  general_prompts_after_steps: int = key(
    0,
    "General prompts of data.mixture come in after so many steps: R1's second "
    'RL has them in its last 400 of 1,700.',
    unit='steps',
    at_least=0,
    only_if=general_prompts(),
  )
  environment: str = key(
    'answer',
    "What reads completions and rewards them: 'answer' verifies one answer; or "
    'one that a plugin registers, see rewards/environment.py.',
    registered=('environment',),
  )
  max_new_tokens: int = key(
    32768,
    'Longest completion.',
    unit='tokens',
    at_least=1,
    only_if=samples(),
    read_beyond_section=True,
  )
  temperature: float = key(1.0, 'Sampling temperature.', above=0)
  num_minibatches: int = key(16, 'Updates of a rollout.', at_least=1)
  share_prompts: str = key(
    'auto',
    'Whether the samples of a group share the tokens of their prompt in the '
    "updates. 'auto' does so in a step where it takes fewer microbatches, with "
    'an attention kernel that can: not flash or splash, which are those of '
    'GPUs in 16 bits and of TPUs.',
    choices=('auto', 'never'),
  )
  kl_in_reward: bool = key(
    False,
    'Whether the KL is a penalty in the reward, before advantages, instead of '
    'a term of the loss.',
    only_if=is_set('kl_coef').warned,
  )
  adv_estimator: str = key(
    'grpo',
    "Estimator of advantages: relative to the group, 'grpo'; to the mean of the "
    "group's others, 'rloo' (arXiv 2402.14740); by a value function, 'gae' "
    '(PPO); or one that a plugin registers (algos/advantage.py).',
    registered=('adv_estimator',),
  )
  scale_rewards: bool = key(
    True,
    "Whether a group's advantages are divided by its standard deviation.",
    only_if=none_of('adv_estimator', 'rloo', 'gae'),
  )
  ppo: PPOConfig = section(
    PPOConfig, only_if=none_of('adv_estimator', 'grpo', 'rloo')
  )
  mask_truncated_completions: bool = key(
    False, 'Whether completions that were cut off are left out of the loss.'
  )
  ref_model_sync_steps: int = key(
    25,
    'Every so many steps the reference policy becomes α · policy + (1 − α) · '
    'reference.',
    unit='steps',
    at_least=1,
    only_if=is_set('kl_coef').warned,
  )
  ref_model_mixup_alpha: float = key(
    1.0,
    'α of ref_model_sync_steps; 1 replaces the reference by the policy.',
    above=0,
    at_most=1,
    only_if=is_set('kl_coef').warned,
  )
  old_logp_source: str = key(
    'rollout',
    "Source of old log-probabilities: as sampled, 'rollout', or by the "
    "trainer, 'recompute'.",
    choices=('rollout', 'recompute'),
  )
  routing_replay: bool = key(
    False,
    'Whether training sends each token to the experts that the sampler sent '
    'it to.',
    only_if=experts().warned,
  )
  router_aux_loss_coef: float = key(
    0.0,
    'α of the sequence-wise balance loss (eq. 17).',
    at_least=0,
    only_if=experts(),
  )
  mtp_loss_weight: float = key(
    0.0, 'λ; above 0, MTP modules go on learning.', at_least=0
  )
  optimizer: OptimizerConfig = section(OptimizerConfig, learning_rate=3e-6)
  eval_steps: int = key(
    100,
    'Steps between two evaluations; also before the first and after the last.',
    unit='steps',
    at_least=1,
    change=Change.FREE,
  )
  save_steps: int = key(
    100,
    'Steps between two checkpoints.',
    unit='steps',
    at_least=1,
    change=Change.FREE,
  )
  num_logged_completions: int = key(
    8,
    'Training completions that are saved at each evaluation.',
    at_least=0,
    change=Change.FREE,
  )

  def conflicts(self) -> Iterator[Problem]:
    yield from super().conflicts()
    if self.group_size < 2 and self.adv_estimator in ('grpo', 'rloo'):
      yield (
        'group_size',
        'must be at least 2: an advantage is relative to the other samples of '
        'its group',
      )
    elif self.group_size < 2 and self.dynamic_sampling:
      yield 'group_size', 'must be at least 2 with dynamic_sampling'
    if self.rollout_is != 'none' and self.old_logp_source != 'recompute':
      yield (
        'rollout_is',
        "needs old_logp_source = 'recompute': the trainer's own probabilities are "
        "compared with the sampler's",
      )
    if self.oversample > 1 and self.old_logp_source != 'rollout':
      yield (
        'oversample',
        "needs old_logp_source = 'rollout': only the sampler knows the probabilities "
        'of an older policy',
      )
    if (
      self.adv_estimator == 'gae'
      and self.ppo.critic_warmup_steps >= self.max_steps
    ):
      yield (
        'max_steps',
        f'must be above ppo.critic_warmup_steps = '
        f'{self.ppo.critic_warmup_steps}',
      )
    else:
      yield from self._warmup_problem()

  def _warmup_problem(self) -> Iterator[Problem]:
    steps, text = self.max_steps, f'rl.max_steps = {self.max_steps}'
    if self.adv_estimator == 'gae' and self.ppo.critic_warmup_steps:
      steps -= self.ppo.critic_warmup_steps
      text += f' − ppo.critic_warmup_steps = {self.ppo.critic_warmup_steps}'
    if self.num_minibatches > 1:
      text += f', × num_minibatches = {self.num_minibatches}'
    yield from warmup_problem(
      self.optimizer, steps * self.num_minibatches, text
    )
