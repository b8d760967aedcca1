"""How ranks can hold weights, by name. Loads no torch."""

SHARDINGS = (
    "ddp",
    "zero0",
    "zero1",
    "zero2",
    "zero1_masters",
    "zero2_masters",
    "zero3",
    "fsdp1",
    "fsdp2",
)
MASTERS = ("zero1_masters", "zero2_masters")  # fp32, of bf16 weights: what dtype=torch.float32 reads
