"""What does a run need beside its step? Batches, optimizer, ranks, checkpoints, its folder, its figures."""
