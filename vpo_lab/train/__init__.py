"""Training: SFT warmup, then a method of the GRPO family, on TRL."""
