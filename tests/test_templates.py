"""A chat template that comes with a model is a program: one without an end is told before it is rendered here."""

import pytest

from prefix_rl.data.templates import refuse_endless
from prefix_rl.errors import RecipeError
from prefix_rl.lab.tiny import CHAT_TEMPLATE


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "takes more than 5 seconds"),
        ("{{ 'a' * 10**11 }}", "takes more than 1,024 MiB"),
        ("{{ 'a' * 10000001 }}", "makes more than 10,000,000 characters"),
    ],
)
def test_a_template_without_an_end_is_refused(template, said):
    with pytest.raises(RecipeError, match=said):
        refuse_endless(template, {})


@pytest.mark.parametrize(
    "template",
    [CHAT_TEMPLATE, "{% generation %}{{ messages[0].content }}{% endgeneration %}", "{{ raise_exception('x') }}", "{% if %}",
     "{{ messages | tojson(indent=2) }}{% for m in messages %}{% break %}{% endfor %}{{ strftime_now('%d') }}"],
)  # fmt: skip
def test_what_ends_is_left_to_who_renders_it(template):
    refuse_endless(template, {"enable_thinking": False})


def test_it_reaches_nothing(tmp_path):
    marker = tmp_path / "reached"
    refuse_endless("{{ cycler.__init__.__globals__.os.system('touch %s') }}" % marker, {})  # noqa: UP031  braces
    assert not marker.exists()
