"""R1-Zero as it was: DeepSeek-V3-Base by pure GRPO.

DeepSeek-R1 section 2.2, with the numbers of its second version. R1-Zero's
unpublished numbers are listed in r1jax/config/algorithms.py.

  r1jax info --config=r1_zero_671b --devices=1024
  r1jax aot --config=r1_zero_671b --topology=v5p:8x8x16

It is for these two commands. A run needs more: imported weights in
config.init, a tokenizer, questions, and a layout for sampling on several hosts.

A microbatch is one packed row of 8,192 tokens for each pair of chips, 512 rows
in all: an update whose completions are all as long as they may be fills it.
Shorter ones leave rows empty, which cost as much; a mesh with a larger `tensor`
axis has fewer rows, and packs several completions into each.

The numbers that follow were measured before rows were packed, for an update of
512 sequences × 8,192 tokens, float32 weights and moments. It peaks at 20.0 GB a
chip of v5p:8x8x16 (95 GiB), costs 1.43 × 6·N_active·tokens in matrix products
(attention's kernels, 0.86 × that, are a row of their own), and compiles in four
minutes with 4.4 GB of host memory (two busy cores, libtpu 0.0.52). The reference
policy, 2.6 GB a chip, is not among its arguments.

A first look at five layers, full width, on fewer chips:

  r1jax aot --config=r1_zero_671b --config.model.num_hidden_layers=5 \\
    --topology=v5p:4x4x8 --config.mesh.expert=8

It peaked at 9.3 GB of a chip, cost 1.30 × 6·N_active·tokens, and compiled in
283 s of one core's time: layers are scanned, depth is not what takes long. A
chip has one row at a time: with eight at once the attention kernel's backward
pass asked for 16.3 of the 16 MiB of VMEM, and the command exited with code 3.

Sequences end at 8,192 tokens here; R1-Zero's own limit is
--config.rl.max_new_tokens=32768, and 65536 after step 8200.
"""

from r1jax.config import base, models


def get_config():
  config = base.get_config()
  config.stages = ('rl',)
  config.model = models.deepseek_v3_yarn()
  config.model.capacity_factor = 1.25
  config.rl.max_new_tokens = 8192 - config.data.max_prompt_tokens
  # Two experts a device; 512 sequences lie one by one over fsdp × expert.
  config.mesh = dict(data=-1, fsdp=8, tensor=2, expert=64)
  return config
