"""torch's own engines: one process, DDP, FSDP1, FSDP2."""
