"""The policy: where it is, what it is asked, what ends it, and that every command asks the same."""

import json
import re
import shutil
import time
from datetime import date
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file
from small import CHAT_TEMPLATE, arguments, byte_level_bpe, lora, metaspace_unigram, policy, token_reward, write
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import prefix_rl.collecting.collect
import prefix_rl.places
import prefix_rl.policy
from prefix_rl.check import check
from prefix_rl.checkpoints import mark_whole
from prefix_rl.data.problems import Problem
from prefix_rl.data.tokenizer import (
    DemonstrationTable,
    Turn,
    encode,
    encode_prompt,
    end_of_turn,
    load_tokenizer,
    turn_of,
)
from prefix_rl.engines.base import Engine, Request, Sampling, completions
from prefix_rl.engines.transformers import TransformersEngine
from prefix_rl.errors import DataError, RecipeError, UnreachableError, UserError
from prefix_rl.evaluation.evaluate import evaluate, plans_of, tasks_of
from prefix_rl.evaluation.sampling import prefixes_of
from prefix_rl.evaluation.target import Target, find_target
from prefix_rl.lab.tiny import make_tiny
from prefix_rl.methods.luffy import LUFFY
from prefix_rl.places import find
from prefix_rl.policy import Policy, dated
from prefix_rl.recipe import load_recipe, load_run
from prefix_rl.supervised import rows
from prefix_rl.train import build, train

HEAD = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
THINKS = HEAD + (
    "{% if add_generation_prompt %}<|assistant|>{% if enable_thinking is defined and not enable_thinking %}"
    "<think>\n\n</think>\n\n{% else %}<think>\n{% endif %}{% endif %}"
)
DATED = "<|system|>It is {{ strftime_now('%d %b %Y') }}.<|end|>" + CHAT_TEMPLATE
REFUSES = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% endfor %}" + CHAT_TEMPLATE
)
MUTE = CHAT_TEMPLATE.replace("<|{{ m.role }}|>", "{% if m.role != 'system' %}<|{{ m.role }}|>").replace(
    "<|end|>{% endfor %}", "<|end|>{% endif %}{% endfor %}"
)
ROWS = [
    {"id": str(i), "problem": f"{i} + {i} = ?", "answer": str(2 * i), "solution": f"twice {i} is \\boxed{{{2 * i}}}"}
    for i in range(1, 9)
]


def handed_to_generation(trainer, monkeypatch):
    """Ids of each row's prompt, as TRL hands them to generation."""
    fed = []
    monkeypatch.setattr(
        "trl.GRPOTrainer._generate_single_turn",
        lambda self, prompt_ids, *a, **k: fed.extend(prompt_ids) or ([[5, self._tokenizer.eos_token_id]] * len(prompt_ids), None),
    )  # fmt: skip
    trainer.state.max_steps, trainer.current_gradient_accumulation_steps = 4, 1
    trainer.model.eval()
    for row in trainer.train_dataset:
        trainer._generate_and_score_completions([row] * 4)
    return fed[::4]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Makes the folder of an untrained policy whose tokenizer has this chat template."""

    def made(template=CHAT_TEMPLATE):
        folder = tmp_path_factory.mktemp("model")
        tokenizer = byte_level_bpe(chat_template=template)
        policy(tokenizer).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return made


def recipe_for(model, tmp_path, *overrides, method="dr_grpo"):
    """A recipe that trains on ROWS, as a file with what replaces its values."""
    given = {
        "model": {"name_or_path": str(model)},
        "data": {"train": write(tmp_path / "rows.jsonl", ROWS)},
        "method": {"name": method},
        "training": {
            "max_completion_length": 48, "max_steps": 1, "use_cpu": True, "bf16": False, "num_generations": 4,
            "per_device_train_batch_size": 8, "gradient_accumulation_steps": 1, "report_to": "none",
            "gradient_checkpointing": False, "save_strategy": "no", "logging_steps": 1,
        },
        "output": {"dir": str(tmp_path / "run")},
    }  # fmt: skip
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(given))
    return str(path), list(overrides)


def of(model, tmp_path, *overrides, **kwargs):
    return Policy(load_recipe(*recipe_for(model, tmp_path, *overrides, **kwargs)))


def renamed(folder):
    """The folder, with its weights under names that the model does not know."""
    weights = load_file(folder / "model.safetensors")
    save_file({f"x.{name}": value for name, value in weights.items()}, folder / "model.safetensors", {"format": "pt"})
    return folder


def of_another_shape(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 3}))
    return folder


@pytest.mark.parametrize(
    ("damage", "said"),
    [(renamed, "of the model's are missing, such as"), (of_another_shape, "no model could be loaded")],
)
def test_weights_that_are_not_the_models_are_neither_trained_nor_sampled(model, tmp_path, damage, said):
    folder = damage(model())
    with pytest.raises(DataError, match=said):
        of(folder, tmp_path).load()
    with pytest.raises(DataError, match=said) as raised:
        train(*recipe_for(folder, tmp_path))
    assert str(folder) in str(raised.value)


def test_samples_go_by_what_is_asked_and_not_by_the_models_own_settings(model, tmp_path):
    folder = model()
    plain = of(folder, tmp_path)
    (folder / "generation_config.json").write_text(
        json.dumps({"eos_token_id": 0, "num_beams": 4, "suppress_tokens": list(range(3, 200)), "max_time": 1e-9,
                    "stop_strings": ["a"], "repetition_penalty": 5.0, "bad_words_ids": [[10**9]]})
    )  # fmt: skip
    asked = [Request(tuple(plain.example), 8, seed, Sampling(temperature=1.0)) for seed in range(4)]
    made = []
    for policy_ in (plain, of(folder, tmp_path)):
        engine = TransformersEngine(policy_.load(), policy_.tokenizer, plain.stops)
        made.append({request.seed: ids for part in completions(engine, asked) for request, ids in part})
    assert made[0] == made[1]
    assert len(set(map(tuple, made[0].values()))) == 4  # four seeds


# --- where it is ------------------------------------------------------------------------------------------------------


def test_a_policy_is_found_by_the_name_of_a_run_a_checkpoint_a_folder_or_the_hub(model, tmp_path):
    there, run = model(), tmp_path / "run"
    assert find(there).path == find(there).base == str(there)
    assert find("owner/name", revision="v2") == prefix_rl.places.Place("owner/name", "owner/name", "v2")
    shutil.copytree(there, run / "checkpoint-3")
    (run / "recipe.yaml").write_text("{}")
    with pytest.raises(DataError, match="has no policy yet: neither final nor a whole checkpoint"):
        find(run)
    mark_whole(run / "checkpoint-3", {"world_size": 1})
    assert find(run).path == str(run / "checkpoint-3")
    shutil.copytree(there, run / "final")
    assert find(run).path == str(run / "final")
    assert find(run / "checkpoint-3").path == str(run / "checkpoint-3")


def test_a_folder_without_a_policy_says_what_is_in_it(model, tmp_path):
    shutil.copytree(model(), tmp_path / "mine" / "checkpoint-2")  # of no run, and not marked whole
    with pytest.raises(DataError, match=r"neither config.json nor adapter_config.json.*it holds .*mine/checkpoint-2"):
        find(tmp_path / "mine")
    with pytest.raises(DataError, match=r"there is no folder .*/main \(from .*did you mean .*/mine"):
        find(tmp_path / "main")


def test_what_belongs_to_no_recipe_is_evaluated_from_the_checkpoint_that_is_there(model, tmp_path):
    shutil.copytree(model(), tmp_path / "mine" / "checkpoint-2")
    mark_whole(tmp_path / "mine" / "checkpoint-2", {"world_size": 1})
    with pytest.raises(RecipeError, match=r"the policy in it is .*mine/checkpoint-2.*--on"):
        find_target(str(tmp_path / "mine"), None, [])


def test_adapters_know_their_model_and_load_merged_or_trainable(model, tmp_path):
    from peft import get_peft_model

    there = model()
    adapted = get_peft_model(of(there, tmp_path).load(trainable=True), lora()["peft_config"])
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            parameter.data.fill_(0.02)
    adapted.save_pretrained(tmp_path / "adapters")
    found = Policy(load_recipe(*recipe_for(there, tmp_path)), tmp_path / "adapters")
    assert (found.adapters, found.base) == (str(tmp_path / "adapters"), str(there))
    sampled, trained = found.load(), found.load(trainable=True)
    assert [n for n, p in trained.named_parameters() if p.requires_grad]
    assert not any("lora" in n for n, _ in sampled.named_parameters())
    ids = torch.tensor([found.example])
    with torch.no_grad():
        assert torch.allclose(sampled(ids).logits, trained(ids).logits, atol=1e-5)
        assert not torch.allclose(sampled(ids).logits, of(there, tmp_path).load()(ids).logits, atol=1e-2)
    file = tmp_path / "adapters" / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "base_model_name_or_path": str(tmp_path / "gone")}))
    with pytest.raises(DataError, match=r"holds adapters of the model .*gone, and there is no such folder"):
        find(tmp_path / "adapters")


# --- one prompt -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("thinking", [None, False])
def test_every_command_asks_the_same(model, tmp_path, monkeypatch, thinking):
    there = model(THINKS)
    changes = [] if thinking is None else ["training.chat_template_kwargs={enable_thinking: false}"]
    given = recipe_for(there, tmp_path, *changes, method="prefix_rft")
    recipe, problems, _ = load_run(*given)
    asked = Policy(recipe)
    wanted = [asked.prompt_ids(problem) for problem in problems]
    ending = "<think>\n\n</think>\n\n" if thinking is False else "<think>\n"  # what the template makes of it
    assert all(asked.tokenizer.decode(ids).endswith(f"<|assistant|>{ending}") for ids in wanted)

    fed = handed_to_generation(build(asked, problems, reward=None), monkeypatch)  # reinforcement learning
    assert fed == wanted

    supervised = rows(asked, problems)  # the supervised stage
    prompts = [
        ids[: labels.count(-100)] for ids, labels in zip(supervised["input_ids"], supervised["labels"], strict=True)
    ]
    assert prompts == wanted

    class Seen(Exception):
        pass

    def sampling(store, policy, problems, jobs, *rest):
        fed[:] = [list(job.prompt_ids) for job in jobs]
        raise Seen

    monkeypatch.setattr(prefix_rl.collecting.collect, "_sample", sampling)  # collecting
    with pytest.raises(Seen):
        prefix_rl.collecting.collect.collect(*given, tmp_path / "traces", k=1, cap=1)
    assert fed == wanted

    on = [f"evaluation.on=[{recipe.data.train}]", "evaluation.max_completion_length=48"]  # evaluation
    target = Target(str(there), load_recipe(given[0], [*given[1], *on]))
    (plan,) = plans_of(tasks_of(target.recipe), target)
    assert [list(job.prompt_ids) for job in plan.jobs] == wanted


@pytest.mark.parametrize(
    "text", ["<think>\nOkay", "<think>Okay", " <think>\nOkay", "<think>\r\nOkay", "\n<think> \n Okay"]
)
def test_a_thought_that_the_template_has_opened_is_opened_once(model, tmp_path, text):
    asked = of(model(THINKS), tmp_path)
    given = [Problem("1", "1 + 1 = ?", "never", ({"text": f"{text}, so it is two"},))]
    table = DemonstrationTable([given[0].demonstrations], ["never"], asked.tokenizer, turn=asked.turn)
    prefixes = prefixes_of(given, asked.tokenizer, asked.turn, 0.6, "none", 48)
    for ids in (table[0][0].ids, prefixes[0]):
        whole = asked.tokenizer.decode([*asked.example, *ids])
        assert whole.count("<think>") == 1
        assert "<think>\nOkay" in whole
    (without,) = prefixes_of(given, asked.tokenizer, Turn(end=1), 0.6, "none", 48)  # the turn is what does it
    assert asked.tokenizer.decode([*asked.example, *without]).count("<think>") == 2


def test_a_byte_order_mark_is_no_part_of_a_template_or_of_data(model, tmp_path):
    there, file = model(), tmp_path / "template.jinja"
    file.write_text(CHAT_TEMPLATE, encoding="utf-8-sig")
    assert of(there, tmp_path, f"model.chat_template={file}").example == of(there, tmp_path).example
    marked = tmp_path / "marked.jsonl"
    marked.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8-sig")
    _, with_mark, _ = load_run(recipe_for(there, tmp_path)[0], [f"data.train={marked}"])
    _, without, _ = load_run(*recipe_for(there, tmp_path))
    assert [p.as_row() for p in with_mark] == [p.as_row() for p in without]


@pytest.mark.parametrize(
    ("template", "overrides", "message"),
    [
        (
            REFUSES,
            ["data.system_prompt=Be brief."],
            r"data.system_prompt: .*System role not supported.*data.instruction",
        ),
        (MUTE, ["data.system_prompt=Be brief."], "the chat template leaves the system turn out"),
        ("{% for m in %}", [], "the chat template refuses messages of the roles user in line 1"),
        ("{{ messages[7].content }}", [], "the chat template .*has no element 7"),
        ("{{ messages[0].content + 1 }}", [], "the chat template cannot be rendered: TypeError"),
        ("<|user|>Say yes.<|assistant|>", [], "does not show what the user says"),
        (THINKS, ["training.chat_template_kwargs={enable_thinkin: false}"], "did you mean enable_thinking"),
        (CHAT_TEMPLATE, ["training.chat_template_kwargs='[1]'"], "must be a block of variables"),
        ("{{ 'a' * 10**11 }}", [], "the chat template takes more than 1,024 MiB for one short message"),
        (None, [], r"has no chat template.*data\.prompt=plain"),
    ],
)
def test_what_is_wrong_with_a_template_is_a_fault_of_the_recipe(model, tmp_path, template, overrides, message):
    given = recipe_for(model(template), tmp_path, *overrides)
    with pytest.raises(RecipeError) as raised:
        check(*given)
    assert re.search(message, str(raised.value)), raised.value
    with pytest.raises(RecipeError):
        train(*given)
    assert not (tmp_path / "run" / "recipe.yaml").exists()


def test_without_a_system_prompt_a_template_that_refuses_one_is_fine(model, tmp_path):
    for template in (REFUSES, MUTE):
        assert of(model(template), tmp_path).example == of(model(), tmp_path).example


# --- the date ---------------------------------------------------------------------------------------------------------


def test_the_date_in_a_template_is_fixed(model, tmp_path):
    there = model(DATED)
    asked = of(there, tmp_path, "model.date=2024-02-05")
    assert "It is 05 Feb 2024." in asked.tokenizer.decode(asked.example)
    assert any("the chat template shows the date: prompts have that of 2024-02-05" in note for note in asked.notes)
    today = of(there, tmp_path)
    assert today.date == today.recipe.model.date == date.today().isoformat()
    assert today.example == encode_prompt([{"role": "user", "content": "What is 12 + 3?"}], today.tokenizer)
    assert of(model(), tmp_path).date is None
    trainer = build(asked, [Problem(r["id"], r["problem"], r["answer"]) for r in ROWS])
    ids, *_ = trainer._tokenize_prompts([trainer.train_dataset[0]["prompt"]])
    assert "05 Feb 2024" in asked.tokenizer.decode(ids[0])
    assert asked.tokenizer.chat_template == DATED  # what is saved with the policy
    shutil.copytree(there, tmp_path / "run" / "final")
    (tmp_path / "run" / "recipe.yaml").write_text(asked.recipe.dump())
    assert Policy(load_recipe(*recipe_for(there, tmp_path)), tmp_path / "run").example == asked.example


@pytest.mark.parametrize("form", ["%d %b %Y", "%-d", "%Y-%m-%dT%H:%M:%S", "%A, %B %d, %y"])
@pytest.mark.parametrize("before", ["", "\n", "  {% if 1 %}x{% endif %}", "\n\n {{ 1 }}"])
def test_a_fixed_date_changes_nothing_else(form, before):
    from transformers.utils.chat_template_utils import _compile_jinja_template as compiled

    template = before + "\n{%- macro show(x) %}<{{ strftime_now('" + form + "') }}{{ x }}>{% endmacro %}{{ show(1) }}"
    wanted = compiled(template.replace("strftime_now('" + form + "')", "'@'")).render(messages=[])
    then = date(2024, 2, 5).strftime(form)
    assert compiled(dated(template, "2024-02-05")).render(messages=[]) == wanted.replace("@", then)


def test_a_later_evaluation_goes_on_with_the_date_that_it_began_with(model, tmp_path, monkeypatch, capsys):
    there = model(DATED)
    made = []
    monkeypatch.setattr(Target, "engine", property(lambda self: made.append(1) or Silent(self.policy)))
    on = [f"evaluation.on=[{write(tmp_path / 'rows.jsonl', ROWS)}]", "evaluation.max_completion_length=8"]

    class Silent(Engine):
        at_once = 8

        def __init__(self, policy):
            super().__init__()
            self.stops, self.waiting = policy.stops, []

        def submit(self, request):
            self.waiting.append(request)

        def finished(self, timeout):
            done, self.waiting = self.waiting, []
            return [(request, [self.stops[0]]) for request in done]

        def facts(self):
            return {"name": "silent"}

    def on_day(day):
        monkeypatch.setattr(prefix_rl.policy, "date", Day(day))
        return evaluate(str(there), None, on, tmp_path / "out")

    class Day:
        def __init__(self, day):
            self.day = date.fromisoformat(day)

        def today(self):
            return self.day

        fromisoformat = staticmethod(date.fromisoformat)

    first = on_day("2026-11-25")
    assert "It is 25 Nov 2026." in first["prompt"]["example"]
    assert "date in the prompts: 2026-11-25" in (tmp_path / "out" / "evaluation.md").read_text()
    second = on_day("2026-11-26")
    assert second["prompt"] == first["prompt"]
    assert len(made) == 1  # nothing was sampled on the second day
    assert not (tmp_path / "out" / "earlier-1").exists()
    shutil.rmtree(tmp_path / "out")
    assert "It is 26 Nov 2026." in on_day("2026-11-26")["prompt"]["example"]


# --- demonstrations behind a prompt -----------------------------------------------------------------------------------


def prepends(kind):
    """Tokenizers that put a blank in front of the first word: as Llama 2 does, and as Mistral does."""
    if kind == "metaspace":
        raw = metaspace_unigram().backend_tokenizer
        raw.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    else:
        words = ["<pad>", "<eos>", "<unk>", *sorted(set("▁[INST]/ twice1 is2\\boxed{}."))]
        raw = Tokenizer(models.BPE({w: i for i, w in enumerate(words)}, [], unk_token="<unk>"))
        raw.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        raw.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    return PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")


@pytest.mark.parametrize("kind", ["metaspace", "prepend"])
def test_a_demonstration_has_the_ids_that_it_has_behind_its_prompt(kind):
    tokenizer, prompt, text = prepends(kind), "[1 is 2/]", "twice 1 is \\boxed{2}."
    asked = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    wanted = tokenizer(prompt + text, add_special_tokens=False)["input_ids"]
    (found,) = DemonstrationTable([[text]], ["9"], tokenizer, "none", turn=turn_of(asked, tokenizer))[0]
    assert [*asked, *found.ids] == wanted
    ids, ends = encode(text, tokenizer, prompt)
    assert (tuple(ids), ends[-1]) == (found.ids, len(text))
    assert encode(text, tokenizer)[0] != ids  # alone it begins with another token


def test_a_text_that_shares_a_token_with_its_prompt_keeps_its_own():
    tokenizer = byte_level_bpe()
    ids, _ = encode("Natalia", tokenizer)
    assert encode("lia", tokenizer, "Nata")[0] == encode("lia", tokenizer)[0]
    assert tokenizer.decode(ids) == "Natalia"


# --- what ends a turn -------------------------------------------------------------------------------------------------


def test_a_turn_ends_with_the_templates_token_everywhere(model, tmp_path):
    there = model()
    asked = of(there, tmp_path)
    end, eos = asked.tokenizer.convert_tokens_to_ids("<|end|>"), asked.tokenizer.eos_token_id
    assert end != eos
    assert asked.turn.end == end
    assert set(asked.stops) == {end, eos}
    assert any("ends a turn with <|end|>, the tokenizer's EOS is <eos>" in note for note in asked.notes)
    given = [Problem(r["id"], r["problem"], r["answer"], ({"text": r["solution"]},)) for r in ROWS]
    assert all(ids[-1] == end for ids in rows(asked, given)["input_ids"])

    data = [{"prompt": [{"role": "user", "content": "1?"}], "answer": "2", "demonstrations": ["so \\boxed{2}"]}] * 4
    trainer = trainer_of(asked, data, tmp_path)
    assert set(trainer.eos_token_ids) == set(trainer.generation_config.eos_token_id) == {end, eos}
    trainer.model.train()
    trainer.state.max_steps, trainer.current_gradient_accumulation_steps = 4, 1
    output = trainer._generate_and_score_completions([trainer.train_dataset[0]] * 4)
    injected = output["completion_ids"][0][output["prefix_mask"][0]].tolist()
    assert injected[-1] == end
    trainer.save_model(str(tmp_path / "final"))
    assert set(json.loads((tmp_path / "final" / "generation_config.json").read_text())["eos_token_id"]) == {end, eos}


def trainer_of(asked, data, tmp_path):
    from prefix_rl.seam.trainer import PrefixTrainer

    return PrefixTrainer(
        model=asked.load(), reward_funcs=token_reward, args=arguments(tmp_path / "t", max_completion_length=48),
        train_dataset=Dataset.from_list(data), processing_class=asked.tokenizer, method=LUFFY(),
    )  # fmt: skip


def test_an_engine_stops_where_the_template_ends_a_turn(model, tmp_path):
    asked = of(model(), tmp_path)
    loaded = asked.load()
    end = asked.turn.end
    loaded.lm_head = torch.nn.Linear(32, len(asked.tokenizer))  # says nothing but the end of a turn
    loaded.lm_head.weight.data.zero_()
    loaded.lm_head.bias.data.zero_()[end] = 100.0
    from prefix_rl.engines.base import Sampling

    engine = TransformersEngine(loaded, asked.tokenizer, asked.stops)
    assert engine.generate([asked.example], [8], [1], Sampling()) == [[end]]
    unaware = TransformersEngine(loaded, asked.tokenizer)
    assert unaware.generate([asked.example], [8], [1], Sampling()) == [[end] * 8]


@pytest.mark.parametrize(
    ("template", "end"),
    [
        (CHAT_TEMPLATE, "<|end|>"),
        (CHAT_TEMPLATE.replace("<|end|>", " \n<eos>"), "<eos>"),
        (CHAT_TEMPLATE.replace("<|end|>", "\n"), None),
        (CHAT_TEMPLATE.replace("<|end|>", ". Bye <|end|>"), None),
    ],
)
def test_the_end_of_a_turn_is_the_token_right_behind_what_was_said(template, end):
    tokenizer = byte_level_bpe(chat_template=template)
    assert end_of_turn(tokenizer) == (end and tokenizer.convert_tokens_to_ids(end))


# --- the context ------------------------------------------------------------------------------------------------------


def test_problems_without_room_for_a_completion_are_named(model, tmp_path):
    there = model()  # 512 positions
    rows = [dict(row) for row in ROWS]
    rows[3]["problem"] = "1 + " * 120
    data = write(tmp_path / "long.jsonl", rows)
    asked = of(there, tmp_path)
    length = len(asked.prompt_ids(Problem("", rows[3]["problem"], "")))
    room = 512 - length
    path, _ = recipe_for(there, tmp_path)
    fits = [f"data.train={data}", f"training.max_completion_length={room}"]
    assert check(path, fits).problems == 8
    too_long = [f"data.train={data}", f"training.max_completion_length={room + 1}"]
    message = (
        rf"(?s)max_completion_length = {room} fits for all, and `prefix-rl prepare --tokenizer .* "
        rf"--max-prompt-length {length - 1}` leaves these out.*long.jsonl:4: {length} \+ {room + 1} tokens"
    )
    for command in (check, train):
        with pytest.raises(RecipeError, match=message):
            command(path, too_long)
    renamed = write(tmp_path / "long.jsonl", [{**row, "id": str(i)} for i, row in enumerate(rows)])
    with pytest.raises(RecipeError, match=rf"long 3: {length} \+ {room + 1} tokens, 1 more"):
        evaluate(str(there), path, [f"evaluation.on=[{renamed}]", *too_long], tmp_path / "out")


def test_ids_that_the_model_has_no_words_for_are_found(model, tmp_path):
    there = model()
    config = json.loads((there / "config.json").read_text())
    (there / "config.json").write_text(json.dumps({**config, "vocab_size": 40}))
    with pytest.raises(DataError, match="model and tokenizer do not belong together"):
        of(there, tmp_path)


# --- a whole check ----------------------------------------------------------------------------------------------------


def test_a_check_lists_faults_of_all_kinds_and_apart_what_the_machine_lacks(model, tmp_path, capsys):
    path, _ = recipe_for(model(), tmp_path)
    wrong = ["training.reward_weights=[1, 2]", "training.report_to=wandbb", "training.push_to_hub=true",
             "training.save_only_model=true", "data.system_prompt=x", "training.chat_template_kwargs={thinks: true}",
             "training.max_completion_length=600", "training.use_cpu=false", "training.use_vllm=true"]  # fmt: skip
    with pytest.raises(RecipeError) as raised:
        check(path, wrong)
    found = str(raised.value)
    for what in ("training.reward_weights = [1, 2]", "no such reporter (did you mean wandb?)", "training.push_to_hub",
                 "training.save_only_model", "chat_template_kwargs.thinks"):  # fmt: skip
        assert what in found
    assert "GPU" not in found
    said = capsys.readouterr().err
    assert "no GPU was found" in said
    assert "vLLM is not installed" in said


def test_what_only_trl_can_judge_is_among_the_faults(model, tmp_path):
    path, _ = recipe_for(model(), tmp_path)
    with pytest.raises(RecipeError, match="TRL does not accept the training block"):
        check(path, ["training.delta=0.1", "training.use_liger_kernel=null", "training.lr_scheduler_type=nonsense"])


def test_a_machine_without_a_gpu_or_a_hub_makes_no_recipe_wrong(model, tmp_path):
    path, _ = recipe_for(model(), tmp_path)
    found = check(path, ["training.use_cpu=false", "training.bf16=true"])
    assert [what.split(";")[0] for what in found.missing] == ["no GPU was found"]
    found = check(path, ["model.name_or_path=owner/name"])
    assert "no tokenizer could be loaded from owner/name" in found.missing[0]
    assert found.problems == 8
    with pytest.raises(UnreachableError):
        load_tokenizer("owner/name")
    with pytest.raises(UserError):
        train(path, ["model.name_or_path=owner/name"])


def test_what_was_published_or_could_not_be_continued_is_refused_by_training_too(model, tmp_path):
    for setting in ("training.push_to_hub=true", "training.save_only_model=true"):
        path, overrides = recipe_for(model(), tmp_path, setting)
        with pytest.raises(RecipeError, match=setting.replace("=", " = ")):
            train(path, overrides)


def test_gold_answers_that_do_not_parse_are_left_out_of_the_evaluation_and_counted(model, tmp_path, capsys):
    held_out = [
        {"id": f"h{i}", "problem": f"{i} * {i} = ?", "answer": "\\frac{1}{" if i == 2 else str(i * i)} for i in range(4)
    ]
    given = recipe_for(
        model(), tmp_path, f"evaluation.data={write(tmp_path / 'held.jsonl', held_out)}", "evaluation.limit=4",
        "training.eval_strategy=steps", "training.eval_steps=1", "training.num_generations_eval=1",
        "training.per_device_eval_batch_size=3", "training.max_completion_length=8",
    )  # fmt: skip
    run = train(*given)
    said = capsys.readouterr().err
    assert "left out 1 of 4 problems of evaluation.data, whose gold answers cannot be parsed" in said
    assert "held.jsonl:3" in said
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert any("eval_reward" in m for m in metrics)


# --- speed ------------------------------------------------------------------------------------------------------------


def test_a_tokenizer_of_150_thousand_words_is_ready_in_seconds(tmp_path):
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = {word: i for i, word in enumerate(["<eos>", *alphabet])}
    for i in range(152_000):
        words.setdefault(f"w{i:x}", len(words))
    raw = Tokenizer(models.BPE(words, []))
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<eos>").save_pretrained(tmp_path)
    began = time.process_time()
    assert len(load_tokenizer(str(tmp_path))) > 152_000
    assert time.process_time() - began < 3


def test_one_module_reads_templates_and_loads_policies_to_sample():
    package = Path(prefix_rl.policy.__file__).parent
    for words, homes in (
        ("apply_chat_template(", {"data/tokenizer.py"}),
        ("max_position_embeddings", {"policy.py"}),
        # the card counts parameters, a stand-in is asked whether it takes the settings, both without weights
        ("AutoModelForCausalLM", {"policy.py", "evaluation/card.py", "stand_ins.py"}),
        ("AutoTokenizer", {"data/tokenizer.py"}),
        ("chat_template =", {"policy.py", "train.py"}),
    ):
        lab = {p for p in package.rglob("*.py") if "lab" in p.parts}
        found = {str(p.relative_to(package)) for p in package.rglob("*.py") if p not in lab and words in p.read_text()}
        assert found <= homes, words
        assert "policy.py" in found or homes == {"data/tokenizer.py"}


def test_a_tiny_policy_says_nothing_of_note(tmp_path):
    folder = make_tiny(tmp_path / "tiny")
    assert of(folder, tmp_path).notes == []


# --- messages ---------------------------------------------------------------------------------------------------------

OWN, ASKS = {"role": "system", "content": "Be brief."}, {"role": "user", "content": "6 * 7?"}
HINTS, AGAIN = {"role": "assistant", "content": "Try sums."}, {"role": "user", "content": "How?"}
SAYS = {"role": "assistant", "content": r"So \boxed{42}"}
CHATS = [
    {"messages": [OWN, ASKS, HINTS, AGAIN, SAYS], "answer": "42"},
    {"prompt": [ASKS, HINTS, AGAIN], "completion": [SAYS], "answer": "42"},
    *({"prompt": f"{i} + {42 - i}?", "completion": SAYS["content"], "answer": "42"} for i in range(4)),
]


def test_messages_are_asked_whole_by_reinforcement_learning_and_by_the_policy(model, tmp_path, monkeypatch):
    path, changes = recipe_for(model(), tmp_path, "data.system_prompt=Think.", "data.instruction=' Box it.'")
    write(tmp_path / "rows.jsonl", CHATS)
    recipe, problems, _ = load_run(path, changes)
    asked = Policy(recipe)
    shown = [asked.tokenizer.decode(asked.prompt_ids(p)) for p in problems[:3]]
    assert shown == [  # a problem's own system turn goes first; the instruction ends the last turn of the user
        "<|system|>Be brief.<|end|><|user|>6 * 7?<|end|><|assistant|>Try sums.<|end|><|user|>How? Box it.<|end|><|assistant|>",
        "<|system|>Think.<|end|><|user|>6 * 7?<|end|><|assistant|>Try sums.<|end|><|user|>How? Box it.<|end|><|assistant|>",
        "<|system|>Think.<|end|><|user|>0 + 42? Box it.<|end|><|assistant|>",
    ]  # fmt: skip
    assert [p.demonstrations[0]["text"] for p in problems] == [SAYS["content"]] * 6
    fed = handed_to_generation(build(asked, problems, reward=None), monkeypatch)
    assert fed == [asked.prompt_ids(p) for p in problems]


def test_a_template_that_leaves_a_turn_out_is_refused_before_training(model, tmp_path):
    silent = CHAT_TEMPLATE.replace("{% for m in messages %}", "{% for m in messages if m.role != 'system' %}")
    path, changes = recipe_for(model(silent), tmp_path)
    write(tmp_path / "rows.jsonl", CHATS)
    recipe, problems, _ = load_run(path, changes)
    with pytest.raises(RecipeError, match="leaves turn 1 of messages of the roles system, user, assistant, user out"):
        Policy(recipe).check_problems(problems, 8, "training.max_completion_length")
    Policy(recipe).check_problems(problems[1:], 8, "training.max_completion_length")


def test_messages_are_no_plain_text(model, tmp_path):
    path, changes = recipe_for(model(), tmp_path, "data.prompt=plain")
    write(tmp_path / "rows.jsonl", CHATS)
    with pytest.raises(
        RecipeError, match=r"data\.prompt = plain shows the policy one text, but 2 problems are messages"
    ):
        load_run(path, changes)


def test_files_are_mixed_by_weight_and_their_rewards_told_apart(model, tmp_path):
    first = write(tmp_path / "first.jsonl", ROWS)
    second = write(
        tmp_path / "second.jsonl", [{**ROWS[0], "problem": "Which number comes after the number forty one?"}]
    )
    mix = json.dumps([{"file": first}, {"file": second, "weight": 0.5}])
    recipe, problems, _ = load_run(*recipe_for(model(), tmp_path, f"data.train={mix}"))
    assert [p.repeats for p in problems] == [1] * len(ROWS) + [len(ROWS) // 2]
    assert problems[-1].id == f"second/{problems[0].id.removeprefix('first/')}"
    trainer = build(Policy(recipe), problems, reward=None)
    assert trainer.train_dataset["mixed_from"].count("second") * 2 == trainer.train_dataset["mixed_from"].count("first")
    trainer.train()
    told = trainer.state.log_history[0]
    assert told["source/first/share"] + told.get("source/second/share", 0) == pytest.approx(1)
    assert "source/first/reward" in told
    _, one, _ = load_run(*recipe_for(model(), tmp_path, f"data.train=[{first}]"))
    assert [(p.source, p.repeats) for p in one] == [("", 1)] * len(ROWS)


def test_a_mixture_with_faults_is_explained(model, tmp_path):
    for given, fault in (
        ("[]", "data.train: is an empty list"),
        ("[{file: a.jsonl, wieght: 2}]", "data.train[1].wieght: no such key (did you mean weight?)"),
        ("[{weight: 2}]", "data.train[1].file: is missing"),
        ("[{file: a.jsonl, weight: 0}]", "data.train[1].weight = 0: must be a number above 0"),
        ("[rows.jsonl, no.jsonl]", "there is no file"),
    ):
        with pytest.raises(RecipeError) as error:
            load_run(*recipe_for(model(), tmp_path, f"data.train={given}"))
        assert fault in str(error.value)
