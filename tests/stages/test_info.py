"""Published sizes come out, and the command shows them."""

import ml_collections
import pytest

from configs import models
from r1jax import main
from r1jax.errors import UserError
from r1jax.stages import build, info


@pytest.mark.parametrize('name,total,cache_bytes', [
    ('deepseek_v3', 671.0e9, 70_272),
    ('qwen2_5_math_1_5b', 1.54e9, 28 * 2 * 2 * 128 * 2),
    ('qwen2_5_math_7b', 7.62e9, 28 * 2 * 4 * 128 * 2),
    ('qwen2_5_14b', 14.77e9, 48 * 2 * 8 * 128 * 2),
    ('qwen2_5_32b', 32.76e9, 64 * 2 * 8 * 128 * 2),
    ('qwen3_8b', 8.19e9, 36 * 2 * 8 * 128 * 2),
    ('llama3_1_8b', 8.03e9, 32 * 2 * 8 * 128 * 2),
    ('llama3_3_70b', 70.55e9, 80 * 2 * 8 * 128 * 2),
])
def test_named_sizes_have_their_published_parameters(
    name, total, cache_bytes):
  config = build.model_config(
      ml_collections.ConfigDict(getattr(models, name)()))
  found = info.count(config)
  assert found.total == pytest.approx(total, rel=0.005)
  assert found.cache_bytes == cache_bytes


def test_v3_activates_37_billion():
  config = build.model_config(ml_collections.ConfigDict(models.deepseek_v3()))
  assert round(info.count(config).active / 1e9) == 37


def test_info_shows_a_mesh_that_is_not_here(capsys):
  main.run(['info', '--config=configs/r1_zero_671b.py', '--devices=1024'])
  shown = capsys.readouterr().out
  assert '671,026,404,352' in shown
  assert '70,272' in shown
  with pytest.raises(UserError, match='expert=3 does not make the 1024'):
    main.run(['info', '--config=configs/r1_zero_671b.py', '--devices=1024',
              '--config.mesh.expert=3'])
