"""A plugin: a stage of one weight whose steps take as long as a test asks."""

import dataclasses
import time

import jax
import jax.numpy as jnp

from r1jax import registry
from r1jax.config.field import Change, key
from r1jax.config.schema.section import Section
from r1jax.stages.trainer import StepOutput, TrainedStage
from tests.stages.toy import Stream


@dataclasses.dataclass(frozen=True)
class ToyConfig(Section):
  num_steps: int = key(40, 'Number of steps.', at_least=1, change=Change.STEPS)
  step_secs: float = key(0.1, 'Time that a step takes.', at_least=0)
  compiled_ops: int = key(0, 'Operations compiled at first.', at_least=0)
  save_steps: int = key(
    5, 'Steps between two checkpoints.', at_least=1, change=Change.FREE
  )
  width: int = key(1, 'Numbers of the weight.', at_least=1)


@registry.stage('toy')
class Toy(TrainedStage):
  """Adds 1, 2, 3, … to its weight."""

  section = ToyConfig

  def __init__(self, config, parts):
    del parts
    self._c, self.seed = config.toy, config.seed
    self.num_steps, self.save_steps = self._c.num_steps, self._c.save_steps
    self.save_total_limit = 2

  def data(self):
    return Stream()

  def init_state(self, params):
    @jax.jit
    def slow(x):
      for i in range(self._c.compiled_ops):
        x = jnp.sin(x + i) @ x
      return x

    print('toy begins', flush=True)
    if self._c.compiled_ops:
      slow(jnp.ones((64, 64)))
    if self._c.width == 1:
      return {'w': jnp.zeros(1)}
    # Noise, which no compression makes smaller.
    return {'w': jax.random.normal(jax.random.key(0), (self._c.width,))}

  def abstract_state(self, params):
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shape = (self._c.width,)
    return {'w': jax.ShapeDtypeStruct(shape, jnp.float32, sharding=device)}

  def train_step(self, state, step, data):
    time.sleep(self._c.step_secs)
    state = {'w': state['w'] + next(data)}
    return StepOutput(state, {'loss': state['w'][0]}, {})

  def policy(self, state):
    return state
