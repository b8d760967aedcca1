"""What the fork server loads once, so that each rank starts in no time."""

import gc
from importlib.util import find_spec

import deepspeed
import deepspeed.runtime.zero.muon.muon_optimizer
import torch
import transformers.models.llama.modeling_llama

import alphadecay_dist.training.run
import alphadecay_dist.training.tasks.language.task

if find_spec("timm"):
    import alphadecay_dist.training.tasks.vision.task

assert deepspeed  # its Muon, which each ZeRO engine looks at, loads torch's compiler: seconds
assert torch
assert transformers
assert alphadecay_dist
# DeepSpeed would compile a shared-memory all-reduce on a CPU machine.
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
# No rank's collector goes through what is loaded here: it would copy all of these pages.
gc.collect()
gc.freeze()
