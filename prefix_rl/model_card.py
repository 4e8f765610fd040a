"""The model card beside every saved policy: its method, data, base model, and how to evaluate it."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from . import __version__
from .parts import write_text

if TYPE_CHECKING:
    from .recipe import Recipe

_ARXIV = re.compile(r"arXiv (\d{4}\.\d{5})")


def card(recipe: Recipe) -> str:
    """The card of policies that a recipe trains, as Markdown with the header that the hub reads."""
    base, data = recipe.model.name_or_path, recipe.data.named
    about = sys.modules[type(recipe.method).__module__].__doc__ or ""
    papers = list(dict.fromkeys(_ARXIV.findall(about)))
    what = about.strip().split("\n")[0] or recipe.method_name
    links = ", ".join(f"[arXiv {paper}](https://arxiv.org/abs/{paper})" for paper in papers)
    shown = f"base_model: {base}\n" if not Path(base).exists() and base != "lab" else ""
    reference = f"\nPaper: {links}.\n" if links else ""
    return f"""---
library_name: transformers
{shown}tags: [prefix_rl, {recipe.method_name}]
---

# {Path(recipe.output.dir).name}

Trained from `{base}` on {data} with prefix_rl {__version__}, method `{recipe.method_name}`.

{what}
{reference}
The resolved recipe is `recipe.yaml` in the folder of the run. To measure this policy (prompts as in training, never a
prefix):

```sh
prefix-rl evaluate {recipe.output.dir} --on math500,aime24
```
"""


class OwnCard:
    """Mixed into a trainer of TRL: each policy that it saves has our card, and TRL writes none.

    Args:
        card: the text.
        *args, **kwargs: of the trainer.
    """

    def __init__(self, *args, card: str, **kwargs):
        self.card = card
        super().__init__(*args, **kwargs)

    def save_model(self, output_dir=None, _internal_call=False):
        super().save_model(output_dir, _internal_call)
        if self.args.should_save:
            write_text(Path(output_dir or self.args.output_dir, "README.md"), self.card)

    def create_model_card(self, *args, **kwargs):
        """Nothing: TRL's names GRPO as the method."""
