"""Packaging. Versions are bounded where an API that we use has moved before."""

import pathlib

import setuptools

setuptools.setup(
  name='r1jax',
  version='0.1.0',
  description='DeepSeek-R1, from a base model to its distillations, in JAX',
  long_description=pathlib.Path(__file__).with_name('README.md').read_text(),
  long_description_content_type='text/markdown',
  license='Apache-2.0',
  classifiers=[
    'Development Status :: 4 - Beta',
    'Intended Audience :: Science/Research',
    'Operating System :: POSIX :: Linux',
    'Programming Language :: Python :: 3',
    'Programming Language :: Python :: 3.11',
    'Programming Language :: Python :: 3.12',
    'Topic :: Scientific/Engineering :: Artificial Intelligence',
    'Typing :: Typed',
  ],
  python_requires='>=3.11',
  packages=setuptools.find_packages(include=['r1jax*']),
  # The experiments lie at the top of the source tree. An installed package
  # named `configs` would clash with a user's own folder of that name.
  package_dir={'r1jax.configs': 'configs'},
  package_data={'r1jax': ['assets/*', 'py.typed']},
  install_requires=[
    'absl-py>=2.1,<3',
    'chex>=0.1.89,<0.2',
    'flax>=0.12,<0.13',
    'grain>=0.2.10,<0.3',
    'huggingface_hub>=0.30,<3',
    'jax>=0.8,<0.12',
    'jinja2>=3.1,<4',
    'matplotlib>=3.8,<4',
    'ml-collections>=1.0,<2',
    'mpmath>=1.3,<2',
    'numpy>=1.26,<3',
    'optax>=0.2.5,<0.3',
    'orbax-checkpoint>=0.11.20,<0.13',
    'py3langid>=0.4,<0.5',
    'pyarrow>=16,<25',
    'pyyaml>=6,<7',
    'rich>=13,<16',
    'safetensors>=0.8,<0.9',
    'tensorboardX>=2.6,<3',
    'tokenizers>=0.21,<0.24',
  ],
  extras_require={
    'ifeval': ['langdetect>=1.0.9,<2'],
    'test': [
      'math-verify[antlr4-13-2]>=0.8,<0.10',
      'sympy>=1.12,<2',
      'pytest>=8,<10',
      'pytest-xdist>=3.6,<4',
      'langdetect>=1.0.9,<2',
      'gcsfs>=2026.4',
      'nbclient>=0.10,<0.12',
      'nbformat>=5.10,<6',
      'ipykernel>=6.29,<8',
    ],
    'lm_eval': ['lm_eval>=0.4.13,<0.5'],
    'notebooks': ['jupyterlab>=4.2,<5', 'ipykernel>=6.29,<8'],
    # Not by jax[tpu], which pins an older one: its compiler makes the
    # gradient of ragged_dot as dear as a dense expansion. JAX asks for the
    # hosts of a slice with requests.
    'tpu': ['libtpu>=0.0.52,<0.1', 'requests>=2.31,<3'],
    # Buckets: gs:// for all that a run reads and writes, s3:// for what it reads.
    'gcs': ['gcsfs>=2026.4'],
    's3': ['s3fs>=2026.4'],
    # Another minor version of ruff formats otherwise.
    'dev': [
      'ruff==0.17.*',
      'mypy>=2.4,<3',
      'pre-commit>=4,<5',
      'build>=1.2,<2',
    ],
    'docs': ['pdoc>=14,<17'],
    # Trackers, for config.tracking: event files are written without an extra.
    'tensorboard': ['tensorboard>=2.16,<3'],
    'wandb': ['wandb>=0.19,<1'],
    'mlflow': ['mlflow>=2.20,<4'],
    'trackio': ['trackio>=0.40,<1'],
  },
  entry_points={'console_scripts': ['r1jax = r1jax.cli.main:main']},
)
