"""Data: mixtures, the plan of which rows at which step, the sampler, the collator, hard-negative mining."""
