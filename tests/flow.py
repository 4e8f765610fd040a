"""What flows, for tests: rollouts and micro-batches in numbers, and the batch that a trainer has open."""

import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import torch

from prefix_rl.rollouts import MicroBatch, Rollouts
from prefix_rl.seam.batch import GenerationBatch, Slot
from prefix_rl.seam.planning import plan_of
from prefix_rl.seam.ranks import Ranks


def plan(method, rows, step):
    """What each row starts from."""
    return plan_of(method, rows, step)[0]


def asks(method, row, step):
    """Whether a row is to start from a prefix."""
    return plan_of(method, [row], step)[1][0]


def generated(completion_ids, completion_mask, prefix_mask, rewards, step, group_size=4):
    """A generation batch of whole groups, each of a problem of its own."""
    count = len(rewards)
    return Rollouts(
        completion_ids=completion_ids,
        completion_mask=completion_mask,
        prefix_mask=prefix_mask,
        prefixed=prefix_mask.any(dim=1),
        rewards=rewards,
        group_size=group_size,
        step=step,
        problems=torch.arange(count) // group_size,
        demonstrated=torch.ones(count, dtype=torch.bool),
        fractions=torch.full((count,), torch.nan),
        continued=torch.zeros(count, 0),
    )


def trained_on(rollouts, weights, rows=slice(None)):
    """These rows of a generation batch as a micro-batch in which each token has a weight."""
    return MicroBatch(
        completion_ids=rollouts.completion_ids[rows],
        completion_mask=rollouts.completion_mask[rows],
        prefix_mask=rollouts.prefix_mask[rows],
        rewards=rollouts.rewards[rows],
        step=rollouts.step,
        advantages=torch.zeros_like(weights[rows]),
        weights=weights[rows],
    )


class Watched(Slot):
    """A slot that remembers the last generation batch, as it was when it was closed."""

    last = None

    def fill(self, **found):
        super().fill(**found)
        if "rewards" in found:
            self.last = self.get(GenerationBatch)


def watched(trainer):
    """The slot of a trainer, which from now on remembers."""
    trainer._open = Watched()
    return trainer._open


class FakeRanks(Ranks):
    """One of several ranks, each in a thread of its own, which meet wherever they learn of each other."""

    device = torch.device("cpu")

    def __init__(self, index, shared):
        self._index, self._shared = index, shared

    @property
    def count(self):
        return self._shared.barrier.parties

    @property
    def index(self):
        return self._index

    @property
    def writes(self):
        return self._index == 0

    def _of_all(self, value):
        shared = self._shared
        shared.values[self._index] = value
        shared.barrier.wait(timeout=300)
        found = [shared.values[i] for i in range(self.count)]
        shared.barrier.wait(timeout=300)
        return found

    def all(self, rows):
        return torch.cat(self._of_all(rows))

    def rows(self, rows, fill):
        parts = self._of_all(rows)
        found = rows.new_full((sum(map(len, parts)), max(p.size(1) for p in parts), *rows.shape[2:]), fill)
        for part, where in zip(parts, torch.arange(len(found)).split([len(p) for p in parts]), strict=True):
            found[where, : part.size(1)] = part
        return found

    def sums(self, values):
        return torch.stack(self._of_all(values)).sum(dim=0).tolist()

    def objects(self, items):
        return [item for part in self._of_all(list(items)) for item in part]


def together(count, work):
    """What ``work(ranks)`` gives on each of ``count`` ranks."""
    shared = SimpleNamespace(barrier=threading.Barrier(count), values={})

    def on(index):
        try:
            return work(FakeRanks(index, shared))
        except BaseException:
            shared.barrier.abort()  # the others wait for nobody
            raise

    with ThreadPoolExecutor(count) as pool:
        return [future.result() for future in [pool.submit(on, index) for index in range(count)]]
