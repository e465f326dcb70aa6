"""Published settings of config.rl: GRPO, its relatives, and PPO.

  config.rl.update(algorithms.dapo())

Rewards that belong to a paper's recipe, such as DAPO's soft punishment of long
answers, are weights in config.rl.reward, and dynamic sampling is
config.rl.dynamic_sampling: neither is set here.
"""


def r1_zero() -> dict:
  """DeepSeek-R1-Zero (arXiv 2501.12948): the default of config.rl.

  R1-Zero's aggregation and clip range are unpublished; a mean over all tokens
  and 0.2 stand for them.
  """
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
  """The original GRPO (DeepSeekMath, arXiv 2402.03300, section 4.2).

  The loss is a mean over sequences, with one update per rollout.
  """
  return r1_zero() | dict(
    loss_agg_mode='seq-mean-token-mean',
    kl_coef=0.04,
    num_minibatches=1,
    group_size=64,
  )


def dapo() -> dict:
  """DAPO: clip-higher, token-mean, no KL (arXiv 2503.14476, section 4.1)."""
  return r1_zero() | dict(clip_ratio_high=0.28, kl_coef=0.0)


def dr_grpo() -> dict:
  """Dr. GRPO: no division by deviation or length, no KL (arXiv 2503.20783)."""
  return r1_zero() | dict(
    loss_agg_mode='seq-mean-token-sum-norm', scale_rewards=False, kl_coef=0.0
  )


def bnpo() -> dict:
  """BNPO, as in TRL: the mean over the tokens of each update, with a KL."""
  return r1_zero() | dict(loss_agg_mode='token-mean', kl_coef=0.04)


def gspo() -> dict:
  """GSPO: sequence ratios, clipped narrowly (arXiv 2507.18071, section 5.1)."""
  return r1_zero() | dict(
    importance_sampling_level='sequence',
    loss_agg_mode='seq-mean-token-mean',
    clip_ratio_low=3e-4,
    clip_ratio_high=4e-4,
    kl_coef=0.0,
  )


def cispo() -> dict:
  """CISPO: clipping that keeps every token's gradient (arXiv 2506.13585)."""
  return r1_zero() | dict(policy_loss='cispo', clip_ratio_high=4.0, kl_coef=0.0)


def ppo(lam: float = 1.0) -> dict:
  """PPO as DeepSeek-R1 compares it with GRPO (second version, on GRPO).

  The KL is a penalty on every token's reward. A group_size of 1 is enough; the
  settings of the value function are in rl.ppo.

  Args:
    lam: λ of GAE: R1 has 1, and also the usual 0.95.
  """
  return r1_zero() | dict(
    adv_estimator='gae', kl_in_reward=True, kl_estimator='k1', ppo=dict(lam=lam)
  )
