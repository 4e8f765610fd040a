"""The policy: the one home of model, adapters, tokenizer, chat template, prompt, context, stop ids, dtype and device.

Whatever trains, samples or measures a policy asks here what it is and how it is asked. All but the weights is read
without loading them, so whatever is wrong with it is said in seconds, and in the same words by every command.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import adapters
from .data.problems import Problem, refuse_ids_beyond
from .data.templates import refuse_endless
from .data.tokenizer import (
    Turn,
    dated,
    encode_prompt,
    end_of_turn,
    has_tokenizer,
    load_tokenizer,
    prompt_length,
    turn_of,
)
from .data.turns import one_of_each_shape, prompt_of, refuse_unshown, trimmed
from .errors import DataError, RecipeError, UserError, at_most, nearest, unavailable
from .places import date_of, find, run_of
from .recipe import Recipe
from .safety.finite import check_weights
from .yaml12 import text_of

if TYPE_CHECKING:
    from transformers import GenerationConfig, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

_CONFIG = "config.json"
_PROBE = "What is 12 + 3?"
_MOST = {"num_hidden_layers": 10_000, "hidden_size": 2**20, "intermediate_size": 2**24, "vocab_size": 2**26,
         "num_attention_heads": 2**16, "num_key_value_heads": 2**16, "max_position_embeddings": 2**40}  # fmt: skip
"""Numbers of a model's configuration, beyond which building it would have no end."""


# --- what it is -------------------------------------------------------------------------------------------------------


class Policy:
    """A policy, what it is asked and how: everything but its weights, which :meth:`load` loads.

    Args:
        recipe: its blocks model and data are used, and of training ``chat_template_kwargs`` and ``use_cpu``. As
            :attr:`recipe` it has ``model.date`` filled in if the chat template shows a date.
        at: a policy in place of the recipe's model.

    Raises:
        UserError: with every fault of model, tokenizer, chat template and prompt.
    """

    def __init__(self, recipe: Recipe, at: str | Path | None = None):
        self.recipe = recipe
        own = at is None or str(at) == recipe.model.name_or_path
        name = recipe.model.name_or_path if own else at
        self.place = find(name, recipe.world, recipe.model.revision if own else None)
        self.path, self.base, self.adapters = self.place.path, self.place.base, self.place.adapters
        self.tokenizer = self._tokenizer()
        self.config  # noqa: B018 - a model that is not there is said now
        self.variables = _variables(recipe)
        self._shown: set[tuple[str, ...]] = set()  # roles of messages that the template shows
        self.date: str | None = None
        self.template: str | None = None
        if self.chat:
            self._take_template()
        self.notes: list[str] = []
        """Remarks on what is right and worth knowing."""
        self._look_at_prompts()

    @property
    def revision(self) -> str | None:
        """The branch, tag or commit of the model on the hub."""
        return self.place.revision

    @property
    def chat(self) -> bool:
        """True if prompts go through the chat template."""
        return self.recipe.data.prompt == "chat"

    @property
    def device(self) -> str:
        """Device it is sampled on: the GPU if there is one that the recipe does not forgo."""
        import torch

        return "cuda" if torch.cuda.is_available() and not self.recipe.training_value("use_cpu") else "cpu"

    @property
    def loading(self) -> dict[str, Any]:
        """Keyword arguments of ``from_pretrained`` that the recipe asks for; what it leaves open is absent."""
        model = self.recipe.model
        wanted = {"dtype": model.dtype, "attn_implementation": model.attn_implementation, "revision": self.revision}
        return {name: value for name, value in wanted.items() if value is not None}

    @property
    def loading_to_train(self) -> dict[str, Any]:
        """:attr:`loading`, with the quantization that the recipe asks for."""
        return {**self.loading, **adapters.quantization(self.recipe.model)}

    def _tokenizer(self) -> PreTrainedTokenizerBase:
        """Tokenizer of the adapters if they came with one, else that of the model."""
        source = self.path if not self.adapters or has_tokenizer(Path(self.adapters)) else self.base
        revision = {"revision": self.revision} if self.revision and source == self.base else {}
        return load_tokenizer(source, **revision)

    @cached_property
    def config(self) -> PretrainedConfig:
        """The model's configuration."""
        from transformers import AutoConfig

        try:
            found = AutoConfig.from_pretrained(self.base, revision=self.revision, trust_remote_code=False)
        except Exception as error:  # whatever transformers raises at what stands in the file
            raise unavailable(f"no model could be loaded from {self.base}", error) from error
        inner = found.get_text_config()
        beyond = {name: getattr(inner, name, None) for name in _MOST}
        beyond = {n: v for n, v in beyond.items() if v is not None and not (isinstance(v, int) and 1 <= v <= _MOST[n])}
        if beyond:
            wrong = [f"{name} = {value}: must be an integer of 1 to {_MOST[name]:,}" for name, value in beyond.items()]
            raise DataError(f"no model could be loaded from {self.base}: its config.json cannot be:", wrong)
        return found

    @cached_property
    def generation_config(self) -> GenerationConfig:
        """The model's own generation settings; of these, the ids that end a completion are used."""
        from transformers import GenerationConfig

        for source in dict.fromkeys((self.path, self.base)):
            try:
                return GenerationConfig.from_pretrained(source, revision=self.revision)
            except OSError:
                continue
            except Exception as error:
                raise unavailable(f"the generation settings of {source} cannot be read", error) from error
        return GenerationConfig(eos_token_id=getattr(self.config.get_text_config(), "eos_token_id", None))

    @property
    def positions(self) -> int | None:
        """The tokens of prompt and completion that the model has positions for, None if it has no bound."""
        return positions_of(self.config)

    # --- the prompt ---------------------------------------------------------------------------------------------------

    def _take_template(self) -> None:
        """The chat template, with the date in it fixed if it shows one."""
        if file := self.recipe.model.chat_template:
            try:
                self.tokenizer.chat_template = text_of(file, "the template", limit=1_000_000)
            except RecipeError as error:
                raise RecipeError(f"model.chat_template: {error}") from error
        if not self.tokenizer.chat_template:
            raise RecipeError(
                f"data.prompt = chat, but the tokenizer of {self.path} has no chat template. For a base model give "
                "data.prompt=plain (the policy then sees the problem and data.instruction, nothing else), or a Jinja "
                "file with model.chat_template=FILE"
            )
        try:
            self.template = self.tokenizer.get_chat_template()
        except ValueError as error:
            raise RecipeError(f"the tokenizer of {self.path} has no default chat template: {error}") from error
        refuse_endless(self.template, self.variables)
        if "strftime_now" in self.template:
            some = Problem("", _PROBE, "")
            then, now = (self._asked(some, template=dated(self.template, day)) for day in ("2001-02-03", "2012-11-10"))
            if then != now:
                self.date = self.recipe.model.date or date_of(run_of(self.path)) or date.today().isoformat()
                self.template = dated(self.template, self.date)
                self.recipe = replace(self.recipe, model=replace(self.recipe.model, date=self.date))

    def _asked(self, problem: Problem, instruction: str = "", template: str | None = None) -> list[int]:
        prompt, how = prompt_of(problem, self.recipe.data, instruction), (template or self.template, self.variables)
        if problem.turns:
            refuse_unshown(
                prompt, self._shown, lambda some: self.tokenizer.decode(encode_prompt(some, self.tokenizer, *how))
            )
        return encode_prompt(prompt, self.tokenizer, *how)

    def prompt_ids(self, problem: Problem, instruction: str = "") -> list[int]:
        """The ids of what the policy is asked: the problem, ``data.instruction``, and ``instruction`` behind that.

        Raises:
            RecipeError: if the chat template refuses it.
        """
        return self._asked(problem, instruction)

    @cached_property
    def example(self) -> list[int]:
        """The ids of a prompt, for what all prompts have in common."""
        return self._asked(Problem("", _PROBE, ""))

    @cached_property
    def turn(self) -> Turn:
        """The ids that the prompts end with, and those that end a completion."""
        return turn_of(self.example, self.tokenizer, self.generation_config, self._end)

    @cached_property
    def _end(self) -> int | None:
        return end_of_turn(self.tokenizer, self.template, self.variables) if self.chat else None

    @property
    def stops(self) -> list[int]:
        """The ids that end a completion: the model's, the tokenizer's and the chat template's."""
        return list(self.turn.stops)

    def _look_at_prompts(self) -> None:
        """Renders prompts, and says what the template makes of them.

        Raises:
            RecipeError: with every fault.
        """
        data, faults = self.recipe.data, []
        try:
            shown = self.tokenizer.decode(self.example, skip_special_tokens=False)
        except RecipeError as error:
            raise RecipeError(self._why_refused(error)) from error
        if self.chat:
            if trimmed(_PROBE) not in trimmed(shown):
                faults.append(
                    "the chat template does not show what the user says; the policy would not see the problem"
                )
            if data.system_prompt and trimmed(data.system_prompt) not in trimmed(shown):
                faults.append(
                    "data.system_prompt: the chat template leaves the system turn out; put the text into "
                    "data.instruction, or give another template with model.chat_template"
                )
            known = set(re.findall(r"\w+", self.template))
            faults += [
                f"training.chat_template_kwargs.{name}: the chat template reads no such variable{nearest(name, known)}"
                for name in self.variables if name not in known
            ]  # fmt: skip
        if faults:
            raise RecipeError(f"the prompts of {self.path} would not be what the recipe asks for:", faults)
        self._look_at_ids()

    def _look_at_ids(self) -> None:
        if not self.example:
            raise DataError(f"the tokenizer of {self.path} makes no tokens of a prompt; it is damaged, get it anew")
        words = getattr(self.config.get_text_config(), "vocab_size", None)
        highest = max([*self.example, *self.stops], default=0)
        if words is not None and highest >= words:
            raise DataError(
                f"the tokenizer of {self.path} gives the id {highest}, but the model has {words} words; model and "
                "tokenizer do not belong together"
            )
        if not self.stops:
            raise DataError(f"the tokenizer of {self.path} has no EOS, nothing else ends a completion; set eos_token")
        name = self.tokenizer.convert_ids_to_tokens
        if self.chat and self._end is None:
            self.notes.append(
                "the chat template ends an assistant's turn with no token of its own; demonstrations end with "
                f"{self.tokenizer.eos_token}"
            )
        elif self.chat and self._end != self.tokenizer.eos_token_id:
            self.notes.append(
                f"the chat template ends a turn with {name(self._end)}, the tokenizer's EOS is "
                f"{self.tokenizer.eos_token}; demonstrations end with {name(self._end)}, completions with any of "
                f"{', '.join(map(str, name(self.stops)))}"
            )
        if self.date:
            self.notes.append(
                f"the chat template shows the date: prompts have that of {self.date}, however long this takes and "
                "whenever it goes on (model.date sets another)"
            )
        elif self.recipe.model.date:
            self.notes.append("model.date has no effect: the prompts show no date")

    def _why_refused(self, error: UserError) -> str:
        """The turn that the template refuses, in words."""
        data = self.recipe.data
        if data.system_prompt is not None:
            try:
                user = [{"role": "user", "content": _PROBE}]
                encode_prompt(user, self.tokenizer, self.template, self.variables)
            except RecipeError:
                return error.what
            return (
                f"data.system_prompt: {error.what}; without the system turn it is fine. Put the text into "
                "data.instruction, or give another template with model.chat_template"
            )
        return error.what

    def facts(self) -> dict[str, Any]:
        """Facts that prompts depend on besides the problems: for a card, and to see whether samples can be added to."""
        data, template = self.recipe.data, self.tokenizer.chat_template if self.chat else None
        return {
            "prompt": data.prompt,
            "system_prompt": data.system_prompt,
            "instruction": data.instruction,
            "chat_template": template,
            "chat_template_sha256": template and hashlib.sha256(str(template).encode()).hexdigest(),
            "chat_template_kwargs": self.variables,
            "date": self.date,
        }

    # --- the context --------------------------------------------------------------------------------------------------

    def too_long(self, prompts: Mapping[str, Sequence[int]], length: int) -> list[str]:
        """The prompts that leave no room for a completion of ``length`` tokens, each in words by its name."""
        positions = self.positions
        if positions is None:
            return []
        return [
            f"{name}: {len(ids)} + {length} tokens, {len(ids) + length - positions} more than there are"
            for name, ids in prompts.items() if len(ids) + length > positions
        ]  # fmt: skip

    def check_context(
        self, prompts: Mapping[str, Sequence[int]], length: int, setting: str, droppable: bool = False
    ) -> None:
        """Sees that the model has positions for every prompt and its completion.

        Args:
            prompts: ids by the name of the problem, as where it was read.
            length: the most tokens of a completion.
            setting: the setting that says so, for the message.
            droppable: whether the problems can be left out.

        Raises:
            RecipeError: naming the problems, and what would fit.
        """
        found = self.too_long(prompts, length)
        if not found:
            return
        longest, positions = max(map(len, prompts.values())), self.positions
        fits = max(positions - longest, 0)
        remedies = [f"{setting} = {fits} fits for all" if fits > 1 else "no completion fits behind the longest of them"]
        # prepare knows the problems alone, neither the system prompt nor the instruction
        room = positions - length - (len(self.example) - prompt_length(_PROBE, self.tokenizer))
        if droppable and room > 0:
            remedies.append(f"`prefix-rl prepare --tokenizer {self.path} --max-prompt-length {room}` leaves these out")
        raise RecipeError(
            f"{self.path} has positions for {positions} tokens, and with {setting} = {length} {len(found)} prompt"
            f"{'s need' if len(found) > 1 else ' needs'} more; {', and '.join(remedies)}:",
            at_most(found),
        )

    def check_problems(self, problems: Sequence[Problem], length: int, setting: str) -> None:
        """:meth:`check_context` for problems to train on. Only those that may be too long are rendered.

        A token of usual tokenizers stands for at least half a byte of the text.
        """
        for problem in one_of_each_shape(problems):
            self.prompt_ids(problem)
        refuse_ids_beyond(len(self.tokenizer), problems, self.path)
        if self.positions is None:
            return
        room = (self.positions - length - len(self.example)) / 2
        long = [p for p in problems if p.turns or len(p.text.encode()) > room]
        prompts = {problem.place or problem.id: self.prompt_ids(problem) for problem in long}
        self.check_context(prompts, length, setting, droppable=True)

    # --- the weights --------------------------------------------------------------------------------------------------

    def load(self, trainable: bool = False) -> PreTrainedModel:
        """The model with its weights.

        To be sampled it stands on :attr:`device`, adapters merged into it; dtype as saved unless the recipe says
        otherwise. ``trainable``: on the CPU, float32 unless the recipe says otherwise, adapters apart and trainable.

        Raises:
            DataError: if it cannot be loaded, or is not finite.
        """
        from transformers import AutoModelForCausalLM

        options = {"dtype": "float32", **self.loading_to_train} if trainable else {"dtype": "auto", **self.loading}
        try:
            with _every_weight(self.base):
                model = AutoModelForCausalLM.from_pretrained(self.base, **options)
            if self.adapters:
                from peft import PeftModel

                model = PeftModel.from_pretrained(model, self.adapters, is_trainable=trainable)
                model = model if trainable else model.merge_and_unload()
        except UserError:
            raise
        except Exception as error:  # of a damaged folder the libraries raise whatever their parts do
            raise unavailable(f"no model could be loaded from {self.path}", error) from error
        check_weights(model.named_parameters(), self.path)
        return model if trainable else model.to(self.device).eval()


@contextmanager
def _every_weight(path: str | Path) -> Iterator[None]:
    """Refuses a model that lacks weights, wherever it is loaded: transformers would draw them at random, and warn.

    Raises:
        DataError: naming one of them.
    """
    from transformers import modeling_utils

    report = modeling_utils.log_state_dict_report

    def refused(*args: Any, loading_info: Any, **kwargs: Any) -> None:
        missing, others = sorted(loading_info.missing_keys), sorted(loading_info.unexpected_keys)
        if missing and sys.exc_info()[0] is None:  # it also reports on the way out of an error, which says more
            other = f"; it holds others that the model does not have, such as {others[0]}" if others else ""
            raise DataError(
                f"the weights of {path} are not whole: {len(missing)} of the model's are missing, such as {missing[0]}"
                f"{other}. They would be drawn at random; get the folder anew, or set right what its config.json says"
            )
        report(*args, loading_info=loading_info, **kwargs)

    modeling_utils.log_state_dict_report = refused
    try:
        yield
    finally:
        modeling_utils.log_state_dict_report = report


@contextmanager
def loads(path: str | Path) -> Iterator[None]:
    """Says of errors within that come of loading a model by TRL or transformers which model it was.

    Raises:
        DataError: instead of what the libraries raise at a damaged folder; or if a weight is not there.
    """
    try:
        with _every_weight(path):
            yield
    except UserError:
        raise
    except Exception as error:
        if any(frame.name == "from_pretrained" for frame in traceback.extract_tb(error.__traceback__)):
            raise unavailable(f"no model could be loaded from {path}", error) from error
        raise


def positions_of(config: PretrainedConfig) -> int | None:
    """Number of tokens that a model has positions for, None if it has no bound."""
    return getattr(config.get_text_config(), "max_position_embeddings", None)


def _variables(recipe: Recipe) -> dict[str, Any]:
    """``training.chat_template_kwargs``; TRL takes a text with JSON in it too."""
    given = recipe.training_value("chat_template_kwargs") or {}
    try:
        given = json.loads(given) if isinstance(given, str) else given
    except ValueError:
        given = None
    if not isinstance(given, Mapping):
        raise RecipeError("training.chat_template_kwargs: must be a block of variables, as {enable_thinking: false}")
    return dict(given)
