"""Completed and scored groups for the steps of an RL stage.

  prompts → groups, started now or by an earlier step → completions → rewards

Groups are scored while others are sampled.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
import dataclasses
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from r1jax import registry
from r1jax.config.schema.run import RunConfig
from r1jax.data import batching, splits
from r1jax.data.text import conversation
from r1jax.errors import UserError
from r1jax.model import model_flops
from r1jax.model.model_flops import TokenCounts
from r1jax.records import Prompt, PromptBatch, ScoredRollout
from r1jax.rewards import environment
from r1jax.rewards.reward_manager import RewardManager
from r1jax.rollout import assemble, groups, hosts
from r1jax.rollout.engine import Engine
from r1jax.rollout.groups import Group
from r1jax.rollout.scheduler import Completion
from r1jax.rollout.session import Session
from r1jax.stages.build import parts as build
from r1jax.stages.build import sampler
from r1jax.stages.build.prompts import prompts
from r1jax.stages.group_scores import GroupScores, episodes_of
from r1jax.train.metrics import Stopwatch


@dataclasses.dataclass(frozen=True)
class Effort:
  """The tokens and the time that it took to sample and score groups.

  Attributes:
    counts: Tokens that were computed to sample, of groups that still go on too.
    own_secs: Seconds in which this process worked alone, without waiting for a
      device or another process: 'rollout' and 'reward'.
  """

  counts: TokenCounts = TokenCounts(0, 0, 0)
  own_secs: Mapping[str, float] = dataclasses.field(default_factory=dict)

  def __add__(self, other: 'Effort') -> 'Effort':
    own_secs = Counter(self.own_secs)
    own_secs.update(other.own_secs)
    return Effort(model_flops.total([self.counts, other.counts]), own_secs)


@dataclasses.dataclass(frozen=True)
class CollectedGroups:
  """The P groups of G completions that a step trains on.

  Attributes:
    prompts: P prompts.
    batch: Their tokens.
    completions: P · G completions; number b belongs to prompt b // G.
    scored: Their rewards.
    counts_B: bool, False where a group only fills the batch.
    metrics: Metrics of the choice of groups.
    effort: The tokens and the time that it took.
  """

  prompts: list[Prompt]
  batch: PromptBatch
  completions: list[Completion]
  scored: ScoredRollout
  counts_B: np.ndarray
  metrics: dict[str, float]
  effort: Effort


@dataclasses.dataclass(frozen=True)
class _Ahead:
  """Prompts that were read ahead.

  Attributes:
    step: The step that they are for.
    count: Their number.
    position: Position of the stream before them.
    prompts: The prompts.
    batch: Their tokens; None without any.
  """

  step: int
  count: int
  position: list
  prompts: list[Prompt]
  batch: PromptBatch | None


class Collector:
  """Samples the groups of one step after another; resumes from its state."""

  def __init__(
    self,
    config: RunConfig,
    parts: build.Parts,
    engine: Engine,
    reward: RewardManager,
  ):
    c = self._config = config.rl
    self._seed, self._tokenizer = config.seed, parts.tokenizer
    self._max_prompt_tokens = config.data.max_prompt_tokens
    self._engine, self._template = engine, parts.template
    self._environment = environment.make(c.environment, reward)
    self._sampling = sampler.rl_sampling(config, parts)
    self._in_flight = sampler.groups_in_flight(config)
    self._copy = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree))
    self._scores = GroupScores(engine.replicas, self._texts, self._score)
    everything = first = prompts(
      config, parts.template, parts.tokenizer, splits.TRAIN
    )
    if c.general_prompts_after_steps:
      first = prompts(
        config, parts.template, parts.tokenizer, splits.TRAIN, general=False
      )
    shuffle = config.data.task not in registry.task
    self._stream = batching.TwoPhaseStream(
      batching.prompt_stream(first, self._seed, shuffle),
      batching.prompt_stream(everything, self._seed, shuffle),
      c.general_prompts_after_steps,
    )
    self._start = self._stream.get_state()
    self._partial: list[Group] = []  # Groups that an earlier step has started.
    self._history = hosts.LengthHistory()
    self._ahead: _Ahead | None = None
    self._session: Session | None = None  # It samples the next step's groups.
    # The newest weights to sample with, and their version.
    self._prepared: tuple[int, Any] | None = None
    self._num_dropped = 0

  def begin(self):
    """Goes back to the first prompt."""
    self._stream.set_state(self._start)
    self._partial, self._ahead, self._num_dropped = [], None, 0
    self._prepared = None
    self._history = hosts.LengthHistory()
    self._scores.clear()

  def get_state(self) -> dict:
    """Returns its position as JSON, for a checkpoint."""
    return {
      'prompts': (
        self._ahead.position if self._ahead else self._stream.get_state()
      ),
      'partial_groups': groups.serialize_groups(self._partial),
    } | ({'lengths': self._history.get_state()} if self._engine.by_host else {})

  def set_state(self, state: dict):
    """Continues where another collector was.

    Raises:
      UserError: another version of r1jax wrote the state.
    """
    if 'partial_groups' not in state:
      raise UserError(
        'checkpoint: another version of r1jax wrote it; begin in a new '
        '--workdir'
      )
    self._stream.set_state(state['prompts'])
    self._ahead = None
    self._history.set_state(state.get('lengths', ()))
    self._partial = groups.deserialize_groups(
      state['partial_groups'],
      self._sampling,
      lambda prompt: self._tokenizer.encode_prompt(prompt.text),
    )

  def collect(
    self, params, step: int, key: jax.Array, watch: Stopwatch
  ) -> CollectedGroups:
    """Samples the groups of a step under the policy that it begins with.

    With rl.dynamic_sampling only groups whose samples are not all right or all
    wrong are chosen. Where too few are found, other groups fill the batch, and
    the loss leaves their tokens out.

    Args:
      params: The policy's parameters.
      step: The step, counted from 1.
      key: The step's random key.
      watch: Measures 'rollout', and 'reward' where all is sampled and some is
        not scored yet.
    """
    c, wanted = self._config, self._config.prompts_per_step
    self._drop_stale(step)
    self._start_groups(step, key, self._in_flight)
    effort, chosen, unvaried = Effort(), list[Group](), list[Group]()
    scored_of: dict[int, ScoredRollout] = {}
    num_dropped, self._num_dropped = self._num_dropped, 0
    rounds = c.dynamic_sampling_max_rounds if c.dynamic_sampling else 1
    for round_ in range(rounds):
      if round_:  # A prompt that comes again is not sampled as before.
        round_key = jax.random.fold_in(key, round_)
        self._start_groups(step, round_key, wanted - len(chosen))
      complete, scored, spent = self._complete(
        params, step, wanted - len(chosen), watch
      )
      effort += spent
      scored_of |= zip(map(id, complete), scored)
      for group in complete:
        varied = not c.dynamic_sampling or _is_varied(scored_of[id(group)])
        (chosen if varied else unvaried).append(group)
      if len(chosen) == wanted:
        break
    metrics = {'rollout/dropped_groups': float(num_dropped)}
    if c.dynamic_sampling:
      num_sampled = len(chosen) + len(unvaried)
      metrics |= {
        'dynamic_sampling/sampled_groups': num_sampled,
        'dynamic_sampling/useful_group_frac': len(chosen) / num_sampled,
      }
    counts_P = np.arange(wanted) < len(chosen)
    taken = (chosen + unvaried)[:wanted]
    prompts_P = [group.prompt for group in taken]
    return CollectedGroups(
      prompts=prompts_P,
      batch=self._tokenised(prompts_P),
      completions=[c for group in taken for c in group.completions],
      scored=ScoredRollout.concatenate(
        [scored_of[id(group)] for group in taken]
      ),
      counts_B=np.repeat(counts_P, c.group_size),
      metrics=metrics,
      effort=effort,
    )

  def begin_ahead(self, params, step: int, key: jax.Array):
    """Makes ready to sample the groups of the next step under today's policy.

    Args:
      params: The policy's parameters that `step` begins with; its update may
        consume them as soon as this returns.
      step: The step that is being made.
      key: The random key of the next one.
    """
    self._drop_stale(step + 1)
    self._start_groups(step + 1, key, self._in_flight)
    self._session = self._opened(params, step)

  def sample_ahead(self, step: int, newer: Any, watch: Stopwatch) -> Effort:
    """Samples what `begin_ahead` began; the next `collect` takes it.

    Args:
      step: The step that is being made.
      newer: The policy's parameters after this step, which the devices may
        still compute; they are used where rl.in_flight_renewal is below 1.
      watch: Measures 'rollout'.
    """
    session, self._session = self._session, None
    assert session is not None
    self._scores.begin_others([g for g in self._partial if g.complete])
    renewal = None
    if self._config.in_flight_renewal < 1:
      renewal = groups.Renewal(
        self._config.in_flight_renewal, lambda: self._renewed(newer, step + 1)
      )
    return self._sample(
      session, self._config.prompts_per_step, watch, renewal=renewal
    )

  def _opened(self, params, step: int) -> Session:
    """Opens a session with the policy that a step begins with."""
    kept, self._prepared = self._prepared, None
    if kept and kept[0] == step:  # They were sent when they were new.
      return Session(self._engine, kept[1], step)
    return Session(self._engine, self._prepare(params), step)

  def _renewed(self, params, step: int) -> Session:
    """Opens a session with new weights, which the next step begins with."""
    self._prepared = step, self._prepare(params)
    return Session(self._engine, self._prepared[1], step)

  def _prepare(self, params):
    """Returns weights to sample with that no update consumes."""
    if not self._engine.replicas.apart:
      params = self._copy(params)
    return self._engine.prepare_params(params)

  def _drop_stale(self, step: int):
    self._partial, count = groups.drop_stale(
      self._partial, step, self._config.max_staleness
    )
    self._num_dropped += count

  def _tokenised(self, prompts_P: Sequence[Prompt]) -> PromptBatch:
    return batching.pad_prompts(
      prompts_P, self._tokenizer, self._max_prompt_tokens
    )

  def prepare(self, step: int):
    """Reads and tokenizes the prompts of a step before `collect` asks for them.

    To be called while the device computes; the position of `get_state` stays
    that of before.
    """
    kept, _ = groups.drop_stale(self._partial, step, self._config.max_staleness)
    position = self._stream.get_state()
    count = max(self._in_flight - len(kept), 0)
    self._ahead = _Ahead(step, count, position, *self._read(step, count))

  def _start_groups(self, step: int, key: jax.Array, num_in_flight: int):
    """Starts groups until so many are in flight."""
    missing = max(num_in_flight - len(self._partial), 0)
    if not missing:
      return
    ahead, self._ahead = self._ahead, None
    if ahead and (ahead.step, ahead.count) == (step, missing):
      prompts_P, batch = ahead.prompts, ahead.batch
    else:
      if ahead:
        self._stream.set_state(ahead.position)
      prompts_P, batch = self._read(step, missing)
    if batch is not None:
      size = self._config.group_size
      requests = assemble.build_requests(batch, size, self._sampling, key)
      self._partial += groups.start_groups(prompts_P, requests, size)

  def _read(
    self, step: int, count: int
  ) -> tuple[list[Prompt], PromptBatch | None]:
    """Returns the next prompts and their tokens; None if there is no prompt."""
    prompts_P = list(map(self._started, self._stream.next_prompts(step, count)))
    return prompts_P, self._tokenised(prompts_P) if prompts_P else None

  def _complete(
    self, params, step: int, num_groups: int, watch: Stopwatch
  ) -> tuple[list[Group], list[ScoredRollout], Effort]:
    """Returns the next groups that are complete, their scores, and the effort."""
    effort = Effort()
    complete = [group for group in self._partial if group.complete]
    self._scores.begin_others(complete)
    if len(complete) < num_groups:
      began = time.monotonic()
      session = self._engine.session(params, step)
      waited = time.monotonic() - began  # The weights come from all devices.
      effort = self._sample(session, num_groups, watch, waited)
    taken = [group for group in self._partial if group.complete][:num_groups]
    ids = set(map(id, taken))
    self._partial = [g for g in self._partial if id(g) not in ids]
    if self._engine.by_host:
      for group in taken:
        self._history.see(group.prompt.id, float(np.mean(_lengths(group))))
    scored, own_secs = self._scores.take(taken)
    watch.lap('reward')
    return taken, scored, effort + Effort(own_secs={'reward': own_secs})

  def _sample(
    self,
    session: Session,
    num_groups: int,
    watch: Stopwatch,
    waited: float = 0.0,
    renewal: groups.Renewal | None = None,
  ) -> Effort:
    """Samples until so many groups are complete, which come first then."""
    started = [(group, _lengths(group)) for group in self._partial]
    complete, rest = groups.complete_groups(
      session,
      self._partial,
      num_groups,
      self._scores.begin,
      self._expected_tokens,
      renewal,
    )
    self._partial = complete + rest
    self._scores.know([group for group in self._partial if group.complete])
    own_secs = watch.lap('rollout') - session.device_secs - waited
    return Effort(
      model_flops.total(
        model_flops.counts_of_samples(
          len(group.completions[0].request.prompt), zip(before, _lengths(group))
        )
        for group, before in started
      ),
      {'rollout': max(own_secs, 0.0)},
    )

  def _expected_tokens(self, group: Group) -> float:
    """Returns the tokens that are expected to be sampled yet of a group."""
    mean = self._history.expected(group.prompt.id)
    return sum(
      max(mean - len(c.tokens), 1.0)
      for c in group.completions
      if not c.finish_reason
    )

  def _texts(self, group: Group) -> list[str]:
    return assemble.completion_texts(
      group.completions, self._tokenizer.decode_batch
    )

  def _score(self, group: Group, texts: list[str]) -> ScoredRollout:
    return environment.score(
      self._config.environment, self._environment, episodes_of(group, texts)
    )

  def _started(self, prompt: Prompt) -> Prompt:
    """Returns the prompt as the environment begins its episode."""
    messages = tuple(self._environment.start(prompt))
    if messages == environment.conversation(prompt):
      return prompt
    text = conversation.render(
      self._template,
      prompt.question,
      messages,
      conversation.parse_tools(prompt.fields.get('tools')),
    )
    return dataclasses.replace(prompt, messages=messages, text=text)


def _lengths(group: Group) -> list[int]:
  """Returns the tokens of its completions so far."""
  return [len(completion.tokens) for completion in group.completions]


def _is_varied(scored: ScoredRollout) -> bool:
  """Returns whether the samples of a group differ in worth.

  Worth is accuracy where there is one: format alone teaches no reasoning.
  """
  accuracy_B = scored.parts['accuracy']
  worth_B = scored.reward_B if np.isnan(accuracy_B).all() else accuracy_B
  known_B = np.asarray(worth_B)[scored.scorable_B]
  return known_B.size > 0 and known_B.min() < known_B.max()
