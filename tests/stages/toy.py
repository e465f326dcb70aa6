"""A stage of one weight, and its training loop in a folder."""

import jax
import jax.numpy as jnp

from r1jax.stages.trainer import StepOutput, TrainedStage


class Stream:
  """Yields 1, 2, 3, …"""

  def __init__(self):
    self._last = 0

  def __next__(self):
    self._last += 1
    return self._last

  def get_state(self):
    return {'last': self._last}

  def set_state(self, state):
    self._last = state['last']


class Clock:
  """A clock that moves only when it is told to."""

  now = 0.0

  def monotonic(self):
    return self.now

  time = monotonic


class Toy(TrainedStage):
  """Adds the numbers of a stream to its one weight."""

  name, section = 'toy', None

  def __init__(self, **changes):
    self.seed, self.num_steps = 0, 5
    self.save_steps, self.save_total_limit = 2, 2
    self.skipped, self.at_step, self.losses = (), {}, {}
    self.at_evaluation = {}
    self.steps, self.evaluations, self.clock = [], [], Clock()
    for name, value in changes.items():
      setattr(self, name, value)

  def data(self):
    return Stream()

  def init_state(self, params):
    return jax.tree.map(jnp.copy, params)

  def abstract_state(self, params):
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), params
    )

  def train_step(self, state, step, data):
    self.steps.append(step)
    self.clock.now += 1
    state = {'w': state['w'] + next(data)}
    if step in self.at_step:
      self.at_step[step]()
    skipped = float(step in self.skipped)
    values = {
      'loss': self.losses.get(step, state['w'][0]),
      'skipped_updates': skipped,
      'critic/skipped_updates': 2 * skipped,
    }
    return StepOutput(state, values, {'tokens': 3.0})

  def evaluate(self, state, step, directory):
    self.evaluations.append(step)
    if step in self.at_evaluation:
      self.at_evaluation[step]()
    self.clock.now += 100
    return {'eval/w': float(state['w'][0])}

  def policy(self, state):
    return state


def train(directory, first=0.0, **changes):
  """Returns the stage, and the path of its weights; see Toy."""
  stage = Toy(**changes)
  params = {'w': jnp.full(1, first)}
  path = stage.run(directory / 'toy', params, {'made_by': 'toy'})
  return stage, path


def assert_alike(one, other):
  """Asserts that two runs left the same bytes."""
  for name in ('metrics.jsonl', 'model.safetensors'):
    assert (one / 'toy' / name).read_bytes() == (
      other / 'toy' / name
    ).read_bytes()
