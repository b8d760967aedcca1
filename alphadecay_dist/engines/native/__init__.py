"""torch alone: one process, DDP, FSDP1, FSDP2."""
