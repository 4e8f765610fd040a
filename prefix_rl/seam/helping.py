"""Rounds of generation within a step: help for groups that have just failed, other problems for groups without signal.

They come before TRL's own work on a generation batch. TRL is then handed the rollouts that stand at last
(:class:`~prefix_rl.seam.batch.Settled`) where it would generate and grade, and does all the rest with them: masks,
log-probabilities, metrics, tables. A round is one more call of TRL's generation, in which the rows that stay as they
are count as complete, and one call of its grading, for the new rows alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from ..costs import Cost, inference_flops
from ..methods.base import Earlier
from ..prefixes import Prefix, uniform
from ..rollouts import Rollouts, Row
from . import credit, signal
from .batch import COPY, ROW, GenerationBatch, Planned, Settled
from .deciding import Deciding


@dataclass(frozen=True)
class Made:
    """One rollout of this rank; one to come has no ids yet."""

    given: Mapping[str, Any]  # TRL's row
    row: Row
    prefix: Prefix
    prompt: int = 0  # tokens
    ids: Sequence[int] = ()
    logps: Sequence[float | None] | None = None
    told: Mapping[str, Any] = field(default_factory=dict)  # what reward functions logged of it

    @property
    def tokens(self) -> tuple[int, int, int]:
        """Tokens that were generated, injected, and read in all."""
        begun = len(self.prefix.ids)
        return len(self.ids) - begun, begun, 0 if self.prefix.complete else self.prompt + len(self.ids)


@dataclass(frozen=True)
class State:
    """The rollouts after a round: this rank's one by one, and those of all ranks as tensors."""

    made: Sequence[Made]
    rewards: torch.Tensor  # (B, F)
    batch: GenerationBatch
    rollouts: Rollouts


def settled(batch: GenerationBatch, deciding: Deciding) -> GenerationBatch:
    """The planned batch; with the rollouts that stand at last, if the method helps groups or some are exchanged."""
    asked = deciding.planner.method.needs.help_rounds or deciding.exchanges
    return Rounds(batch, deciding).settled() if asked else batch


class Rounds:
    """The rounds of one generation batch. All ranks make the same ones."""

    def __init__(self, batch: GenerationBatch, deciding: Deciding):
        self._batch, self._planner, self._exchanges = batch, deciding.planner, deciding.exchanges
        self._sample, self._total, self._parameters = deciding.sample, deciding.total, deciding.parameters
        self._stops = deciding.stops
        self._method, self._ranks, self._size = self._planner.method, self._planner.ranks, self._planner.group_size
        self._own = self._ranks.own(len(batch.inputs))
        self._tokens: list[tuple[int, int, int]] = []  # of all that was generated
        self._helped_groups: list[tuple[float, float, float]] = []  # reward before, reward after, signal after
        self._help_rounds = 0
        self._told: dict[str, list[float]] = {}  # metrics that reward functions logged, once for each row

    def settled(self) -> GenerationBatch:
        """The batch with the rollouts that stand at last."""
        batch = self._batch
        planned = [Made(*of) for of in zip(batch.inputs, batch.rows, batch.plan, strict=True)]
        state = self._generated(dict(enumerate(planned)))
        groups = len(state.rollouts.rewards) // self._size
        new = torch.ones(groups, dtype=torch.bool)
        first = state = self._helped(state, new)
        used = {(row.problem, row.copy) for row in first.rollouts.rows}
        exchanged, rounds = torch.zeros(groups, dtype=torch.bool), 0
        while rounds < self._exchanges:
            starts, new = self._others(~self._signal(state), rounds, used)
            if not bool(new.any()):
                break
            state = self._helped(self._generated(starts, state), new)
            exchanged, rounds = exchanged | new, rounds + 1
        told, cost = [made.told for made in state.made], self._discarded(state)
        settled = Settled(
            ids=[made.ids for made in state.made],
            logps=None if any(made.logps is None for made in state.made) else [made.logps for made in state.made],
            rewards=state.rewards,
            extra={
                name: [row.get(name) for row in told] for name in dict.fromkeys(name for row in told for name in row)
            },
            told=self._told,
            earlier=state.rollouts.earlier,
            own=first.rollouts if rounds else None,
            cost=cost,
            metrics={"discarded_tokens": cost.generated_tokens, **self._metrics(first, exchanged, rounds)},
        )
        return replace(state.batch, settled=settled, completions=None, rewards=None)

    # --- one round ----------------------------------------------------------------------------------------------------
    def _generated(self, starts: Mapping[int, Made], before: State | None = None) -> State:
        """What stands once the rows in ``starts`` were generated and graded; the others stay as they were before."""
        rows, ranks = list(starts), self._ranks
        now = [starts[i] if i in starts else before.made[i] for i in range(len(self._batch.inputs))]
        begun = [made.prefix if i in starts else Prefix(list(made.ids), complete=True) for i, made in enumerate(now)]
        # every rank grades as many, since rewards are gathered; a row too many is graded in vain
        graded = [*rows, *[0] * (ranks.largest(len(rows)) - len(rows))]
        found = self._sample([made.given for made in now], begun, [made.prefix for made in now], graded)
        for name, values in found.told.items():
            self._told.setdefault(name, []).extend(value for value in values for _ in rows)
        for k, i in enumerate(rows):
            told = {name: values[k] for name, values in found.extra.items() if len(values) == len(graded)}
            logps = None if found.logps is None else found.logps[i]
            now[i] = replace(now[i], prompt=found.prompts[i], ids=found.ids[i], logps=logps, told=told)
            self._tokens.append(now[i].tokens)
        places = [*(self._own.start + i for i in rows), *[-1] * (len(graded) - len(rows))]
        places = ranks.all(torch.tensor(places, device=found.rewards.device))
        rewards = (
            before.rewards.clone()
            if before
            else found.rewards.new_full((len(self._batch.planned.lengths), found.rewards.size(1)), torch.nan)
        )
        rewards[places[places >= 0]] = found.rewards[places >= 0]
        return self._state(now, rewards)

    def _state(self, made: Sequence[Made], rewards: torch.Tensor) -> State:
        plan = [one.prefix for one in made]
        batch = replace(
            self._batch, inputs=[one.given for one in made], rows=[one.row for one in made], plan=plan,
            planned=Planned.over(self._ranks, plan, [bool(prefix.ids) for prefix in plan]),
            completions=[one.ids for one in made], rewards=self._total(rewards),
        )  # fmt: skip
        ids = [torch.tensor(one.ids, dtype=torch.long, device=rewards.device) for one in made]
        output = {
            "completion_ids": pad_sequence(ids, batch_first=True),
            "completion_mask": pad_sequence([torch.ones_like(one) for one in ids], batch_first=True),
        }
        prefixes = credit.prefix_mask(plan, output)
        return State(
            made, rewards, batch, credit.gathered(self._ranks, batch, output, prefixes, self._planner.demonstrations)
        )

    def _signal(self, state: State) -> torch.Tensor:
        judged = state.rollouts
        if self._stops is not None:  # TRL will leave the others out of the loss
            own = torch.tensor([bool(self._stops.intersection(made.ids[-1:])) for made in state.made])
            mask = judged.completion_mask & self._ranks.all(own.to(judged.completion_mask.device)).unsqueeze(1)
            judged = replace(judged, completion_mask=mask, prefix_mask=judged.prefix_mask & mask)
        return signal.with_signal(self._method, judged, state.rollouts)

    # --- help ---------------------------------------------------------------------------------------------------------
    def _helped(self, state: State, new: torch.Tensor) -> State:
        """The state once the method has no help left for the groups ``new (P,)``, or was asked as often as it needs."""
        history, helped = [state], set()
        for _ in range(self._method.needs.help_rounds):
            answers = self._method.help(state.rollouts, self._batch.step)
            answers = {row: answer for row, answer in answers.items() if bool(new[row // self._size])}
            if not answers:
                break
            history.append(self._answered(answers, history))
            helped |= {row // self._size for row in answers}
            earlier = tuple(one.rollouts for one in history[:-1])
            state = replace(history[-1], rollouts=replace(history[-1].rollouts, earlier=earlier))
        self._help_rounds = max(self._help_rounds, len(history) - 1)
        learned = self._signal(state)
        before, after = (one.batch.rewards.view(-1, self._size).nanmean(dim=1) for one in (history[0], state))
        self._helped_groups += [(float(before[p]), float(after[p]), float(learned[p])) for p in sorted(helped)]
        return state

    def _answered(self, answers: Mapping[int, Prefix | Earlier], history: Sequence[State]) -> State:
        """The last state with rows put back as they were, and others generated behind their prefixes."""
        made, rewards, starts = list(history[-1].made), history[-1].rewards.clone(), {}
        for row, answer in answers.items():
            here = row - self._own.start if self._own.start <= row < self._own.stop else None
            if isinstance(answer, Earlier):
                rewards[row] = history[answer.round].rewards[row]
                if here is not None:
                    made[here] = history[answer.round].made[here]
            elif here is not None:
                starts[here] = Made(made[here].given, made[here].row, answer)
        state = self._state(made, rewards)
        fresh = any(not isinstance(answer, Earlier) for answer in answers.values())
        return self._generated(starts, state) if fresh else state

    # --- other problems -----------------------------------------------------------------------------------------------
    def _others(
        self, dropped: torch.Tensor, number: int, used: set[tuple[int, int]]
    ) -> tuple[dict[int, Made], torch.Tensor]:
        """Rollouts to come of other problems, for the rows of this rank in groups that are ``dropped (P,)``; and True
        for each group that gets one.

        Problems are drawn from the data set, none twice in a step. TRL's own order of the data goes on untouched.
        """
        identities, step = self._planner.identities, self._batch.step
        distinct, places = len(set(identities)), {}
        for group in dropped.nonzero().flatten().tolist():
            if len(used) == distinct:
                break
            draws = (uniform("exchange", step.seed, step.index, number, group, again) for again in count())
            drawn = (int(u * len(identities)) for u in draws)
            places[group] = next(place for place in drawn if identities[place] not in used)
            used.add(identities[places[group]])
        starts = {}
        for i in range(len(self._batch.inputs)):
            index = self._own.start + i
            if index // self._size in places:
                given = self._planner.dataset[places[index // self._size]]
                row = Row(index, self._size, given[ROW], self._planner.demonstrations[given[ROW]], given[COPY])
                starts[i] = Made(*self._planner.planned_row(given, row, step))
        return starts, torch.tensor([group in places for group in range(len(dropped))])

    # --- what it cost, and what came of it ----------------------------------------------------------------------------
    def _discarded(self, state: State) -> Cost:
        """Cost of all that was generated and does not stand at last, over all ranks."""
        kept = [made.tokens for made in state.made]
        sums = [[sum(row[k] for row in self._tokens) - sum(row[k] for row in kept) for k in range(3)]]
        generated, injected, read = self._ranks.all(torch.tensor(sums, device=self._ranks.device)).sum(dim=0).tolist()
        return Cost(
            generated_tokens=float(generated), injected_tokens=float(injected),
            flops=float(inference_flops(self._parameters, read)),
        )  # fmt: skip

    def _metrics(self, first: State, exchanged: torch.Tensor, rounds: int) -> dict[str, float]:
        found: dict[str, float] = {}
        groups = len(exchanged)
        if self._method.needs.help_rounds:
            found |= {"help/groups_share": len(self._helped_groups) / groups, "help/rounds": float(self._help_rounds)}
        if self._helped_groups:
            before, after, learned = torch.tensor(self._helped_groups).nanmean(dim=0).tolist()
            found |= {"help/reward_before": before, "help/reward_after": after, "help/signal_share": learned}
        if self._exchanges:
            found |= {
                "signal/missing_before": float((~self._signal(first)).float().mean()),
                "signal/exchanged_share": float(exchanged.float().mean()),
                "signal/rounds": float(rounds),
            }
        return found
