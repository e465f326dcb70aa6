"""One sample of an environment: a prompt, and turns of policy and environment.

A rollout of several turns is laid out in r1jax/rollout/assemble.py.
"""

from collections.abc import Sequence
import dataclasses

from r1jax.records import Prompt


@dataclasses.dataclass(frozen=True)
class Turn:
  """Consecutive tokens of an episode that one side wrote, on the host.

  Attributes:
    tokens: Token ids.
    sampled: Whether the policy sampled them; tokens that it did not sample,
      such as the output of a tool, are never trained on.
    text: The tokens as text, without a stop token.
    logp: Log-probability of each token under the distribution that it was
      sampled from; empty if the policy did not sample them.
    model_logp: The same under the model's own distribution; see Rollout.
    policy_version: Version of the policy that sampled each token.
  """

  tokens: Sequence[int]
  sampled: bool
  text: str = ''
  logp: Sequence[float] = ()
  model_logp: Sequence[float] = ()
  policy_version: Sequence[int] = ()


@dataclasses.dataclass(frozen=True)
class Episode:
  """A prompt and the turns that follow it, on the host.

  Attributes:
    prompt: The prompt.
    turns: The turns, of the policy and of the environment.
    finish_reason: Why the last turn ended: 'stop' or 'length'.
  """

  prompt: Prompt
  turns: tuple[Turn, ...]
  finish_reason: str

  @property
  def text(self) -> str:
    """The text of the last turn that the policy sampled; '' without one."""
    return next((t.text for t in reversed(self.turns) if t.sampled), '')
