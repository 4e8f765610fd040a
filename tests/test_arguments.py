"""What a PrefixTrainer is given from Python: completed, or refused in words."""

import pytest
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from small import arguments, byte_level_bpe, dataset, policy, token_reward

from prefix_rl import PrefixRFT, PrefixTrainer
from prefix_rl.arguments import check_trainable, demonstrations_and_answers, tokenizer_of
from prefix_rl.errors import DataError, RecipeError

TOKENIZER = byte_level_bpe()


def trainer(folder, model=None, rows=None, processing_class=TOKENIZER, **changes):
    return PrefixTrainer(
        model=model or policy(TOKENIZER), reward_funcs=token_reward, args=arguments(folder, max_steps=1, **changes),
        train_dataset=rows or dataset(), processing_class=processing_class, method=PrefixRFT(),
    )  # fmt: skip


def with_answers(change):
    rows = dataset().to_list()
    return Dataset.from_list([row | {"answer": change(row["answer"])} for row in rows])


def test_a_number_as_an_answer_is_guarded_as_its_text_is(tmp_path):
    texts, numbers = trainer(tmp_path), trainer(tmp_path, rows=with_answers(int))
    for row in range(len(texts.demonstrations)):
        (as_text,), (as_number,) = texts.demonstrations[row], numbers.demonstrations[row]
        assert as_text == as_number
        assert as_text.safe_length < len(as_text.ids)  # the guard ends a prefix before the answer


def test_a_missing_answer_leaves_the_final_statement_guarded(tmp_path):
    made = trainer(tmp_path, rows=with_answers(lambda answer: None if answer == "6" else answer))
    (demonstration,) = made.demonstrations[0]  # "3 + 3 is 3 twice, and that makes 6, so \boxed{6}"
    assert TOKENIZER.decode(demonstration.ids[: demonstration.safe_length]) == "3 + 3 is 3 twice, and that makes 6, so"
    made.train()


def test_answers_are_read_as_the_reward_reads_them():
    rows = Dataset.from_list([{"answer": 6}, {"answer": None}])
    assert demonstrations_and_answers(rows) == ([[], []], ["6", ""])
    assert demonstrations_and_answers(Dataset.from_list([{"prompt": "?"}])) == ([[]], [""])


def test_a_text_in_the_place_of_a_list_of_demonstrations_is_refused():
    rows = Dataset.from_list([{"demonstrations": "so 6"}, {"demonstrations": None}])
    with pytest.raises(DataError, match=r"must hold a list for each row(.|\n)*row 0: 'so 6' is a str"):
        demonstrations_and_answers(rows)
    with pytest.raises(DataError, match="row 0"):
        demonstrations_and_answers(Dataset.from_list([{"demonstrations": [7]}]))
    good = [{"demonstrations": [{"text": "so 6", "ended": True}]}, {"demonstrations": []}, {"demonstrations": None}]
    assert demonstrations_and_answers(Dataset.from_list(good))[0] == [good[0]["demonstrations"], [], []]


def test_without_a_processing_class_the_models_own_tokenizer_is_taken(tmp_path):
    policy(TOKENIZER).save_pretrained(tmp_path / "model")
    TOKENIZER.save_pretrained(tmp_path / "model")
    loaded = type(policy(TOKENIZER)).from_pretrained(tmp_path / "model")
    for model in (str(tmp_path / "model"), loaded, get_peft_model(loaded, LoraConfig(target_modules="all-linear"))):
        made = tokenizer_of(model)
        assert made("48/2 = 24 clips")["input_ids"] == TOKENIZER("48/2 = 24 clips")["input_ids"]
        assert made.padding_side == "left"
    trainer(tmp_path / "run", model=loaded, processing_class=None).train()


def test_a_model_of_no_folder_needs_a_processing_class(tmp_path):
    with pytest.raises(RecipeError, match="processing_class is missing: this model was made in memory"):
        trainer(tmp_path, processing_class=None)


def test_a_model_that_nothing_can_train_is_refused(tmp_path):
    get_peft_model(policy(TOKENIZER), LoraConfig(r=2, target_modules="all-linear")).save_pretrained(tmp_path / "a")
    frozen = PeftModel.from_pretrained(policy(TOKENIZER), tmp_path / "a")
    with pytest.raises(RecipeError, match=r"its adapters are frozen.*is_trainable=True"):
        trainer(tmp_path / "run", model=frozen)
    with pytest.raises(RecipeError, match=r"every one has requires_grad = False"):
        trainer(tmp_path / "run", model=policy(TOKENIZER).requires_grad_(False))
    check_trainable(PeftModel.from_pretrained(policy(TOKENIZER), tmp_path / "a", is_trainable=True))


def test_bfloat16_on_a_cpu_trains(tmp_path):
    made = trainer(tmp_path, bf16=True)
    made.train()
    assert made.state.global_step == 1
