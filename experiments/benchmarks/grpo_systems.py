"""One GRPO run of each system that grpo_step.py compares.

Each function trains on the folder that grpo_model.py wrote, calls `clock.step`
at the end of every step, and imports its system when it is called.
"""

from pathlib import Path
import sys
import time

import grpo_model
from grpo_model import STOP, Workload

BETA, CLIP, LEARNING_RATE = 0.001, 0.2, 1e-6


class Clock:
  """CPU-seconds, wall-clock seconds and tokens of the steps of one process."""

  def __init__(self):
    self.steps: list[dict[str, float]] = []
    self._cpu = self._wall = 0.0
    self._began = time.monotonic() - _since_start()

  def step(self, mean_tokens: float):
    """Ends a step; the first is counted from the start of the process."""
    cpu, wall = tree_cpu_secs(), time.monotonic() - self._began
    self.steps.append(
      dict(cpu=cpu - self._cpu, wall=wall - self._wall, tokens=mean_tokens)
    )
    self._cpu, self._wall = cpu, wall
    print(self.steps[-1], file=sys.stderr, flush=True)


def tree_cpu_secs() -> float:
  """CPU-seconds of this process and all below it, reward workers included."""
  stat = {}
  for path in Path('/proc').glob('[0-9]*/stat'):
    try:
      fields = path.read_text().rpartition(')')[2].split()
    except (FileNotFoundError, ProcessLookupError):
      continue
    ticks = sum(map(int, fields[11:15]))
    stat[int(path.parent.name)] = int(fields[1]), ticks
  me = int(Path('/proc/self').readlink().name)
  total, found = stat[me][1], {me}
  pending = True
  while pending:
    pending = [
      pid
      for pid, (parent, _) in stat.items()
      if parent in found and pid not in found
    ]
    found.update(pending)
    total += sum(stat[pid][1] for pid in pending)
  return total / 100  # Ticks of Linux.


def peak_memory_mb() -> float:
  """Largest resident size of this process so far."""
  status = Path('/proc/self/status').read_text()
  return int(status.split('VmHWM:')[1].split()[0]) / 1024


def _since_start() -> float:
  """Seconds on the wall clock since this process was started."""
  fields = Path('/proc/self/stat').read_text().rpartition(')')[2].split()
  uptime = float(Path('/proc/uptime').read_text().split()[0])
  return uptime - int(fields[19]) / 100


def r1jax(folder: Path, work: Workload, steps: int, clock: Clock):
  """Drives the stage `rl` by its config, as `r1jax train` does."""
  import jax

  from r1jax import registry
  from r1jax.config.load import load
  from r1jax.config.schema.run import RunConfig
  from r1jax.configs import imported
  from r1jax.runs import run
  from r1jax.stages.build import parts as build

  config = imported.get_config(str(folder))
  config.plugins = (str(Path(__file__).with_name('grpo_plugin.py')),)
  # TRL runs without gradient checkpointing and Tunix without remat, so do we.
  config.model.update(dtype='float32', remat='none')
  config.data.update(
    task='random_words',
    path=str(folder / 'prompts.jsonl'),
    eval_path=str(folder / 'prompts.jsonl'),
    template=str(folder / 'template.jinja'),
    max_prompt_tokens=work.prompt_tokens,
  )
  config.eval.update(num_problems=1, num_samples=1)
  config.rl.update(
    max_steps=steps,
    prompts_per_step=work.prompts,
    group_size=work.group,
    max_new_tokens=work.max_new_tokens,
    num_minibatches=1,
    kl_coef=BETA,
    clip_ratio_low=CLIP,
    clip_ratio_high=CLIP,
    ref_model_sync_steps=steps + 1,
  )
  config.rl.optimizer.update(learning_rate=LEARNING_RATE, warmup_steps=0)
  config.rl.reward.update(accuracy=0.0, format=0.0, even=1.0)
  registry.load_plugins(config.plugins)
  typed = load(config, RunConfig)
  parts = build.parts(typed)
  stage = registry.stage.get('rl')(typed, parts)
  state = stage.init_state(run.base_params(typed, parts))
  with stage.resources():
    data = stage.data()
    for step in range(1, steps + 1):
      output = stage.train_step(state, step, data)
      state = jax.block_until_ready(output.state)
      clock.step(float(output.metrics['completions/mean_length']))


def trl(folder: Path, work: Workload, steps: int, clock: Clock):
  """GRPOTrainer of TRL, which samples with transformers."""
  import datasets
  import torch
  import transformers
  from trl import GRPOConfig, GRPOTrainer

  torch.set_num_threads(1)
  batch = work.prompts * work.group
  lengths: list[float] = []

  def reward(completion_ids, completions, **_):
    lengths.extend(map(len, completion_ids))
    return [grpo_model.reward(text) for text in completions]

  class EndOfStep(transformers.TrainerCallback):
    def on_step_end(self, *_, **__):
      clock.step(sum(lengths) / len(lengths))
      lengths.clear()

  trainer = GRPOTrainer(
    model=str(folder),
    processing_class=_tokenizer(folder),
    reward_funcs=reward,
    train_dataset=datasets.Dataset.from_list(
      [{'prompt': prompt} for prompt in grpo_model.prompts(folder)]
    ),
    callbacks=[EndOfStep()],
    args=GRPOConfig(
      output_dir=str(folder / 'trl'),
      model_init_kwargs=dict(dtype='float32', attn_implementation='sdpa'),
      max_steps=steps,
      per_device_train_batch_size=batch,
      gradient_accumulation_steps=1,
      num_generations=work.group,
      num_iterations=1,
      max_completion_length=work.max_new_tokens,
      temperature=1.0,
      beta=BETA,
      epsilon=CLIP,
      learning_rate=LEARNING_RATE,
      lr_scheduler_type='constant',
      gradient_checkpointing=False,
      use_cpu=True,
      bf16=False,
      save_strategy='no',
      report_to='none',
      disable_tqdm=True,
    ),
  )
  trainer.train()


def tunix(folder: Path, work: Workload, steps: int, clock: Clock):
  """GRPOLearner of Tunix with its own sampler; it has Qwen2 alone of the two.

  A step ends where its rewards are computed: it is the update of the one before
  and its own samples. The first has no update, and the last update none.
  """
  import json

  import jax
  import jax.numpy as jnp
  import numpy as np
  import optax
  from tunix.models.qwen2 import model as qwen2
  from tunix.models.qwen2 import params
  from tunix.rl import rl_cluster
  from tunix.rl.grpo import grpo_learner
  from tunix.rl.rollout import base_rollout

  sizes = json.loads((folder / 'config.json').read_text())
  heads = sizes['num_attention_heads']
  model_config = qwen2.ModelConfig(
    num_layers=sizes['num_hidden_layers'],
    vocab_size=sizes['vocab_size'],
    embed_dim=sizes['hidden_size'],
    hidden_dim=sizes['intermediate_size'],
    num_heads=heads,
    head_dim=sizes['hidden_size'] // heads,
    num_kv_heads=sizes['num_key_value_heads'],
    rope_theta=sizes['rope_theta'],
    norm_eps=sizes['rms_norm_eps'],
    use_tied_embedding=sizes['tie_word_embeddings'],
    dtype=jnp.float32,
  )
  auto = jax.sharding.AxisType.Auto
  mesh = jax.make_mesh((1, 1), ('fsdp', 'tp'), axis_types=(auto, auto))
  model = lambda: params.create_model_from_safe_tensors(
    str(folder), model_config, mesh, dtype=jnp.float32
  )
  tokenizer = _tokenizer(folder)

  def reward(prompts, completions, **_):
    words = [text.split() for text in completions]
    # The stop token ends a completion unless it is cut off.
    tokens = [min(len(each) + 1, work.max_new_tokens) for each in words]
    clock.step(sum(tokens) / len(tokens))
    return [grpo_model.reward(text) for text in completions]

  roles = rl_cluster.Role
  cluster = rl_cluster.RLCluster(
    actor=model(),
    reference=model(),
    tokenizer=tokenizer,
    cluster_config=rl_cluster.ClusterConfig(
      role_to_mesh={
        role: mesh for role in (roles.ACTOR, roles.REFERENCE, roles.ROLLOUT)
      },
      rollout_engine='vanilla',
      offload_to_cpu=False,
      training_config=rl_cluster.RLTrainingConfig(
        actor_optimizer=optax.adamw(LEARNING_RATE),
        eval_every_n_steps=steps + 1,
        max_steps=steps,
        mini_batch_size=work.prompts,
        train_micro_batch_size=work.prompts,
      ),
      rollout_config=base_rollout.RolloutConfig(
        max_tokens_to_generate=work.max_new_tokens,
        max_prompt_length=work.prompt_tokens,
        kv_cache_size=work.prompt_tokens + work.max_new_tokens + 64,
        temperature=1.0,
        top_p=None,
        top_k=None,
        eos_tokens=[STOP],
      ),
    ),
  )
  learner = grpo_learner.GRPOLearner(
    rl_cluster=cluster,
    reward_fns=[reward],
    algo_config=grpo_learner.GRPOConfig(
      num_generations=work.group, num_iterations=1, beta=BETA, epsilon=CLIP
    ),
  )
  texts = grpo_model.prompts(folder)
  batches = [
    {'prompts': np.array(texts[i * work.prompts : (i + 1) * work.prompts])}
    for i in range(steps)
  ]
  learner.train(batches)


def _tokenizer(folder: Path):
  """Returns the tokenizer of the folder for TRL and Tunix.

  AutoTokenizer would make that of Qwen2, which splits the words.
  """
  import transformers

  return transformers.PreTrainedTokenizerFast.from_pretrained(folder)


SYSTEMS = {'r1jax': r1jax, 'trl': trl, 'tunix': tunix}


def can_run(system: str, shape: str, workload: str) -> bool:
  """Returns whether a system can run a workload on a model.

  With stop tokens Tunix's completions had one token, and its second step ended
  the process.
  """
  return system != 'tunix' or (shape, workload) == ('qwen2', 'full')
