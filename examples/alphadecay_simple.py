"""AlphaDecay (arXiv 2506.14562) on one process in plain torch: the whole method, to be read first.

Every weight matrix gets a weight decay of its own, from the tail of its spectrum:

1. alpha: fit a power law p(x) ~ x^-alpha to the upper half of the eigenvalues of W^T W.
2. decay: map the alphas of all matrices linearly to [min_ratio, max_ratio] times the base decay.
   A heavy tail (small alpha) gets a weak decay, a light tail (large alpha) a strong one.
3. Write the decays into the optimizer, where each matrix has its own param group, and train on.
   Repeat every ``interval`` updates, starting with the initial weights.

The package does the same with sharded weights, and adds what a long run needs: matrices without a tail,
fused projections, other estimators, checkpoints. Run it with ``python examples/alphadecay_simple.py``.
"""

import torch
from torch import nn

BASE_DECAY, MIN_RATIO, MAX_RATIO, INTERVAL = 0.1, 2 / 3, 5, 20


def alpha_of(weight):
    """The tail exponent of one matrix (m, n), by the Hill estimator with xmin at the median."""
    # in fp64, which is cheap at this size: rounding then moves no alpha
    eigenvalues = torch.linalg.svdvals(weight.double()).square().flip(0)  # (N,) ascending, N = min(m, n)
    tail = eigenvalues[len(eigenvalues) // 2 :]  # (k,) from the median on
    return 1 + len(tail) / (tail / tail[0]).log().sum().item()


def decays_of(alphas, base_decay):
    """The linear map from alphas to weight decays, both by name."""
    low, high = min(alphas.values()), max(alphas.values())
    places = {name: (alpha - low) / (high - low) for name, alpha in alphas.items()}  # in [0, 1]
    return {name: base_decay * (MIN_RATIO + p * (MAX_RATIO - MIN_RATIO)) for name, p in places.items()}


def param_groups(model, base_decay):
    """One group per matrix inside a block, one for the rest, which keeps the base decay."""
    tuned = {n: m.weight for n, m in model.named_modules() if isinstance(m, nn.Linear) and "blocks." in n}
    rest = [p for p in model.parameters() if not any(p is weight for weight in tuned.values())]
    groups = [{"params": [w], "weight_decay": base_decay, "module": name} for name, w in tuned.items()]
    return [*groups, {"params": rest, "weight_decay": base_decay, "module": "untuned"}]


@torch.no_grad()
def refresh(optimizer, base_decay):
    """Measure every matrix as it is now and write its decay; returns the decays by name."""
    groups = {g["module"]: g for g in optimizer.param_groups if g["module"] != "untuned"}
    decays = decays_of({name: alpha_of(group["params"][0]) for name, group in groups.items()}, base_decay)
    for name, group in groups.items():
        group["weight_decay"] = decays[name]
    return decays


def train(model, optimizer, batches, base_decay=BASE_DECAY, interval=INTERVAL):
    """Train on (inputs, targets); yields (update, loss, decays) at each refresh."""
    for update, (inputs, targets) in enumerate(batches):
        loss = nn.functional.mse_loss(model(inputs), targets)
        loss.backward()
        if update % interval == 0:  # before the update: the first refresh sees the initial weights
            yield update, loss.item(), refresh(optimizer, base_decay)
        optimizer.step()
        optimizer.zero_grad()


class Block(nn.Module):
    """Half a transformer block: x + down(relu(up(x)))."""

    def __init__(self, width):
        super().__init__()
        self.up = nn.Linear(width, 3 * width, bias=False)
        self.down = nn.Linear(3 * width, width, bias=False)

    def forward(self, x):
        """(batch, width) -> (batch, width)."""
        return x + self.down(self.up(x).relu())


class Net(nn.Module):
    """Blocks whose matrices are tuned, and a head that is not."""

    def __init__(self, width=64, depth=2):
        super().__init__()
        self.blocks = nn.ModuleList(Block(width) for _ in range(depth))
        self.head = nn.Linear(width, 1)

    def forward(self, x):
        """(batch, width) -> (batch, 1)."""
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def random_batches(count, width=64):
    """Inputs (32, width) and a target (32, 1) that depends on two of their columns."""
    for _ in range(count):
        inputs = torch.randn(32, width)
        yield inputs, inputs[:, :1] * inputs[:, 1:2]


if __name__ == "__main__":
    torch.manual_seed(0)
    model = Net()
    optimizer = torch.optim.AdamW(param_groups(model, BASE_DECAY), lr=3e-3)
    for update, loss, decays in train(model, optimizer, random_batches(101)):
        print(f"update {update:3}  loss {loss:.3f}  decay", {name: round(d, 3) for name, d in decays.items()})
