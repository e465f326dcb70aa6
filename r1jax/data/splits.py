"""The two splits of a dataset, and how synthetic questions are assigned."""

import zlib

TRAIN, HELD_OUT = 'train', 'held_out'


def split_of(question: str) -> str:
  """Returns the split of a question: one in 16 is held out, by its hash."""
  return HELD_OUT if zlib.crc32(question.encode()) % 16 == 0 else TRAIN
