"""The sampler and evaluation: `config.rollout` and `config.eval`."""

from collections.abc import Iterator
import dataclasses

from r1jax.config.conditions import above, is_set, one_of
from r1jax.config.field import Change, key, section
from r1jax.config.run_conditions import evaluates, reads_prm, searches
from r1jax.config.schema.section import Problem, Section


@dataclasses.dataclass(frozen=True)
class RolloutConfig(Section):
  """Sizes of the rollout engine.

  Samples do not depend on these sizes, except for those in 8 bits and those of
  speculative decoding: `speculative` and the keys after it, and `max_num_seqs`
  by its comparison with the last of them.
  """

  max_num_seqs: int = key(
    512,
    'Sequences that decode at once, where so many are requested; over all hosts.',
    at_least=1,
  )
  scope: str = key(
    'global',
    "'global': all processes decode together over the whole mesh, as a model "
    "needs that fits no host; 'host': each process decodes its share of the "
    'groups on its own devices, which hold a whole copy of the weights.',
    choices=('global', 'host'),
  )
  replica_hosts: int = key(
    1,
    "Processes that decode together with scope = 'host', and hold one copy of "
    'the weights, as a model needs that fits no single host.',
    at_least=1,
    only_if=one_of('scope', 'host').warned,
  )
  sampling_devices: int = key(
    0,
    'Devices that only sample, the last ones of the run; the mesh is of the '
    'others, which only train. 0 if all devices do both. With several processes '
    'a whole number of them samples.',
    at_least=0,
  )
  block_size: int = key(
    16, 'Tokens of a block of the KV cache.', unit='tokens', at_least=1
  )
  decode_steps: int = key(
    16, 'Forward passes in one call of the decode program.', at_least=1
  )
  max_num_batched_tokens: int = key(
    2048,
    'Prompt tokens in one call of the prefill program.',
    unit='tokens',
    at_least=1,
  )
  kv_cache_tokens: int = key(
    0,
    'Tokens of the whole KV cache; 0 for as many as max_num_seqs sequences '
    'could need.',
    unit='tokens',
    at_least=0,
  )
  kv_cache_int8: bool = key(
    False,
    'Whether the KV cache is kept in 8 bits. The policy that samples is then '
    "near the model, not the same: rl.old_logp_source = 'recompute' and rollout_is "
    'correct it.',
  )
  weights_int8: bool = key(
    False,
    'Whether weights are sampled from in 8 bits, with a scale for each block of '
    '128: they take half of the memory of bfloat16. The policy that samples is '
    "then near the model, not the same: rl.old_logp_source = 'recompute' and "
    'rollout_is correct it.',
  )
  speculative: bool = key(
    False,
    'Whether the first MTP module drafts tokens ahead. Samples have the same '
    'distribution, but a run draws others.',
  )
  num_speculative_tokens: int = key(
    3,
    'Most tokens that are drafted for one forward pass. A request drafts fewer '
    'after rejections. The decode program has a branch for each power of two up '
    'to this number and one more, which it must compile.',
    unit='tokens',
    at_least=1,
    only_if=is_set('speculative').warned,
  )
  draft_confidence_threshold: float = key(
    0.5,
    'A chain of drafts ends before the probability that all of them are '
    "accepted falls below this: the product of the module's confidence in each, "
    "corrected by the request's measured acceptance. 0 drafts as many as "
    'possible, 1 none.',
    at_least=0,
    at_most=1,
    only_if=is_set('speculative').warned,
  )
  speculative_max_num_seqs: int = key(
    0,
    'Nothing is drafted where max_num_seqs, or the number of requests if that is '
    'smaller, is above this: passes over many sequences are bound by arithmetic, '
    'and drafts then cost more than they save. 0 for no drafts on a CPU, and on '
    'an accelerator for 64, an estimate that has not been measured.',
    at_least=0,
    only_if=is_set('speculative').warned,
  )


@dataclasses.dataclass(frozen=True)
class MCTSConfig(Section):
  """Settings of the tree search of one problem, see rollout/mcts.py."""

  budget_tokens: int = key(
    65536,
    'Most tokens generated for a problem.',
    unit='tokens',
    at_least=1,
    only_if=(one_of('kind', 'mcts').quiet, searches()),
    change=Change.FREE,
  )
  max_step_tokens: int = key(
    1024,
    'Longest step; a longer one is continued in the next.',
    unit='tokens',
    at_least=1,
    only_if=(one_of('kind', 'mcts').quiet, searches()),
    change=Change.FREE,
  )
  answer_reserve_tokens: int = key(
    32768,
    'Part of the budget that is kept to complete a partial completion, as '
    'long as there is no answer.',
    unit='tokens',
    at_least=0,
    only_if=(one_of('kind', 'mcts').quiet, searches()),
    change=Change.FREE,
  )
  expansion_width: int = key(
    4,
    'Next steps that are sampled when a node is expanded.',
    at_least=1,
    only_if=(one_of('kind', 'mcts').quiet, searches()),
    change=Change.FREE,
  )
  c_puct: float = key(
    1.0,
    'Exploration constant of PUCT.',
    at_least=0,
    only_if=(one_of('kind', 'mcts').quiet, searches()),
    change=Change.FREE,
  )
  widening_alpha: float = key(
    0.5,
    'α of progressive widening: a node of N visits has expansion_width · N^α '
    'next steps; with 0 every node is expanded once.',
    at_least=0,
    below=1,
    only_if=(one_of('kind', 'mcts').quiet, searches()),
    change=Change.FREE,
  )
  leaf_batch_size: int = key(
    1,
    'Nodes of a tree that are expanded in one iteration.',
    at_least=1,
    only_if=(one_of('kind', 'mcts').quiet, searches()),
    change=Change.FREE,
  )
  num_simulations: int = key(
    256,
    'Largest number of simulations of a tree.',
    at_least=1,
    only_if=(one_of('kind', 'mcts').quiet, searches()),
    change=Change.FREE,
  )
  leaf_value: str = key(
    'step',
    "How a node is evaluated: 'step' scores it with the process reward model, "
    "'rollout' scores one completion of it, and 'rule' grades that completion "
    'against the gold answer, an upper bound that no search without the answer '
    'reaches.',
    choices=('step', 'rollout', 'rule'),
    only_if=(one_of('kind', 'mcts').quiet, searches()),
    change=Change.FREE,
  )
  answer_selection: str = key(
    'visits',
    "Which answer is given: that of most 'visits', or of the highest 'value'.",
    choices=('visits', 'value'),
    only_if=(one_of('kind', 'mcts').quiet, searches()),
    change=Change.FREE,
  )


@dataclasses.dataclass(frozen=True)
class SearchConfig(MCTSConfig):
  """How `r1jax eval` searches among several samples: `config.eval.search`."""

  kind: str = key(
    'none',
    "'none' (pass@k and cons@k alone); for every n up to eval.num_samples, a "
    "power of two, the 'vote' or the 'best_of_n' by a process reward model; "
    "or tree search, 'mcts'.",
    choices=('none', 'vote', 'best_of_n', 'mcts'),
    only_if=searches(),
    change=Change.FREE,
  )
  process_reward_model: str = key(
    '',
    'Weights that the stage prm left.',
    only_if=(reads_prm(), searches()),
    change=Change.FREE,
  )


@dataclasses.dataclass(frozen=True)
class EvalConfig(Section):
  """How held-out problems are answered: `config.eval`."""

  num_problems: int = key(
    128,
    'Number of held-out problems.',
    at_least=1,
    only_if=evaluates(),
    change=Change.FREE,
  )
  num_samples: int = key(
    8,
    'n, samples of each problem.',
    at_least=1,
    only_if=evaluates(),
    change=Change.FREE,
  )
  pass_k: tuple[int, ...] = key(
    (),
    'Numbers k of pass@k, which is estimated without bias from all n samples '
    '(arXiv 2107.03374); () for every divisor of n.',
    only_if=evaluates(),
    change=Change.FREE,
  )
  temperature: float = key(
    0.6,
    'Sampling temperature (DeepSeek-R1 section 3).',
    at_least=0,
    only_if=evaluates(),
    change=Change.FREE,
  )
  top_p: float = key(
    0.95,
    'Nucleus mass.',
    above=0,
    at_most=1,
    only_if=(above('temperature', 0).quiet, evaluates()),
    change=Change.FREE,
  )
  search: SearchConfig = section(SearchConfig)

  def conflicts(self) -> Iterator[Problem]:
    yield from super().conflicts()
    bad = [k for k in self.pass_k if not 1 <= k <= self.num_samples]
    if bad:
      yield (
        'pass_k',
        f'has {bad[0]}, which is not within 1 and num_samples = '
        f'{self.num_samples}',
      )
