"""Recipes: one YAML file for one run.

A recipe has the blocks ``model``, ``data``, ``method``, ``reward``, ``training``, ``budget``, ``speed``,
``engine``, ``evaluation``, ``output`` and ``safety``. The
``method`` block holds the fields of the method that it names; the ``training`` block holds TRL's ``GRPOConfig`` fields,
by their own names. Whatever is wrong with a recipe is reported here, all of it at once, before a model is touched.
"""

from __future__ import annotations

import copy
import dataclasses
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from annotated_types import Ge, Gt, Interval, Le

from . import adapters, contradictions, grpo_fields, includes, methods, yaml12
from .batches import batches, world_size  # noqa: F401  callers have them from here
from .data import problems as data_problems
from .data.mixing import Mixture, Source, mixed
from .data.problems import Problem
from .data.turns import prompt_of  # noqa: F401  callers have it from here
from .engines.settings import EngineSettings
from .errors import DataError, RecipeError, UnreachableError, at_most, nearest
from .evaluation.settings import Evaluation
from .fields import REQUIRED, Field, check, fields_of
from .lab.world import World, held_out_problems, training_problems
from .methods.base import Method
from .methods.combined import Combined
from .prefixes import AnswerGuard
from .rewards import functions
from .rewards.settings import Reward
from .rewards.workers import Grader
from .safety.settings import Safety
from .speed.settings import Speed

Fraction = Annotated[float, Interval(ge=0, le=1)]
LAB = "lab"
"""Name of the lab's own model, and of its data set."""


@dataclass(frozen=True)
class Model:
    """The policy to train. The block also takes TRL's ``ModelConfig`` keys of adapters and quantization (use_peft)."""

    name_or_path: str
    """A folder, a name on the hub, or ``lab`` for the lab's base policy."""
    revision: str | None = None
    """A branch, tag or commit on the hub."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Type of the weights; null: float32. bfloat16 belongs to DeepSpeed, whose optimizer keeps float32 masters."""
    attn_implementation: str | None = None
    """Attention, by its name in transformers: sdpa, flash_attention_2, ..."""
    chat_template: str | None = None
    """A Jinja file that replaces the tokenizer's chat template."""
    date: str | None = None
    """The date (2026-11-25) that a chat template with a date in it shows; null: that of the day on which the run, the
    collection or the evaluation began."""
    peft: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Keys of ``ModelConfig`` that the block sets, by their own names (see :mod:`prefix_rl.adapters`)."""


@dataclass(frozen=True)
class Data(Mixture):
    """Problems that it is trained on."""

    train: str | tuple[Source, ...]
    """A file of training rows, a data set on the hub, or ``lab``; or several files, each ``{file, weight}``: the share
    of the prompts that are a file's goes by its weight (see docs/data.md)."""
    split: str = "train"
    """The split, of a data set on the hub."""
    limit: Annotated[int, Ge(1)] | None = None
    """Use the first rows only, of each file."""
    traces: str | None = None
    """A trace store (`prefix-rl collect`): its right traces take the place of the demonstrations, and what they cost
    counts as this run's."""
    demonstration_share: Fraction = 1.0
    """The share of the problems that keep their demonstrations (Prefix-RFT's 10 % and 1 %)."""
    prompt: Literal["chat", "plain"] = "chat"
    """chat: the problem is a user turn, or several turns, through the chat template. plain: the prompt is the text
    itself."""
    system_prompt: str | None = None
    """A system turn before it (chat only). A problem's own system turn goes before this one."""
    instruction: str = ""
    """Appended to every problem."""
    answer_guard: AnswerGuard = "mention"
    """Latest end of a prefix: before the answer is first mentioned, before it is first stated as the
    answer, before an expression that is worth it (computed), or anywhere (none, as in the papers)."""
    lab: World | None = None
    """Settings of the lab, where the model or the data are the lab's."""


@dataclass(frozen=True)
class Budget:
    """Limit of what a run spends, everything included: collected traces, supervised stage, rollouts, updates."""

    flops: Annotated[float, Gt(0)] | None = None
    """Floating-point operations (2ND + 6ND) at which training stops; null: training.max_steps decides."""


@dataclass(frozen=True)
class Output:
    """Files that are kept of the run."""

    dir: str
    """The run's folder."""
    resume: Literal["auto", "never"] = "auto"
    """auto: continue from the last whole checkpoint of the same recipe, if there is one. never: refuse a folder that
    holds a run."""
    rollouts_every: Annotated[int, Ge(0), Le(10**9)] = 10
    """Save the rollouts of every n-th generation; 0: none."""


BLOCKS: dict[str, type | None] = {
    "model": None, "data": Data, "method": None, "reward": Reward, "training": None, "budget": Budget,
    "speed": Speed, "engine": EngineSettings, "evaluation": Evaluation, "output": Output,
    "safety": Safety,
}  # fmt: skip


@dataclass(frozen=True)
class Recipe:
    """A recipe whose every value has been checked."""

    model: Model
    data: Data
    method: Method
    method_name: str
    reward: Reward
    training: Mapping[str, Any]
    budget: Budget
    speed: Speed
    engine: EngineSettings
    evaluation: Evaluation
    output: Output
    safety: Safety

    def resolved(self) -> dict[str, Any]:
        """The recipe with every default written out: a recipe again, and equal to this one when loaded."""
        plain = {
            name: dataclasses.asdict(getattr(self, name)) for name, cls in BLOCKS.items() if cls or name == "model"
        }
        plain["method"] = _as_given(self.method_name, self.method)
        plain["training"] = dict(self.training)
        plain["model"] |= plain["model"].pop("peft")
        return {name: plain[name] for name in BLOCKS}

    def dump(self) -> str:
        """:meth:`resolved` as YAML."""
        return yaml.safe_dump(self.resolved(), sort_keys=False, allow_unicode=True)

    @property
    def uses_demonstrations(self) -> bool:
        """True if the method can do nothing of its own without demonstrations."""
        return self.method.needs.prefixes or self.method.needs.hint is not None or self.uses_supervision

    @property
    def uses_supervision(self) -> bool:
        """True if there is a supervised stage."""
        return bool(self.method.stages.supervised and self.method.stages.supervised.epochs)

    @property
    def world(self) -> World:
        """The lab's settings."""
        return self.data.lab or World()

    def grader(self) -> Grader | functions.FunctionGrader:
        """What decides whether a completion is right: the first of ``reward.functions``."""
        return functions.verdicts(self.reward.functions, self._mathematics())

    def rewards(self) -> functions.Rewards:
        """What completions are rewarded by."""
        return functions.Rewards(self.reward.functions, self._mathematics())

    def _mathematics(self) -> Grader:
        """What grades ``math``: the lab's world where it has a check of its own, else the workers of ``reward``."""
        own = self.world.grader() if self.uses_lab else None
        return own or self.reward.grader()

    @property
    def needs_answers(self) -> bool:
        """Whether the rows must have a gold answer."""
        return self.method.stages.needs_answers and "answer" in self.reward.columns

    @property
    def at_once(self) -> int:
        """Completions in the making at a time, in one process."""
        return self.evaluation.batch_size or (1024 if self.engine.name == "vllm" else 64)

    @property
    def evaluation_length(self) -> int:
        """The most tokens that a completion may have in an evaluation."""
        return self.evaluation.max_completion_length or self.training_value("max_completion_length")

    @property
    def arguments(self) -> dict[str, Any]:
        """Arguments of TRL that the ``training`` block sets, with the weights of the rewards."""
        ours = {"reward_weights": list(self.reward.weights)} if self.reward.weights is not None else {}
        given = {key: value for key, value in self.training.items() if key not in _BESIDE_TRLS}
        # transformers refuses whole numbers there, although they mean the same
        return (
            given
            | {key: float(given[key]) for key in _NO_WHOLE_NUMBERS & given.keys() if given[key] is not None}
            | ours
        )

    @property
    def uses_lab(self) -> bool:
        """True if the policy or the problems are the lab's."""
        return LAB in (self.model.name_or_path, self.data.train)

    @property
    def whole_training(self) -> dict[str, Any]:
        """The ``training`` block with TRL's defaults."""
        return {name: field.default for name, field in training_fields().items()} | dict(self.training)

    @property
    def beside_trls(self) -> dict[str, Any]:
        """The values of the ``training`` block that are not TRL's."""
        return {name: self.training_value(name) for name in _BESIDE_TRLS}

    def training_value(self, name: str) -> Any:
        """A value of the ``training`` block, or TRL's default."""
        return self.training[name] if name in self.training else training_fields()[name].default


def load_recipe(path: str | os.PathLike | Mapping[str, Any], overrides: Sequence[str] = ()) -> Recipe:
    """The recipe in a YAML file (or what such a file would hold), with ``block.key=value`` overrides applied.

    Raises:
        RecipeError: with every fault that shows without reading the data.
    """
    recipe, faults, given = _read(path, overrides)
    raise_if(path, given.placed(faults, overrides))
    return recipe


@dataclass(frozen=True)
class Reading:
    """A recipe with its data, and what is wrong with them."""

    recipe: Recipe | None
    """The recipe; None if its values are too wrong to build one."""
    train: list[Problem]
    held_out: list[Problem]
    faults: list[str]
    missing: list[str]
    """Things that could not be looked at from here: data sets of a hub that does not answer."""


def read_run(path: str | os.PathLike, overrides: Sequence[str] = ()) -> Reading:
    """The recipe, the problems to train on, those to evaluate on while training, and every fault of all three."""
    recipe, faults, given = _read(path, overrides)
    train, held_out, missing = [], [], []
    if recipe:
        sources = [("data.train", train, training_data)]
        if recipe.training_value("eval_strategy") not in ("no", None):
            sources.append(("evaluation.data", held_out, evaluation_data))
        for name, into, load in sources:
            try:
                into += load(recipe)
            except UnreachableError as error:
                missing.append(f"{name}: {error}")
            except DataError as error:
                stored = recipe.data.traces and recipe.data.traces in error.what
                faults += [f"{'data.traces' if stored else name}: {error.what}", *error.faults]
        if train:
            faults += contradictions.with_data(recipe, train)
            if recipe.reward.takes_columns:
                both = {"data.train": train, "evaluation.data": held_out}
                faults += contradictions.with_columns(recipe.reward.functions, both)
            faults += contradictions.overlap(recipe, train, _never_to_train_on(recipe, held_out))
    return Reading(recipe, train, held_out, given.placed(faults, overrides), missing)


def load_run(path: str | os.PathLike, overrides: Sequence[str] = ()) -> tuple[Recipe, list[Problem], list[Problem]]:
    """The recipe, the problems to train on, and those to evaluate on while training.

    Raises:
        RecipeError: with every fault of the recipe and of the data.
    """
    found = read_run(path, overrides)
    raise_if(path, [*found.faults, *found.missing])
    return found.recipe, found.train, found.held_out


def training_data(recipe: Recipe) -> list[Problem]:
    """The problems that this recipe trains on."""
    data = recipe.data
    if data.train == LAB:
        found = training_problems(recipe.world)[: data.limit]
    else:
        answers, columns = recipe.needs_answers, recipe.reward.takes_columns
        loaded = [data_problems.load(s.file, data.split, data.limit, answers, columns) for s in data.sources]
        found = loaded[0] if len(loaded) == 1 else mixed(data.sources, loaded, recipe.training_value("seed"))
    if data.traces is not None:
        from .data.attach import attach
        from .data.traces import TraceStore

        store = TraceStore.open(Path(data.traces))
        found = attach(found, store, method=recipe.method, seed=recipe.training_value("seed"))
    return data_problems.with_demonstrations_for(found, data.demonstration_share, recipe.training_value("seed"))


def evaluation_data(recipe: Recipe) -> list[Problem]:
    """The problems that this recipe evaluates on; none if it does not evaluate."""
    evaluation = recipe.evaluation
    if evaluation.data is None:
        return []
    if evaluation.data == LAB:
        return held_out_problems(recipe.world)[: evaluation.limit]
    needs = "answer" in recipe.reward.columns
    return data_problems.load(evaluation.data, evaluation.split, evaluation.limit, needs, recipe.reward.takes_columns)


def _never_to_train_on(recipe: Recipe, held_out: list[Problem]) -> list[Problem]:
    """The problems to evaluate on, from a file also if that is done later only; none where an overlap is allowed."""
    evaluation = recipe.evaluation
    if evaluation.allow_overlap or evaluation.data is None:
        return []
    if not held_out and (evaluation.data == LAB or os.path.isfile(evaluation.data)):
        try:
            return evaluation_data(recipe)
        except DataError:
            return []  # whoever evaluates on it is told
    return held_out


# --- reading and checking ---------------------------------------------------------------------------------------------


_NO_WHOLE_NUMBERS = {"temperature", "top_p", "min_p", "repetition_penalty"}
_BESIDE_TRLS = {
    "kl_on": Field(
        Literal["moving", "all"], "moving", "Tokens on which the KL of beta falls: those that move, or all."
    ),
    "groups_without_signal": Field(
        Literal["keep", "spare", "skip", "resample"], "keep",
        "Groups from which nothing is learned: they stay in the batch (keep), are spared the update's passes, with the "
        "same gradient (spare), are left out of loss and normalizer (skip), or other problems take their place, and "
        "what is left is skipped (resample).",
    ),
    "resample_rounds": Field(Annotated[int, Ge(1)], 3, "Rounds of other problems within a step, at most."),
}  # fmt: skip
"""Keys of the training block that are not TRL's."""


def read_yaml(path: str | os.PathLike) -> dict:
    """The mapping in a YAML file, as it stands there: with ``include`` unread.

    Raises:
        RecipeError: if there is no such file, it is no UTF-8, no YAML, empty, or something other than a mapping.
    """
    return yaml12.read(path, BLOCKS)


def model_fields(docs: bool = False) -> dict[str, Field]:
    """The keys that the ``model`` block may hold: ours, and those of TRL's ``ModelConfig`` for adapters."""
    ours = {key: field for key, field in fields_of(Model, docs).items() if key != "peft"}
    return ours | adapters.fields()


def training_fields() -> dict[str, Field]:
    """The keys that the ``training`` block may hold: the fields of TRL's ``GRPOConfig`` within their bounds, and ours
    beside them."""
    return grpo_fields.grpo_fields() | _BESIDE_TRLS


_FIXED = {"loss_type": "dr_grpo", "scale_rewards": "none"}


def _read(
    path: str | os.PathLike | Mapping[str, Any], overrides: Sequence[str]
) -> tuple[Recipe | None, list[str], includes.Given]:
    """The recipe, its faults, and what was given. Wrong values stand at their defaults in the recipe, so that further
    faults show too."""
    read = includes.Given(dict(path)) if isinstance(path, Mapping) else includes.read(path, BLOCKS)
    given = copy.deepcopy(read.values)
    misplaced = yaml12.apply(overrides, given, BLOCKS)
    _move_engine(given)
    for block in sorted(given.keys() - BLOCKS.keys(), key=str):
        misplaced.append(f"{block}: no such block{nearest(block, BLOCKS)}; there are {', '.join(BLOCKS)}")
    blocks: dict[str, Any] = {}
    faults: dict[str, str] = {}
    for block, cls in BLOCKS.items():
        if cls:
            values, of_block = check(block, given.get(block), fields_of(cls))
            complete = all(f.default is not REQUIRED or name in values for name, f in fields_of(cls).items())
            blocks[block] = cls(**values) if complete else None
        elif block == "method":
            blocks["method_name"], blocks[block], of_block = _method(given.get(block))
        elif block == "model":
            blocks[block], of_block = _model(given.get(block))
        else:
            blocks[block], of_block = _training(given.get(block))
        faults |= of_block
    listed = misplaced + [f"{name}{'' if what.startswith('=') else ':'} {what}" for name, what in faults.items()]
    if any(value is None for value in blocks.values()):
        return None, listed, read
    recipe = Recipe(**blocks)
    doubtful = _doubtful(faults)
    contradicting = contradictions.between_blocks(recipe)
    return recipe, listed + [f for f in contradicting if not any(name in f for name in doubtful)], read


def _move_engine(given: dict[str, Any]) -> None:
    """``evaluation.engine`` became ``engine.name``; the recipes of older runs still have it there."""
    evaluation, engine = given.get("evaluation"), given.get("engine") or {}
    if isinstance(evaluation, dict) and "engine" in evaluation and isinstance(engine, dict) and "name" not in engine:
        given["engine"] = {"name": evaluation.pop("engine"), **engine}


def _doubtful(faults: Mapping[str, str]) -> set[str]:
    """The keys whose value is not what was meant: the wrong ones, and those that a misspelt one stands for."""
    meant = {f"{name.rpartition('.')[0]}.{m[1]}" for name, what in faults.items()
             if (m := re.search(r"did you mean (\w+)", what))}  # fmt: skip
    return faults.keys() | meant


def _as_given(name: str, method: Method) -> dict[str, Any]:
    """The ``method`` block that makes this method."""
    block = {"name": name, **dataclasses.asdict(method)}
    if isinstance(method, Combined):
        block["of"] = _as_given(methods.name_of(method.of), method.of)
    return block


def _method(
    given: object, where: str = "method", known: Sequence[str] = ()
) -> tuple[str | None, Method | None, dict[str, str]]:
    """Name, method and faults. ``known``: what can stand here, where not every method can."""
    if isinstance(given, str):
        return None, None, {where: f"= {given}: must be a block, {where}: {{name: {given}}}"}
    if not isinstance(given, Mapping) or not isinstance(given.get("name"), str):
        return None, None, {f"{where}.name": f"is missing: give one of {', '.join(known or methods.names())}"}
    name = given["name"]
    try:
        cls = methods.find(name)
    except LookupError as error:
        return None, None, {f"{where}.name": f"= {name}: {error}{nearest(name, methods.names())}"}
    having: dict[str, list[str]] = {}
    for other in methods.names():
        for key in fields_of(methods.find(other)):
            having.setdefault(key, []).append(other)
    elsewhere = {key: f"is a setting of {', '.join(others)}, not of {name}" for key, others in having.items()}
    fields, own = fields_of(cls), {k: v for k, v in given.items() if k != "name"}
    of_faults = {}
    if issubclass(cls, Combined) and "of" in own:
        _, method, of_faults = _method(own.pop("of"), f"{where}.of", cls.takes)
        fields["of"] = Field(Method, method or fields["of"].default)  # a wrong one has its own fault: it is not missing
    values, faults = check(where, own, fields, elsewhere)
    complete = all(field.default is not REQUIRED or key in values for key, field in fields.items())
    return name, cls(**values) if complete else None, faults | of_faults


def _model(given: object) -> tuple[Model | None, dict[str, str]]:
    """The ``model`` block: keys of ours, and of TRL's ``ModelConfig`` what the recipe sets."""
    if (
        isinstance(given, Mapping) and given.get("lora", ...) is None
    ):  # as an earlier version wrote it, without adapters
        given = {key: value for key, value in given.items() if key != "lora"}
    values, faults = check("model", given, model_fields(), adapters.OTHER_KEYS)
    if "name_or_path" not in values:
        return None, faults
    peft = {key: values[key] for key in given if key in adapters.fields() and f"model.{key}" not in faults}
    return Model(**{key: value for key, value in values.items() if key not in adapters.fields()}, peft=peft), faults


def _training(given: object) -> tuple[dict | None, dict[str, str]]:
    """Keys of the training block that the recipe sets (not TRL's defaults), and Dr.GRPO's two choices."""
    if given is not None and not isinstance(given, Mapping):
        return None, {"training": "must be a block of keys and values"}
    given, faults = dict(given or {}), {}
    for key, ours in _FIXED.items():
        theirs = given.pop(key, ours)
        if theirs != ours and not (key == "scale_rewards" and theirs is False):
            faults[f"training.{key}"] = (
                f"= {theirs}: every method here is built on Dr.GRPO, which needs {key} = {ours} (no division by a "
                "completion's length, nor by a group's standard deviation); leave the key out"
            )
    faults |= {f"training.{key}": reason for key, reason in grpo_fields.refused(given).items()}
    rest = {key: value for key, value in given.items() if key not in grpo_fields.REFUSED}
    values, of_keys = check("training", rest, training_fields(), grpo_fields.OLD)
    return {key: values[key] for key in rest if key in values} | _FIXED, faults | of_keys


def raise_if(path: str | os.PathLike | Mapping[str, Any], faults: Sequence[str]) -> None:
    """Raises a RecipeError that lists the faults, if there are any."""
    if faults:
        name = "the settings given" if isinstance(path, Mapping) else os.fspath(path)
        count = f"{len(faults)} problem{'s' if len(faults) > 1 else ''}"
        raise RecipeError(f"{name}: {count}, nothing was started", at_most(faults, 40))
