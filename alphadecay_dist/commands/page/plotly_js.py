"""plotly.js as a page carries it: packed, and made to start quickly.

As it comes, a browser computes for more than a second before plotly draws anything: it starts 47 kinds of
figure, maps and 3-D scenes too, and reads all 4.8 MB twice, since they stand in a function that is an
argument. Where a version of plotly is written otherwise, the script stays as it is: it starts later, and
draws the same.
"""

from __future__ import annotations

import base64
import gzip
import re
from functools import cache

from alphadecay_dist.errors import UserError

KINDS = ("bar", "heatmap")  # of figure, beside lines and points, which plotly always has
WRAPPER = re.compile(
    r"\(\s*function\(root, factory\) \{.*?\(\) => \{\n(.*)return Plotly;\n\}\)\);\s*$", re.DOTALL
)
NAMED = re.compile(r"([\w$]+)=[\w$]+\(\(")  # a module of the bundle
REGISTERED = re.compile(r"\.register\(\[((?:[\w$]+\(\),?){3,})\]\)")


@cache
def packed_plotly() -> str:
    """plotly.js of the installed package, gzip in base64.

    Raises:
        UserError: plotly is not installed.
    """
    try:
        from plotly.offline import get_plotlyjs
    except ImportError:
        raise UserError("plotly: not installed; pip install 'alphadecay-dist[plot]'") from None
    script = unwrapped(with_used_kinds(get_plotlyjs()))
    return base64.b64encode(gzip.compress(script.encode(), 9, mtime=0)).decode()


def with_used_kinds(script: str) -> str:
    """The script, which starts those of ``KINDS`` instead of all kinds of figure."""
    list_ = REGISTERED.search(script)
    modules = [_module(script, kind) for kind in KINDS]
    if list_ is None or any(f"{module}()" not in list_[1].split(",") for module in modules):
        return script
    kept = ",".join(f"{module}()" for module in modules)
    return script[: list_.start(1)] + kept + script[list_.end(1) :]


def unwrapped(script: str) -> str:
    """The script without the function around it, whose result it gives to ``window`` itself."""
    return WRAPPER.sub(lambda found: found[1], script, count=1)


def _module(script: str, kind: str) -> str | None:
    """The variable of the module that only exports a kind of figure, as the bundle names both."""
    place = script.find(f'moduleType:"trace",name:"{kind}"')
    before = re.findall(NAMED, script[max(0, place - 4000) : max(0, place)])
    if not before:
        return None
    end = script.find(f".exports={before[-1]}()")
    exporting = re.findall(NAMED, script[max(0, end - 100) : max(0, end)])
    return exporting[-1] if exporting else None
