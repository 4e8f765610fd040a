"""The truth of one optimizer step, plain and slow: its loss from the rollouts that were saved, token by token.

No formula of the package is used here. Rollouts come from the saved files, log-probabilities from one forward pass for
each rollout, and every objective stands here once more as a loop over rollouts and tokens, in double precision. What
stands in one place elsewhere (a mask, a credit, a weight) is told apart by the type of the method.

The rule that everything follows: a token *moves* if the policy wrote it or if the method trains it although somebody
else wrote it. What does not move is context: it is in no surrogate, no KL, no ratio, no bonus and no count of tokens.
"""

import math
from dataclasses import dataclass, field
from fractions import Fraction

import torch

from prefix_rl.methods.adaptive import Adaptive
from prefix_rl.methods.bread import BREAD
from prefix_rl.methods.luffy import LUFFY
from prefix_rl.methods.pppo import PPPO
from prefix_rl.methods.prefix_rft import PrefixRFT
from prefix_rl.methods.relift import ReLIFT
from prefix_rl.methods.sft_loss import SFTLoss
from prefix_rl.methods.tempo import TEMPO
from prefix_rl.methods.uft import UFT


@dataclass(frozen=True)
class Rollout:
    """One saved rollout: prompt | prefix | continuation."""

    prompt: list[int]
    ids: list[int]  # prefix and continuation
    prefix: int  # how many of them are the prefix
    reward: float  # NaN: could not be scored
    ended: bool  # whether it ends with EOS

    @property
    def whole(self):
        """Whether it is a demonstration from beginning to end."""
        return self.prefix > 0 and self.prefix == len(self.ids)


@dataclass(frozen=True)
class Settings:
    """What of a run's settings the loss depends on."""

    group_size: int
    budget: int  # max_completion_length
    step: int  # at which the rollouts were generated
    total: int
    loss_type: str = "dr_grpo"
    level: str = "token"  # importance_sampling_level
    low: float = 0.2  # epsilon
    high: float = 0.2  # epsilon_high
    beta: float = 0.0
    kl: str = "moving"  # or all
    corrected: bool = True  # use_bias_correction_kl: the KL is weighed by the ratio, as its tokens are pi_old's
    entropy_coef: float = 0.0
    mask_truncated: bool = False
    without_signal: str = "keep"  # groups_without_signal
    continued: list = field(default_factory=list)  # PPPO: for each rollout the rewards of its further continuations


def read(records, tokenizer):
    """The rollouts of the records of one generation batch."""
    import json

    eos = tokenizer.eos_token_id
    return [
        Rollout(
            tokenizer(json.loads(r["prompt"]))["input_ids"], list(r["completion_ids"]), r["prefix_tokens"], r["reward"],
            bool(r["completion_ids"]) and r["completion_ids"][-1] == eos,
        )
        for r in records
    ]  # fmt: skip


def scores(policy, rollout):
    """The log-probability and the entropy of each token of the completion, each a list of scalars."""
    n = len(rollout.ids)
    logits = policy(input_ids=torch.tensor([rollout.prompt + rollout.ids])).logits[0]
    logps = torch.log_softmax(logits.double(), dim=-1)[-n - 1 : -1]
    chosen = [logps[t, token] for t, token in enumerate(rollout.ids)]
    return chosen, list(-(logps.exp() * logps).sum(dim=-1))


# --- who gets credit? -------------------------------------------------------------------------------------------------


def group_of(i, size):
    return range(i // size * size, i // size * size + size)


def mean_reward(rollouts, rows):
    """Over the rows that could be scored; None if there are none."""
    known = [rollouts[j].reward for j in rows if not math.isnan(rollouts[j].reward)]
    return sum(known) / len(known) if known else None


def against(rollouts, i, rows):
    """The reward less the mean over other rows; 0 where either is missing."""
    mean = mean_reward(rollouts, rows)
    return 0.0 if mean is None or math.isnan(rollouts[i].reward) else rollouts[i].reward - mean


def deviation(rewards):
    """Of a sample, ``n - 1``; what could not be scored is left out."""
    known = [r for r in rewards if not math.isnan(r)]
    if len(known) < 2:
        return 0.0
    mean = sum(known) / len(known)
    return math.sqrt(sum((r - mean) ** 2 for r in known) / (len(known) - 1))


def credit(method, rollouts, settings):
    """For each rollout its credit at each token, a number or 0."""
    size = settings.group_size
    found = []
    for i, rollout in enumerate(rollouts):
        rows = group_of(i, size)
        plain = [j for j in rows if not rollouts[j].prefix]
        if isinstance(method, TEMPO):
            inner = credit(method.of, rollouts, settings)[i]
            tree = [value_step(rollouts, i, t, rows) for t in range(len(rollout.ids))]
            values = [c + method.weight * v for c, v in zip(inner, tree, strict=True)]
            if method.normalize:
                std = deviation([rollouts[j].reward for j in rows])
                values = [v / (std + 1e-6) for v in values]
            found.append(values)
            continue
        if isinstance(method, Adaptive):
            found.append(credit(method.of, rollouts, settings)[i])
            continue
        if isinstance(method, PPPO):
            found.append([pppo_credit(method, rollouts, i, rows, settings)] * len(rollout.ids))
            continue
        if isinstance(method, SFTLoss | ReLIFT):
            found.append([against(rollouts, i, plain)] * len(rollout.ids))
            continue
        if isinstance(method, PrefixRFT) and method.credit != "pooled":
            value = against(rollouts, i, plain)
            released = method.credit == "released" and rollout.prefix
            own = (0.0 if math.isnan(rollout.reward) else rollout.reward) if released else value
            found.append([value] * rollout.prefix + [own] * (len(rollout.ids) - rollout.prefix))
            continue
        value = against(rollouts, i, rows)
        if isinstance(method, BREAD) and method.normalize:
            value /= deviation([rollouts[j].reward for j in rows]) + 1e-6
        found.append([value] * len(rollout.ids))
    return found


def learning(method, rollouts, settings):
    """The numbers of the rollouts whose group teaches something: credit on some token that is in the loss."""
    credits = credit(method, rollouts, settings)
    live = [not settings.mask_truncated or r.ended for r in rollouts]
    teaches = [on and any(abs(c) > 1e-6 for c in row) for on, row in zip(live, credits, strict=True)]
    return [i for i in range(len(rollouts)) if any(teaches[j] for j in group_of(i, settings.group_size))]


def value_step(rollouts, i, t, rows):
    """TEMPO's ``V(s_{t+1}) - V(s_t)`` of rollout i: mean rewards of those of the group that begin alike."""
    ids = rollouts[i].ids
    if math.isnan(rollouts[i].reward):
        return 0.0
    before = mean_reward(rollouts, [j for j in rows if rollouts[j].ids[:t] == ids[:t]])
    after = mean_reward(rollouts, [j for j in rows if rollouts[j].ids[: t + 1] == ids[: t + 1]])
    return after - before


def pppo_credit(method, rollouts, i, rows, settings):
    """``R_i = sum of rewards``, centred, over the deviation."""

    def accumulated(j):
        rewards = [rollouts[j].reward, *(settings.continued[j] if settings.continued else [])]
        known = [r for r in rewards if not math.isnan(r)]
        return sum(known) * len(rewards) / len(known) if known else math.nan

    totals = {j: accumulated(j) for j in rows}
    known = [r for r in totals.values() if not math.isnan(r)]
    value = totals[i] - sum(known) / len(known)
    if method.normalize:
        value /= deviation(list(totals.values())) + 1e-6
    return value


# --- which tokens move? -----------------------------------------------------------------------------------------------


def moving(method, rollouts, entropies, settings):
    """For each rollout the set of tokens that move; ``entropies`` are those of the policy that generated."""
    while isinstance(method, TEMPO | Adaptive):
        method = method.of
    live = [not settings.mask_truncated or r.ended for r in rollouts]
    found = [set(range(r.prefix, len(r.ids))) if on else set() for r, on in zip(rollouts, live, strict=True)]
    if isinstance(method, PPPO):
        return [
            {t for t in own if t < math.floor(Fraction(str(method.share)) * len(r.ids))}
            for own, r in zip(found, rollouts, strict=True)
        ]
    if isinstance(method, PrefixRFT) and method.tokens != "none":
        candidates = [(i, t) for i, r in enumerate(rollouts) if live[i] for t in range(r.prefix)]
        if method.tokens in ("top_entropy", "low_entropy"):
            sign = -1 if method.tokens == "top_entropy" else 1
            dropped = 1 - Fraction(str(method.share))
            scopes = [candidates] if method.scope == "batch" else [
                [c for c in candidates if c[0] == i] for i in range(len(rollouts))
            ]  # fmt: skip
            candidates = []
            for scope in scopes:
                ranked = sorted(scope, key=lambda c: (sign * float(entropies[c[0]][c[1]]), c))
                candidates += ranked[: len(scope) - math.floor(dropped * len(scope))]
        for i, t in candidates:
            found[i].add(t)
    return found


# --- the loss ---------------------------------------------------------------------------------------------------------


def loss(policy, method, rollouts, settings, *, old=None, reference=None, entropies=None):
    """The loss of an optimizer step on all of ``rollouts``.

    ``old`` and ``reference`` are their log-probabilities under the policy that generated and under the reference, as
    :func:`scores` gives them; no ``old``: the policy itself. ``entropies`` are those under the policy that generated.
    """
    if settings.without_signal not in ("keep", "spare"):  # as if the other groups were not there
        kept = learning(method, rollouts, settings)
        if not kept:
            return sum((p * 0).sum() for p in policy.parameters())
        rollouts, old, reference, entropies = (
            [of[i] for i in kept] if of else of for of in (rollouts, old, reference, entropies)
        )
    found = [scores(policy, r) for r in rollouts]
    logps = [row for row, _ in found]
    old = [[p.detach() for p in row] for row in (old or logps)]
    given = entropies or [row for _, row in found]
    moves = moving(method, rollouts, given, settings)
    credits = credit(method, rollouts, settings)
    terms = []
    for i, tokens in enumerate(moves):
        row = {}
        logs = {t: logps[i][t] - old[i][t] for t in sorted(tokens)}
        mean = sum(logs.values()) / len(logs) if logs else None
        total = sum(logs.values()) if logs else None
        for t in logs:
            ratio = (mean if settings.level == "sequence" else logs[t]).exp()
            row[t] = surrogate(ratio, credits[i][t], logps[i][t], total, settings)
            if settings.beta:
                kl = divergence(logps[i][t], reference[i][t])
                row[t] = row[t] + settings.beta * (kl * ratio if settings.corrected else kl)
        terms.append(row)
    whole = normalized(terms, settings)
    if settings.beta and settings.kl == "all":
        for i, rollout in enumerate(rollouts):
            for t in set(range(len(rollout.ids))) - moves[i] if not settings.mask_truncated or rollout.ended else ():
                kl = divergence(logps[i][t], reference[i][t])
                kl = kl * (logps[i][t] - old[i][t]).exp() if settings.corrected else kl
                whole = whole + settings.beta * kl / (len(rollouts) * settings.budget)
    if isinstance(method, PPPO) and method.normalizer == "tokens":  # of surrogate and KL alike
        taken = [r for r in rollouts if r.ended or not settings.mask_truncated]  # as TRL's dapo counts
        whole = whole * (len(rollouts) * settings.budget) / max(sum(len(r.ids) for r in taken), 1)
    if settings.entropy_coef:
        bonus = [found[i][1][t] for i, tokens in enumerate(moves) for t in tokens if t >= rollouts[i].prefix]
        whole = whole - settings.entropy_coef * sum(bonus) / len(bonus)
    if isinstance(method, SFTLoss) and method.schedule == "chord":  # all of it: surrogate, KL and bonus
        whole = whole * (1 - chord(method, settings))
    return whole + extra(method, rollouts, logps, credits, settings)


def surrogate(ratio, advantage, logp, total, settings):
    """What one moving token adds, before the normalizer; ``total`` is the sum of the rollout's log-ratios."""
    kind = settings.loss_type
    if kind == "cispo":
        return -min(float(ratio.detach()), settings.high) * advantage * logp
    if kind == "sapo":
        temperature = 1.0 if advantage > 0 else 1.05
        return -torch.sigmoid(temperature * (ratio - 1)) * 4 / temperature * advantage
    if kind == "vespo":
        k, scale = (2.0, 3.0) if advantage >= 0 else (3.0, 2.0)
        log_weight = min(max(float(total.detach()), math.log(1e-8)), 20.0)
        return -math.exp(scale + k * log_weight - scale * math.exp(log_weight)) * advantage * logp
    clipped = ratio.clamp(1 - settings.low, 1 + settings.high)
    return -torch.min(ratio * advantage, clipped * advantage)


def divergence(logp, reference):
    """Schulman's estimate of KL(policy || reference)."""
    return (reference.detach() - logp).exp() - (reference.detach() - logp) - 1


def normalized(terms, settings):
    """The sum of all terms over what the loss type divides by; a token that does not move counts nowhere."""
    zero = torch.zeros((), dtype=torch.double)
    sums, counts = [sum(row.values(), zero) for row in terms], [len(row) for row in terms]
    if settings.loss_type in ("grpo", "sapo"):
        return sum(s / max(n, 1) for s, n in zip(sums, counts, strict=True)) / len(terms)
    if settings.loss_type == "luspo":
        return sum(sums) / len(terms)
    if settings.loss_type in ("bnpo", "dapo", "cispo", "vespo"):
        return sum(sums) / max(sum(counts), 1)
    return sum(sums) / (len(terms) * settings.budget)


def extra(method, rollouts, logps, credits, settings):
    """The terms beside the surrogate."""
    while isinstance(method, TEMPO | Adaptive):
        method = method.of
    live = [not settings.mask_truncated or r.ended for r in rollouts]
    injected = [(i, t) for i, r in enumerate(rollouts) if live[i] for t in range(r.prefix)]
    if not injected:
        return 0.0
    if isinstance(method, LUFFY):
        shaped = sum(logps[i][t].exp() / (logps[i][t].exp() + method.gamma) * credits[i][t] for i, t in injected)
        return -shaped / (len(rollouts) * settings.budget)
    if isinstance(method, UFT):
        return -method.weight * sum(logps[i][t] for i, t in injected) / len(injected)
    if isinstance(method, ReLIFT):
        return -sum(logps[i][t] for i, t in injected) / len(injected)
    if isinstance(method, SFTLoss):
        nll = 0.0
        for i, t in injected:
            p = float(logps[i][t].detach().exp())
            nll = nll - logps[i][t] * (p * (1 - p) if method.tokens == "uncertain" else 1.0)
        weight = method.weight if method.schedule == "constant" else chord(method, settings)
        return weight * nll / len(injected)
    return 0.0


def chord(method, settings):
    """``mu_t``: up a line to the weight, down a cosine to the end."""
    if settings.step < method.warmup:
        return method.weight * settings.step / method.warmup
    horizon = method.horizon or max(settings.total - method.warmup, 1)
    done = min((settings.step - method.warmup) / horizon, 1)
    return method.end + (method.weight - method.end) * (1 + math.cos(math.pi * done)) / 2
