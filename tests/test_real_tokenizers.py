"""Real tokenizers and chat templates: what the policy is asked, what it learns, and what ends it, to the id.

What is expected comes from the library ``tokenizers`` and from texts written out here, not from the package.
"""

import gzip
import json
import time
from functools import cache
from pathlib import Path

import pytest
import real
from datasets import Dataset
from small import arguments, token_reward
from test_trainer import generation
from tokenizers import Tokenizer

from prefix_rl import PrefixTrainer, methods
from prefix_rl.data.problems import Problem
from prefix_rl.data.tokenizer import DemonstrationTable, continuation_start, load_tokenizer
from prefix_rl.policy import Policy
from prefix_rl.recipe import load_recipe
from prefix_rl.supervised import rows as lessons

pytestmark = pytest.mark.real
NAMES = list(real.TOKENIZERS)
SHARED = Path(__file__).parents[2] / "shared" / "data"
PROBLEM = Problem("p", "What is 6 * 7?", "42", ())
PROMPTS = {  # as the template of each writes it
    "qwen3": "<|im_start|>user\nWhat is 6 * 7?<|im_end|>\n<|im_start|>assistant\n",
    "llama3_1": "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nWhat is 6 * 7?<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "llama2": "<s>[INST] What is 6 * 7? [/INST]",
    "gemma3": "<bos><start_of_turn>user\nWhat is 6 * 7?<end_of_turn>\n<start_of_turn>model\n",
    "deepseek_v3": "<｜begin▁of▁sentence｜><｜User｜>What is 6 * 7?<｜Assistant｜>",
    "gptoss": "<|start|>system<|message|>Reasoning: medium<|end|><|start|>user<|message|>What is 6 * 7?<|end|>"
    "<|start|>assistant",
}
ENDS = {  # of a turn, as the template writes it
    "qwen3": 151645, "llama3_1": 128009, "llama2": 2, "gemma3": 106, "deepseek_v3": 1, "gptoss": 200002,
}  # fmt: skip
STOPS = {name: {*stops, ENDS[name]} for name, stops in real.STOPS.items()} | {"gemma3": {1, 106}}
SPLIT = {  # "12345 + 3", where digits stand alone, in threes, or one by one
    "qwen3": ["1", "2", "3", "4", "5", " +", " ", "3"],
    "llama3_1": ["123", "45", " +", " ", "3"],
    "llama2": ["", "1", "2", "3", "4", "5", "+", "", "3"],  # alone a word loses its blank
    "gemma3": ["1", "2", "3", "4", "5", " +", " ", "3"],
    "deepseek_v3": ["123", "45", " +", " ", "3"],
    "gptoss": ["123", "45", " +", " ", "3"],
}
SHOWN = {  # a demonstration, and what of it a prefix may show where the answer is 42
    "6 * 7 = 42, so \\boxed{42}": "6 * 7 = ",
    "\n\nOkay.\r\n\tLet me see: 6 \u00d7 7 = 6 \u00d7 6 + 6 = 36 + 6 = 42 \U0001f642\r\n#### 42": (
        "\n\nOkay.\r\n\tLet me see: 6 \u00d7 7 = 6 \u00d7 6 + 6 = 36 + 6 = "
    ),
    "  \u6570\u5b66: na\u00efve Gr\u00f6\u00dfe \U0001f469\u200d\U0001f52c, 1234567 - 1234525; the answer is 42": (
        "  \u6570\u5b66: na\u00efve Gr\u00f6\u00dfe \U0001f469\u200d\U0001f52c, 1234567 - 1234525; the "
    ),
    "<think>\nOkay, 421 is too many.\n</think>\n\nSo $\\frac{84}{2} = 42$": (
        "<think>\nOkay, 421 is too many.\n</think>\n\nSo $"  # the fraction is 42 too
    ),
    "e\u0301 and \u00e9, \u2028 a line\u00a0apart\u200b: 40 + 2 = 42": (
        "e\u0301 and \u00e9, \u2028 a line\u00a0apart\u200b: 40 + 2 = "
    ),
}
DEMONSTRATIONS = list(SHOWN)


@cache
def raw(name):
    return Tokenizer.from_file(str(real.folder(name) / "tokenizer.json"))


def ids_of(name, text):
    return raw(name).encode(text, add_special_tokens=False).ids


def recipe_of(name, *overrides, method="prefix_rft", **blocks):
    training = {"max_completion_length": 512, "use_cpu": True, "bf16": False, "num_generations": 8, "max_steps": 4}
    given = {
        "model": {"name_or_path": str(real.folder(name))}, "data": {"train": "(given)"}, "method": {"name": method},
        "training": training, "output": {"dir": "(nowhere)"}, **blocks,
    }  # fmt: skip
    return load_recipe(given, overrides)


@cache
def policy_of(name):
    return Policy(recipe_of(name))


def table_of(policy, texts, answer="42", guard="mention"):
    return DemonstrationTable(
        [[text] for text in texts], [answer] * len(texts), policy.tokenizer, guard, turn=policy.turn
    )


def in_context(name, prompt, text):
    """The ids of a text behind a prompt; where the two would share a token, behind a new line; else alone."""
    for before in (prompt, "\n"):
        own, whole = ids_of(name, before), ids_of(name, before + text)
        if whole[: len(own)] == own:
            return whole[len(own) :]
    return ids_of(name, text)


def normal(name, text):
    """A text as the tokenizer reads it: Qwen's brings accents into one form (NFC)."""
    return raw(name).normalizer.normalize_str(text) if name == "qwen3" else text


# --- loading ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_loading_changes_no_ids(name):
    tokenizer = policy_of(name).tokenizer
    vocabulary = raw(name).get_vocab()
    assert tokenizer.get_vocab() == vocabulary
    for text in [*DEMONSTRATIONS, *PROMPTS.values(), "12345 + 3", " 12345", "\t\t\n", "a" * 3000]:
        assert tokenizer(text, add_special_tokens=False)["input_ids"] == ids_of(name, text)
    assert [tokenizer.decode([i]) for i in ids_of(name, "12345 + 3")] == SPLIT[name]


@pytest.mark.parametrize("name", NAMES)
def test_loading_is_quick(name):
    policy_of(name)  # what is imported at the first time is not the tokenizer's
    began = time.process_time()
    load_tokenizer(str(real.folder(name)))
    assert (
        time.process_time() - began < 8
    )  # 0.5 to 3 s on an idle machine; a call of get_vocab for every word took hours


# --- the prompt -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_prompt_is_what_the_chat_template_writes(name):
    policy = policy_of(name)
    messages = [{"role": "user", "content": PROBLEM.text}]
    found = policy.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]
    assert policy.prompt_ids(PROBLEM) == list(found) == ids_of(name, PROMPTS[name])


def test_the_template_gets_its_variables():
    policy = Policy(recipe_of("qwen3", "training.chat_template_kwargs={enable_thinking: false}"))
    assert policy.prompt_ids(PROBLEM) == ids_of("qwen3", PROMPTS["qwen3"] + "<think>\n\n</think>\n\n")
    assert policy.turn.opening == ""  # the thought is closed again


@pytest.mark.parametrize("name", NAMES)
def test_the_system_prompt_stands_where_the_template_puts_it(name):
    recipe = recipe_of(
        name, data={"train": "(given)", "system_prompt": "Answer in one word.", "instruction": "\nBe brief."}
    )
    shown = policy_of(name).tokenizer.decode(Policy(recipe).prompt_ids(PROBLEM), skip_special_tokens=False)
    before, _, after = shown.partition("Answer in one word.")
    assert before.count("What is 6 * 7?") == 0
    assert after.count("What is 6 * 7?\nBe brief.") == 1


# --- what ends a completion -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_what_ends_a_completion_is_what_the_model_and_its_template_say(name):
    policy = policy_of(name)
    assert policy.turn.end == ENDS[name]
    assert set(policy.stops) == STOPS[name]


@pytest.mark.parametrize("name", NAMES)
def test_a_demonstration_ends_at_the_first_stop_that_is_written_in_it(name):
    policy = policy_of(name)
    word = raw(name).id_to_token(ENDS[name])
    ((demonstration,),) = table_of(policy, [f"6 * 7 is forty-two.{word}And so on"])
    assert raw(name).decode(demonstration.ids).strip() == "6 * 7 is forty-two."
    assert demonstration.stop == ENDS[name]


# --- demonstrations ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("index", range(len(DEMONSTRATIONS)))
def test_a_demonstration_has_the_ids_that_it_has_behind_the_prompt(name, index):
    text = DEMONSTRATIONS[index]
    ((demonstration,),) = table_of(policy_of(name), [text])
    assert list(demonstration.ids) == in_context(name, PROMPTS[name], text)
    assert demonstration.stop == ENDS[name]
    prompt = policy_of(name).prompt_ids(PROBLEM)
    decode = policy_of(name).tokenizer.decode
    whole, before = (
        decode([*prompt, *demonstration.ids], skip_special_tokens=False),
        decode(prompt, skip_special_tokens=False),
    )
    assert whole == before + normal(name, text)  # nothing stands between the two, and nothing is lost


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("index", range(len(DEMONSTRATIONS)))
def test_no_prefix_shows_the_answer_and_the_longest_shows_all_before_it(name, index):
    text = DEMONSTRATIONS[index]
    ((demonstration,),) = table_of(policy_of(name), [text])
    prompt, decode = ids_of(name, PROMPTS[name]), policy_of(name).tokenizer.decode
    start = len(decode(prompt, skip_special_tokens=False))
    allowed = normal(name, SHOWN[text])
    expected = 0  # slowly: the longest that shows no more than is allowed
    for k in range(1, len(demonstration.ids)):
        shown = decode([*prompt, *demonstration.ids[:k]], skip_special_tokens=False)[start:]
        if allowed.startswith(shown.rstrip("\ufffd")):
            expected = k
    assert demonstration.safe_length == expected
    ((free,),) = table_of(policy_of(name), [text], guard="none")
    assert (free.ids, free.safe_length) == (demonstration.ids, len(free.ids))


OPENED = [
    "Okay, then.",
    "<think>\nOkay, then.",
    " <think>\nOkay, then.",
    "<think>\r\nOkay, then.",
    "<think>Okay, then.",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_thought_that_the_template_opens_is_not_opened_again(name, tmp_path):
    opening = tmp_path / "opening.jinja"
    template = policy_of(name).tokenizer.chat_template
    opening.write_text(template + "{% if add_generation_prompt %}{{ '<think>\\n' }}{% endif %}", encoding="utf-8-sig")
    policy = Policy(recipe_of(name, f"model.chat_template={opening}"))
    assert policy.prompt_ids(PROBLEM) == ids_of(name, PROMPTS[name] + "<think>\n")
    expected = in_context(name, PROMPTS[name] + "<think>\n", "Okay, then.")
    assert [list(row[0].ids) for row in table_of(policy, OPENED)] == [expected] * len(OPENED)
    ((plain,),) = table_of(policy_of(name), OPENED[1:2])  # where the template opens none, it stays
    assert list(plain.ids) == in_context(name, PROMPTS[name], OPENED[1])


@pytest.mark.parametrize("name", NAMES)
def test_the_policys_own_text_begins_behind_the_prefix(name):
    policy = policy_of(name)
    text = "6 * 7 = 42, so the answer is \\boxed{42}."
    ((demonstration,),) = table_of(policy, [text], guard="none")
    whole = policy.tokenizer.decode(demonstration.ids, skip_special_tokens=True)
    starts = []
    for k in range(1, len(demonstration.ids)):
        start = continuation_start(whole, demonstration.ids[:k], demonstration.ids, policy.tokenizer)
        shown = policy.tokenizer.decode(demonstration.ids[:k], skip_special_tokens=True)
        assert whole[:start] == shown[:start]
        assert start >= len(shown.rstrip())
        starts.append(start)
    assert starts == sorted(starts)


# --- the rows of every method -----------------------------------------------------------------------------------------

TEXTS = [f"{i} * 7 = {7 * i} because {i} * 5 = {5 * i} and {i} * 2 = {2 * i}; \\boxed{{{7 * i}}}" for i in (6, 8)]
ANSWERS = ["42", "56"]
ASKED = ["What is 6 * 7?", "What is 8 * 7?"]
PREFIXED = {  # rollouts of two groups of four that start from a demonstration, at the middle of a run
    "dr_grpo": {0}, "pppo": {0}, "sft_then_rl": {0}, "tempo": {0}, "relift": {0},  # which waits until questions have failed
    "prefix_rft": {2}, "luffy": {2}, "sft_loss": {2}, "prefix_rl": {4, 8}, "adaptive": {4, 8}, "uft": {4, 8},
    "questa": {0}, "arg": {0, 1, 2}, "bread": {0, 4, 8},  # of the groups that fail
}  # fmt: skip
WHOLE = {"luffy", "sft_loss"}
SETTINGS = {
    "pppo": {"progressive": False, "continuations": 1},
    "uft": {"horizon": 40},
    "arg": {"cut": "tokens"},  # no policy was asked before
    "bread": {"cut": "tokens"},
}  # nothing is evaluated here, and hints last
SUPERVISED = {"sft", "rft", "upft"}


@cache
def model_of(name):
    return policy_of(name).load(trainable=True)


@pytest.fixture
def batch_of(tmp_path):
    def made(name, method):
        rows = [
            {"prompt": [{"role": "user", "content": asked}], "answer": answer, "demonstrations": [text]}
            for asked, answer, text in zip(ASKED, ANSWERS, TEXTS, strict=True)
        ]
        trainer = PrefixTrainer(
            model=model_of(name), reward_funcs=token_reward, args=arguments(tmp_path, max_completion_length=64),
            train_dataset=Dataset.from_list(rows), processing_class=policy_of(name).tokenizer,
            method=methods.find(method)(**SETTINGS.get(method, {})),
        )  # fmt: skip
        problems = [ANSWERS.index(trainer.train_dataset[row // 4]["answer"]) for row in range(8)]  # some come in copies
        return generation(trainer), problems

    return made


def hinted(name, prompt, asked, problem):
    """A prompt with a hint, as text; the hint shows the demonstration's beginning and not the answer."""
    question = ASKED[problem]
    head, tail = asked.split(question)
    text = policy_of(name).tokenizer.decode(prompt)
    hint = text.removeprefix(head + question).removesuffix(tail)
    assert text == head + question + hint + tail
    assert TEXTS[problem][:5] in hint
    assert ANSWERS[problem] not in hint
    return text


def test_every_method_is_here():
    assert PREFIXED.keys() | SUPERVISED == set(methods.names())


@pytest.mark.parametrize(
    ("name", "method"),
    [*(("qwen3", m) for m in PREFIXED), *((n, m) for n in NAMES[1:] for m in ("prefix_rft", "prefix_rl", "luffy"))],
)
def test_a_row_is_the_prompt_and_what_the_method_takes_of_the_demonstration(name, method, batch_of):
    batch, problems = batch_of(name, method)
    lengths = batch["prefix_mask"].sum(dim=1).tolist()
    assert sum(n > 0 for n in lengths) in PREFIXED[method]
    for row, length in enumerate(lengths):
        asked = PROMPTS[name].replace(ASKED[0], ASKED[problems[row]])
        prompt = batch["prompt_ids"][row][batch["prompt_mask"][row].bool()].tolist()
        if method == "questa":  # the question, and behind it the beginning of the demonstration
            asked = hinted(name, prompt, asked, problems[row])
        assert prompt == ids_of(name, asked)
        completion = batch["completion_ids"][row][batch["completion_mask"][row].bool()].tolist()
        learned = [*in_context(name, asked, TEXTS[problems[row]]), ENDS[name]]
        assert completion[:length] == learned[:length]
        assert len(completion) <= 64
        if method in WHOLE:
            assert length in (0, len(learned))
            assert completion[length:] == [] or length == 0
        elif length:
            shown = policy_of(name).tokenizer.decode(completion[:length])
            assert ANSWERS[problems[row]] not in shown
            assert "boxed" not in shown


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("method", sorted(SUPERVISED))
def test_a_lesson_is_the_prompt_the_demonstration_and_the_end_and_the_prompt_is_not_learned(name, method):
    recipe = recipe_of(name, method=method)
    problems = [
        Problem(str(i), asked, answer, ({"text": text},))
        for i, (asked, answer, text) in enumerate(zip(ASKED, ANSWERS, TEXTS, strict=True))
    ]
    found = lessons(Policy(recipe), problems)
    assert len(found) == 2
    for row, problem in zip(found, problems, strict=True):
        excerpt = recipe.method.excerpt(problem.id, recipe.training_value("seed"))
        asked = PROMPTS[name].replace(ASKED[0], problem.text + excerpt.instruction)
        learned = [*in_context(name, asked, problem.demonstrations[0]["text"]), ENDS[name]][: excerpt.tokens]
        assert row["input_ids"] == [*ids_of(name, asked), *learned]
        assert row["labels"] == [-100] * len(ids_of(name, asked)) + learned
        # UPFT learns the first tokens, and a share of the problems whole; the others learn all of it
        assert excerpt.tokens in ((None, recipe.method.tokens) if method == "upft" else (None,))


# --- real demonstrations ----------------------------------------------------------------------------------------------


def shared_rows():
    files = (
        ("demonstrations-r1-sample.jsonl", 10),
        ("demonstrations-qwen2.5-math.jsonl", 40),
        ("gsm8k-train.jsonl.gz", 40),
    )
    for file, count in files:
        with (gzip.open if file.endswith(".gz") else open)(SHARED / file, "rt", encoding="utf-8") as lines:
            for line, _ in zip(lines, range(count), strict=False):
                yield json.loads(line)


@pytest.mark.parametrize("name", NAMES)
def test_published_demonstrations_are_tokenized_as_in_context(name, shared_data):
    rows = list(shared_rows())
    policy = policy_of(name)
    table = DemonstrationTable(
        [[r["solution"]] for r in rows], [r["answer"] for r in rows], policy.tokenizer, "none", turn=policy.turn
    )
    assert len(rows) == 90
    for row, (demonstration,) in zip(rows, table, strict=True):
        assert list(demonstration.ids) == in_context(name, PROMPTS[name], row["solution"])
