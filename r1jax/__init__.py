"""r1jax: DeepSeek-R1, from the base model to its distillations, in JAX."""

__version__ = '0.1.0'
