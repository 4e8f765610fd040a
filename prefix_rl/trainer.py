"""The trainer: TRL's GRPOTrainer with the four questions of a :class:`~prefix_rl.methods.base.Method` asked.

This is the only file that knows TRL's private names. It wraps ten members of ``GRPOTrainer`` 1.16; each wrapper calls
``super()`` once, and no body of TRL is copied. What the wrappers add:

- before generation, the prefixes: they travel as token ids behind the prompt, and come back glued to the continuation,
  so that rewards, truncation and logging see one completion;
- before the rewards, the column ``continuation_start``: where in each completion's text the policy's own begins;
- after generation, the credit of each token and the mask of the tokens that move, both decided once, on the whole
  generation batch over all ranks. How the batch is then cut into micro-batches changes neither;
- in the loss, that mask and the method's extra term;
- around the model, the fast path: what rows share is encoded once (:mod:`prefix_rl.speed`), and rows that share meet in
  one micro-batch;
- behind the rollouts, where a method asks for them: further continuations of their beginnings, graded and not trained;
- around it all: rewards with and without prefix, the saved rollouts, an order of the data that survives a resume, and
  checkpoints that are whole or not there.

What it leaves to TRL: the clipped surrogate, KL, LoRA, vLLM and its importance correction, every other metric.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from datasets import Dataset
from safetensors import SafetensorError
from torch.utils.data import Sampler
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import rotate_checkpoints
from trl import GRPOConfig, GRPOTrainer

from .checkpoints import mark_whole
from .costs import Cost, inference_flops, update_flops
from .data.tokenizer import DemonstrationTable, Turn, continuation_start, end_of_turn, load_tokenizer, turn_of
from .errors import CheckpointError, DataError, RecipeError
from .methods.base import Method
from .prefixes import AnswerGuard, Demonstration, Prefix, join
from .reports.rollouts import segments, write_rollouts
from .reports.tokens import token_columns
from .rollouts import Memory, Rollouts, Row, Step
from .speed.forward import Encoder
from .speed.generation import shared_prefill
from .speed.order import CONSTANT_NORMALIZER, alike_together, balanced, overlaps, rearranged, rows_of, windows
from .speed.settings import Speed

_ROW = "dataset_row"  # the column that tells a row's place in the data set, and so its demonstrations
_COPY = "copy"  # the column that tells the rows of one problem apart


class PrefixTrainer(GRPOTrainer):
    """GRPO in which rollouts may start from a prefix of a demonstration.

    Args:
        model, reward_funcs, args, train_dataset, eval_dataset, processing_class, **kwargs: as in ``GRPOTrainer``.
            ``args`` needs ``loss_type="dr_grpo"`` for Dr.GRPO, and ``scale_rewards="none"``. ``train_dataset`` may
            have a column ``demonstrations`` (for each row a list of texts) beside ``prompt`` and ``answer``.
        method: answers the four questions.
        answer_guard: where a prefix must end at the latest, see :func:`~prefix_rl.prefixes.safe_cuts`.
        rollouts_every: save the rollouts of every n-th generation under ``<output_dir>/rollouts``; 0 for none.
        facts: what a checkpoint must record for :func:`~prefix_rl.checkpoints.check_continues`.
        spent: the cost of what came before this run (collected traces, a supervised stage): it counts as its own.
        budget: floating-point operations, ``spent`` included, at which training stops; None: no such limit.
        speed: what is done to compute less; None: all of it. :data:`~prefix_rl.speed.settings.OFF` is TRL's own path.

    Raises:
        RecipeError: for settings that contradict the method.
        DataError: if the method injects prefixes and no row has a usable demonstration.
    """

    def __init__(
        self,
        model,
        reward_funcs,
        args: GRPOConfig,
        train_dataset: Dataset,
        eval_dataset: Dataset | None = None,
        processing_class=None,
        *,
        method: Method,
        answer_guard: AnswerGuard = "mention",
        rollouts_every: int = 0,
        facts: Mapping[str, Any] | None = None,
        spent: Cost | None = None,
        budget: float | None = None,
        speed: Speed | None = None,
        **kwargs,
    ):
        problems = method.problems(vars(args))
        if args.scale_rewards != "none":
            problems.append(f"scale_rewards = {args.scale_rewards}: the method gives the advantages, set it to none")
        if args.multi_objective_aggregation != "sum_then_normalize":
            problems.append("multi_objective_aggregation must be sum_then_normalize: the method gives the advantages")
        begins = method.injects or method.continuations > 0
        if begins and (kwargs.get("rollout_func") or kwargs.get("environment_factory")):
            problems.append("rollout_func and environment_factory generate past the place where prefixes are injected")
        if problems:
            raise RecipeError("these settings contradict the method:", problems)

        if processing_class is None and isinstance(model, str):
            processing_class = load_tokenizer(model)
        demonstrations = [[] for _ in range(len(train_dataset))]
        if "demonstrations" in train_dataset.column_names:
            demonstrations = train_dataset["demonstrations"][:]
            train_dataset = train_dataset.remove_columns("demonstrations")
        answers = train_dataset["answer"][:] if "answer" in train_dataset.column_names else [""] * len(demonstrations)
        train_dataset = train_dataset.add_column(_ROW, list(range(len(demonstrations))))

        self.speed = speed or Speed()
        self._encoder = Encoder(self.speed, anywhere=lambda flag: bool(self._gather_max(flag)))
        self._remembered = Remembered(method)
        self._row_of: dict[int, int] | None = None
        self._plan: list[Prefix] | None = None
        self._planned: list[Prefix] = []
        self._micro_batch: dict[str, Any] | None = None
        self._forward: tuple[torch.Tensor, torch.Tensor] | None = None
        self._grading_seconds, self._tokens_before = 0.0, dict(self._encoder.tokens)
        super().__init__(
            model=model,
            reward_funcs=reward_funcs,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            **kwargs,
        )
        if self._is_vlm and begins:
            raise RecipeError("prefixes are token ids behind a text prompt; this model takes images too")
        self.method = method
        self.rollouts_every, self.facts = rollouts_every, dict(facts or {})
        self.demonstrations = DemonstrationTable(
            demonstrations,
            answers,
            self._tokenizer,
            answer_guard,
            usable=self._usable,
            turn=self._turn_behind(train_dataset),
        )
        if method.injects and not any(self.demonstrations[row] for row in range(len(self.demonstrations))):
            why = (
                f"empty, or longer than max_completion_length = {self.max_completion_length} with its end"
                if method.whole
                else "shorter than two tokens, or shows its answer from the first token on (answer_guard = none would "
                "allow that)"
            )
            raise DataError(
                f"{type(method).__name__} starts rollouts from demonstrations, but no demonstration can be used: every "
                f"one is missing, {why}"
            )
        self.train_dataset = self._with_copies(self.train_dataset)
        self._parameters = sum(getattr(p, "ds_numel", p.numel()) for p in self.model.parameters())
        self.top_entropy_quantile = 0.0  # any value below 1 makes TRL ask get_high_entropy_mask, which knows better
        self._generations = 0
        self.add_callback(Spending(**asdict(spent or Cost())))
        self.add_callback(self._remembered)
        self.add_callback(_Budget(self, budget))
        self.add_callback(MetricsFile(Path(args.output_dir)))

    def _usable(self, demonstration: Demonstration) -> bool:
        """Whether the method can use it; one that is injected whole must fit into a completion, with its end."""
        fits = not self.method.whole or len(demonstration.ids) < self.max_completion_length
        return fits and self.method.usable(demonstration)

    def _with_copies(self, dataset: Dataset) -> Dataset:
        """The data set with as many rows for each problem as the method asks for."""
        if self.method.copies([True, False]) == [1, 1]:
            return dataset.add_column(_COPY, [0] * len(dataset))
        copies = self.method.copies([bool(self.demonstrations[row]) for row in range(len(dataset))])
        rows = [(row, copy) for row, count in enumerate(copies) for copy in range(count)]
        return dataset.select([row for row, _ in rows]).add_column(_COPY, [copy for _, copy in rows])

    @property
    def memory(self) -> Memory:
        """What the method remembers of the run."""
        return self._remembered.memory

    @property
    def cost(self) -> Cost:
        """What the run has cost so far."""
        return next(c for c in self.callback_handler.callbacks if isinstance(c, Spending)).cost

    def _turn_behind(self, dataset: Dataset) -> Turn:
        """What the prompts end with, and what ends a completion; whatever generates is told of all of it."""
        prompts, end = dataset[:1]["prompt"], None
        prompt_ids = self._tokenize_prompts(prompts)[0][0] if prompts else []
        if prompts and not isinstance(prompts[0], str):
            end = end_of_turn(self._tokenizer, self.chat_template, self.chat_template_kwargs)
        turn = turn_of(prompt_ids, self._tokenizer, self.model.generation_config, end)
        stops = list(turn.stops)
        if set(stops) != set(self.eos_token_ids):
            self.eos_token_ids = stops
            self.model.generation_config.eos_token_id = stops  # saved with the policy: it ends there from now on
            if not self.use_vllm:
                self.generation_config.eos_token_id = self.generation_kwargs["eos_token_id"] = stops
        if self.use_vllm:
            own = self.vllm_generation.generation_kwargs or {}
            self.vllm_generation.generation_kwargs = {"stop_token_ids": stops, **own}
        return turn

    # --- 1 what is injected? ------------------------------------------------------------------------------------------

    def _generate_and_score_completions(self, inputs):
        if not self.model.training:  # evaluation never sees a prefix
            return super()._generate_and_score_completions(inputs)
        inputs = self._instead(inputs)
        self._plan = self._planned = self._plan_prefixes(inputs)
        with self._off_the_record() if self._imitates(self._plan) else nullcontext():
            try:
                output = super()._generate_and_score_completions(inputs)
            finally:
                self._plan = None
        return self._with_credit_and_mask(inputs, output)

    def _imitates(self, plan: Sequence[Prefix]) -> bool:
        """Whether the policy writes nothing in this batch, so that its reward of 1 would mislead."""
        return self.method.imitates and bool(self._gather_flags([prefix.complete for prefix in plan]).all())

    @contextmanager
    def _off_the_record(self):
        """Rollouts are generated and graded, and leave nothing in the metrics."""
        metrics = {name: list(values) for name, values in self._metrics["train"].items()}
        try:
            yield
        finally:
            self._metrics["train"].clear()
            self._metrics["train"].update(metrics)
            self._pending_extra_logs.clear()
            self._pending_metrics.clear()

    def _instead(self, inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The rows of this rank, or those of the problems that the method puts in the place of all ranks' rows."""
        group_size, own = self.num_generations, len(inputs)
        problems = self.method.problems_instead(own * self.accelerator.num_processes // group_size, self._step_now())
        if not problems:
            return inputs
        if self._row_of is None:
            self._row_of = {row: i for i, row in reversed(list(enumerate(self.train_dataset[_ROW])))}
        first = self.accelerator.process_index * own
        rows = [problems[(first + i) // group_size] for i in range(own)]
        return [self.train_dataset[self._row_of[row]] for row in rows]

    def _step_now(self) -> Step:
        return Step(
            self.state.global_step, self.state.max_steps, self.args.seed, self.max_completion_length, self.memory
        )

    def _plan_prefixes(self, inputs: Sequence[Mapping[str, Any]]) -> list[Prefix]:
        first = self.accelerator.process_index * len(inputs)
        rows = [
            Row(first + i, given[_ROW], self.demonstrations[given[_ROW]], given[_COPY])
            for i, given in enumerate(inputs)
        ]
        step = self._step_now()
        plan = self.method.prefixes(rows, self.num_generations, step)
        offered = any(self.method.asks(row, self.num_generations, step) for row in rows)
        # TRL's gather_object keeps the order of the ranks, so every rank sees the same and all fail together
        seen = gather_object([(offered, any(prefix.ids for prefix in plan))])
        if self.method.injects and any(o for o, _ in seen) and not any(injected for _, injected in seen):
            raise DataError(
                f"step {self.state.global_step}: {type(self.method).__name__} injected no prefix although rows of "
                "the batch ask for one; going on would be plain Dr.GRPO under another name. Look at min_prefix_tokens, "
                "max_prefix_tokens and the answer guard"
            )
        return plan

    def _generate_single_turn(self, prompt_ids, images, multimodal_fields, num_generations, *args, **kwargs):
        plan, self._plan = self._plan, None  # with tools, TRL comes back for the rest of a turn: that has no prefix
        if plan is None:
            with self._prompts_encoded_once():
                return super()._generate_single_turn(
                    prompt_ids, images, multimodal_fields, num_generations, *args, **kwargs
                )
        continued = [
            list(prompt) + ([] if prefix.complete else prefix.ids)
            for prompt, prefix in zip(prompt_ids, plan, strict=True)
        ]
        asked = self._rows_to_generate(plan)
        # One generation a prompt: a vLLM server would otherwise keep every num_generations-th prompt only
        with self._prompts_encoded_once():
            found, found_logps = super()._generate_single_turn(
                [continued[i] for i in asked], images, multimodal_fields, 1, *args, **kwargs
            )
        written = dict(zip(asked, found, strict=True))
        continuations = [[] if prefix.complete else written[i] for i, prefix in enumerate(plan)]
        logps = None
        if found_logps is not None:
            written = dict(zip(asked, found_logps, strict=True))
            logps = [[] if prefix.complete else written[i] for i, prefix in enumerate(plan)]
        budget = self.max_completion_length
        completions = [join(p.ids, c, budget) for p, c in zip(plan, continuations, strict=True)]
        if logps is not None:  # nobody sampled the prefix: TRL takes None as "no importance correction here"
            logps = [join([None] * len(p.ids), list(row), budget) for p, row in zip(plan, logps, strict=True)]
        return completions, logps

    def _prompts_encoded_once(self):
        """While TRL calls ``generate``: each distinct prompt + prefix is encoded once; rows that have ended leave."""
        if not self.speed.shared_prefill or self.use_vllm or self.use_transformers_continuous_batching:
            return nullcontext()
        return shared_prefill(self.accelerator.unwrap_model(self.model_wrapped))

    def _rows_to_generate(self, plan: Sequence[Prefix]) -> list[int]:
        """The rows that the generation back-end is asked for: not those that are complete already.

        vLLM is asked for every row, since its processes share their prompts out by position; what it writes behind a
        complete row is thrown away. At least one row is asked for: sharded parameters are gathered by all ranks.
        """
        if self.use_vllm:
            return list(range(len(plan)))
        return [i for i, prefix in enumerate(plan) if not prefix.complete] or [0]

    # --- 2 who gets credit? 3 which tokens move? ----------------------------------------------------------------------

    def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
        self._outcomes = self._found = None
        if self.model.training and self.method.injects:
            inputs = self._with_continuation_start(self._planned, inputs, completions, completion_ids_list)
        with self._timed():
            rewards_per_func = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        self._rewards = self._total(rewards_per_func)
        unscored = self._rewards.isnan()
        if bool(unscored.all()):
            raise DataError(
                f"step {self.state.global_step}: no rollout could be scored, every reward is None or NaN. Look at the "
                "gold answers (`prefix-rl prepare` drops those that cannot be parsed) and at the reward function"
            )
        if self.model.training:
            self._log("reward_unscored_share", unscored.float().mean())
            prefixed = self._gather_flags([bool(prefix.ids) for prefix in self._planned])
            for name, rows in (("reward_with_prefix", prefixed), ("reward_without_prefix", ~prefixed)):
                self._log(name, torch.nanmean(self._rewards[rows]))
        self._outcomes = list(self._pending_extra_logs.get("outcome", [])) or None
        self._found = list(self._pending_extra_logs.get("found", [])) or None
        return rewards_per_func

    @contextmanager
    def _timed(self):
        """Counts as grading, in the log."""
        began = time.perf_counter()
        yield
        self._grading_seconds += time.perf_counter() - began

    def _total(self, rewards_per_func: torch.Tensor) -> torch.Tensor:
        """The weighted sum of each row's rewards, NaN where there is none."""
        weighted = rewards_per_func * self.reward_weights.to(rewards_per_func.device)
        total = weighted.nansum(dim=1).masked_fill(torch.isnan(rewards_per_func).all(dim=1), torch.nan)
        if bool(torch.isinf(total).any()):
            raise DataError(f"step {self.state.global_step}: a reward function returned an infinite reward")
        return total

    def _with_continuation_start(self, planned: Sequence[Prefix], inputs, completions, completion_ids):
        """The rows with a column for reward functions: where in the completion's text the policy's own text begins.

        A demonstration injected whole is no answer of the policy's either way: it is graded as it stands.
        """
        starts = []
        for prefix, ids, completion in zip(planned, completion_ids, completions, strict=True):
            text = completion if isinstance(completion, str) else completion[-1]["content"] or ""
            partial = prefix.ids and not prefix.complete
            starts.append(continuation_start(text, prefix.ids, ids, self._tokenizer) if partial else 0)
        return [{**given, "continuation_start": start} for given, start in zip(inputs, starts, strict=True)]

    def _with_credit_and_mask(self, inputs, output: dict[str, Any]) -> dict[str, Any]:
        """TRL's batch with ``(B, T)`` advantages, the prefix mask, the update mask and the rewards."""
        completion_ids, completion_mask = output["completion_ids"], output["completion_mask"].bool()
        lengths = torch.tensor([len(prefix.ids) for prefix in self._planned], device=completion_ids.device)
        positions = torch.arange(completion_ids.size(1), device=completion_ids.device)
        prefix_mask = (positions < lengths.unsqueeze(1)) & completion_mask
        self._check_tokens(completion_ids)
        entropies = self._prefix_entropies(output, prefix_mask) if self.method.needs_entropies else None

        own = slice(self.accelerator.process_index * len(inputs), (self.accelerator.process_index + 1) * len(inputs))
        rollouts = self._gather_rollouts(completion_ids, completion_mask, prefix_mask, inputs)
        if entropies is not None:
            entropies = self._gather_rows(entropies, fill=torch.nan)
        further = Cost()
        if self.method.continuations:
            continued, further = self._continued(rollouts, inputs, output)
            rollouts = replace(rollouts, continued=continued)
        advantages = self.method.advantages(rollouts)
        moving = self.method.update_mask(rollouts, entropies) & rollouts.completion_mask
        self._remembered.memory = self.method.remember(self.memory, rollouts)
        for name, value in self.method.metrics(self.memory).items():
            self._metrics["train"][name if "/" in name else f"method/{name}"] = [float(value)]  # the last one counts
        self._log_prefixes(rollouts, entropies, advantages, moving)
        self._spend(rollouts, output, advantages, moving, further)

        width = completion_ids.size(1)
        output |= {
            "advantages": advantages[own, :width],
            "prefix_mask": prefix_mask,
            "update_mask": moving[own, :width],
            "rewards": self._rewards[own],
        }
        if self.rollouts_every and self._generations % self.rollouts_every == 0:
            self._save_rollouts(inputs, output, None if entropies is None else entropies[own, :width])
        self._generations += 1
        return output

    def _continued(self, rollouts: Rollouts, inputs, output) -> tuple[torch.Tensor, Cost]:
        """The rewards ``(B, C)`` of further continuations of each rollout's beginning, and what they cost.

        A beginning takes the place of a prefix in TRL's own generation and grading. Its continuations stand side by
        side, so that it is encoded once, in as many passes of the batch's size as there are continuations of each.
        """
        count, own = self.method.continuations, len(inputs)
        here = slice(self.accelerator.process_index * own, (self.accelerator.process_index + 1) * own)
        kept = self.method.beginnings(rollouts)[here].tolist()
        prompts = [ids[mask.bool()] for ids, mask in zip(output["prompt_ids"], output["prompt_mask"], strict=True)]
        beginnings = []
        for row, planned in enumerate(self._planned):
            ids = output["completion_ids"][row][output["completion_mask"][row].bool()].tolist()
            length = max(kept[row], len(planned.ids))
            beginnings.append(Prefix(ids[:length], complete=bool(ids) and length >= len(ids)))
        rows = [row for row in range(own) for _ in range(count)]
        rewards, generated, encoded = [], 0, 0
        with self._off_the_record():
            for some in (rows[start : start + own] for start in range(0, len(rows), own)):
                given, texts = [inputs[row] for row in some], [inputs[row]["prompt"] for row in some]
                self._plan = plan = [beginnings[row] for row in some]
                _, ids, _, completions, *_ = self._generate(texts)
                if self.method.injects:
                    planned = [self._planned[row] for row in some]
                    given = self._with_continuation_start(planned, given, completions, ids)
                with self._timed():
                    graded = super()._calculate_rewards(given, texts, completions, ids)
                rewards.append(self._total(graded)[here])
                for row, beginning, whole in zip(some, plan, ids, strict=True):
                    generated += len(whole) - len(beginning.ids)
                    encoded += 0 if beginning.complete else len(prompts[row]) + len(whole)
        gather, device = self.accelerator.gather, rollouts.rewards.device
        complete = self._gather_flags([beginning.complete for beginning in beginnings]).unsqueeze(1)
        continued = gather(torch.cat(rewards).view(own, count))
        continued = torch.where(complete, rollouts.rewards.unsqueeze(1), continued)
        self._log("reward_continued", torch.nanmean(continued))
        generated, encoded = gather(torch.tensor([[generated, encoded]], device=device)).sum(dim=0).tolist()
        flops = inference_flops(self._parameters, float(encoded))
        return continued, Cost(generated_tokens=float(generated), flops=float(flops))

    def _spend(self, rollouts: Rollouts, output, advantages: torch.Tensor, moving: torch.Tensor, further: Cost) -> None:
        """Adds what this generation batch costs, its updates included.

        A whole demonstration that several rows of a group hold is encoded once, and counts once.
        """
        complete = self._gather_flags([prefix.complete for prefix in self._planned])
        counts = ~_repeated(rollouts, complete)
        prompts = self.accelerator.gather(output["prompt_mask"].sum(dim=1)) * counts
        prefixes, completions = rollouts.prefix_mask.sum(dim=1) * counts, rollouts.completion_mask.sum(dim=1) * counts
        everything, passes = float((prompts + completions).sum()), self.num_iterations
        flops = inference_flops(self._parameters, float((prompts + completions)[~complete].sum()))
        if self.method.needs_entropies:
            flops += inference_flops(self._parameters, float((prompts + prefixes)[rollouts.prefixed].sum()))
        for key in ("old_per_token_logps", "ref_per_token_logps"):
            if output.get(key) is not None:
                flops += inference_flops(self._parameters, everything)
        flops += passes * update_flops(self._parameters, everything)
        trained = (moving | rollouts.prefix_mask) if self.method.imitates else moving
        spending = next(c for c in self.callback_handler.callbacks if isinstance(c, Spending))
        spending.cost += further + Cost(
            generated_tokens=float(rollouts.continuation_mask.sum()),
            injected_tokens=float(prefixes.sum()),
            trained_tokens=float((trained & (advantages != 0))[counts].sum()) * passes,
            flops=flops,
        )
        for name, value in asdict(spending.cost).items():
            self._metrics["train"][f"cost/{name}"] = [value]  # a total: the last value counts, not a mean

    def _check_tokens(self, completion_ids: torch.Tensor) -> None:
        """The prefixes stand in the batch token by token as they were planned."""
        for row, prefix in enumerate(self._planned):
            if prefix.ids and completion_ids[row, : len(prefix.ids)].tolist() != prefix.ids:
                raise RuntimeError(
                    f"row {row} should start with a prefix of {len(prefix.ids)} tokens and does not: the generation "
                    "back-end dropped or changed it"
                )

    @torch.no_grad()
    def _prefix_entropies(self, output: Mapping[str, torch.Tensor], prefix_mask: torch.Tensor) -> torch.Tensor:
        """The policy's entropy at each prefix token ``(B, T)``, NaN elsewhere.

        A causal model gives them from prompt and prefix alone, so only the prefixed rows are encoded, without their
        continuation. All ranks make the same number of passes: sharded parameters are gathered in each.
        """
        entropies = torch.full(prefix_mask.shape, torch.nan, device=prefix_mask.device)
        rows = prefix_mask.any(dim=1).nonzero().flatten()
        at_once, width = self.args.per_device_train_batch_size, max(int(prefix_mask.sum(dim=1).max()), 1)
        for start in range(0, self._gather_max(len(rows)), at_once):
            chunk = rows[start : start + at_once]
            given = (
                chunk if len(chunk) else torch.zeros(1, dtype=torch.long, device=rows.device)
            )  # a pass for the others
            mask = prefix_mask[given, :width]
            _, found, _ = self._get_per_token_logps_and_entropies(
                self.model,
                torch.cat([output["prompt_ids"][given], output["completion_ids"][given, :width]], dim=1),
                torch.cat([output["prompt_mask"][given], mask.long()], dim=1),
                width,
                compute_entropy=True,
            )
            for row, values, chosen in zip(chunk.tolist(), found.float(), mask, strict=False):
                entropies[row, : int(chosen.sum())] = values[chosen]
        return entropies

    def _gather_rollouts(self, completion_ids, completion_mask, prefix_mask, inputs) -> Rollouts:
        packed = torch.stack([completion_ids, completion_mask.long(), prefix_mask.long()], dim=2)
        ids, completion, prefix = self._gather_rows(packed, fill=0).unbind(dim=2)
        planned = [len(p.ids) / p.of if p.of else torch.nan for p in self._planned]
        gather, device = self.accelerator.gather, completion_ids.device
        problems = gather(torch.tensor([given[_ROW] for given in inputs], device=device))
        return Rollouts(
            problems=problems,
            demonstrated=torch.tensor([bool(self.demonstrations[row]) for row in problems.tolist()], device=device),
            fractions=gather(torch.tensor(planned, device=device)),
            completion_ids=ids,
            completion_mask=completion.bool(),
            prefix_mask=prefix.bool(),
            rewards=self._rewards,
            group_size=self.num_generations,
            step=self._step_now(),
        )

    def _gather_rows(self, rows: torch.Tensor, fill: float) -> torch.Tensor:
        """The rows of all ranks in order, padded to the longest."""
        return self.accelerator.gather(self.accelerator.pad_across_processes(rows, dim=1, pad_index=fill))

    def _gather_flags(self, flags: Sequence[bool]) -> torch.Tensor:
        return self.accelerator.gather(torch.tensor(flags, dtype=torch.long, device=self.accelerator.device)).bool()

    def _gather_max(self, number: int) -> int:
        return int(self.accelerator.gather(torch.tensor([number], device=self.accelerator.device)).max())

    def get_high_entropy_mask(self, entropies, mask, threshold):
        chosen = mask.bool()
        if self._micro_batch is not None:
            chosen = chosen & self._micro_batch["update_mask"]
            self._log_entropies(entropies.detach(), mask.bool(), self._micro_batch["prefix_mask"])
        if self.args.top_entropy_quantile < 1.0:  # TRL's own mask over all tokens was asked for as well
            of_trl = super().get_high_entropy_mask(entropies, mask, 1 - self.args.top_entropy_quantile)
            chosen = chosen & of_trl
        return chosen

    # --- 4 by what extra objective? -----------------------------------------------------------------------------------

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        self._micro_batch = inputs if "update_mask" in inputs else None
        try:
            loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
            if self._micro_batch is not None:
                extra = self.method.extra_loss(self._micro_rollouts(inputs), *self._forward)
                if extra is not None:
                    loss = loss + extra / self.current_gradient_accumulation_steps
                loss = loss * inputs.get("weight", 1.0)
        finally:
            self._micro_batch = self._forward = None
        return loss

    def _get_per_token_logps_and_entropies(self, model, *args, **kwargs):
        score = super()._get_per_token_logps_and_entropies
        logps, entropies, aux_loss = self._encoder(score, model, self._inside(model), *args, **kwargs)
        if self._micro_batch is not None:
            self._forward = (logps, entropies)
        return logps, entropies, aux_loss

    def _inside(self, model):
        """The transformers model itself."""
        inner = self.accelerator.unwrap_model(model)
        return inner.get_base_model() if hasattr(inner, "get_base_model") else inner  # peft's wrapper

    # --- which rows meet in a micro-batch -----------------------------------------------------------------------------

    def _prepare_inputs(self, generation_batch):
        before = self._buffered_inputs
        inputs = super()._prepare_inputs(generation_batch)
        if not self.model.training or self._buffered_inputs is before or not self._may_reorder:
            return inputs
        made = self._buffered_inputs
        for window in windows(len(made), self.args.gradient_accumulation_steps):
            batches = [made[i] for i in window]
            rows = [row for batch in batches for row in rows_of(batch)]
            order = alike_together(rows)
            sizes = self._balanced([rows[i] for i in order], len(batches)) if self.speed.balance else None
            made[window.start : window.stop] = rearranged(batches, order, sizes)
            for i, size in zip(window, sizes or [], strict=False):  # the loss is a mean over the rows of a micro-batch
                made[i]["weight"] = size * len(batches) / len(rows)
        return made[self._step % self.args.steps_per_generation]

    def _balanced(self, rows: Sequence[Sequence[int]], micro_batches: int) -> list[int] | None:
        """How many rows each micro-batch takes, where rows are packed; TRL gathers by row, so all ranks cut alike."""
        packs = self._encoder.refuses(self.model, self._inside(self.model), max(map(len, rows))) is None
        ranks = gather_object([overlaps(rows) if packs else None])
        return None if None in ranks else balanced(ranks, micro_batches)

    @property
    def _may_reorder(self) -> bool:
        """Whether the loss of a row is the same in every micro-batch of its step."""
        args = self.args
        constant = args.loss_type in CONSTANT_NORMALIZER and args.top_entropy_quantile == 1.0 and not self._is_vlm
        bonus = args.entropy_coef or args.use_adaptive_entropy  # a mean over the tokens of the micro-batch
        aligned = self._step % args.gradient_accumulation_steps == 0
        return self.speed.order and constant and not bonus and aligned

    def _micro_rollouts(self, inputs: Mapping[str, torch.Tensor]) -> Rollouts:
        return Rollouts(
            completion_ids=inputs["completion_ids"],
            completion_mask=inputs["completion_mask"].bool(),
            prefix_mask=inputs["prefix_mask"],
            rewards=inputs["rewards"],
            group_size=self.num_generations,
            step=self._step_now(),
            advantages=inputs["advantages"],
        )

    # --- what the fast path saved -------------------------------------------------------------------------------------

    def training_step(self, model, inputs, num_items_in_batch):
        loss = super().training_step(model, inputs, num_items_in_batch)
        if self._step % self.current_gradient_accumulation_steps == 0:  # where TRL has noted the time of the step
            self._log("speed/grading_share", self._grading_seconds / self._metrics["train"]["step_time"][-1])
            encoded, padded = (self._encoder.tokens[name] - self._tokens_before[name] for name in ("encoded", "padded"))
            if padded:
                self._log("speed/encoded_share", encoded / padded)
            self._grading_seconds, self._tokens_before = 0.0, dict(self._encoder.tokens)
        return loss

    # --- metrics and saved rollouts -----------------------------------------------------------------------------------

    def _log(self, name: str, value: torch.Tensor | float) -> None:
        """Adds a value that is the same on every rank to the metrics of this step."""
        self._metrics["train" if self.model.training else "eval"][name].append(float(value))

    def _log_prefixes(self, rollouts: Rollouts, entropies, advantages: torch.Tensor, moving: torch.Tensor) -> None:
        if not self.method.injects:
            return
        shortened = self._gather_flags([len(prefix.ids) < prefix.drawn for prefix in self._planned])
        lengths = rollouts.prefix_mask.sum(dim=1).float()
        of = torch.tensor([float(prefix.of) for prefix in self._planned], device=lengths.device)
        of = self.accelerator.gather(of)
        here = rollouts.prefixed
        tokens = rollouts.prefix_mask.sum()
        self._log("prefix/rollouts", here.sum())
        self._log("prefix/shortened_share", shortened[here].float().mean() if here.any() else torch.nan)
        self._log("prefix/token_share", tokens / rollouts.completion_mask.sum().clamp(min=1))
        if not here.any():
            return
        self._log("prefix/length", lengths[here].mean())
        self._log("prefix/fraction", (lengths[here] / of[here]).mean())
        self._log("prefix/kept_share", (moving & rollouts.prefix_mask).sum() / tokens)
        continuation = rollouts.continuation_mask & here.unsqueeze(1)
        if continuation.any():
            self._log("prefix/continuation_advantage", advantages[continuation].mean())

    def _log_entropies(self, entropies: torch.Tensor, mask: torch.Tensor, prefix_mask: torch.Tensor) -> None:
        """The mean entropy of prefix and continuation tokens of this micro-batch, over all ranks."""
        if not self.method.injects:
            return
        parts = (mask & prefix_mask, mask & ~prefix_mask)
        sums = torch.stack([part_sum for part in parts for part_sum in ((entropies * part).sum(), part.sum())])
        prefix_sum, prefix_count, continuation_sum, continuation_count = self.accelerator.reduce(sums, "sum").tolist()
        if prefix_count:
            self._log("entropy_prefix", prefix_sum / prefix_count)
        if continuation_count:
            self._log("entropy_continuation", continuation_sum / continuation_count)

    def _save_rollouts(self, inputs, output: Mapping[str, torch.Tensor], entropies: torch.Tensor | None) -> None:
        outcomes, found = self._outcomes or [None] * len(inputs), self._found or [None] * len(inputs)
        records = []
        for i, given in enumerate(inputs):
            mask = output["completion_mask"][i].bool()
            ids, credit = output["completion_ids"][i][mask].tolist(), output["advantages"][i][mask].tolist()
            marks = (output[name][i][mask].tolist() for name in ("prefix_mask", "update_mask"))
            pieces = segments(ids, *marks, self._tokenizer.decode)
            measured = None if entropies is None else entropies[i][mask].tolist()
            records.append(
                {
                    "step": self.state.global_step,
                    "row": given[_ROW],
                    "prompt": json.dumps(given["prompt"], ensure_ascii=False),
                    "answer": str(given.get("answer", "")),
                    "prefix_tokens": len(self._planned[i].ids),
                    "demonstration_tokens": self._planned[i].of,
                    "completion_ids": ids,
                    "segments": pieces,
                    "reward": float(output["rewards"][i]),
                    "outcome": outcomes[i],
                    "advantage": credit[-1] if credit else 0.0,
                    "found": found[i],
                    **token_columns(
                        ids, "".join(p["text"] for p in pieces), self._tokenizer.batch_decode, credit, measured
                    ),
                }
            )
        records = gather_object(records)
        if self.accelerator.is_main_process:
            write_rollouts(
                Path(self.args.output_dir, "rollouts", f"step_{self.state.global_step:06d}.parquet"), records
            )

    # --- resume -------------------------------------------------------------------------------------------------------

    def _get_train_sampler(self, dataset=None) -> Sampler:
        return _OrderOfEpoch(super()._get_train_sampler(dataset), lambda: self.state.epoch or 0.0)

    def _save_checkpoint(self, model, trial):
        limit, self.args.save_total_limit = self.args.save_total_limit, None  # older ones stay until this one is whole
        try:
            super()._save_checkpoint(model, trial)
        except (OSError, RuntimeError, SafetensorError) as error:
            raise CheckpointError(
                f"the checkpoint of step {self.state.global_step} could not be written under "
                f"{self.args.output_dir}: {error}\n"
                "  The last whole checkpoint is untouched; make room, and the same command goes on from it."
            ) from error
        finally:
            self.args.save_total_limit = limit
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            run = self._get_output_dir(trial=trial)
            folder = Path(run, f"checkpoint-{self.state.global_step}")
            now = {"step": self.state.global_step, "world_size": self.args.world_size, "cost": asdict(self.cost)}
            mark_whole(folder, {**self.facts, **now})
            rotate_checkpoints(output_dir=run, save_total_limit=limit)


def _repeated(rollouts: Rollouts, complete: torch.Tensor) -> torch.Tensor:
    """Which of the ``complete`` rows ``(B,)`` are the same as an earlier one of their group."""
    seen, repeated = set(), torch.zeros_like(complete)
    for row in complete.nonzero().flatten().tolist():
        key = (row // rollouts.group_size, *rollouts.completion_ids[row][rollouts.completion_mask[row]].tolist())
        repeated[row] = key in seen
        seen.add(key)
    return repeated


class _OrderOfEpoch(Sampler):
    """TRL's sampler, in the order that an uninterrupted run would see in this epoch.

    The sampler shuffles with a generator that is seeded once. A resumed run builds it anew and would see epoch 0 again;
    here the generator is moved to where the epoch begins. (``set_epoch`` would not do: accelerate does not pass it on
    to a sampler behind its shards.)
    """

    def __init__(self, sampler, epoch):
        self.sampler, self.epoch = sampler, epoch

    def __iter__(self):
        if self.sampler.shuffle:
            self.sampler.generator.manual_seed(self.sampler.seed)
            for _ in range(int(self.epoch() + 1e-6)):
                torch.randperm(self.sampler.num_samples, generator=self.sampler.generator)
        return iter(self.sampler)

    def __len__(self) -> int:
        return len(self.sampler)


class Spending(TrainerCallback, ExportableState):
    """What the run has cost. It is saved with every checkpoint, so a resumed run goes on counting."""

    def __init__(self, **spent: float):
        self.cost = Cost(**spent)

    def state(self) -> dict:
        return {"args": asdict(self.cost), "attributes": {}}

    def on_train_begin(self, args, state, control, **kwargs):
        self.cost = Cost(**state.stateful_callbacks[type(self).__name__]["args"])  # a resumed run has read them back


class Remembered(TrainerCallback, ExportableState):
    """What the method remembers of the run, saved with every checkpoint and read back."""

    def __init__(self, method: Method, **memory: Any):
        self.method, self.memory = method, memory

    def state(self) -> dict:
        return {"args": {}, "attributes": {"memory": self.memory}}

    def on_train_begin(self, args, state, control, **kwargs):
        self.memory = state.stateful_callbacks[type(self).__name__]["attributes"]["memory"]  # a resumed run's

    def on_log(self, args, state, control, logs=None, **kwargs):
        if logs and "eval_reward" in logs:  # every rank has the mean over all of them
            self.memory = self.method.remember_evaluation(self.memory, logs["eval_reward"])


class _Budget(TrainerCallback):
    """Stops a run once it has spent its floating-point operations."""

    def __init__(self, trainer: PrefixTrainer, flops: float | None):
        self.trainer, self.flops = trainer, flops

    def on_step_end(self, args, state, control, **kwargs):
        if self.flops is not None and self.trainer.cost.flops >= self.flops:
            control.should_training_stop = control.should_save = control.should_log = True


class MetricsFile(TrainerCallback):
    """Every log as a line of ``metrics.jsonl`` in the run's folder. A resumed run rewrites what it repeats."""

    def __init__(self, folder: Path):
        self.path = folder / "metrics.jsonl"

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero and self.path.exists():
            lines = self.path.read_text(encoding="utf-8").splitlines()
            kept = [line for line in lines if line.endswith("}") and json.loads(line)["step"] <= state.global_step]
            self.path.write_text("".join(line + "\n" for line in kept), encoding="utf-8")

    def on_log(self, args, state, control, logs=None, **kwargs):
        if state.is_world_process_zero and logs:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": state.global_step, **logs}) + "\n")
