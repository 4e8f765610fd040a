"""Settings that go together with a method, checked before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

from ..errors import RecipeError
from ..methods.base import Method
from ..methods.idle import idle
from ..speed.order import CONSTANT_NORMALIZER
from .signal import COUNTS_ROWS

WithoutSignal = Literal["keep", "spare", "skip", "resample"]
"""What becomes of groups from which nothing is learned."""


def check_settings(method: Method, arguments, kl_on: str, without_signal: str, options: Mapping[str, Any]) -> None:
    """TRL's ``arguments``, where the KL falls, what becomes of groups without signal and the trainer's further
    ``options`` go together with this method.

    Raises:
        RecipeError: naming all that do not.
    """
    faults = method.faults(vars(arguments)) + idle(method)
    if arguments.scale_rewards != "none":
        faults.append(f"scale_rewards = {arguments.scale_rewards}: the method gives the advantages, set it to none")
    if arguments.multi_objective_aggregation != "sum_then_normalize":
        faults.append("multi_objective_aggregation must be sum_then_normalize: the method gives the advantages")
    if kl_on not in ("moving", "all"):
        faults.append(f"kl_on = {kl_on}: there are moving and all")
    token_level = arguments.importance_sampling_level == "token"
    if kl_on == "all" and (arguments.loss_type not in CONSTANT_NORMALIZER or not token_level):
        faults.append("kl_on = all needs loss_type = dr_grpo and importance_sampling_level = token")
    if kl_on == "all" and not arguments.beta:
        faults.append("kl_on = all says nothing with beta = 0: there is no KL")
    bonus = arguments.entropy_coef or arguments.use_adaptive_entropy
    if bonus and arguments.top_entropy_quantile < 1 and method.needs.prefixes:
        faults.append(
            "an entropy bonus together with top_entropy_quantile: TRL would rank prefix tokens by the policy's mean "
            "entropy; give only one of them"
        )
    if without_signal not in get_args(WithoutSignal):
        faults.append(f"groups_without_signal = {without_signal}: there are {', '.join(get_args(WithoutSignal))}")
    elif without_signal != "keep" and bonus:
        faults.append(
            f"an entropy bonus together with groups_without_signal = {without_signal}: the normalizer that leaves "
            "groups out would raise the bonus; set groups_without_signal = keep, or no bonus"
        )
    if without_signal == "spare" and (arguments.loss_type not in COUNTS_ROWS or arguments.beta):
        faults.append(
            f"groups_without_signal = spare with loss_type = {arguments.loss_type} and beta = {arguments.beta}: the "
            "loss would not be that of keep, where a group without signal is in the normalizer or the KL. It needs "
            f"loss_type = {', '.join(sorted(COUNTS_ROWS))} and beta = 0. Set groups_without_signal = skip"
        )
    if method.needs.further is not None and without_signal == "resample":
        faults.append(
            "groups_without_signal = resample: groups are exchanged before the further continuations are sampled, "
            "which may be what tells rollouts apart; set groups_without_signal = skip, or no continuations"
        )
    if (method.needs.help_rounds or without_signal == "resample") and options.get("tools"):
        faults.append("tools: rollouts that are generated again within a step are of one turn; leave the tools out")
    if (begins(method) or without_signal == "resample") and (
        options.get("rollout_func") or options.get("environment_factory")
    ):
        faults.append("rollout_func and environment_factory generate past the place where prefixes are injected")
    if faults:
        raise RecipeError("these settings contradict the method:", faults)


def check_text_only(method: Method, takes_images: bool) -> None:
    """The model takes nothing but text, if the policy is to go on from ids.

    Raises:
        RecipeError: if it takes images too.
    """
    if takes_images and begins(method):
        raise RecipeError("prefixes are token ids behind a text prompt; this model takes images too")


def begins(method: Method) -> bool:
    """True if the policy is to go on from token ids behind the prompt."""
    return method.needs.prefixes or method.needs.further is not None or method.needs.help_rounds > 0
