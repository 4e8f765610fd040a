"""Every setting in tables, generated from the declarations that are checked.

``python -m prefix_rl.reference > docs/settings.md`` writes the page.
"""

from __future__ import annotations

from collections.abc import Mapping

from typer.main import get_command

from .cli import app
from .fields import REQUIRED, Field, dataclass_in, describe, fields_of, listed_in, said
from .keys import shown
from .recipe import BLOCKS, model_fields

OPTIONS_OF = ("prepare", "evaluate", "collect", "grade")
"""The commands that have more than a few options."""


def page() -> str:
    """``docs/settings.md``: the blocks of a recipe, and the options of the commands that have many."""
    parts = [
        "# Settings",
        "The page is made of the declarations in the code: `python -m prefix_rl.reference > docs/settings.md`.",
        "## A recipe's blocks",
        "`training` holds the fields of TRL's `GRPOConfig` by their own names, and three of ours. `kl_on`: where the "
        "KL of `beta` falls, on tokens that move (`moving`, the default) or `all` of a completion. "
        "`groups_without_signal`: groups from which nothing is learned stay in the batch (`keep`, the default), are "
        "spared the passes of the update, with the same gradient (`spare`), are left out of the loss and of its "
        "normalizer (`skip`), or other problems take their place, up to "
        "`resample_rounds` (3) times a step (`resample`), see [signal.md](signal.md). Each `method`'s are on its page "
        "in [methods/](methods/). `prefix-rl schema > recipe.schema.json` writes all of them, with types, bounds and "
        "defaults, for an editor that completes YAML.",
    ]
    for block, cls in BLOCKS.items():
        if fields := model_fields(docs=True) if block == "model" else cls and fields_of(cls, docs=True):
            parts += [f"### `{block}`", *_tables(fields)]
    parts += ["## Options of the commands", "`prefix-rl COMMAND --help` says the same."]
    for name in OPTIONS_OF:
        parts += [f"### `prefix-rl {name}`", _options(name)]
    return "\n\n".join(parts) + "\n"


def _tables(fields: Mapping[str, Field], at: str = "") -> list[str]:
    """The table of a block, and behind it those of the blocks inside."""
    rows = [(f"`{at}{name}`", describe(f.type), shown(f.default), f.doc) for name, f in fields.items()]
    inner = [(name, cls) for name, f in fields.items() if (cls := dataclass_in(f.type) or listed_in(f.type))]
    return [_table(("key", "takes", "default", ""), rows)] + [
        table for name, cls in inner for table in _tables(fields_of(cls, docs=True), f"{at}{name}.")
    ]


def _options(command: str) -> str:
    rows = []
    for option in get_command(app).commands[command].params:
        if option.param_type_name == "option" and option.name != "help":
            default = REQUIRED if option.required else option.default
            rows.append((f"`{option.opts[0]}`", shown(default), (option.help or "").replace("\n", " ")))
    return _table(("option", "default", ""), rows)


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(said(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


if __name__ == "__main__":
    print(page(), end="")
