"""The shipped experiments, installed as r1jax.configs; each file is one diff.

r1jax/config/schema/ declares every key.
"""
