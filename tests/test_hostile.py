"""Hostile input is explained: no traceback, no hang. ``PREFIX_RL_HOSTILE=5000`` runs more cases of each kind."""

import json
import os
import random
import stat

import pyarrow
import pyarrow.parquet
import pytest
import yaml
from hostile import (
    CASES,
    COMPLETED_ROWS,
    GOOD_ROWS,
    ROOT,
    SEED,
    Outcomes,
    as_json,
    cpu_budget,
    data_file,
    keys,
    ladder_file,
    recipe_case,
    shipped,
    yaml_bombs,
)
from small import byte_level_bpe

from prefix_rl import places, yaml12
from prefix_rl import plan as plans
from prefix_rl.accelerate_file import Launch, launch_for, read_launch
from prefix_rl.data.prepare import prepare
from prefix_rl.data.problems import guarded, load, refuse_ids_beyond
from prefix_rl.data.settings import Settings
from prefix_rl.data.sources import read
from prefix_rl.data.tokenizer import DemonstrationTable
from prefix_rl.errors import DataError, RecipeError, UserError, disk_error
from prefix_rl.fields import fields_from_source
from prefix_rl.grade import grade
from prefix_rl.grpo_fields import BOUNDED, FREE, REFUSED
from prefix_rl.lab.tiny import make_tiny
from prefix_rl.ladders.plan import load_ladder
from prefix_rl.parts import write_text
from prefix_rl.progress import run_or_explain
from prefix_rl.recipe import load_recipe, read_run
from prefix_rl.reports import plots
from prefix_rl.rewards.functions import Function, find
from prefix_rl.rewards.process import RewardError
from prefix_rl.rewards.workers import Grader

LAB = ROOT / "recipes" / "lab" / "prefix_rft.yaml"


def test_the_harness_tells_a_traceback_and_a_hang():
    outcomes = Outcomes()

    def hangs():
        with cpu_budget(0.05):
            while True:
                pass

    assert outcomes.run("a", lambda: 1 / 0) == "traceback"
    assert outcomes.run("b", hangs) == "hang"
    assert outcomes.run("c", lambda: load_recipe(LAB)) == "fine"
    assert outcomes.run("d", lambda: load_recipe(LAB, ["method.share=2"])) == "explained"
    assert len(outcomes.bad) == 2
    with pytest.raises(AssertionError, match=f"seed {SEED}: .*2 bad"):
        outcomes.check()


# --- recipes ----------------------------------------------------------------------------------------------------------


def test_recipes_and_overrides(tmp_path):
    rng, outcomes, recipes, names = random.Random(SEED), Outcomes(), shipped(), list(dict.fromkeys(keys()))
    for number in range(CASES):
        path, overrides = recipe_case(rng, recipes, names, tmp_path)
        case = (number, path.name, [override[:80] for override in overrides])
        outcomes.run(case, lambda path=path, overrides=overrides: load_recipe(path, overrides))
    outcomes.check()
    assert outcomes.counts["explained"] > CASES / 2
    assert outcomes.counts["fine"]


@pytest.mark.parametrize("name", yaml_bombs())
def test_yaml_that_makes_much_of_little(name, tmp_path):
    (tmp_path / "bomb.yaml").write_text(yaml_bombs()[name])
    with cpu_budget(), pytest.raises(RecipeError) as raised:
        load_recipe(tmp_path / "bomb.yaml")
    assert len(str(raised.value)) < 6000
    if name in ("laughs", "merges"):
        assert "more than 20,000 values, counting what aliases stand for" in raised.value.what
    if name.startswith("itself"):
        assert "the alias *a stands inside of what it names" in raised.value.what
    if name.startswith("levels of lists"):
        assert "nested in more than 30 levels" in raised.value.what


def test_aliases_and_merges_that_people_write_are_read():
    # depth 30 is read and 31 is not; an alias counts as often as what it stands for
    assert yaml12.load("a: &a {x: 1}\nb: {<<: *a, y: 2}\nc: [*a, *a]") == {
        "a": {"x": 1}, "b": {"x": 1, "y": 2}, "c": [{"x": 1}, {"x": 1}],
    }  # fmt: skip
    assert yaml12.load("[" * 29 + "1" + "]" * 29)
    with pytest.raises(yaml.YAMLError):
        yaml12.load("[" * 30 + "1" + "]" * 30)


def test_only_regular_files_are_read_as_recipes(tmp_path):
    os.mkfifo(tmp_path / "fifo.yaml")
    (tmp_path / "folder.yaml").mkdir()
    (tmp_path / "large.yaml").write_bytes(b"#" * (yaml12.MAX_BYTES + 1))
    (tmp_path / "binary.yaml").write_bytes(bytes(range(256)))
    for name, said in (
        (tmp_path / "fifo.yaml", "a pipe, a socket or a device"), ("/dev/zero", "a pipe, a socket or a device"),
        (tmp_path / "folder.yaml", "a folder"), (tmp_path / "large.yaml", "at most 262,144 are read"),
        (tmp_path / "binary.yaml", "cannot read the recipe"), ("a\0b.yaml", "cannot read the recipe"),
        ("/proc/kmsg", "/proc/kmsg"),  # regular, of 0 bytes, and its reader waits for the next message of the kernel
    ):  # fmt: skip
        with cpu_budget(), pytest.raises(RecipeError, match=said):
            load_recipe(name)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("method.name=..evil", "no method '..evil'"), ("method.name=os", "no method 'os'"),
        ("method.name=os.path", "must define one subclass of Method"),
        (f"data.lab.problems={10**15}", "must be an integer of at least 1 and at most 100000"),
        (f"model={{name_or_path: lab, use_peft: true, lora_r: {10**8}}}", "must be at least 1 and at most 8192"),
        (f"reward.memory_mb={10**12}", "of at least 256 and at most 1048576"), ("reward.deadline=1e-9", "of at least 0.1"),
        ("training.top_p=2", "must be a number in (0, 1]"), ("training.top_p=.nan", "NaN is no value of a setting"),
        ("training.top_entropy_quantile=.nan", "NaN is no value"), ("training.steps_per_generation=0", "of at least 1"),
        ("training.reward_weights=[.nan]", "NaN is no value"), ("training.importance_sampling_level=nope", "one of token, sequence"),
        ("training.fsdp=full_shard", "choose a file of recipes/accelerate"), ("training.parallelism_config={}", "is not supported"),
        ("training.dataloader_num_workers=1000000", "of at least 0 and at most 64"), ("training.max_steps=.inf", "infinity is no value"),
        (f"training.seed={2**32}", "at most 4294967295"), ("data.instruction=\"\\ud800\"", "half of a surrogate pair"),
        ("data.train=\"\\0\"", "holds the character NUL"), (f"training.logging_steps={10**30}", "beyond the integers of 64 bits"),
        ("training.run_name={a: 2}", "must be a text"), ("training.max_steps=" + "9" * 5000, "an integer of so many digits"),
        ("training.trust_remote_code=true", "docs/security.md"), ("training.hub_token=hf_x", "is a secret"),
        ("training.ddp_backend=gloo", "is of several processes, and torch fails where there is one"),
        ("training.torch_compile=true", "set speed.shared_prefix = false"),
        ("training.data_seed=7", "TRL draws the order of the data by training.seed"),
        ("training.activation_checkpointing=true", "set gradient_checkpointing instead"),
        ("training.enable_jit_checkpoint=true", "see safety.grace"),
        ("training.entropy_target=0.5", "does nothing without training.use_adaptive_entropy"),
        ("training.ref_model_sync_steps=7", "does nothing without training.sync_ref_model"),
        ("training.load_best_model_at_end=true", "needs training.metric_for_best_model = reward"),
        ("training.save_strategy=best", "needs training.metric_for_best_model = reward"),
        ("training.metric_for_best_model=nope", "must be one of reward, eval_reward"),
        ("training.metric_for_best_model=reward", "does nothing without training.load_best_model_at_end"),
        ("training.lr_scheduler_type=reduce_lr_on_plateau", "{mode: max}: by default the learning rate would fall"),
        ("reward.functions=[builtins.getattr]", "cannot be asked what it takes (ValueError: no signature found"),
        ("reward.functions=[numpy.add]", "cannot be asked what it takes"),
        ("reward.functions=[hostile_rewards.unasked]", "cannot be asked what it takes (RuntimeError: no __wrapped__"),
        ("reward.functions=[hostile_exit.reward]", "module 'hostile_exit' cannot be imported (SystemExit: 0)"),
        ("output.dir=~/runs", "write the whole path"), ("output.dir=' '", "write the whole path"),
        ("training.delta=1.2", "training.delta = 1.2: must be above 1 + training.epsilon = 1.2"),
        ("training.temperature=1e-30", "of at least 0.001"),
        ("training.num_generations=null", "of at least 2"), ("a." * 100 + "b=1", "no key of a recipe stands so deep"),
    ],
    ids=lambda value: value[:40],
)  # fmt: skip
def test_values_that_no_recipe_can_have(override, said):
    with cpu_budget(), pytest.raises(RecipeError) as raised:
        load_recipe(LAB, [override])
    assert said in str(raised.value)


def test_files_of_a_launch_are_read_as_recipes_are(tmp_path):
    os.mkfifo(tmp_path / "fifo.yaml")
    assert launch_for(tmp_path / "fifo.yaml") == Launch()  # the recipe's own reader says what is wrong with it
    (tmp_path / "bomb.yaml").write_text(yaml_bombs()["laughs"])
    (tmp_path / "names.yaml").write_text("deepspeed_config: {deepspeed_config_file: fifo.yaml}\n")
    for name, said in (
        ("fifo.yaml", "a pipe, a socket or a device"), ("bomb.yaml", "more than 20,000 values"),
        ("names.yaml", "a pipe, a socket or a device"),
    ):  # fmt: skip
        with cpu_budget(), pytest.raises(UserError, match=said):
            read_launch(str(tmp_path / name))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("empties", "returned 0 values for 3 completions"), ("beyond_float32", "returned 1e+39 for completion 0"),
        ("too_large", "ValueError: Exceeds the limit"), ("exits", "SystemExit: 0"), ("interrupts", "KeyboardInterrupt"),
        ("unworded", "failed: Unworded"), ("long_worded", "failed: ValueError: xxx"),
        ("logs_text", "log_metric('length', 'long'): it takes a name and a number"),
        ("logs_no_name", "log_metric(3, 1.0): it takes a name and a number"),
        ("logs_too_few", "log_extra('verdict', 1 values): it takes a name and a list of one value for each of 3"),
        ("logs_functions", "Can't pickle local object"),
    ],
)  # fmt: skip
def test_reward_functions_that_return_raise_and_log_what_they_must_not(name, said):
    path = f"hostile_rewards.{name}"
    function = Function(path, find(path), deadline=60, memory_mb=2048)
    given = {"log_metric": lambda *_: None, "log_extra": lambda *_: None}
    try:
        with pytest.raises(RewardError) as raised:
            function.outcomes(prompts=["p"] * 3, completions=["a", "b", "c"], **given)
    finally:
        function.close()
    assert said in str(raised.value)
    assert len(str(raised.value)) < 5000
    assert "process.py" not in str(raised.value)  # the function's lines alone


@pytest.mark.parametrize("key", ["data.train", "data.traces", "evaluation.data", "model.name_or_path", "model.chat_template",
                                 "output.dir", "evaluation.benchmarks", "model.revision"])  # fmt: skip
def test_names_that_no_file_can_have(key):
    outcomes = Outcomes()
    for value in ("x" * 5000, "a/" * 3000, "'" + "x" * 300 + "/y.jsonl'", "''", "/dev/zero", ".", "/", "'*'", "'~'"):
        outcomes.run((key, value[:20]), lambda value=value: read_run(LAB, [f"{key}={value}"]))
    outcomes.check()


def test_every_field_of_trl_is_bounded_free_or_refused():
    fields = fields_from_source("trl.trainer.grpo_config", "GRPOConfig")
    tables = [BOUNDED.keys(), FREE, REFUSED.keys()]
    assert sorted(name for table in tables for name in table) == sorted(fields)  # each once, and none besides


def test_ladders(tmp_path):
    rng, outcomes = random.Random(SEED), Outcomes()
    for number in range(CASES // 5):
        path, told = ladder_file(rng, tmp_path)
        outcomes.run((number, told), lambda path=path: load_ladder(path, fast=rng.random() < 0.3))
    outcomes.check()
    assert outcomes.counts["explained"]
    assert outcomes.counts["fine"]


# --- data -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def grader():
    made = Grader(workers=1, deadline=2.0)
    yield made
    made.close()


def _as_training_reads_it(path, tokenizer, grader):
    problems = load(path, columns=True)
    refuse_ids_beyond(len(tokenizer), problems, "the policy")
    problems = guarded(problems, "mention", grader, trusted=False)
    demonstrations, answers = [p.demonstrations for p in problems], [p.answer for p in problems]
    list(DemonstrationTable(demonstrations, answers, tokenizer, problems=[p.text for p in problems]))


def test_files_of_rows(tmp_path, grader):
    rng, tokenizer = random.Random(SEED), byte_level_bpe()
    outcomes = {"train": Outcomes(), "prepare": Outcomes(), "grade": Outcomes()}
    for number in range(CASES // 3):
        path = data_file(rng, tmp_path, COMPLETED_ROWS if number % 3 == 0 else GOOD_ROWS)
        readers = {
            "train": lambda path=path: _as_training_reads_it(path, tokenizer, grader),
            "prepare": lambda path=path: prepare([path], tmp_path / "out.jsonl", Settings(force=True), grader=grader),
            "grade": lambda path=path: grade(path, grader, output=tmp_path / "graded.jsonl", second_opinion=False),
        }
        for name, reader in readers.items():
            outcomes[name].run((name, number, path), reader)
    for one in outcomes.values():
        one.check()
        assert one.counts["explained"]
        assert one.counts["fine"]


@pytest.mark.parametrize(
    ("beside", "said"),
    [
        ({"ids": [2**31]}, "demonstration 1: ids must be a list of token ids"), ({"ids": ["a"]}, "ids must be a list"),
        ({"ids": [-1]}, "ids must be a list"), ({"ids": [True]}, "ids must be a list"), ({"ids": 3}, "ids must be a list"),
        ({"ids": [330]}, "the id 330"), ({"readable": "x"}, "readable must be an object"),
        ({"readable": {"mention": "3"}}, "readable must be"), ({"readable": {"mention": -1}}, "readable must be"),
        ({"readable_from": 1.5}, "readable_from must be an offset"), ({"ended": "no"}, "ended must be true or false"),
    ],
)  # fmt: skip
def test_ids_and_offsets_that_cannot_be_are_named_with_their_row(beside, said, tmp_path, grader):
    rows = [GOOD_ROWS[0], {**GOOD_ROWS[1], "demonstrations": [{"text": "so \\boxed{4}", **beside}]}]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(as_json(row) + "\n" for row in rows))
    with pytest.raises(DataError) as raised:
        _as_training_reads_it(str(path), byte_level_bpe(), grader)  # of 330 ids
    assert said in str(raised.value)
    assert f"{path}:2" in str(raised.value)


def test_a_line_that_is_too_long_a_number_or_levels_without_end(tmp_path, monkeypatch):
    monkeypatch.setattr("prefix_rl.data.sources.LONGEST_LINE", 200_000)
    for text, said in (
        ('{"id": ' + "9" * 5000 + "}", "rows.jsonl:2: not JSON that can be read"),
        ('{"id": ' + "[" * 100_000 + "]" * 50_000 + "}", "rows.jsonl:2: "),
        ('{"id": "' + "x" * 200_001 + '"}', "rows.jsonl:2: more than 200,000 bytes"),
        ('{"id": "\xff"}', "rows.jsonl:2: not UTF-8 at byte 8"),
    ):
        (tmp_path / "rows.jsonl").write_bytes(b'{"id": 1}\n' + text.encode("latin-1") + b"\n")
        with cpu_budget(), pytest.raises(DataError) as raised:
            list(read(str(tmp_path / "rows.jsonl")))
        assert said in str(raised.value)


def test_what_would_be_read_as_something_else_or_without_an_end_is_refused(tmp_path):
    row, twice = GOOD_ROWS[0], pyarrow.array(["a"])
    lines = tmp_path / "rows.jsonl"
    for text, said in (
        (b'{"problem": "a", "problem": "b", "answer": "1"}', "the key 'problem' stands twice"),
        (b"\n" * 100_002 + as_json(row).encode(), "more than 100,000 blank lines; what is behind was not read"),
        (b"{}\n" * 3000, "Behind the first 1,000 faults no row was read."),
        (b"[]\n" * 3000, "rows.jsonl:1001: 1,000 faults before it; what is behind was not read"),
        (as_json({**row, "problem": "\u200b\u2060"}).encode(), "problem is empty"),
        (
            as_json({**row, "problem": [{"role": "user", "content": [{"type": "text", "text": None}]}]}).encode(),
            "no text (list)",
        ),
    ):
        lines.write_bytes(text + b"\n")
        with cpu_budget(), pytest.raises(DataError) as raised:
            load(str(lines))
        assert said in str(raised.value)
    names = ["id", "problem", "problem", "answer"]
    pyarrow.parquet.write_table(pyarrow.table([twice] * 4, names=names), tmp_path / "rows.parquet")
    with pytest.raises(DataError, match="two columns of the name 'problem'"):
        load(str(tmp_path / "rows.parquet"))


def test_thoughts_that_are_no_texts_are_faults_of_their_row(tmp_path, grader):
    path = tmp_path / "rows.jsonl"
    odd = {"problem": "1 + 1 = ?", "answer": "2", "deepseek_reasoning": 3, "deepseek_solution": ["a"]}
    path.write_text(as_json(odd) + "\n" + as_json(GOOD_ROWS[0]) + "\n")
    manifest = prepare([str(path)], tmp_path / "out.jsonl", Settings(), grader=grader)
    assert manifest["rows_with_demonstration"] == 1


# --- circumstances ----------------------------------------------------------------------------------------------------

_MET = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"RANK": "foo"}, "RANK = 'foo': must be a whole number"), ({"WORLD_SIZE": "-2"}, "WORLD_SIZE = '-2': must be"),
        ({"LOCAL_RANK": ""}, "LOCAL_RANK = '': must be"), ({"MASTER_PORT": "x"}, "MASTER_PORT = 'x': must be"),
        ({"RANK": "1"}, "RANK = 1 and WORLD_SIZE = not set: ranks count from 0"), ({"WORLD_SIZE": "0"}, "RANK = 0 and WORLD_SIZE = 0"),
        ({"RANK": "5", "WORLD_SIZE": "2", **_MET}, "RANK = 5 and WORLD_SIZE = 2: ranks count from 0"),
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE = 2, but RANK, MASTER_ADDR, MASTER_PORT is not set"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, "but MASTER_ADDR, MASTER_PORT is not set: only one process seems to run"),
    ],
    ids=str,
)  # fmt: skip
def test_half_a_launch_is_told_before_anything_is_done(environment, said, monkeypatch, capsys):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert run_or_explain(lambda: pytest.fail("it began")) == 2
    told = capsys.readouterr().err
    assert "environment variables of a launch of several processes do not fit together" in told
    assert environment.get("RANK", "0") != "0" or said in told  # ranks but the first say the first line alone


@pytest.mark.parametrize("environment", [{}, {"RANK": "0"}, {"RANK": "1", "WORLD_SIZE": "2", **_MET}], ids=str)
def test_a_whole_launch_and_none_are_taken(environment, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert run_or_explain(lambda: None) == 0


def test_no_file_takes_the_place_of_a_device_a_pipe_or_a_folder(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "device").symlink_to("/dev/zero")
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "device", "folder", "/dev/null", "/dev/stdout", "/proc/self/mem", "."):
        with cpu_budget(), pytest.raises(OSError, match=r"not the name of a file") as raised:
            write_text(tmp_path / name if name.isalpha() else name, "x")
        assert "name another place" in disk_error(raised.value)
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    assert stat.S_ISFIFO(os.stat(tmp_path / "pipe").st_mode)
    write_text(tmp_path / "file", "x")  # the control


def test_a_plot_whose_name_ends_in_no_format_is_told(tmp_path):
    fig, _ = plots.figure(1, 1, 1, 1)
    with pytest.raises(DataError, match=r"no plot can be written as .json; the name must end in"):
        plots.save(fig, tmp_path / "plot.json")
    plots.save(plots.figure(1, 1, 1, 1)[0], tmp_path / "plot")
    assert [path.name for path in tmp_path.iterdir()] == ["plot"]


@pytest.mark.parametrize(
    "change",
    [{"hidden_act": "nope"}, {"dtype": "float99"}, {"eos_token_id": "x"}, {"hidden_size": "64"}, {"pad_token_id": 10**9},
     {"num_hidden_layers": 1}, {"rope_parameters": {"rope_type": "nope"}}],
    ids=str,
)  # fmt: skip
def test_a_plan_of_a_model_that_cannot_be_is_told(tmp_path, change):
    make_tiny(tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=r"could not be read|can be built"):
        plans.plan(LAB, [f"model.name_or_path={tmp_path / 'model'}"], plans.Machine(1, plans.GIB, 1.0, 0.4, 0.05))


def test_adapters_of_themselves_are_told(tmp_path):
    base = {"base_model_name_or_path": str(tmp_path), "peft_type": "LORA"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(base))
    with pytest.raises(DataError, match="which are adapters themselves"):
        places.find(tmp_path)


def test_a_file_where_a_run_should_go_is_a_fault_of_the_recipe(tmp_path):
    (tmp_path / "file").write_text("x")
    for name in (tmp_path / "file", "/dev/null"):
        with pytest.raises(RecipeError, match="something stands there already, and it is no folder"):
            load_recipe(LAB, [f"output.dir={name}"])
    load_recipe(LAB, [f"output.dir={tmp_path}"])  # the control
