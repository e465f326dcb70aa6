"""Completed and scored groups for the steps of an RL stage.

  prompts → groups, started now or by an earlier step → completions → rewards

Groups are scored while others are sampled.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent import futures
import dataclasses
import time

import jax
import numpy as np

from r1jax import registry
from r1jax.config.schema.run import RunConfig
from r1jax.data import batching, splits
from r1jax.data.text import conversation
from r1jax.episode import Episode, Turn
from r1jax.errors import UserError
from r1jax.model import model_flops
from r1jax.model.model_flops import TokenCounts
from r1jax.records import Prompt, PromptBatch, ScoredRollout
from r1jax.rewards import environment, multihost
from r1jax.rewards.reward_manager import RewardManager
from r1jax.rollout import assemble, groups, hosts
from r1jax.rollout.engine import Engine
from r1jax.rollout.groups import Group
from r1jax.rollout.scheduler import Completion
from r1jax.stages.build import parts as build
from r1jax.stages.build import sampler
from r1jax.stages.build.prompts import prompts
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
    self._scorer = futures.ThreadPoolExecutor(1, 'scorer')
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

  def begin(self):
    """Goes back to the first prompt."""
    self._stream.set_state(self._start)
    self._partial, self._ahead = [], None
    self._history = hosts.LengthHistory()

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
    self._partial, num_dropped = groups.drop_stale(
      self._partial, step, c.max_staleness
    )
    self._start_groups(step, key, self._in_flight)
    effort, chosen, unvaried = Effort(), list[Group](), list[Group]()
    scored_of: dict[int, ScoredRollout] = {}
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
    texts_of: dict[int, futures.Future] = {}
    scored_of: dict[int, futures.Future] = {}  # Groups scored in this process.

    def score(group: Group):  # While other groups are sampled.
      local = self._engine.replicas.is_mine(len(texts_of))
      texts_of[id(group)] = self._scorer.submit(self._texts, group)
      if local:
        scored_of[id(group)] = self._scorer.submit(
          self._score, group, texts_of[id(group)]
        )

    started = [(group, _lengths(group)) for group in self._partial]
    began = time.monotonic()
    session = self._engine.session(params, step)
    waited = time.monotonic() - began  # The weights come from all devices.
    complete, self._partial = groups.complete_groups(
      session, self._partial, num_groups, score, self._expected_tokens
    )
    rollout_secs = watch.lap('rollout') - session.device_secs - waited
    began = time.monotonic()
    for group in complete:
      if id(group) not in texts_of:  # Another process has sampled it.
        texts_of[id(group)] = self._scorer.submit(self._texts, group)
      if self._engine.by_host:
        tokens = [len(c.tokens) for c in group.completions]
        self._history.see(group.prompt.id, sum(tokens) / len(tokens))
    own = [i for i, group in enumerate(complete) if id(group) in scored_of]
    texts = [texts_of[id(group)].result() for group in complete]
    own_secs = time.monotonic() - began

    def own_scores() -> ScoredRollout:
      nonlocal own_secs
      found = [scored_of[id(complete[i])].result() for i in own]
      own_secs = time.monotonic() - began
      return ScoredRollout.concatenate(found)

    scored = multihost.gather_scores(texts, own, own_scores)
    watch.lap('reward')
    effort = Effort(
      model_flops.total(
        model_flops.counts_of_samples(
          len(group.completions[0].request.prompt), zip(before, _lengths(group))
        )
        for group, before in started
      ),
      {'rollout': max(rollout_secs, 0.0), 'reward': own_secs},
    )
    return complete, scored.split(self._config.group_size), effort

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

  def _score(self, group: Group, texts: futures.Future) -> ScoredRollout:
    episodes = [
      Episode(
        prompt=group.prompt,
        turns=(
          Turn(
            tokens=c.tokens,
            sampled=True,
            text=text,
            logp=c.logp,
            model_logp=c.model_logp,
            policy_version=c.policy_version,
          ),
        ),
        finish_reason=c.finish_reason or '',
      )
      for c, text in zip(group.completions, texts.result())
    ]
    return environment.score(
      self._config.environment, self._environment, episodes
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
