"""The commands of ``alphadecay``: a file each, with its arguments and what it runs, named in ``COMMANDS``.

A command's module has ``add_arguments(parser)`` and ``run(args)``, which may return an exit code. It is
loaded when its name is on the command line, and loads torch and all that is slow when it runs: help and
mistakes come back at once.
"""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Command:
    """A row of the table.

    Attributes:
        module: has ``add_arguments`` and ``run``.
        help: what ``alphadecay --help`` says of it.
        on_every_rank: whether a launcher starts it on every rank.
    """

    module: str
    help: str
    on_every_rank: bool = False


COMMANDS = {
    "train": Command(f"{__name__}.train", "train what a recipe says", on_every_rank=True),
    "report": Command(f"{__name__}.report", "a page of runs: curves, alphas, decays, spectra; or a picture"),
    "condition": Command(f"{__name__}.condition", "where a run's gradients favour spectral updates (Muon)"),
    "spectrum": Command(f"{__name__}.spectrum", "alpha, norms and decay of every matrix on disk"),
    "plan": Command(f"{__name__}.plan", "owners, traffic and cost of a refresh, before a job is queued"),
    "data": Command(f"{__name__}.data", "tokenize a corpus once, for data.prepared"),
    "doctor": Command(
        f"{__name__}.doctor", "check every rank, node and link before training", on_every_rank=True
    ),
    "export": Command(f"{__name__}.export", "a run's weights in the formats of others"),
    "table": Command(f"{__name__}.table", "a table of runs, published or your own: cost, training, results"),
}


def command_in(words: Iterable[str]) -> str | None:
    """The command that a command line names: its first word that is no option."""
    return next((word for word in words if not word.startswith("-")), None)
