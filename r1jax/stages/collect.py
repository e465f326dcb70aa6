"""Completed and scored groups for the steps of an RL stage.

  prompts → groups, begun now or by an earlier step → completions → rewards

Groups are scored while others are drawn.
"""

from collections.abc import Sequence
from concurrent import futures
import dataclasses

import jax
import ml_collections
import numpy as np

from r1jax.data import batching, tasks
from r1jax.errors import UserError
from r1jax.records import Prompt, PromptBatch, ScoredRollout
from r1jax.rewards import multihost
from r1jax.rewards.reward_manager import RewardManager
from r1jax.rollout import assemble, groups
from r1jax.rollout.engine import Engine
from r1jax.rollout.groups import Group
from r1jax.rollout.scheduler import Completion
from r1jax.stages.build import parts as build


@dataclasses.dataclass(frozen=True)
class Collected:
  """What one step trains on: P groups of G.

  Attributes:
    prompts: P.
    batch: The same, in tokens.
    made: P · G completions; number b is of prompt b // G.
    scored: Their rewards.
    counts_B: bool, False where a group only fills the batch up.
    told: Metrics of the choice.
  """

  prompts: list[Prompt]
  batch: PromptBatch
  made: list[Completion]
  scored: ScoredRollout
  counts_B: np.ndarray
  told: dict[str, float]


class Collector:
  """Draws the groups of one step after another; goes on from a checkpoint."""

  def __init__(
    self,
    config: ml_collections.ConfigDict,
    parts: build.Parts,
    engine: Engine,
    reward: RewardManager,
  ):
    c = self._config = config.rl
    self._seed, self._tokenizer = config.seed, parts.tokenizer
    self._width = config.data.max_prompt_tokens
    self._engine, self._reward = engine, reward
    self._sampling = build.rl_sampling(config, parts)
    self._in_flight = build.groups_in_flight(config)
    self._scorer = futures.ThreadPoolExecutor(1, 'scorer')
    everything = build.prompts(config, parts, tasks.TRAIN)
    first = everything  # Before general rows come in.
    if c.general_prompts_after_steps:
      first = build.prompts(config, parts, tasks.TRAIN, general=False)
    shuffle = config.data.task not in tasks.TASKS
    self._data = batching.TwoPhaseStream(
      *(
        batching.prompt_stream(prompts, self._seed, shuffle)
        for prompts in (first, everything)
      ),
      c.general_prompts_after_steps,
    )
    self._start = self._data.get_state()
    self._begun: list[Group] = []  # By an earlier step.

  def begin(self):
    """At the first prompt."""
    self._data.set_state(self._start)
    self._begun = []

  def get_state(self) -> dict:
    """For a checkpoint: JSON."""
    return {
      'prompts': self._data.get_state(),
      'begun': groups.serialize_groups(self._begun),
    }

  def set_state(self, state: dict):
    """Goes on where another one was.

    Raises:
      UserError: an older r1jax wrote it.
    """
    if not isinstance(state.get('prompts'), list):
      raise UserError(
        'checkpoint: written by an older r1jax, which counted '
        'prompts otherwise; begin in a new --workdir'
      )
    self._data.set_state(state['prompts'])
    self._begun = groups.deserialize_groups(
      state['begun'],
      self._sampling,
      lambda prompt: self._tokenizer.encode_prompt(prompt.text),
    )

  def collect(self, params, step: int, key: jax.Array) -> Collected:
    """The groups of a step, under the policy that it begins with.

    Where groups are chosen by what they teach (rl.dynamic_sampling) and too
    few are found, others fill the batch and count for nothing.
    """
    c, wanted = self._config, self._config.prompts_per_step
    self._begun, dropped = groups.drop_stale(self._begun, step, c.max_staleness)
    self._open(step, key, self._in_flight)
    taken, idle, scored_of = [], [], {}
    for turn in range(
      c.dynamic_sampling_max_rounds if c.dynamic_sampling else 1
    ):
      if turn:  # A prompt that comes again is not sampled as before.
        self._open(step, jax.random.fold_in(key, turn), wanted - len(taken))
      complete, scored = self._advance(params, step, wanted - len(taken))
      scored_of |= zip(map(id, complete), scored)
      for group in complete:
        useful = not c.dynamic_sampling or _varied(scored_of[id(group)])
        (taken if useful else idle).append(group)
      if len(taken) == wanted:
        break
    told = {'rollout/dropped_groups': float(dropped)}
    if c.dynamic_sampling:
      sampled = len(taken) + len(idle)
      told |= {
        'dynamic_sampling/sampled_groups': sampled,
        'dynamic_sampling/useful_group_frac': len(taken) / sampled,
      }
    counts_P = np.arange(wanted) < len(taken)
    chosen = (taken + idle)[:wanted]
    prompts = [group.prompt for group in chosen]
    return Collected(
      prompts=prompts,
      batch=batching.pad_prompts(prompts, self._tokenizer, self._width),
      made=[made for group in chosen for made in group.completions],
      scored=ScoredRollout.concatenate(
        [scored_of[id(group)] for group in chosen]
      ),
      counts_B=np.repeat(counts_P, c.group_size),
      told=told,
    )

  def _open(self, step: int, key: jax.Array, in_flight: int):
    """Begins groups until so many are in flight."""
    prompts = self._data.next_prompts(
      step, max(in_flight - len(self._begun), 0)
    )
    if prompts:
      batch = batching.pad_prompts(prompts, self._tokenizer, self._width)
      size = self._config.group_size
      self._begun += groups.start_groups(
        prompts, assemble.build_requests(batch, size, self._sampling, key), size
      )

  def _advance(
    self, params, step: int, wanted: int
  ) -> tuple[list[Group], list[ScoredRollout]]:
    """The next groups that are complete, and their scores."""
    texts_of: dict[int, futures.Future] = {}
    scored_of: dict[int, futures.Future] = {}  # Of those that are ours.

    def score(group: Group):  # While others are drawn.
      mine = multihost.is_local(len(texts_of))
      texts_of[id(group)] = self._scorer.submit(self._texts, group)
      if mine:
        scored_of[id(group)] = self._scorer.submit(
          self._scored, group, texts_of[id(group)]
        )

    complete, self._begun = groups.complete_groups(
      self._engine, params, step, self._begun, wanted, score
    )
    own = [i for i, group in enumerate(complete) if id(group) in scored_of]
    scored = multihost.gather_scores(
      [texts_of[id(group)].result() for group in complete],
      own,
      lambda: ScoredRollout.concatenate(
        [scored_of[id(complete[i])].result() for i in own]
      ),
    )
    return complete, scored.split(self._config.group_size)

  def _texts(self, group: Group) -> list[str]:
    return assemble.completion_texts(
      group.completions, self._tokenizer.decode_batch
    )

  def _scored(self, group: Group, texts: futures.Future) -> ScoredRollout:
    return self._reward.score(
      texts.result(), [group.prompt], [len(c.tokens) for c in group.completions]
    )


def _varied(scored: ScoredRollout) -> bool:
  """Are the samples of a group of different worth? By accuracy, where there is
  one: the format alone teaches no reasoning."""
  accuracy_B = scored.parts['accuracy']
  worth_B: Sequence[float] = (
    scored.reward_B if np.isnan(accuracy_B).all() else accuracy_B
  )
  known_B = np.asarray(worth_B)[scored.scorable_B]
  return known_B.size > 0 and known_B.min() < known_B.max()
