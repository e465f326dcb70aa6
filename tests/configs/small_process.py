"""Labels of steps, a process reward model, and a policy that it rewards, at a
size that a test can afford."""

from ml_collections import ConfigDict

from tests.configs import small


def _stage(kind: str, init: str):
  config = small.get_config()
  config.stages = (kind,)
  config.init = init
  return config


def get_config():
  base = _stage('pretrain', 'pretrain')
  labels = _stage('label_steps', '@base')
  labels.label_steps.update(
    num_prompts=12, num_samples=3, num_continuations=2, prompts_per_chunk=4
  )
  labels.rl.max_new_tokens = 40
  prm = _stage('prm', '@base')
  prm.model.scalar_head = True
  prm.prm.update(
    data=('@labels',),
    eval_share=0.4,
    batch_size=8,
    num_train_epochs=2,
    max_tokens=52,
    eval_steps=2,
    logging_steps=1,
    score_batch_size=8,
  )
  prm.prm.optimizer.learning_rate = 1e-2
  policy = _stage('rl', '@base')
  policy.rl.update(max_steps=2, eval_steps=2, oversample=1.0)
  policy.rl.reward.update(prm=1.0, accuracy=0.0)
  policy.rl.reward_models.prm = '@prm'
  return ConfigDict(
    dict(
      stages=('base', 'labels', 'prm', 'policy'),
      evaluations=(),
      base=base,
      labels=labels,
      prm=prm,
      policy=policy,
    )
  )
