"""The commands of r1jax, one module each; r1jax/cli/main.py runs them."""
