"""The columns of a trace store's parts, and what no trace can have in them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..rewards.grading import Outcome

if TYPE_CHECKING:
    from pyarrow import RecordBatch, Schema

UNGRADED = "ungraded"
"""Outcome of a trace that was not graded, because its method needs no answers."""
CUT = "cut"
"""Outcome of a trace that was stopped on purpose, because the method trains on its beginning only; not graded."""
_MOST_ATTEMPTS = 10**6
_OUTCOMES = (*map(str, Outcome), UNGRADED, CUT)


def impossible(batch: RecordBatch) -> str | None:
    """What no trace can have, if one of the batch has it; None if none has."""
    import pyarrow
    import pyarrow.compute as compute

    def least(column: Any) -> float:
        found = compute.min(column).as_py()
        return 0 if found is None else found

    have = set(batch.schema.names)
    for name in have & {"attempt", "prompt_tokens", "completion_tokens"}:
        if least(batch[name]) < 0:
            return f"a trace has {name} = {least(batch[name])}"
    if "attempt" in have and (last := compute.max(batch["attempt"]).as_py() or 0) > _MOST_ATTEMPTS:
        return f"a trace has attempt = {last}"
    if "completion_ids" in have and (lowest := least(batch["completion_ids"].flatten())) < 0:
        return f"a trace has the token id {lowest}"
    if "flops" in have:
        possible = compute.and_(compute.greater_equal(batch["flops"], 0.0), compute.is_finite(batch["flops"]))
        if other := batch["flops"].filter(compute.invert(possible)).to_pylist():
            return f"a trace has flops = {other[0]}"
    if "outcome" in have:
        known = compute.is_in(batch["outcome"], value_set=pyarrow.array(_OUTCOMES))
        if other := batch["outcome"].filter(compute.invert(known)).to_pylist():
            return f"a trace has the outcome {other[0][:60]!r}; there are {', '.join(_OUTCOMES)}"
    return None


def schema() -> Schema:
    """Columns of a part: the fields of a trace, and ``completion_tokens`` and ``reward``, which follow from them."""
    import pyarrow as pa

    def column(name: str, kind: Any, nullable: bool = False) -> pa.Field:
        return pa.field(name, kind, nullable=nullable)

    return pa.schema(
        [
            column("problem_id", pa.string()),
            column("problem", pa.string()),
            column("answer", pa.string()),
            column("attempt", pa.int32()),
            column("source", pa.string()),
            column("text", pa.string()),
            column("completion_ids", pa.list_(pa.int32())),
            column("prompt_tokens", pa.int32()),
            column("completion_tokens", pa.int32()),
            column("reward", pa.float64(), nullable=True),
            column("outcome", pa.string()),
            column("truncated", pa.bool_()),
            column("flops", pa.float64(), nullable=True),
            column("imported", pa.bool_()),
        ]
    )
