"""What the fork server loads once, so that each rank starts in no time."""

import deepspeed
import torch
import transformers.models.llama.modeling_llama

import alphadecay_dist.training.run
import alphadecay_dist.training.tasks.language.task

assert deepspeed
assert torch
assert transformers
assert alphadecay_dist
# DeepSpeed would compile a shared-memory all-reduce on a CPU machine.
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
