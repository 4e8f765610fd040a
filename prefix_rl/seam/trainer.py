"""The trainer: TRL's GRPOTrainer with the questions of a :class:`~prefix_rl.methods.base.Method` asked.

This is the only file that knows TRL's private names. It wraps nine members of ``GRPOTrainer`` 1.16; each wrapper calls
``super()``, unless what it would do is done already, and no body of TRL is copied. A generation batch is

1. *planned*: each row gets its prefix, which travels as token ids behind the prompt;
2. *continued* by the policy (in rounds, where groups are helped or exchanged, see :mod:`.helping`), and prefix and
   continuation are joined, so that all else sees one completion;
3. *graded*, with the column ``continuation_start``: where in a completion's text the policy's own begins;
4. *credited*: the method decides once, on the whole batch over all ranks, however that is then cut into micro-batches;
5. *masked*: tokens that do not move are context, in no term of the loss, no ratio and no count;
6. given the method's *extra objective*, if it has one.

Around the model goes the fast path (:mod:`prefix_rl.speed`); all else is TRL's. In a run ``_open`` changes, the open
batch, ``_saved``, what a checkpoint saves, and once ``_scores``; ``_grading`` and ``_encoder`` count, for the log.
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
from ..costs import Cost, parameters_of
from ..methods.base import Method
from ..prefixes import AnswerGuard, Prefix
from ..rollouts import Step
from ..safety.updates import FiniteUpdates
from ..speed.forward import Encoder, transformers_model
from ..speed.order import SHARE, may_reorder, regrouped
from ..speed.settings import Speed
from . import checks, credit, ledger, means, planning, resume, scores, vllm
from .batch import COPY, ROW, Forward, GenerationBatch, Sampled, Slot
from .deciding import Deciding
from .helping import settled
from .ranks import Ranks
from .signal import EXTRA_SCALE, SCALE
from .turn import turn_behind


class PrefixTrainer(FiniteUpdates, GRPOTrainer):
    """GRPO in which rollouts may start from a prefix of a demonstration.

    Args:
        model, reward_funcs, args, train_dataset, eval_dataset, processing_class, **kwargs: as in ``GRPOTrainer``, but
            ``scale_rewards="none"``, for Dr.GRPO ``loss_type="dr_grpo"``, and rows may have ``demonstrations``, texts;
            ``safety`` are the settings of :class:`~prefix_rl.safety.updates.FiniteUpdates`.
        method: answers the questions.
        answer_guard: where a prefix must end at the latest, see :func:`~prefix_rl.rewards.guard.safe_cuts`.
        rollouts_every: save the rollouts of every n-th generation under ``<output_dir>/rollouts``; 0 for none.
        facts: what a checkpoint must record for :func:`~prefix_rl.checkpoints.check_continues`.
        spent: the cost of what came before this run (collected traces, a supervised stage): it counts as its own.
        budget: operations, ``spent`` included, at which training stops; None: no such limit.
        speed: what is done to compute less; None: all of it. :data:`~prefix_rl.speed.settings.OFF` is TRL's own path.
        kl_on: where the KL of ``args.beta`` falls: on tokens that the surrogate moves, or on ``"all"``, context too.
        groups_without_signal, resample_rounds: what becomes of groups that nothing is learned from, see docs/signal.md.

    Raises:
        RecipeError, DataError: settings contradict the method; it injects prefixes, and no demonstration can be used.
    """

    def __init__(
        self, model, reward_funcs, args: GRPOConfig, train_dataset: Dataset, eval_dataset: Dataset | None = None,
        processing_class=None, *, method: Method, answer_guard: AnswerGuard = "mention", rollouts_every: int = 0,
        facts: Mapping[str, object] | None = None, spent: Cost | None = None, budget: float | None = None,
        speed: Speed | None = None, kl_on: Literal["moving", "all"] = "moving",
        groups_without_signal: checks.WithoutSignal = "keep", resample_rounds: int = 3, **kwargs,
    ):  # fmt: skip
        checks.check_settings(method, args, kl_on, groups_without_signal, kwargs)
        processing_class = processing_class or tokenizer_of(model)
        train_dataset, demonstrations, answers = planning.taken_apart(train_dataset)
        self.method, self.speed, self.kl_on = method, speed or Speed(), kl_on
        self.rollouts_every, self.facts = rollouts_every, facts or {}
        self._open, self._saved, self._grading = Slot(), resume.Saved(method, spent or Cost()), ledger.Clock()
        self._encoder = Encoder(self.speed, anywhere=lambda flag: bool(self._ranks.largest(flag)))
        super().__init__(model, reward_funcs, args, train_dataset, eval_dataset, processing_class, **kwargs)
        check_trainable(self.model)
        checks.check_text_only(method, self._is_vlm)
        prompts = train_dataset[:1]["prompt"]
        turn = turn_behind(self, self._tokenizer, prompts, self._tokenize_prompts(prompts)[0] if prompts else [])
        self.demonstrations = planning.usable_demonstrations(
            method, demonstrations, answers, self._tokenizer, self.max_completion_length, guard=answer_guard, turn=turn
        )
        rows, copies = planning.epoch(method, self.demonstrations, train_dataset)
        self.train_dataset = self.train_dataset.select(rows).add_column(ROW, rows).add_column(COPY, copies)
        self._ranks = Ranks(self.accelerator)
        self._scores = scores.Scores(self.demonstrations, method.needs.cut, self._ranks, args.output_dir)
        self._planner = planning.Planner(method, self._scores, self.train_dataset, self.num_generations, self._ranks,
                                         self._tokenizer)  # fmt: skip
        self._deciding = Deciding(
            self._planner, args, groups_without_signal, resample_rounds, parameters_of(self.model), self._sampled,
            self._total, lambda *of: self._get_per_token_logps_and_entropies(self.model, *of, compute_entropy=True),
            {*self.eos_token_ids, self._tokenizer.pad_token_id} if args.mask_truncated_completions else None,
        )  # fmt: skip
        self._inner_of = partial(transformers_model, unwrap=self.accelerator.unwrap_model)
        self._generating = vllm.generating(self, self._ranks)
        self._means = means.TokenMeans(self._metrics["train"], method.needs.prefixes)
        self._saved.attach(self, budget)

    @property
    def cost(self) -> Cost:
        """Cost of the run so far, in tokens and operations."""
        return self._saved.cost

    def _step_now(self) -> Step:
        at, end, longest = self.state.global_step, self.state.max_steps, self.max_completion_length
        return Step(at, end, self.args.seed, longest, self._saved.memory)

    # --- 1 planned ----------------------------------------------------------------------------------------------------
    def _generate_and_score_completions(self, inputs):
        if not self.model.training:  # evaluation never sees a prefix
            return super()._generate_and_score_completions(inputs)
        self._saved.spend(self._scores.ready(self, self._deciding.encode, self._tokenize_prompts))
        batch = self._planner.planned(inputs, self._step_now())
        with self._open.holding(batch), ledger.uncounted(self.state):  # TRL counts what stands at last
            batch = settled(batch, self._deciding)
        imitated = bool(batch.planned.complete.all())  # the policy writes nothing: its reward of 1 would mislead
        with self._open.holding(batch):
            with self._off_the_record() if imitated else nullcontext():
                output = super()._generate_and_score_completions(batch.inputs)
            return self._credited(output)

    # --- 2 continued --------------------------------------------------------------------------------------------------
    def _generate_single_turn(self, prompt_ids, images, multimodal_fields, num_generations, *args, **kwargs):
        batch, budget = self._open.get(GenerationBatch), self.max_completion_length
        if batch and batch.settled:
            return batch.settled.ids, batch.settled.logps
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
        batch = self._open.get(GenerationBatch)
        if batch and batch.settled:
            rewards_per_func = batch.settled.logged(self._pending_extra_logs, self._pending_metrics)
        else:
            if batch:
                inputs = self._planner.for_grading(batch.plan, inputs, completions, completion_ids_list)
            with self._grading.running(), self._ranks.agreed(self.reward_funcs):
                rewards_per_func = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        rewards = self._total(rewards_per_func)
        credit.check_scored(rewards, self.state.global_step)
        if batch:
            told = credit.told(self._pending_extra_logs, self.reward_func_names, rewards_per_func)
            self._open.fill(completions=completion_ids_list, rewards=rewards, **told)
            self._log(ledger.reward_metrics(rewards, batch, self._ranks))
        return rewards_per_func

    def _total(self, rewards_per_func: torch.Tensor) -> torch.Tensor:
        return credit.total(rewards_per_func, self.reward_weights, self.state.global_step)

    def _sampled(self, inputs, begun: list[Prefix], plan: list[Prefix], graded: list[int]) -> Sampled:
        """What is written behind ``begun``, and what the rows ``graded`` earn; nothing of it is in TRL's metrics."""
        prompts = [given["prompt"] for given in inputs]
        batch = replace(self._open.get(GenerationBatch), plan=begun, begun=False, settled=None)
        with self._open.holding(batch), self._off_the_record():
            prompt_ids, ids, _, completions, logps, *_ = self._generate(prompts)
            told = self._planner.for_grading(plan, inputs, completions, ids)
            of_graded = ([of[row] for row in graded] for of in (told, prompts, completions, ids))
            with self._grading.running(), self._ranks.agreed(self.reward_funcs):
                rewards = super()._calculate_rewards(*of_graded)
            logged = self._pending_extra_logs, self._pending_metrics
            extra, told = ({name: list(values) for name, values in of.items()} for of in logged)
        return Sampled([len(row) for row in prompt_ids], ids, logps, rewards, extra, told)

    # --- 4 credited ---------------------------------------------------------------------------------------------------
    def _credited(self, output: dict) -> dict:
        """TRL's batch with what the method decides on it: advantages, weights and which tokens move, by token."""
        found = self._deciding.on(batch := self._open.get(GenerationBatch), output, self.num_iterations)
        self._saved.remember(found.memory)
        self._saved.spend(found.cost)
        self._log(found.metrics)
        self._log(ledger.totals(self.method, self._saved.memory, self.cost), last=True)
        generation = self._step // (self.args.steps_per_generation * self.num_iterations)
        if self.rollouts_every and generation % self.rollouts_every == 0:
            seen = found.output, self._tokenizer, found.entropies, self._ranks.own(len(batch.inputs))
            ledger.save(self.args.output_dir, ledger.records(batch, *seen), self._ranks)
        return found.output

    # --- 5 masked, 6 given the extra objective ------------------------------------------------------------------------
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        with self._open.holding(Forward(inputs) if "update_mask" in inputs else None):
            loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
            if forward := self._open.get(Forward):
                extra = self.method.extra_loss(credit.micro_batch(inputs, self._step_now()), *forward.found)
                kl = credit.kl_on_context(inputs, forward.found[0], self.args) if self.kl_on == "all" else 0.0
                added = kl * inputs[SCALE] + (0.0 if extra is None else extra * inputs.get(EXTRA_SCALE, 1.0))
                loss = loss * inputs[SCALE] + added / self.current_gradient_accumulation_steps
                loss = loss * inputs.get(SHARE, 1.0)
                self._means.take(forward.found[1].detach(), inputs, self._ranks)
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
        before, inputs = self._buffered_inputs, super()._prepare_inputs(generation_batch)
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
            resume.complete(self, f"{self._get_output_dir(trial=trial)}/checkpoint-{self.state.global_step}")
        self.accelerator.wait_for_everyone()
        resume.keep_whole(self._get_output_dir(trial=trial), self.args, self.state, self.facts, self.cost, limit)
