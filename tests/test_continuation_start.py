"""Where the policy's own text begins, and that an answer before it earns nothing."""

import pytest
from datasets import Dataset
from flow import watched
from small import TOKENIZERS, arguments, byte_level_bpe, policy

from prefix_rl.data.tokenizer import continuation_start, encode
from prefix_rl.methods.dr_grpo import DrGRPO
from prefix_rl.methods.luffy import LUFFY
from prefix_rl.methods.prefix_rft import PrefixRFT
from prefix_rl.rewards import MathReward
from prefix_rl.rewards.workers import Grader
from prefix_rl.seam.trainer import PrefixTrainer

TEXT = "Let x be 3. Then 3 + 3 is 6, so it is 6. We have 48 twice."
PREFIXED = PrefixRFT(horizon=1, start=0.6, high=0.6, end=0.6)  # the first 60 % of a demonstration, always


@pytest.mark.parametrize("name", TOKENIZERS)
def test_it_is_where_the_text_of_the_prefix_ends_at_every_cut(name):
    tokenizer = TOKENIZERS[name]()
    ids, _ = encode(TEXT, tokenizer)
    whole = tokenizer.decode(ids)
    for cut in range(1, len(ids)):
        start = continuation_start(whole, ids[:cut], ids, tokenizer)
        assert whole[:start].strip() == tokenizer.decode(ids[:cut]).strip()
        assert start <= len(tokenizer.decode(ids[:cut]))  # nothing that the policy wrote lies before it


def test_half_a_character_belongs_to_the_continuation():
    tokenizer = byte_level_bpe()
    ids, _ = encode("ab 数 c", tokenizer)
    whole = tokenizer.decode(ids)
    starts = [continuation_start(whole, ids[:cut], ids, tokenizer) for cut in range(1, len(ids))]
    # a | b | blank | three bytes of one character | blank and c: the character counts once its last byte is there
    assert starts == sorted(starts)
    assert set(starts) <= {1, 2, 3, 4, 5}
    for cut, start in enumerate(starts, start=1):
        assert "\ufffd" not in whole[:start]
        assert tokenizer.decode(ids[:cut]).startswith(whole[:start])


def test_a_text_from_which_the_thought_was_taken_is_found_again():
    tokenizer = byte_level_bpe()
    ids, ends = encode("think of it. The answer is 42.", tokenizer)
    content = "The answer is 42."
    cut = next(i for i, end in enumerate(ends, start=1) if end >= len("think of it. The answer"))
    assert continuation_start(content, ids[:cut], ids, tokenizer) == ends[cut - 1] - len("think of it. ")
    assert continuation_start(content, ids[:2], ids, tokenizer) == 0  # the prefix lies in what was taken away
    assert continuation_start("something else", ids[:cut], ids, tokenizer) == 0
    assert continuation_start("", ids[:cut], ids, tokenizer) == 0


# --- through the trainer ----------------------------------------------------------------------------------------------


def rows(conversational=False):
    """Demonstrations that begin with their answer."""
    prompts = [f"{i} + {i} = ?" for i in range(3, 11)]
    return Dataset.from_list(
        [
            {
                "prompt": [{"role": "user", "content": prompt}] if conversational else prompt,
                "answer": str(2 * i),
                "demonstrations": [rf"\boxed{{{2 * i}}} it is, since {i} and {i} are {2 * i} and nothing else is"],
            }
            for i, prompt in enumerate(prompts, start=3)
        ]
    )


def one_generation(folder, method, reward, tokenizer, **given):
    made = PrefixTrainer(
        model=policy(tokenizer), reward_funcs=reward, args=arguments(folder, max_completion_length=80), method=method,
        train_dataset=rows(**given), processing_class=tokenizer, answer_guard="none",
    )  # fmt: skip
    made.state.max_steps, made.state.global_step = 4, 2
    made.current_gradient_accumulation_steps = 1
    made.model.train()
    made.opened = watched(made)
    made._generate_and_score_completions([made.train_dataset[i // 4] for i in range(8)])
    return made


@pytest.mark.parametrize("name", ["byte-level BPE", "with a chat template"])
def test_reward_functions_are_told_where_the_continuation_begins(tmp_path, name):
    tokenizer, seen = TOKENIZERS[name](), {}

    def reward(completions, completion_ids, **columns):
        seen.update(columns, completions=completions)
        return [float(len(ids) % 3) for ids in completion_ids]

    made = one_generation(tmp_path, PREFIXED, reward, tokenizer, conversational="chat" in name)
    prefixed = [i for i, prefix in enumerate(made.opened.last.plan) if prefix.ids]
    assert len(prefixed) == 2  # 1 of each group of 4
    for i, (prefix, completion) in enumerate(zip(made.opened.last.plan, seen["completions"], strict=True)):
        text = completion if isinstance(completion, str) else completion[0]["content"]
        start = seen["continuation_start"][i]
        assert text[:start] == tokenizer.decode(prefix.ids)
        assert ("boxed" in text[:start]) is (i in prefixed)


def test_nothing_is_told_where_nothing_is_injected(tmp_path):
    seen = []

    def reward(completions, **columns):
        seen.append("continuation_start" in columns)
        return [float(i % 3) for i in range(len(completions))]

    one_generation(tmp_path, DrGRPO(), reward, byte_level_bpe())
    assert seen == [False]


def test_an_answer_that_stands_in_the_prefix_alone_earns_nothing(tmp_path):
    reward = MathReward(Grader(workers=1))
    made = one_generation(tmp_path, PREFIXED, reward, byte_level_bpe())
    reward.grader.close()
    for prefix, outcome in zip(made.opened.last.plan, made.opened.last.outcomes, strict=True):
        assert outcome != "right"
        assert outcome == "no_answer" or not prefix.ids
    assert made.opened.last.rewards.tolist() == [0.0] * 8


def test_a_demonstration_injected_whole_earns_what_it_is_worth(tmp_path):
    reward = MathReward(Grader(workers=1))
    made = one_generation(tmp_path, LUFFY(), reward, byte_level_bpe())
    reward.grader.close()
    assert [prefix.complete for prefix in made.opened.last.plan].count(True) == 2
    for prefix, earned in zip(made.opened.last.plan, made.opened.last.rewards.tolist(), strict=True):
        assert earned == float(prefix.complete)
