"""Process rewards in miniature: what DeepSeek-R1 tried and gave up (section 4.2
of the first version), on the base of r1_zero_tiny.

Steps of the base's thoughts are labelled by their continuations; a process
reward model learns the labels; a policy learns from that model alone.

  r1jax pipeline --config=pipeline_process_tiny --workdir=runs/prm
  r1jax eval --config=r1_zero_tiny --config.eval.search.kind=mcts \\
      --config.eval.search.process_reward_model=runs/prm/prm/prm/model.safetensors

On one CPU core it takes about six minutes; what comes of it is in
experiments/process_rewards.
"""

from ml_collections import ConfigDict

from r1jax.configs import r1_zero_tiny


def _config(kind: str) -> ConfigDict:
  config = r1_zero_tiny.get_config()
  config.stages = (kind,)
  config.init = 'shipped'
  return config


def get_config() -> ConfigDict:
  labels = _config('label_steps')
  labels.label_steps.update(
    num_prompts=96, num_samples=4, num_continuations=8, prompts_per_chunk=32
  )
  prm = _config('prm')
  prm.model.scalar_head = True
  prm.prm.update(
    data=('@labels',),
    eval_share=0.15,
    num_train_epochs=6,
    batch_size=32,
    max_tokens=76,
    eval_steps=10,
    logging_steps=2,
    router_aux_loss_coef=0.0,
    score_batch_size=64,
  )
  prm.prm.optimizer.update(
    learning_rate=1e-3,
    warmup_steps=5,
    lr_scheduler_type='cosine',
    weight_decay=0.0,
  )
  policy = _config('rl')
  policy.rl.update(max_steps=30, eval_steps=3, save_steps=30)
  policy.rl.reward.update(accuracy=0.0, format=0.0, prm=1.0)
  policy.rl.reward_models.prm = '@prm'
  policy.eval.num_samples = 4
  return ConfigDict(
    dict(
      stages=('labels', 'prm', 'policy'),
      evaluations=(),
      labels=labels,
      prm=prm,
      policy=policy,
    )
  )
