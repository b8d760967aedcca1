"""Every field of a recipe, with its default and its range, for reference/recipe.md.

Names, defaults and meanings are those of the dataclasses. A range is what the trainer itself says that it
expects where it is given a number that is too small, or too large: so the page cannot differ from what is
checked.
"""

from __future__ import annotations

import re
import typing
from typing import Any

from alphadecay_dist.errors import UserError
from alphadecay_dist.training.config import load_config
from alphadecay_dist.training.field_help import described
from alphadecay_dist.training.recipe import SEVERAL, SIZES, WORDS, Config
from alphadecay_dist.training.tasks.registry import DEFAULT, options_of
from sitegen.text import escaped

TASK = re.compile(r"\((\w+)\) ")  # before the meaning of a field that only one task has
PAGE = re.compile(r"docs/([\w\\]+)\.md")  # that a meaning names
EXPECTED = re.compile(r"expected (.+?)(?:;|: |, or (?:None|null)|$)")
TOO_SMALL = ("-1", "[-1, -1]")
TOO_LARGE = (str(2**62),)
LEAST, MOST = re.compile(r"(\d+) or more"), re.compile(r"(\d+) or less")
NEEDED = {
    "optimizer": ["optimizer.name=muon"],
    "decay.farms_aspect": ["decay.farms_rows=64"],
    "decay.farms_grid": ["decay.farms_rows=64"],
}  # else refused as unused
OPEN = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}


def page() -> str:
    """The sections, each with a list of its fields."""
    lines: list[str] = []
    section = ""
    for key, value, text in described():
        task = TASK.match(text)
        title = key.partition(".")[0] + (f" ({task[1]})" if task else "")
        if title != section:
            section = title
            lines += [f"## {section}", ""]
        lines += [f"`{key}`", f":   **{written(value)}** · {range_of(key, text)}", ""]
        meaning = PAGE.sub(linked, escaped(TASK.sub("", text)))
        lines += [f"    {meaning}", ""]
    return "\n".join(lines)


def linked(found: re.Match[str]) -> str:
    """A link in place of a page's name, as seen from reference/."""
    name = found[1].replace("\\", "")
    return f"[{name}.md](../{name}.md)"


def range_of(key: str, text: str) -> str:
    """What a field takes; ``text`` is what the trainer's help says of it."""
    task = TASK.match(text)
    hint = hint_of(key, task[1] if task else DEFAULT)
    none = ", or `null`" if type(None) in typing.get_args(hint) else ""
    if key in WORDS or key in SEVERAL:
        words = ", ".join(f"`{word}`" for word in WORDS.get(key) or SEVERAL[key])
        return ("any of " if key in SEVERAL else "") + words + none
    said = between(
        *(expected_of(key, task[1] if task else DEFAULT, tries) for tries in (TOO_SMALL, TOO_LARGE))
    )
    size = ", or with a unit such as 256MiB" if key in SIZES else ""
    return (escaped(said) if said else plain(hint)) + size + none


def between(small: str | None, large: str | None) -> str | None:
    """One range of what is expected in place of a number too small, and of one too large."""
    least, most = LEAST.fullmatch(small or ""), MOST.fullmatch(large or "")
    if least and most:
        return f"{least[1]} to {most[1]}"
    if least and large and large.startswith("a divisor of "):
        return large.rstrip(" 0123456789")
    return large if least and large and large.endswith((")", "]")) else small


def hint_of(key: str, task: str) -> Any:
    """The type of a field."""
    section, name = key.split(".")
    owner = options_of(task) if section == "task" else typing.get_type_hints(Config)[section]
    return typing.get_type_hints(owner)[name]


def plain(hint: Any) -> str:
    """What a field takes of which the trainer knows no more than its type."""
    kinds = typing.get_args(hint) or (hint,)
    return OPEN.get(kinds[0], "names or patterns")


def expected_of(key: str, task: str, tries: tuple[str, ...]) -> str | None:
    """What the trainer says that it expects in place of the first of some values that it refuses."""
    others = [f"model.task={task}", *NEEDED.get(key, NEEDED.get(key.partition(".")[0], []))]
    for value in tries:
        try:
            load_config("demo", [*others, f"{key}={value}"])
        except UserError as error:
            found = EXPECTED.search(str(error))
            if found and found[1] not in ("int", "float", "str", "bool", "tuple", "tuple[int, int]"):
                return found[1]
    return None


def written(value: Any) -> str:
    """A default as YAML has it."""
    if value is None or value == ():
        return "null" if value is None else "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return escaped(f"[{', '.join(map(written, value))}]")
    return f"{value:.4g}" if isinstance(value, float) else escaped(str(value))
