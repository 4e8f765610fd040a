"""Imports point one way, and the package loads nothing heavy."""

import ast
import subprocess
import sys
import time
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "prefix_rl"
CORE = {"schedules", "prefixes", "masks", "advantages", "losses", "costs"}
# What may import what, from the bottom up: a module may import modules of its own layer and of those below
LAYERS = [
    CORE,
    {"rollouts", "controllers"},
    {"errors", "progress", "status", "fields", "yaml12", "parts", "options"},
    {"methods", "rewards", "checkpoints", "speed"},
    {"data", "lab.world"},
    {
        "recipe",
        "batches",
        "contradictions",
        "preflight",
        "reports",
        "evaluation.settings",
        "evaluation.metrics",
        "evaluation.engines",
        "evaluation.sampling",
        "lab",
    },
    {"policy"},
    {"trainer", "supervised"},
    {"train", "evaluation"},
    {
        "cli",
        "check",
        "__main__",
        "reference",
        "collect",
        "grade",
        "ladder",
        "lab.quickstart",
        "reports.schedule",
        "reports.ladder",
    },
]
HEAVY = {"trl", "transformers", "deepspeed", "wandb", "datasets", "accelerate", "peft", "vllm", "math_verify", "matplotlib",
         "pyarrow", "tokenizers", "datasketch"}  # fmt: skip
MAY_IMPORT_HEAVY_AT_ONCE = {"trainer", "speed.generation", "reports.terminal"}


@cache
def modules():
    return {str(p.relative_to(PACKAGE).with_suffix("")).replace("/", ".").removesuffix(".__init__"): p
            for p in PACKAGE.rglob("*.py") if p.name != "__init__.py" or p.parent != PACKAGE}  # fmt: skip


def layer(name):
    parts = name.split(".")
    for length in range(len(parts), 0, -1):  # the most exact name counts
        for i, names in enumerate(LAYERS):
            if ".".join(parts[:length]) in names:
                return i
    raise AssertionError(f"{name} has no place in the architecture")


@cache
def imports(path, name):
    """(what is imported, whether only type checkers or callers of a function see it)."""
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    found = []

    def visit(node, late):
        if isinstance(node, ast.Import):
            found.extend((alias.name, late) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - node.level + 1]
            whole = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                inner = ".".join(filter(None, [whole, alias.name]))
                found.append((f"prefix_rl.{inner if inner in modules() else whole}".rstrip("."), late))
        elif isinstance(node, ast.ImportFrom):
            found.append((node.module, late))
        checked = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for child in ast.iter_child_nodes(node):
            visit(child, late or checked or isinstance(node, ast.FunctionDef))

    visit(ast.parse(path.read_text()), False)
    return found


def test_imports_point_one_way():
    for name, path in modules().items():
        for imported, late in imports(path, name):
            if imported.startswith("prefix_rl.") and not late:
                assert layer(imported.removeprefix("prefix_rl.")) <= layer(name), f"{name} imports {imported}"


def test_the_pure_core_needs_torch_and_the_standard_library_only():
    for name in CORE:
        outside = {i.split(".")[0] for i, _ in imports(PACKAGE / f"{name}.py", name)} - set(sys.stdlib_module_names)
        assert outside <= {"torch", "jaxtyping"}, name


def test_only_the_trainer_knows_trl():
    for name, path in modules().items():
        uses = any(i.split(".")[0] == "trl" for i, _ in imports(path, name))
        assert not uses or name in ("trainer", "supervised", "train"), name


def test_heavy_packages_are_imported_late():
    for name, path in modules().items():
        if name not in MAY_IMPORT_HEAVY_AT_ONCE:
            early = {i.split(".")[0] for i, late in imports(path, name) if not late}
            assert not early & HEAVY, f"{name} imports {early & HEAVY}"


def test_importing_the_package_is_quick_and_light():
    program = (
        "import sys, prefix_rl; print([m for m in ('trl', 'transformers', 'deepspeed', 'wandb') if m in sys.modules])"
    )
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert time.monotonic() - began < 2


def test_public_names_exist():
    import prefix_rl

    for name in prefix_rl.__all__:
        assert getattr(prefix_rl, name) is not None
    assert {"PrefixTrainer", "PrefixRFT", "DrGRPO", "Method", "math_reward", "load_recipe"} <= set(prefix_rl.__all__)


def test_no_method_is_named_outside_methods():
    for name, path in modules().items():
        if not name.startswith("methods"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Compare):
                    assert "prefix_rft" not in ast.unparse(node), f"{name}: {ast.unparse(node)}"
                    assert "dr_grpo'" not in ast.unparse(node).replace('"', "'"), f"{name}: {ast.unparse(node)}"
