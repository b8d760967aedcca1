"""How long OpenMP's threads spin at a barrier before they sleep. Import it before torch.

torch's libgomp reads its variables once, when torch is loaded. Left alone its threads spin for milliseconds:
beside one busy process they spin away the time slices of the thread that they wait for. With a short spin
they sleep instead, and on an idle machine nothing is lost (``benchmarks/busy.py`` measures both). It changes
no result, and on a machine with GPUs it concerns the host's threads alone.
"""

import os

SPINS = "2000"

# What the user chose stays. Intel's and LLVM's OpenMP do not read it.
if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
    os.environ["GOMP_SPINCOUNT"] = SPINS
