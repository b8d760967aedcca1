from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.sources import PACKAGE, ROOT, TREES, imported_modules

# Each room knows only those before it; what stands in one line does not know its neighbours.
ROOMS = [
    {"compat", "errors", "lazy", "notices", "openmp", "recipes"},
    {"files", "json_fields"},
    {"spectral"},
    {"decay"},
    {"params"},
    {"sharding"},
    {"engines"},
    {"optimizers"},
    {"control"},
    {"condition"},
    {"checkpoint"},
    {"training", "integrations"},
    {"doctor"},
    {"commands"},
    {"cli"},
    {"train", "__main__"},
]
PLACE = {room: place for place, rooms in enumerate(ROOMS) for room in rooms}

# Weights, gradients and spectra move in exchange.py alone; collectives.py has plain data and sums; links.py
# times messages that hold nothing.
COLLECTIVE_HOMES = {
    "sharding/exchange.py",
    "sharding/collectives.py",
    "doctor/links.py",
}
COLLECTIVE = re.compile(
    r"(all_|broadcast|reduce|gather|scatter|monitored_barrier|barrier)\w*|(batch_)?(isend|irecv)\w*|send|recv"
)


def room_of(path: Path) -> str:
    if path.parent == ROOT:
        return path.stem
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_rooms(tree: ast.Module) -> Iterator[tuple[int, str]]:
    for line, name in imported_modules(tree):
        package, *rest = name.split(".")
        if package == "train":
            yield line, "train"
        elif package == PACKAGE.name:
            # What the package itself offers comes from the controller.
            yield line, rest[0] if rest and rest[0] in PLACE else "control"


def wrong_imports(room: str, tree: ast.Module) -> list[tuple[int, str]]:
    return [
        (line, found) for line, found in imported_rooms(tree) if found != room and PLACE[found] >= PLACE[room]
    ]


def collective_calls(tree: ast.Module) -> list[str]:
    """Collectives of torch.distributed or deepspeed.comm that a file calls or imports by name."""
    aliases = {"torch.distributed", "deepspeed.comm", "deepspeed"}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            aliases |= {a.asname for a in node.names if a.asname and a.name in aliases}
        elif isinstance(node, ast.ImportFrom):
            aliases |= {a.asname or a.name for a in node.names if f"{node.module}.{a.name}" in aliases}
            if node.module in aliases or "distributed" in (node.module or ""):
                found += [a.name for a in node.names if COLLECTIVE.fullmatch(a.name)]
    return found + [
        ast.unparse(node.func)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and COLLECTIVE.fullmatch(node.func.attr)
        and ast.unparse(node.func.value) in aliases
    ]


def test_an_import_never_points_to_the_right():
    found = {}
    for path, tree in TREES.items():
        room = room_of(path)
        if room == "__init__":
            room = "checkpoint"  # the package's front: it may offer what lies left of checkpoint
        assert room in PLACE, f"{room}: give the new room its place in ROOMS"
        found[str(path.relative_to(ROOT))] = wrong_imports(room, tree)
    assert {path: wrong for path, wrong in found.items() if wrong} == {}


def test_collectives_are_called_in_their_homes_alone():
    found = {str(path.relative_to(PACKAGE.parent)): collective_calls(tree) for path, tree in TREES.items()}
    homes = {f"{PACKAGE.name}/{home}" for home in COLLECTIVE_HOMES}
    assert {path: calls for path, calls in found.items() if calls and path not in homes} == {}
    assert {home for home in homes if not found[home]} == set()


# Batches of any task are read ahead by prefetch.py, and permutation.py puts anything in order; the rest of
# data/ is text, which the language task reads.
TEXT = re.compile(r"alphadecay_dist\.training\.(tasks\.language|data(?!\.(prefetch|permutation)))\b")
TEXT_HOMES = [PACKAGE / "training" / "data", PACKAGE / "training" / "tasks" / "language"]


def test_the_trainer_knows_text_through_its_task_alone():
    found = {
        str(path.relative_to(ROOT)): [name for _, name in imported_modules(tree) if TEXT.match(name)]
        for path, tree in TREES.items()
        if room_of(path) in ("training", "doctor") and not any(map(path.is_relative_to, TEXT_HOMES))
    }
    assert found
    assert {path: names for path, names in found.items() if names} == {}


@pytest.mark.parametrize(
    ("room", "code", "fine"),
    [
        ("decay", "from alphadecay_dist.spectral import esd", True),
        ("decay", "from alphadecay_dist.sharding import plan", False),
        ("decay", "def f():\n    import alphadecay_dist.control.controller as c", False),
        ("engines", "from alphadecay_dist import control", False),
        ("engines", "from alphadecay_dist import AlphaDecay", False),
        ("training", "from alphadecay_dist import AlphaDecay", True),
        ("training", "import train", False),
        ("doctor", "from alphadecay_dist.commands import table", False),
    ],
)
def test_the_walk_sees_an_import_to_the_right(room, code, fine):
    assert bool(wrong_imports(room, ast.parse(code))) != fine


@pytest.mark.parametrize(
    ("code", "seen"),
    [
        ("import torch\ntorch.distributed.all_reduce(x)", True),
        ("import torch.distributed as dist\ndist.barrier()", True),
        ("from torch import distributed as d\nd.all_gather_object(x, y)", True),
        ("from torch.distributed import broadcast", True),
        ("import deepspeed\ndeepspeed.comm.reduce_scatter_tensor(x, y)", True),
        ("import torch.distributed as dist\ndist.get_rank()\ndist.destroy_process_group()", False),
        ("x.gather(0, y)\nranks.barrier()", False),
    ],
)
def test_the_walk_sees_a_collective(code, seen):
    assert bool(collective_calls(ast.parse(code))) == seen
