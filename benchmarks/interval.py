"""Time training by the interval of refreshes: Uniform, the released algorithm's loop, ours, ours with a lag.

    python benchmarks/interval.py --shape 60m

All ways train the same LLaMA on random tokens in one process and take turns. An update and a refresh are
timed by themselves, and the cost of an interval in Uniform's updates follows:

    cost = (interval * update + refresh) / (interval * update)

with Uniform's update. With a lag, a refresh is what a window of lag + 1 updates takes longer for it: the time
that training stands still (for the snapshot, and for what is not ready at the end), and the slowdown of the
updates beside its thread. The intervals 10 and 1 also run as loops, against as many of Uniform's updates in
the same turn. Ours has a param group per matrix, the released algorithm too. Times and ratios are medians.

The longer an update, the less a refresh costs: the published update has 512 sequences of 256 tokens. On a GPU
the updates compute in bf16 and AdamW is fused.
"""

from __future__ import annotations

import alphadecay_dist.openmp  # noqa: F401  (before torch is loaded)

# isort: split

import argparse
import contextlib
import functools
import statistics
import warnings
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from refresh import SIZES, VOCABULARY, machine, released_alpha, timed
from torch import nn

from alphadecay_dist import AlphaDecay, param_groups
from alphadecay_dist.training.build import fill
from alphadecay_dist.training.recipe import TrainConfig
from alphadecay_dist.training.tasks.language.initial_values import random_values
from alphadecay_dist.training.tasks.language.model import build_model, config_of

BASE, MIN_RATIO, MAX_RATIO = 0.1, 2 / 3, 5.0
INTERVALS = (500, 100, 50, 10, 1)
LOOPS = {10: 10, 1: 3}  # updates of a loop, by its interval
UNIFORM, RELEASED, OURS, LAGGED = WAYS = ("Uniform", "released", "ours", "ours with a lag")
Seconds = dict[tuple[str, str], list[float]]  # of each turn, by way and by what was timed


def main() -> None:
    """Print the machine and a table with a row a way."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=("tiny", "60m", "130m"), default="60m")
    parser.add_argument("--batch", type=int, default=2, help="sequences at once")
    parser.add_argument("--seq", type=int, default=128, help="tokens of each")
    parser.add_argument("--accumulate", type=int, default=1, help="batches an update")
    parser.add_argument("--lag", type=int, default=4, help="updates, below 10")
    parser.add_argument("--repeats", type=int, default=3, help="turns")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    if not 1 <= args.lag < 10:
        parser.error(f"argument --lag: found {args.lag}, expected 1 to 9")
    # Controllers of several intervals take turns over one model, each in a loop of its own.
    warnings.filterwarnings("ignore", message="two AlphaDecay objects step in turn")
    ways = Ways(args)
    device = torch.device(args.device)
    seconds = measured(ways, args.repeats, device)
    print(
        f"{machine(device)}, {torch.get_num_threads()} threads, torch {torch.__version__}, "
        f"{args.repeats} repeats\n{args.shape}: {len(ways.released.tuned)} tuned by the released algorithm, "
        f"{len(ways.controllers[1].modules)} by ours; {args.batch * args.seq * args.accumulate:,} tokens an "
        f"update, lag {args.lag}\n"
    )
    print("\n".join(table(seconds, args.lag)))


class Training:
    """A LLaMA that is trained on one batch of random tokens.

    Args:
        args: of the command line.
        groups: the optimizer's, of a model.
    """

    def __init__(self, args: argparse.Namespace, groups: Callable[[nn.Module], list[dict[str, Any]]]) -> None:
        hidden, intermediate, layers, _ = SIZES[args.shape]
        sizes = {
            "hidden_size": hidden,
            "intermediate_size": intermediate,
            "num_hidden_layers": layers,
            "num_attention_heads": hidden // 64,
            "vocab_size": VOCABULARY,
        }
        torch.manual_seed(0)
        model = build_model(config_of(args.shape, sizes, args.seq), TrainConfig())
        with torch.no_grad():
            fill(model, random_values(model, 0), torch.float32, nn.Parameter.copy_)
        self.model = model.to(args.device)
        fused = args.device.startswith("cuda")
        self.optimizer = torch.optim.AdamW(groups(self.model), lr=1e-3, weight_decay=BASE, fused=fused)
        self._tokens = torch.randint(VOCABULARY, (args.batch, args.seq), device=args.device)  # (b, s)
        self._accumulate = args.accumulate
        self._compute: Any = torch.autocast("cuda", torch.bfloat16) if fused else contextlib.nullcontext()

    def update(self) -> None:
        """Forward, backward and step."""
        self.optimizer.zero_grad()
        for _ in range(self._accumulate):
            with self._compute:
                loss = self.model(self._tokens, self._tokens)
            (loss / self._tokens.numel() / self._accumulate).backward()
        self.optimizer.step()


class Released:
    """The released algorithm, from its description: every nn.Linear, decays written by the group's position.

    The first and the last nn.Linear are analysed as the others, and then left at the base decay.
    """

    def __init__(self, model: nn.Module) -> None:
        self._linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
        self.tuned = [module.weight for module in self._linears[1:-1]]
        own = {id(weight) for weight in self.tuned}
        self._rest = [parameter for parameter in model.parameters() if id(parameter) not in own]

    def groups(self) -> list[dict[str, Any]]:
        """A group per tuned weight, and one for the rest."""
        return [{"params": [weight]} for weight in self.tuned] + [{"params": self._rest}]

    @torch.no_grad()
    def refresh(self, optimizer: torch.optim.Optimizer) -> None:
        """Alphas of all, mapped to decays of the tuned ones."""
        alphas = [released_alpha(module.weight) for module in self._linears][1:-1]
        low, high = min(alphas), max(alphas)
        for place, alpha in enumerate(alphas):
            share = (alpha - low) / (high - low) if high > low else 1.0
            ratio = MIN_RATIO + share * (MAX_RATIO - MIN_RATIO)
            optimizer.param_groups[place]["weight_decay"] = ratio * BASE


class Ways:
    """What takes turns: three trainings, and what each does before an update.

    Args:
        args: of the command line.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self.lag = args.lag

        def released_groups(model: nn.Module) -> list[dict[str, Any]]:
            self.released = Released(model)
            return self.released.groups()

        ours = Training(args, lambda model: param_groups(model, weight_decay=BASE))
        self.trainings = {
            UNIFORM: Training(args, lambda model: [{"params": list(model.parameters())}]),
            RELEASED: Training(args, released_groups),
            OURS: ours,
            LAGGED: ours,
        }
        self.controllers = {interval: self._controller(interval, 0) for interval in LOOPS}
        # A window is one interval of this one: a snapshot before its first update, decays before its last.
        self._windows = {interval: self._controller(interval, args.lag) for interval in (10, args.lag + 1)}

    def _controller(self, interval: int, lag: int) -> AlphaDecay:
        training = self.trainings[OURS]
        return AlphaDecay(
            training.model,
            training.optimizer,
            weight_decay=BASE,
            interval=interval,
            min_ratio=MIN_RATIO,
            max_ratio=MAX_RATIO,
            lag=lag,
        )

    def refresh(self, way: str) -> None:
        """A refresh while training waits."""
        if way == RELEASED:
            self.released.refresh(self.trainings[RELEASED].optimizer)
        else:
            self.controllers[1].refresh()

    def before(self, way: str, interval: int, number: int) -> None:
        """What a way does before an update of a loop.

        Args:
            way: one of WAYS.
            interval: of its refreshes.
            number: of the update, from 0 on.
        """
        if way == OURS:
            self.controllers[interval].step()
        elif way == LAGGED:
            self._windows[interval].step()
        elif way == RELEASED and number % interval == 0:
            self.refresh(way)

    def step(self, way: str, interval: int, number: int) -> None:
        """An update of a loop, and what comes before it."""
        self.before(way, interval, number)
        self.trainings[way].update()

    def loop(self, way: str, interval: int, updates: int, device: torch.device) -> float:
        """Train so many updates; the seconds that went by before them, while training stood still."""
        waits: list[float] = []
        for number in range(updates):
            timed(waits, functools.partial(self.before, way, interval, number), device)
            self.trainings[way].update()
        return sum(waits)


def measured(ways: Ways, repeats: int, device: torch.device) -> Seconds:
    """All times, of ``repeats`` turns after one that warms up."""
    for way in (UNIFORM, RELEASED, OURS):
        for _ in range(2):
            ways.trainings[way].update()
        if way != UNIFORM:
            ways.refresh(way)
    ways.loop(LAGGED, ways.lag + 1, ways.lag + 1, device)
    seconds: Seconds = defaultdict(list)
    for repeat in range(repeats):
        order = WAYS if repeat % 2 == 0 else WAYS[::-1]
        for _ in range(3):
            for way in order:
                timed(seconds[way, "update"], ways.trainings[way].update, device)
        for way in order:
            time_refresh(seconds, ways, way, device)
        for interval in LOOPS:
            time_loops(seconds, ways, order, interval, device)
    return seconds


def time_loops(
    seconds: Seconds, ways: Ways, order: Sequence[str], interval: int, device: torch.device
) -> None:
    """Time a loop of each way, update by update in turn.

    With a lag it runs by itself, for its thread would slow the others, and so does one of Uniform beside it.
    """
    spent: dict[str, list[float]] = {way: [] for way in order if way != LAGGED}
    for number in range(LOOPS[interval]):
        for way, times in spent.items():
            timed(times, functools.partial(ways.step, way, interval, number), device)
    for way, times in spent.items():
        seconds[way, f"loop {interval}"].append(sum(times))
    if interval > ways.lag:
        time_alone(seconds, ways, f"loop {interval}", interval, device)


def time_alone(seconds: Seconds, ways: Ways, what: str, interval: int, device: torch.device) -> float:
    """Time an interval with a lag, and as many of Uniform's updates; how long training stood still."""
    plain = functools.partial(ways.loop, UNIFORM, interval, interval, device)
    timed(seconds[UNIFORM, f"{what} alone"], plain, device)
    lagged = functools.partial(ways.loop, LAGGED, interval, interval, device)
    return timed(seconds[LAGGED, what], lagged, device)


def time_refresh(seconds: Seconds, ways: Ways, way: str, device: torch.device) -> None:
    """Time a refresh by itself, or with a lag a window of updates that has one."""
    if way == LAGGED:
        seconds[way, "still"].append(time_alone(seconds, ways, "window", ways.lag + 1, device))
    elif way != UNIFORM:
        timed(seconds[way, "refresh"], functools.partial(ways.refresh, way), device)


def table(seconds: Seconds, lag: int) -> list[str]:
    """The lines of the table."""
    columns = ["way", "update, s", "refresh, s", "training stands still, s"]
    columns += [str(interval) for interval in INTERVALS] + [f"{interval}, as a loop" for interval in LOOPS]
    return [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"] + [
        row(seconds, way, lag) for way in WAYS
    ]


def row(seconds: Seconds, way: str, lag: int) -> str:
    """One way's line."""
    update = statistics.median(seconds[UNIFORM, "update"])
    least = lag + 1 if way == LAGGED else 1  # a lag is below the interval
    cells = [way, f"{statistics.median(seconds[way, 'update']):.3f}"]
    if way == UNIFORM:
        return f"| {' | '.join([*cells, '-', '-', *['1'] * (len(INTERVALS) + len(LOOPS))])} |"
    if way == LAGGED:
        windows = zip(seconds[way, "window"], seconds[UNIFORM, "window alone"], strict=True)
        refresh = statistics.median(own - plain for own, plain in windows)
        still = statistics.median(seconds[way, "still"])
    else:
        refresh = still = statistics.median(seconds[way, "refresh"])
    cells += [f"{refresh:.3f}", f"{still:.3f}"]
    cells += [
        f"{cost(interval, update, refresh):.4f}" if interval >= least else "-" for interval in INTERVALS
    ]
    for interval in LOOPS:
        own = seconds[way, f"loop {interval}"]
        baseline = seconds[UNIFORM, f"loop {interval}{' alone' if way == LAGGED else ''}"]
        cells.append(f"{ratio(own, baseline):.3f}" if own else "-")
    return f"| {' | '.join(cells)} |"


def cost(interval: int, update: float, refresh: float) -> float:
    """Seconds of an interval, in those of its updates alone."""
    return (interval * update + refresh) / (interval * update)


def ratio(times: Sequence[float], baseline: Sequence[float]) -> float:
    """Median of the ratios of each turn."""
    return statistics.median(one / other for one, other in zip(times, baseline, strict=True))


if __name__ == "__main__":
    main()
