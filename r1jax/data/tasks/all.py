"""Imports every task of the package, so that its name is registered."""

from r1jax.data.tasks import arithmetic, countdown, manners, zebra  # noqa: F401
