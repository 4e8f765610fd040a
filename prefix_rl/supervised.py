"""The supervised stage: demonstrations through TRL's ``SFTTrainer``, with every token weighing the same.

The order of all epochs is laid out beforehand, in whole optimizer steps, and read in sequence. So an optimizer step
sees the same demonstrations however it is cut into micro-batches and ranks, and a resumed stage goes on where it was.
The loss of a step is the mean over its tokens, over all of them: TRL divides by the number of tokens of the whole step.
"""

from __future__ import annotations

import gc
import math
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from .adapters import to_train
from .batches import world_size
from .checkpoints import FINAL, check_continues, facts_of, fault_of, last_whole, mark_whole, tidy
from .costs import Cost, update_flops
from .data.problems import Problem
from .data.tokenizer import DemonstrationTable, stop_ids
from .errors import CheckpointError, DataError, RecipeError
from .methods.stage import Supervised
from .policy import Policy, loads
from .progress import say

if TYPE_CHECKING:
    from datasets import Dataset

_SHARED_KEYS = (
    "bf16", "fp16", "use_cpu", "seed", "gradient_checkpointing", "gradient_checkpointing_kwargs", "max_grad_norm",
    "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "optim", "report_to", "run_name", "logging_steps",
    "save_steps", "save_strategy", "save_total_limit", "disable_tqdm", "project", "dataloader_num_workers",
)  # fmt: skip


def order(count: int, settings: Supervised, seed: int) -> list[int]:
    """Indices of ``count`` demonstrations, in the order of training: ``batch_size`` places for each optimizer step.

    Every epoch is another permutation; the number of steps is ``epochs * count / batch_size``, rounded, at least 1.

    >>> order(3, Supervised(epochs=2, batch_size=2), seed=0)
    [0, 2, 1, 2, 1, 0]
    """
    places = max(round(settings.epochs * count / settings.batch_size), 1) * settings.batch_size
    found: list[int] = []
    for epoch in range(math.ceil(places / count)):
        found += Random(repr(("supervised", seed, epoch))).sample(range(count), count)
    return found[:places]


def micro_batches(settings: Supervised, ranks: int) -> tuple[int, int]:
    """Demonstrations of a micro-batch on one rank, and micro-batches of an optimizer step.

    Raises:
        RecipeError: if the ranks cannot share a batch equally.

    >>> micro_batches(Supervised(batch_size=64, per_device_batch_size=8), ranks=2)
    (8, 4)
    """
    if settings.batch_size % ranks:
        raise RecipeError(
            f"method.supervised.batch_size = {settings.batch_size} demonstrations cannot be shared equally by {ranks} "
            "processes; make it a multiple of their number"
        )
    own = settings.batch_size // ranks
    # a divisor, so that whole micro-batches make an optimizer step
    micro = max(n for n in range(1, min(settings.per_device_batch_size, own) + 1) if own % n == 0)
    return micro, own // micro


def fine_tune(
    policy: Policy,
    problems: Sequence[Problem],
    folder: Path,
    facts: Mapping[str, Any],
) -> Cost:
    """Trains the stage and leaves the policy in ``folder/final``; returns what it cost.

    A stage that is finished is not trained again; one that was cut off goes on from its last whole checkpoint.

    Raises:
        DataError: if there is no demonstration to train on.
        CheckpointError: if the folder holds the stage of another run.
    """
    final = folder / FINAL
    if final.exists():
        if (why := fault_of(final)) is None:
            check_continues(final, facts)
            say(f"the supervised stage is finished: {final}")
            return Cost(**(facts_of(final).get("cost") or {}))
        say(f"the policy of the supervised stage in {final} cannot be used, is set aside and made again: {why}")

    import torch

    from .safety.watched import train_watched

    recipe, tokenizer = policy.recipe, policy.tokenizer
    settings = recipe.method.stages.supervised
    micro, accumulation = micro_batches(settings, world_size())
    dataset = rows(policy, problems)
    places = order(len(dataset), settings, recipe.training_value("seed"))
    steps = len(places) // settings.batch_size
    trainer = _trainer(policy, dataset.select(places), folder, facts, micro, accumulation, steps)
    generates = trainer.model.generation_config
    if set(policy.stops) != set(stop_ids(generates, tokenizer)):
        generates.eos_token_id = policy.stops  # saved with the policy, which learns to end so
    if trainer.accelerator.is_main_process:
        tidy(folder, " of the supervised stage")
        if os.path.lexists(final):  # what lies in it, a pipe or a folder, is not written through
            shutil.rmtree(aside := folder / "incomplete-final", ignore_errors=True)
            final.rename(aside)
        say(
            f"supervised stage: {steps} steps of {settings.batch_size} demonstrations, {len(dataset)} in all, so "
            f"{len(places) / len(dataset):.3g} passes over them"
        )
    trainer.accelerator.wait_for_everyone()
    resume = last_whole(folder)
    if resume:
        check_continues(resume, {**facts, "world_size": trainer.args.world_size})
    # DeepSpeed's stage 3 leaves empty tensors on a rank, with their size in ds_numel
    parameters = sum(getattr(p, "ds_numel", p.numel()) for p in trainer.model.parameters())
    try:
        train_watched(trainer, folder, recipe.safety, resume, " of the supervised stage")
        trainer.save_model(str(final))
    except OSError as error:
        raise CheckpointError(f"the supervised stage could not be written to {folder}: {error}") from error
    cost = _cost(dataset, places, parameters)
    if trainer.accelerator.is_main_process:
        tokenizer.save_pretrained(final)
        mark_whole(final, {**facts, "step": steps, "world_size": trainer.args.world_size, "cost": asdict(cost)})
    trainer.accelerator.wait_for_everyone()
    trainer.accelerator.free_memory()
    del trainer
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return cost


def _trainer(
    policy: Policy, dataset: Dataset, folder: Path, facts: Mapping[str, Any], micro: int, accumulation: int, steps: int
):
    """TRL's ``SFTTrainer``, whose optimizer steps are the batches of :func:`order` and whose checkpoints are marked."""
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    from .model_card import OwnCard, card
    from .reports.terminal import show_lines
    from .safety.updates import FiniteUpdates
    from .seam.resume import MetricsFile

    recipe, settings = policy.recipe, policy.recipe.method.stages.supervised
    shared = {key: recipe.training[key] for key in _SHARED_KEYS if key in recipe.training}
    args = SFTConfig(
        **shared,
        output_dir=str(folder),
        # the rows of all epochs stand in the data set, in the order of `order`
        num_train_epochs=1,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=accumulation,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr_rate": settings.min_lr},
        warmup_steps=round(settings.warmup * steps),
        train_sampling_strategy="sequential",
        # each token weighs the same, whichever rank has it
        average_tokens_across_devices=True,
        # `rows` leaves out what is too long; TRL's default would cut it without a word
        max_length=None,
        packing=False,
        eval_strategy="no",
        logging_nan_inf_filter=recipe.safety.not_finite == "skip",
        model_init_kwargs=policy.loading_to_train or None,
    )

    class Stage(OwnCard, FiniteUpdates, SFTTrainer):
        """TRL's trainer, which lets nothing into the weights that is not finite."""

    class MarkWhole(TrainerCallback):
        def on_save(self, args, state, control, **kwargs):
            if args.should_save:
                whole = {**facts, "step": state.global_step, "world_size": args.world_size}
                mark_whole(folder / f"checkpoint-{state.global_step}", whole)

    with loads(policy.path):
        trainer = Stage(
            model=policy.load(trainable=True) if policy.adapters else policy.path,
            args=args,
            train_dataset=dataset,
            processing_class=policy.tokenizer,
            callbacks=[MarkWhole(), MetricsFile(folder)],
            safety=recipe.safety,
            card=card(recipe),
            stage="supervised stage, ",
            **to_train(policy),
        )
    show_lines(trainer, "the supervised stage")
    return trainer


def _cost(dataset: Dataset, places: Sequence[int], parameters: int) -> Cost:
    """Cost of learning the demonstrations at these places, in tokens and operations."""
    lengths = [(len(ids), sum(label != -100 for label in labels)) for ids, labels in
               zip(dataset["input_ids"], dataset["labels"], strict=True)]  # fmt: skip
    trained = float(sum(lengths[i][1] for i in places))
    flops = float(update_flops(parameters, sum(lengths[i][0] for i in places)))
    return Cost(injected_tokens=trained, trained_tokens=trained, flops=flops)


def rows(policy: Policy, problems: Sequence[Problem]) -> Dataset:
    """``input_ids`` and ``labels`` of every lesson: ``prompt | demonstration | end``, -100 on the prompt.

    Which demonstrations, how much of them, and what the prompt asks for beside the problem, the method says. Those that
    do not fit into ``max_completion_length`` are left out, as the RL methods leave them out.

    Raises:
        DataError: if none is left.
    """
    from datasets import Dataset

    recipe = policy.recipe
    table = DemonstrationTable(
        [p.demonstrations for p in problems],
        [p.answer for p in problems],
        policy.tokenizer,
        "none",
        usable=recipe.method.needs.usable,
        turn=policy.turn,
    )
    budget, seed = recipe.training_value("max_completion_length"), recipe.training_value("seed")
    found, too_long = [], 0
    for row, problem in enumerate(problems):
        excerpt = recipe.method.stages.excerpt(problem.id, seed)
        prompt = policy.prompt_ids(problem, excerpt.instruction) if table[row] else []
        for demonstration in recipe.method.stages.lessons(problem.id, table[row], seed):
            completion = excerpt.of(demonstration)
            if len(completion) > budget:
                too_long += 1
                continue
            lesson = {"input_ids": prompt + completion, "labels": [-100] * len(prompt) + completion}
            found += [lesson] * problem.repeats
    if too_long:
        say(f"left out {too_long} demonstrations of more than max_completion_length = {budget} tokens")
    if not found:
        raise DataError(
            f"no demonstration is left to fine-tune on: {too_long} have more than max_completion_length = {budget} "
            "tokens, and the other problems have none"
        )
    return Dataset.from_list(found)
