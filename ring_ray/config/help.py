"""What there is to configure, in words: for `python jobs/train.py --help`, and as docs/config.md.

From the repository's root, `python -m ring_ray.config.help > docs/config.md` brings that page up to date.
"""

import json
import sys
from collections.abc import Iterable, Mapping
from functools import reduce
from operator import getitem
from pathlib import Path
from textwrap import fill
from typing import Any, TypeAlias

from ring_ray.config.keys import sections
from ring_ray.config.run import RunConfig

Groups: TypeAlias = dict[str, dict[str, str]]
"""By config group what each of its files is: {"algo": {"grpo": "GRPO, the baseline: ..."}}."""

TEXT_COLUMN = 38  # of --help: where descriptions start

PAGE = """# Every key of the config

<!-- Made by `python -m ring_ray.config.help > docs/config.md`: change the descriptions in ring_ray/config and conf. -->

`python jobs/train.py GROUP=NAME KEY=VALUE ...` chooses files of `conf/` and sets single keys. What comes later wins:
the defaults below, then `algo`, `data` and `cluster`, then `experiment`, then the command line.

`python jobs/train.py --help` prints these lists with the values that a run has: add `experiment=ring_lite` for that
experiment's. `--cfg job` prints them as YAML."""


def groups(conf: Path) -> Groups:
    """The config groups below ``conf``; a file is described by its first comment."""
    found: Groups = {}
    for file in sorted(conf.glob("*/**/*.yaml")):
        found.setdefault(file.parent.relative_to(conf).as_posix(), {})[file.stem] = _first_comment(file)
    return found


def _first_comment(file: Path) -> str:
    lines = file.read_text().splitlines()
    return next((line[2:] for line in lines if line.startswith("# ") and not line.startswith("# @package")), "")


def terminal(groups: Groups, chosen: Mapping[str, str], values: Mapping[str, Any], width: int) -> str:
    """All groups and keys, for a terminal of ``width`` columns.

    Args:
        chosen: by group, the file that the run is composed from.
        values: the composed config, nested as `RunConfig` is.
    """
    lines = ["Choose one of each group with GROUP=NAME; * is chosen:"]
    for group, files in groups.items():
        lines.append("")
        lines += (_entry(f"{group}={n}{' *' * (chosen.get(group) == n)}", text, width) for n, text in files.items())
    lines += ["", "Set any key with KEY=VALUE; the values are those that this run has:"]
    for section in sections(RunConfig()):
        lines += ["", fill(f"{section.name or 'run'}: {section.description}", width)]
        for key in section.keys:
            value = reduce(getitem, key.name.split("."), values)
            lines.append(_entry(f"{key.name}={_shown(value)}", key.description, width))
    return "\n".join(lines)


def markdown(groups: Groups) -> str:
    """docs/config.md: all groups and keys with the defaults of the schema."""
    parts = [PAGE, "## Groups", _table(("choose", "for"), _group_rows(groups)), "## Keys"]
    for section in sections(RunConfig()):
        rows = [(f"`{key.name}`", key.type, f"`{_shown(key.value)}`", key.description) for key in section.keys]
        parts += [f"### {section.name or 'The run'}", section.description]
        parts += [_table(("key", "type", "default", "meaning"), rows)] if rows else []
    return "\n\n".join(parts) + "\n"


def _group_rows(groups: Groups) -> list[tuple[str, ...]]:
    return [(f"`{group}={name}`", text) for group, files in groups.items() for name, text in files.items()]


def _entry(left: str, text: str, width: int) -> str:
    """``left`` and beside it ``text``, or below where there is no room."""
    indent = " " * TEXT_COLUMN
    block = fill(text, max(width, TEXT_COLUMN + 20), initial_indent=indent, subsequent_indent=indent)
    head = f"  {left}  "
    return head + block[len(head) :] if len(head) <= TEXT_COLUMN else f"{head.rstrip()}\n{block}"


def _table(heads: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [heads, ("---",) * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _shown(value: object) -> str:
    """As the command line has it."""
    return value if isinstance(value, str) and value else json.dumps(value)


if __name__ == "__main__":
    sys.stdout.write(markdown(groups(Path("conf"))))
