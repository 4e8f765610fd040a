"""``include``: what holds, where a fault stands, and what is refused."""

import pytest
import yaml
from examples import examples
from hypothesis import given
from hypothesis import strategies as st

from prefix_rl import includes
from prefix_rl.errors import RecipeError
from prefix_rl.recipe import BLOCKS, load_recipe, read_run

BASE = """\
model: {name_or_path: lab}
data:
  train: lab
  prompt: plain
method: {name: dr_grpo}
training:
  max_steps: 20
  learning_rate: 1e-5
evaluation:
  k: [1, 2]
output: {dir: runs/base}
"""


@pytest.fixture
def write(tmp_path):
    def write(name, text):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return file

    write("base.yaml", BASE)
    return write


def refused(path, overrides=()):
    with pytest.raises(RecipeError) as error:
        load_recipe(path, overrides)
    return str(error.value)


def test_the_recipe_holds_over_what_it_includes_key_by_key(write):
    path = write("mine.yaml", "include: base.yaml\ntraining: {learning_rate: 2e-5}\nevaluation: {k: [4]}\n")
    recipe = load_recipe(path)
    assert recipe.training_value("max_steps") == 20
    assert recipe.training_value("learning_rate") == 2e-5
    assert recipe.evaluation.k == (4,)  # a list is one value
    assert recipe.output.dir == "runs/base"


def test_overrides_hold_over_both(write):
    path = write("mine.yaml", "include: base.yaml\ntraining: {learning_rate: 2e-5}\n")
    recipe = load_recipe(path, ["training.learning_rate=3e-5", "training.max_steps=7"])
    assert (recipe.training_value("learning_rate"), recipe.training_value("max_steps")) == (3e-5, 7)


def test_of_several_the_later_one_holds_and_names_are_relative_to_the_file(write):
    write("parts/slow.yaml", "include: ../base.yaml\ntraining: {max_steps: 30, beta: 0.1}\n")
    write("parts/long.yaml", "training: {max_steps: 40}\n")
    path = write("mine.yaml", "include: [parts/slow.yaml, parts/long.yaml]\ntraining: {beta: 0.2}\n")
    recipe = load_recipe(path)
    assert (recipe.training_value("max_steps"), recipe.training_value("beta")) == (40, 0.2)
    other = write("other.yaml", "include: [parts/long.yaml, parts/slow.yaml]\n")
    assert load_recipe(other).training_value("max_steps") == 30


def test_the_resolved_recipe_is_whole(write, tmp_path):
    recipe = load_recipe(write("mine.yaml", "include: base.yaml\noutput: {dir: runs/mine}\n"))
    (alone := tmp_path / "elsewhere.yaml").write_text(recipe.dump())
    assert "include" not in yaml.safe_load(recipe.dump())
    assert load_recipe(alone) == recipe


def test_a_fault_names_the_file_and_line_in_which_its_value_stands(write):
    base = write("base.yaml", BASE.replace("1e-5", "fast"))
    path = write(
        "mine.yaml", "include: base.yaml\n\ntraining: {max_stepz: 3}\nmethod:\n  name: dr_grpo\n  share: 0.2\n"
    )
    said = refused(path)
    assert f'training.learning_rate = "fast": must be a number of at least 0 (in {base}, line 8)' in said
    assert f"training.max_stepz: no such key (did you mean max_steps?) (in {path}, line 3)" in said
    assert f"not of dr_grpo (in {path}, line 6)" in said


def test_a_fault_of_what_an_override_set_names_no_file(write):
    path = write("mine.yaml", "include: base.yaml\n")
    assert refused(path, ["training.learning_rate=fast"]).endswith(
        'learning_rate = "fast": must be a number of at least 0'
    )
    assert "line" not in refused(path, ["training={learning_rate: fast}"])


def test_a_recipe_that_includes_nothing_is_told_as_before(write):
    assert "line" not in refused(write("mine.yaml", BASE + "training_: {}\n"))


def test_faults_of_the_data_name_the_file_too(write):
    base = write("base.yaml", BASE.replace("train: lab", "train: nowhere/rows.jsonl"))
    reading = read_run(write("mine.yaml", "include: base.yaml\n"))
    assert any(fault.startswith("data.train") and fault.endswith(f"(in {base}, line 3)") for fault in reading.faults)


def test_a_file_that_is_not_there_is_said_with_the_lines_that_led_to_it(write):
    write("parts/one.yaml", "# first\ninclude:\n  - ../base.yaml\n  - bas.yaml\n")
    write("parts/base.yaml", BASE)
    path = write("mine.yaml", "include: parts/one.yaml\n")
    said = refused(path)
    assert "one.yaml, line 4: include bas.yaml: there is no such file (did you mean base.yaml?)" in said
    assert f"which {path}, line 1: include parts/one.yaml led to" in said


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("include: .", "line 1: include .: is a folder"),
        ("model: {}\ninclude: ''", "line 2: include must be the name of a file, or a list of such names"),
        ("include: {a: b}", "include must be the name of a file"),
        ("include:", "include must be the name of a file"),
        ("include: [3]", "include must be the name of a file"),
        ("include: " + "x" * 5000, "there is no such file"),
        ("include: ~nobody/x.yaml", "there is no such file"),
        ('include: "a\\0b"', "there is no such file"),
        ("include: mine.yaml", "it is being included already, so that it includes itself"),
        ("include: [base.yaml, empty.yaml]", "empty.yaml is empty"),
    ],
)
def test_what_is_no_file_to_include_is_explained(write, text, message):
    write("empty.yaml", "")
    assert message in refused(write("mine.yaml", text + "\n"))


def test_a_circle_is_shown(write):
    write("two.yaml", "output: {dir: x}\ninclude: [base.yaml, three.yaml]\n")
    write("three.yaml", "include: one.yaml\n")
    said = refused(write("one.yaml", "include: two.yaml\n"))
    assert "three.yaml, line 1: include one.yaml: it is being included already" in said
    assert said.index("line 2: include three.yaml led to") < said.index("line 1: include two.yaml led to")


def test_two_ways_to_one_file_are_no_circle(write):
    write("left.yaml", "include: base.yaml\n")
    write("right.yaml", "include: base.yaml\ntraining: {max_steps: 21}\n")
    assert load_recipe(write("mine.yaml", "include: [left.yaml, right.yaml]\n")).training_value("max_steps") == 21


def test_a_file_is_read_once_however_many_ways_lead_to_it(write, monkeypatch):
    for n in range(1, 14):  # 2 ** 14 ways
        write(f"{n}.yaml", f"include: [{n - 1}.yaml, ./{n - 1}.yaml]\n")
    write("0.yaml", BASE)
    read, count = includes.yaml12.read, []
    monkeypatch.setattr(includes.yaml12, "read", lambda path, blocks: count.append(path) or read(path, blocks))
    load_recipe(write("mine.yaml", "include: 13.yaml\n"))
    assert len(count) == 15


def test_too_many_files_within_one_another_are_refused(write):
    for n in range(1, 30):
        write(f"{n}.yaml", f"include: {n - 1}.yaml\n")
    write("0.yaml", BASE)
    assert load_recipe(write("few.yaml", "include: 14.yaml\n"))  # 14, 13, ... 0 and itself: 16 files
    assert "more than 16 files stand within one another" in refused(write("many.yaml", "include: 15.yaml\n"))


def test_an_override_cannot_include(write):
    assert "an override is block.key=value" in refused(write("mine.yaml", BASE), ["include=base.yaml"])


VALUES = st.recursive(
    st.integers(0, 9) | st.lists(st.integers(0, 9), max_size=2),
    lambda inner: st.dictionaries(st.sampled_from("abc"), inner, max_size=2),
    max_leaves=4,
)
BLOCK = st.dictionaries(st.sampled_from(sorted(BLOCKS)), VALUES, min_size=1, max_size=3)


def merged(first, later):
    """Slow and plain."""
    if not (isinstance(first, dict) and isinstance(later, dict)):
        return later
    return {key: merged(first[key], later[key]) if key in first and key in later else {**first, **later}[key]
            for key in {**first, **later}}  # fmt: skip


@examples(40)
@given(BLOCK, BLOCK, BLOCK)
def test_merging_is_that_of_the_slow_one(tmp_path_factory, first, second, own):
    folder = tmp_path_factory.mktemp("includes")
    for name, content in (("a", first), ("b", second), ("c", {"include": ["a.yaml", "b.yaml"], **own})):
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(content))
    found = includes.read(folder / "c.yaml", BLOCKS)
    assert found.values == merged(merged(first, second), own)

    def leaves(value, at=""):
        for key, inner in value.items() if isinstance(value, dict) else ():
            yield from leaves(inner, f"{at}{key}.") if isinstance(inner, dict) and inner else [(f"{at}{key}", inner)]

    for name, value in leaves(found.values):
        holder = yaml.safe_load(found.files[name].read_text())
        for key in name.split("."):
            holder = holder[key]
        assert holder == value or holder == {}
