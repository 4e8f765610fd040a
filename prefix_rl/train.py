"""Training: ``accelerate launch -m prefix_rl.train --config RECIPE [key=value ...]``.

Everything that a person can get wrong is checked before TRL is imported; so this module imports nothing heavy.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import contradictions, documents, parts, preflight, stand_ins
from .adapters import to_train
from .batches import batches, world_size
from .checkpoints import FINAL, MARK, REFERENCE, best_before, check_continues, facts_of, last_whole, tidy
from .costs import Cost
from .data.mixing import REPEATS, SOURCE
from .data.prepare import is_verified
from .data.problems import Problem, guarded, verify
from .errors import CheckpointError, DataError, RecipeError, StackError, at_most
from .methods.stage import ROLLOUTS, SUPERVISED
from .places import find
from .policy import Policy, loads
from .processes import alone_in, end_with_launcher
from .progress import bar, is_main, run_or_explain, say
from .recipe import LAB, Recipe, load_run, prompt_of, raise_if
from .rewards.grading import Outcome
from .status import recorded

if TYPE_CHECKING:
    from datasets import Dataset

    from .rewards.functions import Rewards
    from .rewards.workers import Grader
    from .seam.trainer import PrefixTrainer

_PARTIAL = f"{FINAL}.partial"


def train(path: str | os.PathLike, overrides: Sequence[str] = ()) -> Path:
    """Trains as the recipe says; returns the run's folder.

    Raises:
        UserError: for whatever a person can mend: the recipe, the data, the stack, the run's folder.
        Stopped: if it was asked to stop by a signal, after a whole checkpoint was saved.
        KeyboardInterrupt: after saying where the last whole checkpoint lies.
    """
    end_with_launcher()
    recipe, problems, held_out = load_run(path, overrides)
    preflight.check(recipe)
    run = Path(recipe.output.dir)
    _open_folder(run, recipe)
    from .safety.stopping import stops_when_asked

    with stops_when_asked(recipe.safety.grace), alone_in(run, "training"), recorded(run, "training"):
        return _trained(path, recipe, problems, held_out, run)


def _trained(
    path: str | os.PathLike, recipe: Recipe, problems: Sequence[Problem], held_out: Sequence[Problem], run: Path
) -> Path:
    """The run in its folder, which can be written; ``path`` is where the recipe was read."""
    policy = Policy(_with_date_of(run, recipe))
    recipe = policy.recipe
    room, setting = recipe.training_value("max_completion_length"), "training.max_completion_length"
    if hint := recipe.method.needs.hint:  # it makes prompts longer
        room, setting = room + hint.longest, f"{setting} + method.max_hint_tokens"
    policy.check_problems(problems, room, setting)
    raise_if(path, contradictions.vllm_context(recipe, policy, [*problems, *held_out]))
    reward = recipe.rewards()
    # Joins the processes, and says what TRL does not accept before anything is graded or trained
    args = arguments(recipe, policy.loading)
    stand_ins.check(recipe, args, policy.config)
    problems, held_out = _verified(recipe, problems, reward), _gradable(recipe, held_out, reward)
    last = {SUPERVISED: _imitate, ROLLOUTS: _reinforce}[recipe.method.stages.order[-1]]
    return last(policy, problems, held_out, reward, run)


def _reinforce(
    policy: Policy, problems: Sequence[Problem], held_out: Sequence[Problem], reward: Rewards, run: Path
) -> Path:
    """A run whose last stage are rollouts; a supervised stage before them is trained on the way."""
    from .safety.watched import train_watched

    recipe = policy.recipe
    trainer = build(policy, problems, held_out, reward)
    resume = _checkpoint_to_resume(trainer, run, recipe)
    if resume and (ended := _ended(facts_of(resume), trainer.args.max_steps, recipe.budget.flops)):
        if is_main() and not (run / FINAL).is_dir():  # it was killed between its last checkpoint and its end
            best = recipe.training_value("load_best_model_at_end")
            _final_from(best_before(resume) if best else resume, run, facts_of(resume))
        say(f"{run} has already {ended}; nothing was trained. To train again, give another output.dir.")
        return run
    if is_main():
        _record(run, recipe, trainer.facts)
        _announce(recipe, trainer)
    if not _spent_before(recipe, trainer):
        train_watched(trainer, run, recipe.safety, resume)
    # beside its place: a process that is killed meanwhile leaves no half policy under the name
    trainer.save_model(str(run / _PARTIAL))
    if is_main():
        _record_cost(run, trainer.cost)
        _put_in_place(run)
        say(f"trained {trainer.state.global_step} steps; the policy is in {run / FINAL}")
    trainer.accelerator.wait_for_everyone()
    return run


def _spent_before(recipe: Recipe, trainer: PrefixTrainer) -> bool:
    """True if collected traces and the supervised stage have left nothing of the budget."""
    budget, spent = recipe.budget.flops, trainer.cost.flops
    if budget is None or spent < budget:
        return False
    say(f"collected traces and the supervised stage took {spent:.3g} of budget.flops = {budget:g}; the policy stays as "
        "it is, without reinforcement learning")  # fmt: skip
    return True


def _final_from(checkpoint: Path, run: Path, reached: Mapping[str, Any]) -> None:
    """The policy of a run that got as far as its last checkpoint: the checkpoint without what only a resume needs."""
    resume_only = ("optimizer*", "scheduler*", "rng_state*", "trainer_state.json", "global_step*", "latest", MARK,
                   REFERENCE, "entropy_ctrl_state.json")  # fmt: skip
    shutil.rmtree(run / _PARTIAL, ignore_errors=True)
    shutil.copytree(checkpoint, run / _PARTIAL, ignore=shutil.ignore_patterns(*resume_only))
    _record_cost(run, Cost(**(reached.get("cost") or {})))
    _put_in_place(run)


def _put_in_place(run: Path) -> None:
    """The policy under its name, once it is whole; one of fewer steps makes room."""
    try:
        parts.settle(run / _PARTIAL, run / FINAL)
    except OSError as error:
        raise CheckpointError(
            f"the policy is in {run / _PARTIAL} and could not be renamed to {FINAL}: {error.strerror or error}"
        ) from error


def _imitate(
    policy: Policy, problems: Sequence[Problem], held_out: Sequence[Problem], reward: Rewards, run: Path
) -> Path:
    """A run whose last stage is the supervised one."""
    facts = _facts(policy.recipe, problems)
    if is_main():
        _record(run, policy.recipe, facts)
    stage, spent = _start(policy, problems, facts)
    if is_main():
        shutil.rmtree(run / _PARTIAL, ignore_errors=True)
        shutil.copytree(stage, run / _PARTIAL)
        _record_cost(run, spent)
        _put_in_place(run)
        say(f"the policy is in {run / FINAL}")
    return run


def build(
    policy: Policy, problems: Sequence[Problem], held_out: Sequence[Problem] = (), reward: Rewards | None = None
) -> PrefixTrainer:
    """The trainer that the policy's recipe describes, on these problems. A supervised stage is trained first.

    With a ``reward`` the demonstrations count as graded; without one they are graded here.
    """
    preflight.quiet()
    from .model_card import OwnCard, card
    from .reports.health import schedule_end
    from .reports.terminal import show_lines
    from .reports.trackers import Trackers
    from .seam.trainer import PrefixTrainer

    recipe = policy.recipe
    if reward is None:
        arguments(recipe, policy.loading_to_train)
        reward = recipe.rewards()
        problems, held_out = _verified(recipe, problems, reward), _gradable(recipe, held_out, reward)
        problems = _guarded(recipe, problems, reward.grader)
    facts = _facts(recipe, problems)
    start, spent = _start(policy, problems, facts)
    adapters = to_train(policy)
    if find(start).adapters:  # they are trained on: the policy's own, or those of the supervised stage
        policy, adapters = policy if start == policy.path else Policy(recipe, start), {}
        model = policy.load(trainable=True)
    else:
        model = start

    class Run(OwnCard, PrefixTrainer):
        """The trainer, whose policies say how they were trained."""

    with loads(start):
        trainer = Run(
            card=card(recipe),
            model=model,
            reward_funcs=list(reward.functions),
            args=arguments(recipe, policy.loading_to_train),
            train_dataset=_dataset(recipe, problems),
            eval_dataset=_dataset(recipe, held_out) if held_out else None,
            processing_class=policy.tokenizer,
            method=recipe.method,
            answer_guard=recipe.data.answer_guard,
            rollouts_every=recipe.output.rollouts_every,
            facts=facts,
            spent=spent,
            budget=recipe.budget.flops,
            speed=recipe.speed,
            **recipe.beside_trls,
            safety=recipe.safety,
            **adapters,
        )
    if trainer.args.report_to:
        trainer.add_callback(Trackers(trainer, recipe.resolved(), Path(recipe.output.dir)))
    show_lines(trainer, schedule_end=schedule_end(recipe.resolved()))
    if policy.date:
        trainer.chat_template = policy.template  # with the date fixed; what is saved with the policy stays as it was
    if preflight.launched_with_deepspeed() and not trainer.is_deepspeed_enabled:
        raise StackError(
            "accelerate was given a DeepSpeed configuration and left DeepSpeed out; do not combine it with --cpu or "
            "ACCELERATE_USE_CPU (on a machine without a GPU DeepSpeed takes the CPU by itself)"
        )
    return trainer


def _facts(recipe: Recipe, problems: Sequence[Problem]) -> dict[str, Any]:
    """Facts that a checkpoint must agree with to be continued."""
    return {
        "recipe": recipe.resolved(),
        "data": _hash_of(problems),
        "versions": preflight.versions(),
        "world_size": world_size(),
    }


def _start(policy: Policy, problems: Sequence[Problem], facts: dict[str, Any]) -> tuple[str, Cost]:
    """The policy that reinforcement learning starts from, and what it cost to have it and its traces."""
    recipe, spent = policy.recipe, Cost()
    if recipe.data.traces is not None:
        from .data.traces import TraceStore

        store = TraceStore.open(Path(recipe.data.traces))
        store.check_tokenizer(policy.tokenizer)
        spent += store.cost()
    if not recipe.uses_supervision:
        return policy.path, spent
    from .supervised import fine_tune

    stage = Path(recipe.output.dir, "sft")
    spent += fine_tune(policy, problems, stage, facts)
    Policy(recipe, stage / FINAL)  # what an earlier process left is looked at before it is loaded
    return str(stage / FINAL), spent


def arguments(recipe: Recipe, loading: Mapping[str, Any] | None = None, **changes):
    """TRL's arguments; what only TRL or the trainer can judge is reported as a fault of the recipe.

    Args:
        loading: how TRL loads the model, see :attr:`~prefix_rl.policy.Policy.loading`.
        changes: what differs from the training block.
    """
    from trl import GRPOConfig

    from .seam.checks import check_settings

    try:
        made = GRPOConfig(
            output_dir=recipe.output.dir,
            # rewards and methods read columns that the model does not
            remove_unused_columns=False,
            model_init_kwargs=dict(loading or {}) or None,
            # what is left out cannot be in a mean; otherwise the log shows what there is
            logging_nan_inf_filter=recipe.safety.not_finite == "skip",
            **{**recipe.arguments, **changes},
        )
    except Exception as error:  # TRL and transformers raise whatever their parts do
        raise RecipeError(f"TRL does not accept the training block: {error}") from error
    # the trainer asks the same when it is made, and then the model is loaded already
    beside = recipe.beside_trls
    check_settings(recipe.method, made, beside["kl_on"], beside["groups_without_signal"], {})
    return made


def _dataset(recipe: Recipe, problems: Sequence[Problem]) -> Dataset:
    from datasets import Dataset

    from .rewards.functions import COLUMNS, as_json, row_of

    return Dataset.from_list(
        [
            {
                "prompt": prompt_of(problem, recipe.data),
                "answer": problem.answer,
                "problem_id": problem.id,
                "demonstrations": list(problem.demonstrations),
                **({SOURCE: problem.source, REPEATS: problem.repeats} if problem.source else {}),
                **({COLUMNS: as_json(row_of(problem))} if recipe.reward.takes_columns else {}),
            }
            for problem in problems
        ]
    )


def _verified(recipe: Recipe, problems: Sequence[Problem], reward) -> list[Problem]:
    """The problems with the demonstrations that earn the training reward (of a method that starts from failures: that
    are wrong by it), decided once for all ranks.

    ``prefix-rl prepare`` has done this already for its own files.
    """
    from accelerate.utils import broadcast_object_list

    if not recipe.method.stages.needs_answers or (
        recipe.data.train != LAB and _prepared(recipe, recipe.reward.functions[0])
    ):
        return list(problems)
    wanted = Outcome.WRONG if recipe.method.needs.wrong else Outcome.RIGHT
    decided: list[Any] = [None]
    if is_main():
        count = sum(max(len(p.demonstrations), 1) for p in problems)
        with bar("grading the demonstrations", count) as advance:
            kept, bad_gold, outcomes = verify(problems, reward.grader, advance, wanted)
        decided = [(kept, [f"{p.place}: the gold answer {p.answer[:60]!r} cannot be parsed" for p in bad_gold])]
        dropped = {str(outcome): n for outcome, n in outcomes.items() if outcome != wanted}
        if dropped:
            count = f"{sum(dropped.values())} of {outcomes.total()}"
            why = "do not earn the reward" if wanted is Outcome.RIGHT else "are not wrong"
            say(f"dropped {count} demonstrations that {why}: {dropped}")
    broadcast_object_list(decided)
    kept, unparsable = decided[0]
    if unparsable:
        raise DataError(
            f"{recipe.data.named} has gold answers that no completion could be graded against; nothing was trained. "
            "`prefix-rl prepare` drops such rows:",
            unparsable[:20],
        )
    if recipe.uses_demonstrations and not any(p.demonstrations for p in kept):
        raise DataError(f"no demonstration of {recipe.data.named} earns the training reward; nothing was trained")
    return kept


def _prepared(recipe: Recipe, reward: str | None = None) -> bool:
    """Whether ``prefix-rl prepare`` made every file as it would now, by this reward where one is named."""
    return all(is_verified(source.file, reward, recipe.reward.rules) for source in recipe.data.sources)


def _guarded(recipe: Recipe, problems: Sequence[Problem], grader: Grader) -> list[Problem]:
    """The problems with demonstrations that know where they show their answer, decided once for all ranks."""
    from accelerate.utils import broadcast_object_list

    if not recipe.uses_demonstrations or recipe.data.answer_guard == "none":
        return list(problems)
    decided: list[Any] = [None]
    if is_main():
        trusted = recipe.data.train == LAB or _prepared(recipe)
        with bar("looking where the answers stand", sum(len(p.demonstrations) for p in problems)) as advance:
            decided = [guarded(problems, recipe.data.answer_guard, grader, advance, trusted)]
    broadcast_object_list(decided)
    return decided[0]


def _gradable(recipe: Recipe, held_out: Sequence[Problem], reward: Rewards) -> list[Problem]:
    """The problems to evaluate on while training, but for those that no completion could be graded against.

    Which these are is decided once for all ranks, and said.
    """
    from accelerate.utils import broadcast_object_list

    if not held_out or recipe.evaluation.data == LAB:
        return list(held_out)
    decided: list[Any] = [None]
    if is_main():
        bare = [replace(problem, demonstrations=()) for problem in held_out]
        with bar("grading the answers of evaluation.data", len(bare)) as advance:
            _, bad_gold, _ = verify(bare, reward.grader, advance)
        decided = [{problem.id for problem in bad_gold}]
        if bad_gold:
            count = f"{len(bad_gold)} of {len(held_out)} problems of evaluation.data"
            places = [f"  - {p.place or p.id}: {p.answer[:60]!r}" for p in bad_gold]
            say("\n".join([f"left out {count}, whose gold answers cannot be parsed:", *at_most(places, 10)]))
    broadcast_object_list(decided)
    kept = [problem for problem in held_out if problem.id not in decided[0]]
    if not kept:
        raise DataError("no gold answer of evaluation.data can be parsed; nothing was trained")
    return kept


def _hash_of(problems: Sequence[Problem]) -> str:
    digest = hashlib.sha256()
    for p in problems:
        columns = [sorted(p.columns.items())] if p.columns else []
        demonstrations = [d["text"] for d in p.demonstrations]
        digest.update(repr((p.id, p.turns or p.text, p.answer, demonstrations, *columns)).encode())
    return digest.hexdigest()


# --- the run's folder -------------------------------------------------------------------------------------------------


def _open_folder(run: Path, recipe: Recipe) -> None:
    """Makes the run's folder and sees that it can be written."""
    probe = run / f".writable-{os.getpid()}"
    try:
        run.mkdir(parents=True, exist_ok=True)
        probe.write_text("x" * 4096, encoding="utf-8")
        probe.unlink()
    except OSError as error:
        raise CheckpointError(f"the run's folder {run} cannot be written: {error.strerror or error}") from error
    for name in ("metrics.jsonl", "recipe.yaml", "run.json", "cost.json", "training_arguments.json"):
        if os.path.exists(run / name) and not os.path.isfile(run / name):
            raise CheckpointError(f"{run / name} is no file, and the run writes one there; take it away")
    if recipe.output.resume == "never" and (run / "run.json").exists():
        raise CheckpointError(f"{run} holds a run already, and output.resume = never; give another output.dir")


def _with_date_of(run: Path, recipe: Recipe) -> Recipe:
    """The recipe with the date that the prompts of this run have shown so far, if it was begun on another day."""
    path = run / "run.json"
    try:
        then = documents.read(path, {"date": date | None}).get("date") if os.path.lexists(path) else None
    except parts.Damaged as error:
        raise CheckpointError(
            f"{path} is damaged: {error}. It says which date the prompts of this run have shown: bring it back; or, if "
            "the chat template shows no date, delete it"
        ) from error
    return replace(recipe, model=replace(recipe.model, date=then)) if then and recipe.model.date is None else recipe


def _checkpoint_to_resume(trainer: PrefixTrainer, run: Path, recipe: Recipe) -> Path | None:
    if is_main():
        tidy(run)
    trainer.accelerator.wait_for_everyone()
    folder = last_whole(run)
    if folder is None:
        return None
    check_continues(folder, trainer.facts)
    if is_main():
        say(f"continuing from {folder}")
    return folder


def _ended(reached: dict[str, Any], max_steps: int, budget: float | None) -> str | None:
    """Reason why a run that got as far as this checkpoint has nothing left to do; None if it has."""
    if (reached.get("step") or 0) >= max_steps > 0:
        return f"finished its {max_steps} steps"
    if budget is not None and (reached.get("cost") or {}).get("flops", 0) >= budget:
        return f"spent its budget.flops = {budget:g}"
    return None


def _record(run: Path, recipe: Recipe, facts: dict[str, Any]) -> None:
    """The resolved recipe and what it ran on, beside the results."""
    parts.write_text(run / "recipe.yaml", recipe.dump())
    started = {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": sys.argv,
        "git_commit": preflight.git_commit(),
        "python": sys.version.split()[0],
        "versions": preflight.versions(),
        "world_size": facts["world_size"],
        "data_sha256": facts["data"],
        "date": recipe.model.date,
    }
    parts.write_text(run / "run.json", json.dumps(started, indent=2) + "\n")


def _announce(recipe: Recipe, trainer: PrefixTrainer) -> None:
    found, args = batches(recipe, world_size()), trainer.args
    parts.write_text(Path(args.output_dir) / "training_arguments.json", args.to_json_string() + "\n")
    length = f"{args.max_steps} steps" if args.max_steps > 0 else f"{args.num_train_epochs:g} epochs"
    say(
        f"{recipe.method_name}: {length} on {len(trainer.train_dataset)} problems; a generation batch has "
        f"{found.prompts} prompts x {args.num_generations} rollouts and serves {found.steps:g} steps; "
        f"{args.world_size} process(es), {trainer.accelerator.distributed_type.value}"
    )


def _record_cost(run: Path, cost: Cost) -> None:
    parts.write_text(run / "cost.json", json.dumps(asdict(cost), indent=2) + "\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line of ``python -m prefix_rl.train``."""
    import argparse

    parser = argparse.ArgumentParser(
        prog="python -m prefix_rl.train",
        description="Train as a recipe says.",
        epilog="example: accelerate launch --config_file recipes/accelerate/zero2.yaml -m prefix_rl.train "
        "--config recipes/qwen2.5-math-7b/prefix_rft.yaml training.learning_rate=2e-6",
    )
    parser.add_argument("--config", required=True, metavar="RECIPE", help="the recipe, a YAML file")
    parser.add_argument("overrides", nargs="*", metavar="block.key=value", help="values that replace the recipe's")
    given, more = parser.parse_known_args(arguments)
    return run_or_explain(lambda: train(given.config, [*given.overrides, *more]))


if __name__ == "__main__":
    sys.exit(main())
