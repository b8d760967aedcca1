"""The commands of ``alphadecay``: a file each, with its arguments and what it runs.

A command's module has ``add_arguments(parser)`` and ``run(args)``, which may return an exit code. It is
loaded when its name is on the command line, and loads torch and all that is slow when it runs: help and
mistakes come back at once.
"""

# By the name of its module: what `alphadecay --help` says of it.
COMMANDS = {
    "report": "draw a run's alphas, decays and loss",
    "spectrum": "alpha, norms and decay of every matrix on disk",
    "plan": "owners, traffic and cost of a refresh, before a job is queued",
    "data": "tokenize a corpus once, for data.prepared",
    "doctor": "check every rank, node and link before training",
    "export": "a run's weights in the formats of others",
    "table": "a table of runs: how far its cells are, and its job array",
}
ON_EVERY_RANK = ("doctor",)  # started by a launcher, as train.py is
