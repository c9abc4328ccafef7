"""Which variant is better, and may one say so? Studies: one budget and evaluation, pairs of seeds, a fair table."""
