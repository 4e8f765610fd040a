"""Imports point one way, and the package loads nothing heavy."""

import ast
import subprocess
import sys
import time
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "prefix_rl"
CORE = {"schedules", "prefixes", "cuts", "masks", "advantages", "losses", "costs", "memory"}
# What may import what, from the bottom up: a module may import modules of its own layer and of those below
LAYERS = [
    CORE,
    {"rollouts", "controllers"},
    {"errors", "progress", "status", "documents", "fields", "grpo_fields", "yaml12", "includes", "parts",
     "options", "safety.settings", "safety.finite", "trials"},
    {"methods.stage", "methods.needs", "methods.cutting"},
    {"methods.base", "methods.imitation"},
    {"methods.combined"},
    {"methods", "rewards", "checkpoints", "speed"},
    {"data", "lab.world", "lab.parities", "engines", "processes", "safety"},
    {"recipe", "adapters", "arguments", "batches", "contradictions", "preflight", "reports", "stand_ins",
     "evaluation.settings", "evaluation.metrics", "evaluation.sampling", "evaluation.shape", "lab"},
    {"places", "accelerate_file"},
    {"policy", "engines.choice", "model_card"},
    {"seam.ranks", "seam.turn"},
    {"seam.vllm"},
    {"seam.batch"},
    {"seam.planning", "seam.resume", "seam.scores", "seam.checks", "seam.signal"},
    {"seam.credit"},
    {"seam.further", "seam.ledger"},
    {"seam.deciding"},
    {"seam.helping"},
    {"seam", "supervised"},
    {"train", "evaluation", "merge", "collecting"},
    {"cli", "check", "plan", "preview", "keys", "__main__", "reference", "schema", "collect", "evaluate", "grade", "launch",
     "ladders", "lab.quickstart", "reports.schedule", "reports.report", "reports.watch"},
]  # fmt: skip
HEAVY = {"trl", "transformers", "deepspeed", "wandb", "datasets", "accelerate", "peft", "vllm", "math_verify", "matplotlib",
         "pyarrow", "tokenizers", "datasketch"}  # fmt: skip
MAY_IMPORT_HEAVY_AT_ONCE = {"seam.trainer", "seam.resume", "seam.scores", "speed.generation", "reports.terminal",
                            "reports.trackers", "safety.updates", "safety.stall", "safety.stopping", "safety.watched"}  # fmt: skip


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


def used(name):
    """The modules of the package that a module imports, at once or within a function; not those for type checkers."""
    package = name.split(".")[: None if modules()[name].name == "__init__.py" else -1]
    found = set()

    def visit(node):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        if isinstance(node, ast.ImportFrom) and node.level:
            whole = [*package[: len(package) - node.level + 1], *filter(None, [node.module])]
            for alias in node.names:
                inner = ".".join([*whole, alias.name])
                found.add(inner if inner in modules() else ".".join(whole))
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(modules()[name].read_text()))
    return found & modules().keys() - {name}


def circle(graph):
    """Modules that import each other in a circle, late imports included; none if there is no circle."""
    left = dict(graph)
    while free := [name for name, needs in left.items() if not needs & left.keys()]:
        for name in free:
            del left[name]
    return sorted(left)


def test_there_are_no_circles():
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["a", "b", "c"]
    graph = {name: used(name) for name in modules()}
    assert len(graph["ladders.climb"]) > 4
    assert circle(graph) == []


def test_the_pure_core_needs_torch_and_the_standard_library_only():
    for name in CORE:
        outside = {i.split(".")[0] for i, _ in imports(PACKAGE / f"{name}.py", name)} - set(sys.stdlib_module_names)
        assert outside <= {"torch", "jaxtyping"}, name


def test_only_the_trainer_knows_trl():
    for name, path in modules().items():
        uses = any(i.split(".")[0] == "trl" for i, _ in imports(path, name))
        assert not uses or name in ("seam.trainer", "supervised", "train", "adapters"), name


def private(path):
    """The private names of other objects that a module reads or calls: ``made._name``."""
    nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)]
    own = {"self", "cls"}
    return {
        n.attr for n in nodes if n.attr.startswith("_") and not (isinstance(n.value, ast.Name) and n.value.id in own)
    }


def test_in_the_seam_only_the_trainer_knows_private_names():
    seam = {name: path for name, path in modules().items() if name.startswith("seam.")}
    assert {name for name, path in seam.items() if private(path) - {"__name__"}} <= {"seam.trainer"}
    assert "_generate_single_turn" in private(seam["seam.trainer"])  # super()._generate_single_turn
    own = {
        node.attr for node in ast.walk(ast.parse(seam["seam.trainer"].read_text())) if isinstance(node, ast.Attribute)
    }
    assert {"_metrics", "_buffered_inputs", "_pending_extra_logs"} <= own


def test_the_seam_is_made_of_small_rooms():
    for name, path in modules().items():
        if name.startswith("seam."):
            assert len(path.read_text().splitlines()) <= 260, name
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.ClassDef):
                    assert node.end_lineno - node.lineno < 250, node.name
                    assert sum(isinstance(part, ast.FunctionDef) for part in node.body) <= 20, node.name
    assert len((PACKAGE / "methods" / "base.py").read_text().splitlines()) <= 175


def changing(path, name):
    """The attributes that methods of a class assign to outside of ``__init__``, their own or those of what they hold."""
    (cls,) = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.ClassDef) and n.name == name]
    found = set()
    for method in cls.body:
        if isinstance(method, ast.FunctionDef) and method.name != "__init__":
            for node in ast.walk(method):
                if isinstance(node, ast.Attribute | ast.Subscript) and isinstance(node.ctx, ast.Store):
                    while not isinstance(node, ast.Name):
                        found |= {node.attr} if isinstance(node, ast.Attribute) else set()
                        node = node.value
    return found


def test_the_trainer_assigns_to_none_of_its_attributes_in_a_run():
    """What changes is what stands in the open slot, and what a checkpoint saves."""
    assert changing(PACKAGE / "seam" / "trainer.py", "PrefixTrainer") == set()
    assert changing(PACKAGE / "seam" / "batch.py", "Slot") == {"_held"}
    assert changing(PACKAGE / "seam" / "resume.py", "Saved") == {"_spending", "cost", "_remembered", "memory"}


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
