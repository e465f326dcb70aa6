"""Members of the GRPO family, and PPO: values of config.rl, as published.

  config.rl.update(algorithms.dapo())

Rewards that belong to a paper's recipe, such as DAPO's soft punishment of long
answers, are weights in config.rl.reward.
"""


def r1_zero() -> dict:
  """DeepSeek-R1-Zero (arXiv 2501.12948): the default of config.rl."""
  return dict(
    policy_loss='clip',
    importance_sampling_level='token',
    loss_agg_mode='token-mean',
    clip_ratio_low=0.2,
    clip_ratio_high=0.2,
    kl_coef=0.001,
    kl_estimator='k3',
    kl_in_reward=False,
    scale_rewards=True,
  )


def deepseek_math() -> dict:
  """GRPO as it was first: a mean over sequences, one update a rollout
  (DeepSeekMath, arXiv 2402.03300, section 4.2)."""
  return r1_zero() | dict(
    loss_agg_mode='seq-mean-token-mean',
    kl_coef=0.04,
    num_minibatches=1,
    group_size=64,
  )


def dapo() -> dict:
  """Clip-higher, token-mean aggregation, no KL (arXiv 2503.14476, section 4.1)."""
  return r1_zero() | dict(clip_ratio_high=0.28, kl_coef=0.0)


def dr_grpo() -> dict:
  """Neither the deviation nor the length divides; no KL (arXiv 2503.20783)."""
  return r1_zero() | dict(
    loss_agg_mode='seq-mean-token-sum-norm', scale_rewards=False, kl_coef=0.0
  )


def bnpo() -> dict:
  """The mean over the tokens of each update, with GRPO's KL, as TRL names it."""
  return r1_zero() | dict(loss_agg_mode='token-mean', kl_coef=0.04)


def gspo() -> dict:
  """Ratios of sequences, clipped narrowly (arXiv 2507.18071, section 5.1)."""
  return r1_zero() | dict(
    importance_sampling_level='sequence',
    loss_agg_mode='seq-mean-token-mean',
    clip_ratio_low=3e-4,
    clip_ratio_high=4e-4,
    kl_coef=0.0,
  )


def cispo() -> dict:
  """No token loses its gradient (MiniMax-M1, arXiv 2506.13585)."""
  return r1_zero() | dict(policy_loss='cispo', clip_ratio_high=4.0, kl_coef=0.0)


def ppo(lam: float = 1.0) -> dict:
  """PPO beside GRPO, as DeepSeek-R1 compares them (second version, section on
  GRPO): λ = 1, or 0.95 as it is usual; KL is a penalty of every token's reward.
  A group of 1 is enough; rl.ppo has the value function."""
  return r1_zero() | dict(
    adv_estimator='gae', kl_in_reward=True, kl_estimator='k1', ppo=dict(lam=lam)
  )
