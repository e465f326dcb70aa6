"""The shipped experiments, found by name: `--config=r1_zero_tiny`.

In the source tree their files are in the folder configs/ at the top; setup.py
installs that folder as this package. They import each other from here, so
that a user's own folder named configs is never in the way.
"""

from pathlib import Path

__path__ = [str(Path(__file__).parents[2] / 'configs')]
