"""The prefixes that a recipe will draw on its data, before it trains."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, quantiles

from ..batches import batches, world_size
from ..cuts import needs_scores
from ..data.tokenizer import DemonstrationTable
from ..errors import RecipeError
from ..recipe import Recipe
from ..rollouts import Row, Step


@dataclass(frozen=True)
class Lengths:
    """The prefixes of one step: lengths in tokens over all problems that have a demonstration."""

    step: int
    tokens: list[int]
    fractions: list[float]  # of the demonstration
    shortened: float  # share of the prefixes that the answer guard or the budget cut shorter than drawn

    @property
    def deciles(self) -> tuple[float, float, float]:
        """The 10th, 50th and 90th percentile of the lengths."""
        if len(self.tokens) < 2:
            return (float(self.tokens[0]),) * 3
        cuts = quantiles(self.tokens, n=10, method="inclusive")
        return cuts[0], cuts[4], cuts[8]


def total_steps(recipe: Recipe, rows: int) -> int:
    """Number of optimizer steps that a recipe makes; ``rows``: number of rows in an epoch."""
    if recipe.training_value("max_steps") > 0:
        return recipe.training_value("max_steps")
    found = batches(recipe, world_size())
    return int(recipe.training_value("num_train_epochs") * (rows // found.prompts) * found.steps)


def preview(
    recipe: Recipe, table: DemonstrationTable, points: int = 11, repeats: Sequence[int] | None = None
) -> list[Lengths]:
    """The prefixes that the method draws at ``points`` steps from the first to the last.

    Of a method whose lengths follow from what happens in the run these are the first ones, as if nothing had happened.

    Raises:
        RecipeError: if the method draws none.
    """
    group_size = recipe.training_value("num_generations")
    if not recipe.method.needs.prefixes:
        raise RecipeError(f"method {recipe.method_name} with these settings starts no rollout from a prefix")
    if needs_scores(recipe.method.needs.cut):
        raise RecipeError(
            f"prefixes that are cut by {recipe.method.needs.cut} follow from what the policy says of each "
            "demonstration before the first step: there is nothing to show beforehand (the run logs prefix/length)"
        )
    copies = recipe.method.copies([bool(table[problem]) for problem in range(len(table))])
    epoch = [(problem, copy) for problem, count in enumerate(copies) for copy in range(count)]
    total = total_steps(recipe, len(epoch) if repeats is None else sum(repeats[problem] for problem, _ in epoch))
    rows = [
        Row(group * group_size + member, group_size, problem, table[problem], copy)
        for group, (problem, copy) in enumerate(epoch) if table[problem] for member in range(group_size)
    ]  # fmt: skip
    found = []
    for step in sorted({round(i * max(total - 1, 0) / max(points - 1, 1)) for i in range(points)}):
        now = Step(step, total, recipe.training_value("seed"), recipe.training_value("max_completion_length"))
        plan = [recipe.method.prefix(row, now) for row in rows]
        drawn = [p for p in plan if p and p.drawn]
        if not any(p and (p.drawn or not p.of) for p in plan):
            found.append(Lengths(step, [0], [0.0], 0.0))  # a schedule that has come down to nothing
            continue
        if not drawn:
            raise RecipeError(f"no demonstration of {recipe.data.named} can be cut into a prefix")
        found.append(
            Lengths(
                step,
                [len(p.ids) for p in drawn],
                [p.fraction for p in drawn],
                mean(len(p.ids) < p.drawn for p in drawn),
            )
        )
    if not any(lengths.tokens != [0] for lengths in found):
        raise RecipeError(
            f"method {recipe.method_name} starts no rollout from a prefix at any of the steps looked at, or decides it "
            "by how the run goes, or no demonstration has a place to cut before its answer: there is nothing to show"
        )
    return found


def table_of(preview: Sequence[Lengths]) -> str:
    """The preview as text."""
    titles = ("step", "tokens: 10 %", "median", "90 %", "longest", "mean share", "shortened")
    widths = (6, 12, 6, 6, 7, 10, 9)
    lines = ["  ".join(title.rjust(width) for title, width in zip(titles, widths, strict=True))]
    for at in preview:
        low, middle, high = at.deciles
        lines.append(
            f"{at.step:>6}  {low:>12.0f}  {middle:>6.0f}  {high:>6.0f}  {max(at.tokens):>7}  "
            f"{mean(at.fractions):>10.2f}  {at.shortened:>9.0%}"
        )
    return "\n".join(lines)


def plot(preview: Sequence[Lengths], title: str, path: Path) -> None:
    """Lengths and fractions over the run."""
    from .plots import COLORS, figure, save

    fig, (left, right) = figure(1, 2, width=9, height=3.4)
    steps = [at.step for at in preview]
    low, middle, high = zip(*(at.deciles for at in preview), strict=True)
    left.fill_between(steps, low, high, color=COLORS[0], alpha=0.2, label="80 % of the prefixes")
    left.plot(steps, middle, color=COLORS[0], label="median")
    left.set(xlabel="step", ylabel="prefix length (tokens)", ylim=(0, None))
    left.legend()
    right.plot(steps, [mean(at.fractions) for at in preview], color=COLORS[0], label="mean share of the demonstration")
    right.plot(steps, [at.shortened for at in preview], color=COLORS[1], label="share of prefixes shortened")
    right.set(xlabel="step", ylabel="fraction", ylim=(0, 1))
    right.legend()
    fig.suptitle(title)
    save(fig, path)
