"""Block-scaled FP8 (DeepSeek-V3 section 3.3)."""

BLOCK = 128  # Weights are scaled in blocks of 128 × 128.
