"""A math worker that some answers keep busy for ever, as an unknown bomb would."""

from collections.abc import Callable

from r1jax.graders import math_worker


def prepare() -> Callable[[dict], str]:
  """Returns the job function of the math worker, which x+7 keeps busy."""
  handle = math_worker.prepare()

  def slow(job: dict) -> str:
    while job.get('answers', [''])[0].startswith('x+7'):
      pass
    return handle(job)

  return slow
