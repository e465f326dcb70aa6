"""R1-Zero as it was: DeepSeek-V3-Base by pure GRPO.

DeepSeek-R1 section 2.2, with the numbers of its second version. R1-Zero's
unpublished numbers are listed in r1jax/config/algorithms.py.

  r1jax info --config=r1_zero_671b --devices=1024
  r1jax aot --config=r1_zero_671b --topology=v5p:8x8x16

It is for these two commands. A run needs more: imported weights in
config.init, a tokenizer and questions.

A microbatch is one packed row of 33,792 tokens for each of the 128 groups of
eight chips that `tensor` makes. The 512 samples of an update fill four of them
if all are as long as they may be. Where lengths are exponential with a mean of
8,000 tokens they fill one, or two where more tokens came: 0.27 of four in the
mean of 64 draws (tests/launch/test_real_sizes.py). With tensor=2 there are 512 rows, one for each sample, and an
update always costs what four microbatches cost.

A microbatch peaks at 29.8 GB a chip of v5p:8x8x16 (95 GiB), float32 weights and
moments, and costs 1.26 × 6·N_active·tokens in matrix products (attention's
kernels, whose count includes masked blocks, are a row of their own). It compiles
in three to six minutes of one core with 3.8 GB of host memory (libtpu 0.0.52).
All programs of a step are in experiments/aot.

A first look at five layers, full width, on fewer chips:

  r1jax aot --config=r1_zero_671b --config.model.num_hidden_layers=5 \\
    --topology=v5p:4x4x8 --config.mesh.expert=4

Its microbatches, 16 rows each, peak at 16.9 GB of a chip and cost 1.33 ×
6·N_active·tokens; they compile in 433 s of one busy core: layers are scanned,
depth is not what takes long.

Completions end at 32,768 tokens, R1-Zero's limit up to step 8200; after it,
--config.rl.max_new_tokens=65536.
"""

from r1jax.config import base, models


def get_config():
  config = base.get_config()
  config.stages = ('rl',)
  config.model = models.deepseek_v3_yarn()
  config.model.capacity_factor = 1.25
  config.rl.max_new_tokens = 32768
  # One expert a device: 256 of them lie over expert × tensor.
  config.mesh.update(data=-1, fsdp=4, tensor=8, expert=32)
  return config
