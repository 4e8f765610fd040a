"""The trainer: TRL's GRPOTrainer with the questions of a :class:`~prefix_rl.methods.base.Method` asked.

This is the only file that knows TRL's private names. It wraps nine members of ``GRPOTrainer`` 1.16; each wrapper calls
``super()`` once, and no body of TRL is copied. A generation batch is

1. *planned*: each row gets its prefix, which travels as token ids behind the prompt;
2. *continued* by the policy, and prefix and continuation are joined, so that all else sees one completion;
3. *graded*, with the column ``continuation_start``: where in a completion's text the policy's own begins;
4. *credited*: the method decides once, on the whole batch over all ranks, however that is then cut into micro-batches;
5. *masked*: tokens that do not move are context, in no term of the loss, no ratio and no count;
6. given the method's *extra objective*, if it has one.

Around the model goes the fast path (:mod:`prefix_rl.speed`); all else is TRL's. Two attributes change in a run:
``_open``, the open batch, and ``_saved``, what a checkpoint saves. (``_grading`` and ``_encoder`` count, for the log.)
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Literal

import torch
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

from ..arguments import check_trainable, tokenizer_of
from ..costs import Cost
from ..methods.base import Method
from ..prefixes import AnswerGuard, Prefix
from ..rollouts import Step
from ..speed.forward import Encoder, transformers_model
from ..speed.order import SHARE, may_reorder, regrouped
from ..speed.settings import Speed
from ..updates import FiniteUpdates
from . import credit, further, ledger, planning, resume, vllm
from .batch import COPY, ROW, Forward, GenerationBatch, Slot
from .ranks import Ranks
from .turn import turn_behind


class PrefixTrainer(FiniteUpdates, GRPOTrainer):
    """GRPO in which rollouts may start from a prefix of a demonstration.

    Args:
        model, reward_funcs, args, train_dataset, eval_dataset, processing_class, **kwargs: as in ``GRPOTrainer``, and
            ``safety``, the settings of :class:`~prefix_rl.updates.FiniteUpdates`.
            ``args`` needs ``loss_type="dr_grpo"`` for Dr.GRPO, and ``scale_rewards="none"``. ``train_dataset`` may
            have a column ``demonstrations`` (for each row a list of texts) beside ``prompt`` and ``answer``.
        method: answers the questions.
        answer_guard: where a prefix must end at the latest, see :func:`~prefix_rl.rewards.guard.safe_cuts`.
        rollouts_every: save the rollouts of every n-th generation under ``<output_dir>/rollouts``; 0 for none.
        facts: what a checkpoint must record for :func:`~prefix_rl.checkpoints.check_continues`.
        spent: the cost of what came before this run (collected traces, a supervised stage): it counts as its own.
        budget: floating-point operations, ``spent`` included, at which training stops; None: no such limit.
        speed: what is done to compute less; None: all of it. :data:`~prefix_rl.speed.settings.OFF` is TRL's own path.
        kl_on: where the KL of ``args.beta`` falls: on tokens that the surrogate moves, or on ``"all"``, context too.

    Raises:
        RecipeError: for settings that contradict the method.
        DataError: if the method injects prefixes and no row has a usable demonstration.
    """

    def __init__(
        self, model, reward_funcs, args: GRPOConfig, train_dataset: Dataset, eval_dataset: Dataset | None = None,
        processing_class=None, *, method: Method, answer_guard: AnswerGuard = "mention", rollouts_every: int = 0,
        facts: Mapping[str, object] | None = None, spent: Cost | None = None, budget: float | None = None,
        speed: Speed | None = None, kl_on: Literal["moving", "all"] = "moving", **kwargs,
    ):  # fmt: skip
        planning.check_settings(method, args, kl_on, kwargs)
        processing_class = processing_class or tokenizer_of(model)
        train_dataset, demonstrations, answers = planning.taken_apart(train_dataset)
        self.method, self.speed, self.kl_on = method, speed or Speed(), kl_on
        self.rollouts_every, self.facts = rollouts_every, facts or {}
        self._open, self._saved, self._grading = Slot(), resume.Saved(method, spent or Cost()), ledger.Clock()
        self._encoder = Encoder(self.speed, anywhere=lambda flag: bool(self._ranks.largest(flag)))
        super().__init__(model, reward_funcs, args, train_dataset, eval_dataset, processing_class, **kwargs)
        check_trainable(self.model)
        planning.check_text_only(method, self._is_vlm)
        prompts = train_dataset[:1]["prompt"]
        turn = turn_behind(self, self._tokenizer, prompts, self._tokenize_prompts(prompts)[0] if prompts else [])
        self.demonstrations = planning.usable_demonstrations(
            method, demonstrations, answers, self._tokenizer, self.max_completion_length, guard=answer_guard, turn=turn
        )
        rows, copies = planning.epoch(method, self.demonstrations, train_dataset)
        self.train_dataset = self.train_dataset.select(rows).add_column(ROW, rows).add_column(COPY, copies)
        self._ranks = Ranks(self.accelerator)
        self._planner = planning.Planner(
            method, self.demonstrations, self.train_dataset, self.num_generations, self._ranks, self._tokenizer
        )
        self._parameters = sum(getattr(p, "ds_numel", p.numel()) for p in self.model.parameters())
        self._inner_of = partial(transformers_model, unwrap=self.accelerator.unwrap_model)
        self._generating = vllm.generating(self, self._ranks)
        for callback in self._saved.callbacks(budget, args.output_dir):
            self.add_callback(callback)

    @property
    def cost(self) -> Cost:
        """Cost of the run so far, in tokens and operations."""
        return self._saved.cost

    def _step_now(self) -> Step:
        now, budget = self.state, self.max_completion_length
        return Step(now.global_step, now.max_steps, self.args.seed, budget, self._saved.memory)

    # --- 1 planned ----------------------------------------------------------------------------------------------------
    def _generate_and_score_completions(self, inputs):
        if not self.model.training:  # evaluation never sees a prefix
            return super()._generate_and_score_completions(inputs)
        batch = self._planner.planned(inputs, self._step_now())
        imitated = bool(batch.planned.complete.all())  # the policy writes nothing: its reward of 1 would mislead
        with self._open.holding(batch):
            with self._off_the_record() if imitated else nullcontext():
                output = super()._generate_and_score_completions(batch.inputs)
            return self._credited(output)

    # --- 2 continued --------------------------------------------------------------------------------------------------
    def _generate_single_turn(self, prompt_ids, images, multimodal_fields, num_generations, *args, **kwargs):
        batch, budget = self._open.get(GenerationBatch), self.max_completion_length
        plan, rows = batch.plan if batch and not batch.begun else None, range(len(prompt_ids))
        if plan is not None:
            self._open.fill(begun=True)
            rows = planning.to_generate(plan, all_rows=self.use_vllm)
            prompt_ids = planning.begun(prompt_ids, plan, rows)
        if self.use_vllm or plan is not None:  # a vLLM server would otherwise keep every num_generations-th prompt only
            num_generations = 1
        with self._generating(plan, len(prompt_ids)):
            ids, logps = super()._generate_single_turn(
                prompt_ids, images, multimodal_fields, num_generations, *args, **kwargs
            )
        if plan is not None:
            ids = planning.joined(plan, dict(zip(rows, ids, strict=True)), budget)
            if logps is not None:  # nobody sampled the prefix: TRL takes None as "no importance correction here"
                logps = planning.joined(plan, dict(zip(rows, logps, strict=True)), budget, ids=False)
        return ids, logps

    # --- 3 graded -----------------------------------------------------------------------------------------------------
    def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
        batch, step = self._open.get(GenerationBatch), self.state.global_step
        if batch:
            inputs = self._planner.for_grading(batch.plan, inputs, completions, completion_ids_list)
        with self._grading.running(), self._ranks.agreed(self.reward_funcs):
            rewards_per_func = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        rewards = credit.total(rewards_per_func, self.reward_weights, step)
        credit.check_scored(rewards, step)
        if batch:
            told = credit.told(self._pending_extra_logs, self.reward_func_names, rewards_per_func)
            self._open.fill(completions=completion_ids_list, rewards=rewards, **told)
            self._log(ledger.reward_metrics(rewards, batch, self._ranks))
        return rewards_per_func

    def _sampled(self, rows: list[int], beginnings: list[Prefix]) -> tuple[torch.Tensor, list[list[int]]]:
        """The rewards and the ids of one continuation of each beginning, which stands in the place of a prefix."""
        batch = self._open.get(GenerationBatch)
        inputs, plan = [batch.inputs[row] for row in rows], [batch.plan[row] for row in rows]
        prompts = [given["prompt"] for given in inputs]
        with self._open.holding(replace(batch, plan=beginnings, begun=False)), self._off_the_record():
            _, ids, _, completions, *_ = self._generate(prompts)
            inputs = self._planner.for_grading(plan, inputs, completions, ids)
            with self._grading.running(), self._ranks.agreed(self.reward_funcs):
                rewards_per_func = super()._calculate_rewards(inputs, prompts, completions, ids)
        rewards = credit.total(rewards_per_func, self.reward_weights, self.state.global_step)
        return rewards[self._ranks.own(len(rows))], ids

    # --- 4 credited ---------------------------------------------------------------------------------------------------
    def _credited(self, output: dict) -> dict:
        """TRL's batch with what the method decides on it: advantages, weights and which tokens move, by token."""
        batch, ranks, needs = self._open.get(GenerationBatch), self._ranks, self.method.needs
        prefixes, entropies, cost = credit.prefix_mask(batch.plan, output), None, Cost()
        if needs.entropies:
            encode = partial(self._get_per_token_logps_and_entropies, self.model, compute_entropy=True)
            entropies = credit.prefix_entropies(encode, output, prefixes, self.args.per_device_train_batch_size, ranks)
        rollouts = credit.gathered(ranks, batch, output, prefixes, self.demonstrations)
        whole = credit.whole(ranks, batch, rollouts)
        if needs.further:
            whole, cost = further.continued(needs.further, batch, whole, output, ranks, self._sampled, self._parameters)
            self._log({"reward_continued": torch.nanmean(whole.continued)})
        decided = credit.Credit.by(self.method, rollouts, entropies, whole)
        self._saved.remember(self.method.remember(self._saved.memory, whole))
        self._saved.spend(cost + ledger.cost_of(
            rollouts, decided, batch.planned, output, ranks, self._parameters, self.num_iterations, needs.entropies,
            whole,
        ))  # fmt: skip
        self._log(ledger.prefix_metrics(rollouts, batch.planned, decided) if needs.prefixes else {})
        self._log(vllm.difference(output, prefixes, ranks))
        self._log(ledger.totals(self.method, self._saved.memory, self.cost), last=True)
        own, width = ranks.own(len(batch.inputs)), prefixes.size(1)
        output |= {**decided.keys(own, width), "prefix_mask": prefixes, "rewards": batch.rewards[own]}
        output |= credit.only_moving(output, output["update_mask"], ranks)
        generation = self._step // (self.args.steps_per_generation * self.num_iterations)
        if self.rollouts_every and generation % self.rollouts_every == 0:
            ledger.save(self.args.output_dir, ledger.records(batch, output, self._tokenizer, entropies, own), ranks)
        return output

    # --- 5 masked, 6 given the extra objective ------------------------------------------------------------------------
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        with self._open.holding(Forward(inputs) if "update_mask" in inputs else None):
            loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
            if forward := self._open.get(Forward):
                extra = self.method.extra_loss(credit.micro_batch(inputs, self._step_now()), *forward.found)
                if self.beta and self.kl_on == "all":
                    kl = credit.kl_on_context(inputs, forward.found[0], self.args)
                    extra = kl if extra is None else extra + kl
                if extra is not None:
                    loss = loss + extra / self.current_gradient_accumulation_steps
                loss = loss * inputs.get(SHARE, 1.0)
                if self.method.needs.prefixes:
                    told = forward.found[1].detach(), inputs["completion_mask"].bool(), inputs["prefix_mask"]
                    self._log(ledger.entropy_metrics(*told, self._ranks))
        return loss

    # --- around these: the fast path, metrics, checkpoints ------------------------------------------------------------
    def _get_per_token_logps_and_entropies(self, model, *args, **kwargs):
        score = super()._get_per_token_logps_and_entropies
        logps, entropies, aux_loss = self._encoder(score, model, self._inner_of(model), *args, **kwargs)
        self.seen("the log-probabilities", logps)
        if forward := self._open.get(Forward):
            self._open.fill(found=(logps, entropies))
            if self._entropy_bonus_enabled:
                entropies = credit.entropies_of_the_policy(entropies, forward.inputs)
        return logps, entropies, aux_loss

    def _prepare_inputs(self, generation_batch):
        before = self._buffered_inputs
        inputs = super()._prepare_inputs(generation_batch)
        made, accumulation = self._buffered_inputs, self.args.gradient_accumulation_steps
        reorders = self.speed.order and may_reorder(self.args, self._is_vlm) and self._step % accumulation == 0
        if not self.model.training or made is before or not reorders:
            return inputs
        sizes_of = partial(self._encoder.sizes, self.model, self._inner_of(self.model), self._ranks.objects)
        made[:] = regrouped(made, accumulation, sizes_of)
        return made[self._step % self.args.steps_per_generation]

    def training_step(self, model, inputs, num_items_in_batch):
        loss = super().training_step(model, inputs, num_items_in_batch)
        if self._step % self.current_gradient_accumulation_steps == 0:  # where TRL has noted the time of the step
            step_time = self._metrics["train"]["step_time"][-1]
            self._log(ledger.time_metrics(self._grading.taken(), step_time, self._encoder.taken()))
        return loss

    def _log(self, values: Mapping[str, torch.Tensor | float], last: bool = False) -> None:
        """Adds values that are the same on every rank to the metrics of this step; of a total the last one counts."""
        metrics = self._metrics["train" if self.model.training else "eval"]
        for name, value in values.items():
            metrics[name] = [*([] if last else metrics[name]), float(value)]

    def _off_the_record(self):
        return ledger.off_the_record(self._metrics["train"], self._pending_extra_logs, self._pending_metrics)

    def _get_train_sampler(self, dataset=None):
        return resume.OrderOfEpoch(super()._get_train_sampler(dataset), lambda: self.state.epoch or 0.0)

    def _save_checkpoint(self, model, trial):
        with resume.older_kept(self.args, self.state) as limit:
            super()._save_checkpoint(model, trial)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            resume.keep_whole(self._get_output_dir(trial=trial), self.args, self.state, self.facts, self.cost, limit)
