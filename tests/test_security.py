"""What docs/security.md says runs no code: each tried with something that would."""

import contextlib
import io
import json
import pickle
import sys

import numpy as np
import pytest
from hostile import ROOT
from small import byte_level_bpe

from prefix_rl.data.chunks import Chunks
from prefix_rl.data.tokenizer import encode_prompt, load_tokenizer
from prefix_rl.errors import DataError, RecipeError, UserError, printable
from prefix_rl.lab.tiny import make_tiny
from prefix_rl.policy import Policy
from prefix_rl.progress import run_or_explain, say, show
from prefix_rl.recipe import load_recipe
from prefix_rl.reports.tables import text_table

LAB = ROOT / "recipes" / "lab" / "prefix_rft.yaml"
COLOURED = "\x1b[31mred\x1b[0m \x1b]0;title\x07 \x1b]52;c;Y29weQ==\x1b\\ \x9b2J \u202egpj.exe \ud800 back\rspace\x08"


class Ran:
    """A pickle that makes a file when it is opened."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return open, (str(self.mark), "w")


@pytest.fixture
def mark(tmp_path):
    return tmp_path / "ran"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return make_tiny(tmp_path_factory.mktemp("tiny") / "tiny")


@pytest.fixture
def copied(tiny, tmp_path):
    """A tiny policy that may be damaged, and a recipe of it."""
    folder = tmp_path / "policy"
    folder.mkdir()
    for path in tiny.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    recipe = {"model": {"name_or_path": str(folder)}, "data": {"train": "rows.jsonl"}, "method": {"name": "dr_grpo"},
              "training": {"use_cpu": True, "bf16": False}, "output": {"dir": str(tmp_path / "run")}}  # fmt: skip
    return folder, recipe


def test_a_pickle_among_the_weights_is_refused(copied, mark):
    folder, recipe = copied
    pickle.loads(pickle.dumps(Ran(mark))).close()
    assert mark.exists()  # it would
    mark.unlink()
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Ran(mark)))
    with pytest.raises(UserError):
        Policy(load_recipe(recipe)).load()
    assert not mark.exists()


def test_a_pickle_among_the_arrays_of_unfinished_work_is_refused(tmp_path, mark):
    raw = io.BytesIO()
    np.save(raw, np.array([Ran(mark)], dtype=object), allow_pickle=True)
    (tmp_path / "read-000000.npy").write_bytes(raw.getvalue())
    with pytest.raises(ValueError, match="allow_pickle=False"):
        Chunks(tmp_path).array("read", 0)
    assert not mark.exists()


def test_a_states_pickle_is_opened_for_tensors_alone():
    import inspect

    import transformers

    source = inspect.getsource(transformers.trainer)
    calls = source.count("torch.load(")
    assert calls
    assert source.count("weights_only=True") >= calls


def test_code_that_comes_with_a_model_does_not_run(copied, mark):
    folder, recipe = copied
    code = f"open({str(mark)!r}, 'w')\nfrom transformers import PretrainedConfig\nclass Evil(PretrainedConfig):\n    pass\n"
    (folder / "evil.py").write_text(code)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil"}}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError):
        Policy(load_recipe(recipe))
    assert not mark.exists()
    with pytest.raises(RecipeError, match="it would run code that comes with a model"):
        load_recipe(recipe, ["training.trust_remote_code=true"])


@pytest.mark.parametrize(
    "template",
    [
        "{{ cycler.__init__.__globals__.os.system('touch MARK') }}",
        "{% for c in ''.__class__.__mro__[1].__subclasses__() %}{{ c.__init__.__globals__ }}{% endfor %}",
        "{{ messages.__class__.__base__.__subclasses__() }}{{ self.__init__.__globals__.__builtins__.open('MARK', 'w') }}",
        "{% include '/etc/passwd' %}", "{% import 'os' as os %}{{ os.system('touch MARK') }}", "{{ messages.clear() }}",
        "{{ lipsum.__globals__['os'].popen('touch MARK').read() }}",
    ],
)  # fmt: skip
def test_a_chat_template_reaches_nothing(template, mark):
    tokenizer = byte_level_bpe()
    with pytest.raises(RecipeError, match="the chat template"):
        encode_prompt([{"role": "user", "content": "a"}], tokenizer, template.replace("MARK", str(mark)))
    assert not mark.exists()


def test_yaml_makes_no_objects(tmp_path, mark):
    for text in (f"!!python/object/apply:os.system ['touch {mark}']", f"!!python/object/new:os.system ['touch {mark}']",
                 "!!python/name:os.system", "!!python/module:os", "!!python/object:os.system {}"):  # fmt: skip
        with pytest.raises(RecipeError, match="could not determine a constructor"):
            load_recipe(LAB, [f"data.train={text}"])
    assert not mark.exists()


def test_a_dotted_path_runs_its_module_and_the_page_says_so(tmp_path, mark, monkeypatch):
    (tmp_path / "runs_on_purpose.py").write_text(f"open({str(mark)!r}, 'w')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(RecipeError, match="no module 'runs_on_purpose"):
        load_recipe(LAB, ["method={name: runs_on_purpose.nothing}"])
    monkeypatch.delitem(sys.modules, "runs_on_purpose", raising=False)
    assert mark.exists()
    assert "dotted path" in (ROOT / "docs" / "security.md").read_text(encoding="utf-8")


# --- the terminal -----------------------------------------------------------------------------------------------------


def harmless(text):
    return all(c in "\n\t" or not (ord(c) < 32 or 127 <= ord(c) < 160 or 0x202A <= ord(c) <= 0x202E) for c in text)


def test_control_sequences_are_shown_and_do_nothing(capsys):
    say(COLOURED)
    show(COLOURED)
    print(text_table([["name", "value"], [COLOURED, COLOURED]]))

    def fails():
        raise DataError(COLOURED, [COLOURED])

    assert run_or_explain(fails) == 2
    out, err = capsys.readouterr()
    assert not harmless(COLOURED)
    assert harmless(out)
    assert harmless(err)
    assert out.count(r"\x1b[31mred") == 3
    assert err.count(r"\u202egpj.exe") == 3
    assert printable("数学 🙂\n\tx²") == "数学 🙂\n\tx²"


def test_whatever_prints_goes_through_the_one_function():
    prints = {
        str(path.relative_to(ROOT / "prefix_rl")): [
            line.strip() for line in path.read_text(encoding="utf-8").splitlines()
            if line.strip().startswith(("print(", "sys.stdout.write(", "sys.stderr.write(", "typer.echo("))
        ]
        for path in (ROOT / "prefix_rl").rglob("*.py")
    }  # fmt: skip
    found = {name: lines for name, lines in prints.items() if lines}
    # these look after what is in them themselves: tables in each cell, the preview in each part that it colours
    own = ("text_table", "previews.report(")
    others = {name for name, lines in found.items() if not all(any(one in line for one in own) for line in lines)}
    assert "cli.py" in found
    # the two functions themselves; a page of docs that is made of the code; the address of `watch`
    assert others <= {"progress.py", "reference.py", "reports/watch.py"}


def test_a_tokenizer_with_code_of_its_own_is_refused(copied, mark):
    folder, _ = copied
    (folder / "evil.py").write_text(f"open({str(mark)!r}, 'w')\nclass Evil:\n    pass\n")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings |= {"auto_map": {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}, "tokenizer_class": "Evil"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    with contextlib.suppress(UserError):
        load_tokenizer(str(folder))  # its file may be read by a class of transformers
    assert not mark.exists()
