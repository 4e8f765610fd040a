"""Recipes: one YAML file for one run.

A recipe has the blocks ``model``, ``data``, ``method``, ``reward``, ``training``, ``budget``, ``speed``,
``evaluation`` and ``output``. The
``method`` block holds the fields of the method that it names; the ``training`` block holds TRL's ``GRPOConfig`` fields,
by their own names. Whatever is wrong with a recipe is found here, all of it at once, before a model is touched.
"""

from __future__ import annotations

import copy
import dataclasses
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import yaml
from annotated_types import Ge, Gt, Interval

from . import methods
from .data import contamination
from .data import problems as data_problems
from .data.problems import Problem
from .errors import DataError, RecipeError, at_most, nearest
from .fields import REQUIRED, Field, check, fields_from_source, fields_of
from .lab.world import World, held_out_problems, training_problems
from .methods.base import Method
from .methods.combined import Combined
from .methods.stage import ROLLOUTS
from .prefixes import AnswerGuard
from .rewards.equality import TRAINING_RULES, Rules
from .rewards.workers import Grader
from .speed.settings import Speed

Fraction = Annotated[float, Interval(ge=0, le=1)]
LAB = "lab"
"""As a model or a data set: the lab's own."""


@dataclass(frozen=True)
class Lora:
    """Train adapters instead of the model (peft's ``LoraConfig``)."""

    r: Annotated[int, Ge(1)] = 16
    lora_alpha: Annotated[float, Gt(0)] = 32
    lora_dropout: Fraction = 0.0
    target_modules: str | tuple[str, ...] = "all-linear"


@dataclass(frozen=True)
class Model:
    """The policy to train."""

    name_or_path: str
    """A folder, a name on the hub, or ``lab`` for the lab's base policy."""
    revision: str | None = None
    """A branch, tag or commit on the hub."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Of the loaded weights; null: float32. bfloat16 belongs to DeepSpeed, whose optimizer keeps float32 masters."""
    attn_implementation: str | None = None
    """As transformers names it: sdpa, flash_attention_2, ..."""
    chat_template: str | None = None
    """A Jinja file that replaces the tokenizer's chat template."""
    lora: Lora | None = None
    """Train LoRA adapters; null: all parameters."""


@dataclass(frozen=True)
class Data:
    """What it is trained on."""

    train: str
    """A file of training rows, a data set on the hub, or ``lab``."""
    split: str = "train"
    """The split, of a data set on the hub."""
    limit: Annotated[int, Ge(1)] | None = None
    """Use the first rows only."""
    traces: str | None = None
    """A trace store (`prefix-rl collect`): its right traces take the place of the demonstrations, and what they cost
    counts as this run's."""
    demonstration_share: Fraction = 1.0
    """The share of the problems that keep their demonstrations (Prefix-RFT's 10 % and 1 %)."""
    prompt: Literal["chat", "plain"] = "chat"
    """chat: the problem is a user turn, through the chat template. plain: the prompt is the text itself."""
    system_prompt: str | None = None
    """A system turn before it (chat only)."""
    instruction: str = ""
    """Appended to every problem."""
    answer_guard: AnswerGuard = "mention"
    """Where a prefix must end at the latest: before the answer is first mentioned, before it is first stated as the
    answer, or anywhere (none, as in the papers)."""
    lab: World | None = None
    """Settings of the lab, where the model or the data are the lab's."""


@dataclass(frozen=True)
class Reward(Rules):
    """How completions are graded: the processes that do it, and the rules (see docs/grading.md)."""

    fallback: Literal["last", "none"] = TRAINING_RULES.fallback
    """none: an answer must be marked. last: without a mark, the last formula or number of the text."""
    workers: Annotated[int, Ge(1)] = 2
    """Grading processes on each rank."""
    deadline: Annotated[float, Gt(0)] = 5.0
    """Seconds that one sample may take."""
    memory_mb: Annotated[int, Ge(256)] = 2048
    """Address space of one grading process, MiB."""

    def grader(self) -> Grader:
        """The workers that grade by these settings; they start when first needed."""
        rules = Rules(**{f.name: getattr(self, f.name) for f in dataclasses.fields(Rules)})
        return Grader(self.workers, self.deadline, self.memory_mb, rules)


@dataclass(frozen=True)
class Evaluation:
    """What it is evaluated on, and how; never with a prefix, except at ``prefix_fractions``."""

    data: str | None = None
    """A file of problems, a data set on the hub, or ``lab``: for accuracy while training, and for `prefix-rl evaluate`
    unless ``on`` is given. null: none."""
    split: str = "test"
    limit: Annotated[int, Ge(1)] | None = None
    """The first problems only (of each benchmark)."""
    allow_overlap: bool = False
    """Train although problems of ``data`` stand among the training problems."""
    on: tuple[str, ...] = ()
    """What `prefix-rl evaluate` measures on: names of benchmarks (math500), name=FILE, files of problems."""
    benchmarks: str | None = None
    """A folder with local files of the named benchmarks (math500.jsonl); null: $PREFIX_RL_BENCHMARKS, or else the
    hub."""
    samples: Annotated[int, Ge(1)] | None = None
    """Completions for each problem; null: the benchmark's own number (32 for AIME and AMC, 1 elsewhere)."""
    k: tuple[Annotated[int, Ge(1)], ...] = ()
    """Of pass@k and maj@k; empty: the number of samples."""
    engine: Literal["transformers", "vllm"] = "transformers"
    """What generates."""
    temperature: Annotated[float, Ge(0)] = 1.0
    """0: greedy."""
    top_p: Annotated[float, Interval(gt=0, le=1)] = 1.0
    """Sample from the most likely tokens that together have this probability."""
    max_completion_length: Annotated[int, Ge(2)] | None = None
    """Tokens; null: training.max_completion_length."""
    batch_size: Annotated[int, Ge(1)] | None = None
    """Completions generated and saved together; null: 64, with vLLM 1,024."""
    prefix_fractions: tuple[Fraction, ...] = ()
    """Also the accuracy from these fractions of a demonstration."""
    seed: int = 0

    @property
    def at_once(self) -> int:
        """Completions generated together."""
        return self.batch_size or (64 if self.engine == "transformers" else 1024)


@dataclass(frozen=True)
class Budget:
    """What a run may spend, everything included: collected traces, supervised stage, rollouts, updates."""

    flops: Annotated[float, Gt(0)] | None = None
    """Floating-point operations (2ND + 6ND) at which training stops; null: training.max_steps decides."""


@dataclass(frozen=True)
class Output:
    """What is kept of the run."""

    dir: str
    """The run's folder."""
    resume: Literal["auto", "never"] = "auto"
    """auto: continue from the last whole checkpoint of the same recipe, if there is one. never: refuse a folder that
    holds a run."""
    rollouts_every: Annotated[int, Ge(0)] = 10
    """Save the rollouts of every n-th generation; 0: none."""


BLOCKS: dict[str, type | None] = {
    "model": Model, "data": Data, "method": None, "reward": Reward, "training": None, "budget": Budget,
    "speed": Speed, "evaluation": Evaluation, "output": Output,
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
    evaluation: Evaluation
    output: Output

    def resolved(self) -> dict[str, Any]:
        """The recipe with every default written out: a recipe again, and equal to this one when loaded."""
        plain = {name: dataclasses.asdict(getattr(self, name)) for name, cls in BLOCKS.items() if cls}
        plain["method"] = _as_given(self.method_name, self.method)
        plain["training"] = dict(self.training)
        return {name: plain[name] for name in BLOCKS}

    def dump(self) -> str:
        """:meth:`resolved` as YAML."""
        return yaml.safe_dump(self.resolved(), sort_keys=False, allow_unicode=True)

    @property
    def uses_demonstrations(self) -> bool:
        """Whether the method can do nothing of its own without demonstrations."""
        return self.method.needs.prefixes or self.uses_supervision

    @property
    def uses_supervision(self) -> bool:
        """Whether there is a supervised stage."""
        return bool(self.method.stages.supervised and self.method.stages.supervised.epochs)

    @property
    def world(self) -> World:
        """The lab's settings."""
        return self.data.lab or World()

    def grader(self) -> Grader:
        """What grades completions: the lab's world where it has a check of its own, else the workers of ``reward``."""
        own = self.world.grader() if self.data.train == LAB or self.model.name_or_path == LAB else None
        return own or self.reward.grader()

    @property
    def evaluation_length(self) -> int:
        """The most tokens that a completion may have in an evaluation."""
        return self.evaluation.max_completion_length or self.training_value("max_completion_length")

    @property
    def arguments(self) -> dict[str, Any]:
        """What the ``training`` block sets of TRL's own."""
        return {key: value for key, value in self.training.items() if key not in _BESIDE_TRLS}

    def training_value(self, name: str) -> Any:
        """A value of the ``training`` block, or TRL's default."""
        return self.training[name] if name in self.training else _training_fields()[name].default


def load_recipe(path: str | os.PathLike | Mapping[str, Any], overrides: Sequence[str] = ()) -> Recipe:
    """The recipe in a YAML file (or what such a file would hold), with ``block.key=value`` overrides applied.

    Raises:
        RecipeError: with every problem that can be found without reading the data.
    """
    recipe, problems = _read(path, overrides)
    _raise_if(path, problems)
    return recipe


def load_run(path: str | os.PathLike, overrides: Sequence[str] = ()) -> tuple[Recipe, list[Problem], list[Problem]]:
    """The recipe, the problems to train on, and those to evaluate on while training.

    Raises:
        RecipeError: with every problem of the recipe and of the data.
    """
    recipe, problems = _read(path, overrides)
    train, held_out = [], []
    if recipe:
        sources = [("data.train", train, training_data)]
        if recipe.training_value("eval_strategy") not in ("no", None):
            sources.append(("evaluation.data", held_out, evaluation_data))
        for name, into, load in sources:
            try:
                into += load(recipe)
            except DataError as error:
                problems += [f"{name}: {error.what}", *error.problems]
        if train:
            problems += _problems_with_data(recipe, train)
            problems += _overlap(recipe, train, held_out)
    _raise_if(path, problems)
    return recipe, train, held_out


def training_data(recipe: Recipe) -> list[Problem]:
    """The problems that this recipe trains on."""
    data = recipe.data
    if data.train == LAB:
        found = training_problems(recipe.world)[: data.limit]
    else:
        found = data_problems.load(data.train, data.split, data.limit, recipe.method.stages.needs_answers)
    if data.traces is not None:
        from .data import traces

        store = traces.TraceStore.open(Path(data.traces))
        found = traces.attach(found, store, method=recipe.method, seed=recipe.training_value("seed"))
    return data_problems.with_demonstrations_for(found, data.demonstration_share, recipe.training_value("seed"))


def evaluation_data(recipe: Recipe) -> list[Problem]:
    """The problems that this recipe evaluates on; none if it does not evaluate."""
    evaluation = recipe.evaluation
    if evaluation.data is None:
        return []
    if evaluation.data == LAB:
        return held_out_problems(recipe.world)[: evaluation.limit]
    return data_problems.load(evaluation.data, evaluation.split, evaluation.limit)


def prompt_of(problem: Problem, data: Data, instruction: str = "") -> str | list[dict[str, str]]:
    """What the policy is asked: chat messages, or the text itself. ``instruction`` stands behind that of the data."""
    text = problem.text + data.instruction + instruction
    if data.prompt == "plain":
        return text
    system = [{"role": "system", "content": data.system_prompt}] if data.system_prompt is not None else []
    return [*system, {"role": "user", "content": text}]


# --- batches ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Batches:
    """How rollouts, updates and steps relate, over all ranks."""

    rollouts: int  # of one generation batch
    prompts: int  # distinct ones in it
    steps: float  # optimizer steps that one generation batch serves


def batches(recipe: Recipe, world_size: int) -> Batches:
    """The batch arithmetic of TRL, from the ``training`` block."""
    value = recipe.training_value
    accumulation = value("gradient_accumulation_steps")
    per_micro_step = value("per_device_train_batch_size") * world_size
    generation = value("generation_batch_size")
    micro_steps = value("steps_per_generation") or (generation // per_micro_step if generation else accumulation)
    rollouts = generation or per_micro_step * micro_steps
    return Batches(
        rollouts=rollouts,
        prompts=rollouts // value("num_generations"),
        steps=micro_steps * value("num_iterations") / accumulation,
    )


def world_size() -> int:
    """How many processes train together, as ``accelerate launch`` says."""
    return int(os.environ.get("WORLD_SIZE", "1"))


# --- reading and checking ---------------------------------------------------------------------------------------------


_BESIDE_TRLS = {"kl_on": Field(Literal["moving", "all"], "moving")}
"""Keys of the training block that are not TRL's. ``kl_on``: the tokens on which the KL of ``beta`` falls, those that
move or all of a completion."""


def _training_fields() -> dict[str, Field]:
    return fields_from_source("trl.trainer.grpo_config", "GRPOConfig") | _BESIDE_TRLS


_SET_ELSEWHERE = {
    "output_dir": "set output.dir instead",
    "resume_from_checkpoint": "set output.resume instead",
    "model_init_kwargs": "set the keys of the model block instead",
    "log_completions": "set output.rollouts_every instead; the rollouts are saved with prefix and continuation apart",
    "remove_unused_columns": "is always false: the reward reads the data set's columns",
    "deepspeed": "choose a file of recipes/accelerate with `accelerate launch --config_file` instead",
    "use_liger_kernel": "is not supported: it replaces the forward that TRL's fused head needs",
}
_OLD_KEYS = {
    "torch_dtype": "is now model.dtype",
    "dtype": "belongs to the model block: model.dtype",
    "max_prompt_length": "is gone: TRL no longer cuts prompts. Filter the data with `prefix-rl prepare`",
    "evaluation_strategy": "is now called eval_strategy",
    "overwrite_output_dir": "is gone: a run's folder is continued or refused, see output.resume",
    "vllm_device": "is gone: see vllm_mode and vllm_gpu_memory_utilization",
    "no_cuda": "is now called use_cpu",
}
_FIXED = {"loss_type": "dr_grpo", "scale_rewards": "none"}


def _read(path: str | os.PathLike | Mapping[str, Any], overrides: Sequence[str]) -> tuple[Recipe | None, list[str]]:
    """The recipe, and the problems found. Wrong values stand at their defaults in it, so that more can be found."""
    given = copy.deepcopy(dict(path)) if isinstance(path, Mapping) else read_yaml(path)
    misplaced = _apply(given, overrides)
    for block in sorted(given.keys() - BLOCKS.keys(), key=str):
        misplaced.append(f"{block}: no such block{nearest(block, BLOCKS)}; there are {', '.join(BLOCKS)}")
    made: dict[str, Any] = {}
    problems: dict[str, str] = {}
    for block, cls in BLOCKS.items():
        if cls:
            values, found = check(block, given.get(block), fields_of(cls))
            complete = all(f.default is not REQUIRED or name in values for name, f in fields_of(cls).items())
            made[block] = cls(**values) if complete else None
        elif block == "method":
            made["method_name"], made[block], found = _method(given.get(block))
        else:
            made[block], found = _training(given.get(block))
        problems |= found
    listed = misplaced + [f"{name}{'' if what.startswith('=') else ':'} {what}" for name, what in problems.items()]
    if any(value is None for value in made.values()):
        return None, listed
    recipe = Recipe(**made)
    doubtful = _doubtful(problems)
    return recipe, listed + [p for p in _contradictions(recipe) if not any(name in p for name in doubtful)]


def _doubtful(problems: Mapping[str, str]) -> set[str]:
    """The keys whose value is not what was meant: the wrong ones, and those that a misspelt one stands for."""
    meant = {f"{name.rpartition('.')[0]}.{m[1]}" for name, what in problems.items()
             if (m := re.search(r"did you mean (\w+)", what))}  # fmt: skip
    return problems.keys() | meant


def _as_given(name: str, method: Method) -> dict[str, Any]:
    """The ``method`` block that makes this method."""
    block = {"name": name, **dataclasses.asdict(method)}
    if isinstance(method, Combined):
        block["of"] = _as_given(methods.name_of(method.of), method.of)
    return block


def _method(
    given: object, where: str = "method", known: Sequence[str] = ()
) -> tuple[str | None, Method | None, dict[str, str]]:
    """Name, method and problems. ``known``: what can stand here, where not every method can."""
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
    found = {}
    if issubclass(cls, Combined) and "of" in own:
        _, method, found = _method(own.pop("of"), f"{where}.of", cls.takes)
        fields["of"] = Field(Method, method or fields["of"].default)  # a wrong one was found out: it is not missing
    values, problems = check(where, own, fields, elsewhere)
    complete = all(field.default is not REQUIRED or key in values for key, field in fields.items())
    return name, cls(**values) if complete else None, problems | found


def _training(given: object) -> tuple[dict | None, dict[str, str]]:
    """What the recipe sets of the training block (not TRL's defaults), with Dr.GRPO's two choices made."""
    if given is not None and not isinstance(given, Mapping):
        return None, {"training": "must be a block of keys and values"}
    given, problems = dict(given or {}), {}
    for key, ours in _FIXED.items():
        theirs = given.pop(key, ours)
        if theirs != ours and not (key == "scale_rewards" and theirs is False):
            problems[f"training.{key}"] = (
                f"= {theirs}: every method here is built on Dr.GRPO, which needs {key} = {ours} (no division by a "
                "completion's length, nor by a group's standard deviation); leave the key out"
            )
    problems |= {f"training.{key}": _SET_ELSEWHERE[key] for key in given if key in _SET_ELSEWHERE}
    rest = {key: value for key, value in given.items() if key not in _SET_ELSEWHERE}
    values, found = check("training", rest, _training_fields(), _OLD_KEYS)
    return {key: values[key] for key in rest if key in values} | _FIXED, problems | found


def _contradictions(recipe: Recipe) -> list[str]:
    """What cannot be together in the blocks, though each is well-formed."""
    value, problems = recipe.training_value, []
    group_size, completion = value("num_generations"), value("max_completion_length")
    if group_size < 2:
        problems.append(f"training.num_generations = {group_size}: credit is relative to a group, so at least 2")
    if value("generation_batch_size") and value("steps_per_generation"):
        problems.append("training.generation_batch_size and training.steps_per_generation: give only one of them")
    sizes = ("per_device_train_batch_size", "gradient_accumulation_steps", "num_iterations")
    for name in sizes:
        if value(name) < 1:
            problems.append(f"training.{name} = {value(name)}: must be an integer of at least 1")
    if problems:
        return problems
    found = batches(recipe, world_size())
    if found.rollouts % group_size or found.rollouts < group_size:
        problems.append(
            f"one generation batch has {found.rollouts} rollouts (training.per_device_train_batch_size x processes x "
            f"steps), which is not a multiple of training.num_generations = {group_size}"
        )
    save_steps = value("save_steps")
    if value("save_strategy") == "steps" and save_steps >= 1 and save_steps % max(found.steps, 1):
        problems.append(
            f"training.save_steps = {save_steps} is not a multiple of the {found.steps:g} steps that one generation "
            "batch serves; a checkpoint inside that window could not be resumed exactly"
        )
    training = {name: f.default for name, f in _training_fields().items()} | dict(recipe.training)
    problems += recipe.method.problems(training)
    problems += recipe.world.problems_found()
    if recipe.evaluation.data is None and value("eval_strategy") not in ("no", None):
        problems.append(f"training.eval_strategy = {value('eval_strategy')}, but evaluation.data names nothing to use")
    if recipe.evaluation.temperature == 0 and (recipe.evaluation.samples or 1) > 1:
        problems.append(
            f"evaluation.samples = {recipe.evaluation.samples} with evaluation.temperature = 0: greedy decoding gives "
            "the same completion every time; set evaluation.samples = 1, or a temperature"
        )
    if (recipe.model.name_or_path == LAB or recipe.data.train == LAB) and recipe.data.prompt != "plain":
        problems.append("data.prompt = chat: the lab's policy knows no chat template; set data.prompt = plain")
    if recipe.data.prompt == "plain" and recipe.data.system_prompt is not None:
        problems.append("data.system_prompt needs data.prompt = chat")
    if recipe.model.chat_template and not Path(recipe.model.chat_template).is_file():
        problems.append(f"model.chat_template: there is no file {recipe.model.chat_template}")
    if completion < 2:
        problems.append(f"training.max_completion_length = {completion}: must be at least 2")
    return problems


def _problems_with_data(recipe: Recipe, train: Sequence[Problem]) -> list[str]:
    problems = []
    prompts = batches(recipe, world_size()).prompts
    demonstrated = [bool(p.demonstrations) for p in train]
    rows = sum(recipe.method.copies(demonstrated))
    if ROLLOUTS in recipe.method.stages.order and rows < prompts:
        copies = "" if rows == len(train) else f" ({rows} rows with the copies of {recipe.method_name})"
        problems.append(
            f"data.train has {len(train)} problems{copies}, fewer than the {prompts} prompts of one generation batch: "
            "training would end before its first step"
        )
    if recipe.method.stages.own_traces and recipe.data.traces is None:
        problems.append(
            f"data.traces is missing: method {recipe.method_name} learns from traces of the policy's own, and from no "
            "other demonstrations. Sample them: `prefix-rl collect RECIPE --output FOLDER`; set data.traces = FOLDER"
        )
    elif recipe.uses_demonstrations and not any(demonstrated):
        problems.append(
            f"method {recipe.method_name} needs demonstrations, but no row of {recipe.data.train} has any (column "
            "demonstrations or solution, or data.traces)"
        )
    return problems


def _overlap(recipe: Recipe, train: Sequence[Problem], held_out: Sequence[Problem]) -> list[str]:
    """What is wrong with evaluating on these problems. A file is looked at even if it is evaluated on later only."""
    evaluation = recipe.evaluation
    if evaluation.allow_overlap or evaluation.data is None:
        return []
    if not held_out and (evaluation.data == LAB or Path(evaluation.data).is_file()):
        try:
            held_out = evaluation_data(recipe)
        except DataError:
            return []  # whoever evaluates on it is told
    found = contamination.overlap([p.text for p in train], [p.text for p in held_out])
    if not found:
        return []
    shown = found[0] if len(found[0]) <= 60 else found[0][:57] + "..."
    return [
        f"evaluation.data: {len(found)} of its {len(held_out)} problems stand in data.train, for example {shown!r}. "
        f"Take them out (prefix-rl prepare --against {evaluation.data}), or set evaluation.allow_overlap = true"
    ]


def _raise_if(path: str | os.PathLike | Mapping[str, Any], problems: Sequence[str]) -> None:
    if problems:
        name = "the settings given" if isinstance(path, Mapping) else os.fspath(path)
        count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
        raise RecipeError(f"{name}: {count}, nothing was started", at_most(problems, 40))


def _apply(recipe: dict, overrides: Sequence[str]) -> list[str]:
    """Applies ``block.key=value`` to the recipe in place; the problems of those that are not of this form."""
    problems = []
    for override in overrides:
        path, equals, text = override.partition("=")
        *blocks, key = path.strip().removeprefix("--").split(".")
        if not equals or not (blocks or key in BLOCKS):
            problems.append(f"{override!r}: an override is block.key=value, for example training.learning_rate=1e-6")
            continue
        try:
            value = yaml.load(text, Loader=_Loader)
        except yaml.YAMLError as error:
            problems.append(f"{override!r}: the value is not YAML ({_first_line(error)})")
            continue
        target = recipe
        for block in blocks:
            if not isinstance(target.get(block), dict):
                target[block] = {}
            target = target[block]
        target[key] = value
    return problems


# --- YAML -------------------------------------------------------------------------------------------------------------


class _Loader(yaml.SafeLoader):
    """YAML 1.2's core schema, in which 1e-6 is a number and ``off`` a word, and in which no key stands twice."""

    yaml_implicit_resolvers: ClassVar[dict] = {}

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for (key_node, _), key in zip(node.value, keys, strict=True):
            if keys.count(key) > 1 and key != "<<":
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} stands twice", key_node.start_mark
                )
        return super().construct_mapping(node, deep=deep)


for _tag, _pattern, _starts in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("null", r"~|null|Null|NULL|", "~nN\0"),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    ("float", r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
     "-+0123456789."),
    ("merge", "<<", "<"),
):  # fmt: skip
    _Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), [c if c != "\0" else "" for c in _starts]
    )
_Loader.add_constructor(
    "tag:yaml.org,2002:int", lambda loader, node: int(node.value, 0 if node.value.startswith(("0o", "0x")) else 10)
)


def read_yaml(path: str | os.PathLike) -> dict:
    """A YAML file that holds one mapping.

    Raises:
        RecipeError: if there is no such file, it is no UTF-8, no YAML, empty, or something other than a mapping.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"cannot read the recipe {os.fspath(path)}: {error}") from error
    try:
        content = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        tab = next((n for n, line in enumerate(text.splitlines(), 1) if re.match(r" *\t", line)), None)
        hint = f"\n  Line {tab} is indented with a tab; YAML wants blanks." if tab else ""
        raise RecipeError(f"{os.fspath(path)} is not YAML: {_first_line(error)}{hint}") from error
    if content is None:
        raise RecipeError(f"{os.fspath(path)} is empty; a recipe has the blocks {', '.join(BLOCKS)}")
    if not isinstance(content, dict):
        blocks = ", ".join(BLOCKS)
        raise RecipeError(
            f"{os.fspath(path)} holds a {type(content).__name__}; a recipe is a mapping with the blocks {blocks}"
        )
    return content


def _first_line(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    place = f" in line {mark.line + 1}, column {mark.column + 1}" if mark else ""
    return f"{getattr(error, 'problem', None) or error}{place}"
