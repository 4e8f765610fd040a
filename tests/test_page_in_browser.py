"""The page in a real headless Chromium: what a person sees, clicks and types."""

import json
import os
import random
import time

import browser as chromium
import pytest
from test_page import HOSTILE, page_of
from test_reports import made_run, rollout

from prefix_rl.reports.report import report
from prefix_rl.reports.rollouts import write_rollouts

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    made = chromium.Browser(tmp_path_factory.mktemp("chromium"))
    yield made
    made.close()


@pytest.fixture
def page(browser):
    browser.size(1200)
    browser.scheme("light")
    return browser


WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


def lab(folder, method, seed, steps=(0, 10, 20)):
    """A run with three saved generations of two groups: problems 0 and 1 at step 0, 1 and 2 at step 10, and so on."""
    run = made_run(folder, method)
    draw = random.Random(seed)
    for g, step in enumerate(steps):
        records = []
        for group in (g, g + 1):
            for i in range(4):
                right = i <= group
                text = f"{method} at {step} thinks of {WORDS[group]} and sample {i} ends"
                pieces = [{"kind": "prefix", "text": "given "}, {"kind": "kept", "text": "words "}] if i == 0 else []
                records.append(
                    rollout(
                        i, row=group, right=right, found=str(group + 1 if right else draw.randint(50, 99)),
                        prefix_tokens=2 if pieces else 0,
                        segments=[*pieces, {"kind": "continuation", "text": text}],
                        token_ends=[6, 12, 12 + len(text)] if pieces else None,
                        advantages=[0.0, 0.5, -0.5] if pieces else [0.25],
                        entropies=[2.0, 0.5, None] if pieces else None,
                    )
                )  # fmt: skip
        write_rollouts(run / "rollouts" / f"step_{step:06d}.parquet", records)
    return run


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    runs = [lab(folder / "a" / "run", "prefix_rft", 1), lab(folder / "b" / "run", "dr_grpo", 2, steps=(0, 10))]
    return report(runs, folder / "out")["report.html"].as_uri()


def drawn(page, text):
    page.until(f"document.documentElement.dataset.drawn === {json.dumps(text)}")


def heads(page):
    return [text.split(" · ")[0] for text in page.texts("#groups > details > summary")]


def test_it_opens_without_network_and_without_an_error(page, two):
    page.open(two)
    assert page.errors() == []
    assert page.requests() == [two]
    assert page.texts("#runs tbody td:first-child") == ["a/run", "b/run"]
    assert page.texts("#runs thead th")[:3] == ["run", "state", "method"]


def test_the_slider_goes_over_all_saved_generations(page, two):
    page.open(two)
    drawn(page, "a/run 20")  # the last one first
    assert page.texts("#generation-label") == ["step 20 (3 of 3)"]
    assert heads(page) == ["3 of 4 right", "4 of 4 right"]
    page.set("#generation", "0")
    drawn(page, "a/run 0")
    assert page.texts("#generation-label") == ["step 0 (1 of 3)"]
    assert "thinks of zero" in page.texts("#groups .text:not(.prompt)")[0]
    assert page.js("document.querySelector('#before').disabled")
    page.click("#after")
    drawn(page, "a/run 10")


def test_a_group_is_filled_when_it_is_opened(page, two):
    page.open(two)
    drawn(page, "a/run 20")
    assert page.js(
        "[...document.querySelectorAll('#groups > details')].map((d) => d.querySelectorAll('.rollout').length)"
    ) == [4, 0]
    page.js("document.querySelectorAll('#groups > details')[1].querySelector('summary').click()")
    page.until("document.querySelectorAll('#groups > details')[1].querySelectorAll('.rollout').length === 4")
    shown = page.texts("#groups > details:nth-child(2) .prompt")
    assert shown == ["3 + 1 = ?"]


def test_right_is_the_verdict_and_the_answers_are_told(page, two):
    page.open(two)
    page.set("#generation", "0")
    drawn(page, "a/run 0")
    first = page.texts(".verdict")[0]
    assert first.startswith("✓ right · reward 1 · advantage +0.5 · 3 tokens · prefix 2 of 5 · found 1, compared with 1")
    assert "✗ wrong" in page.texts(".verdict")[1]


def test_a_bonus_is_not_called_right(page, tmp_path):
    run = made_run(tmp_path / "run")
    records = [rollout(i, right=False) | {"reward": 0.2, "outcome": "wrong"} for i in range(4)]
    records += [rollout(i, row=1) | {"reward": 0.2, "outcome": None} for i in range(4)]
    write_rollouts(run / "rollouts" / "step_000010.parquet", records)
    page_of(run)
    page.open((tmp_path / "page.html").as_uri())
    drawn(page, "run 10")
    assert sorted(heads(page)) == ["0 of 4 right", "no verdict"]


def test_filters_leave_what_is_asked_for(page, two):
    page.open(two)
    drawn(page, "a/run 20")
    page.set("#outcome", "wrong")
    page.until("document.querySelector('#count').textContent === '1 of 8 rollouts in 1 group'")
    assert heads(page) == ["3 of 4 right"]  # the group is told as a whole, its wrong rollout is shown
    assert all("wrong" in text for text in page.texts(".verdict"))
    page.set("#outcome", "")
    page.set("#start", "prefixed")
    page.until("document.querySelector('#count').textContent === '2 of 8 rollouts in 2 groups'")
    page.set("#start", "alone")
    page.until("document.querySelector('#count').textContent === '6 of 8 rollouts in 2 groups'")
    page.set("#start", "")
    page.set("#reward-low", "0.5")
    page.until("document.querySelector('#count').textContent === '7 of 8 rollouts in 2 groups'")
    page.set("#reward-high", "0.7")
    page.until("document.querySelector('#count').textContent === '0 of 8 rollouts in 0 groups'")


def test_search_finds_texts_here_and_in_all_generations(page, two):
    page.open(two)
    drawn(page, "a/run 20")
    page.set("#search", "THREE")
    page.until("document.querySelector('#count').textContent.startsWith('4 of 8')")
    assert page.texts("#groups mark")[0] == "three"
    page.set("#search", "of one and")
    page.until("document.querySelector('#count').textContent.startsWith('0 of 8')")
    page.click("#everywhere")
    page.until("document.querySelector('#hits button')")
    assert page.texts("#hits button") == ["step 0 (4)", "step 10 (4)"]
    page.click("#hits button")
    drawn(page, "a/run 0")
    assert "of one and" in page.texts("#groups mark")


def test_groups_and_rollouts_are_sorted(page, two):
    page.open(two)
    page.set("#generation", "0")
    drawn(page, "a/run 0")
    assert heads(page) == ["1 of 4 right", "2 of 4 right"]
    page.set("#order", "right")
    page.until("document.querySelector('#groups summary').textContent.startsWith('2 of 4')")
    page.set("#order", "wrong")
    page.until("document.querySelector('#groups summary').textContent.startsWith('1 of 4')")
    page.set("#within", "advantage")
    page.until("document.querySelector('.verdict').textContent.includes('✓')")


def test_two_runs_stand_side_by_side_paired_by_problem(page, two):
    page.open(two)
    page.set("#run-b", "1")
    page.until(
        "document.querySelectorAll('.sides > div').length === 2 && document.querySelectorAll('.sides .rollout').length"
    )
    drawn(page, "a/run 20")
    # problem 2 is in b's generation of step 10, which is the nearest; problem 3 in none
    page.until("document.querySelectorAll('.sides h3')[1]?.textContent === 'b/run, step 10'")
    assert page.texts(".sides h3") == ["a/run, step 20", "b/run, step 10"]
    left, right = page.js(
        "[...document.querySelectorAll('.sides > div')].map((d) => d.querySelector('.rollout .text').textContent)"
    )
    assert "prefix_rft at 20 thinks of two" in left
    assert "dr_grpo at 10 thinks of two" in right
    page.js("document.querySelectorAll('#groups > details')[1].querySelector('summary').click()")
    page.until("document.body.textContent.includes('not among its saved rollouts')")
    page.set("#order", "saved")
    page.set("#generation", "1")  # problem 1 is in b's generations of steps 0 and 10
    page.until("document.querySelector('.sides h3')?.textContent === 'a/run, step 10'")
    page.until("document.querySelectorAll('.sides h3')[1]?.textContent === 'b/run, step 10'")
    page.set("#generation", "2")
    drawn(page, "a/run 20")
    page.set("#both", True)
    page.until("document.querySelectorAll('#groups > details').length === 1")


def test_prefix_and_kept_tokens_can_be_told_without_colour(page, two):
    page.open(two)
    drawn(page, "a/run 20")
    style = "getComputedStyle(document.querySelector('.rollout {}')).textDecoration"
    assert "dotted" in page.js(style.format(".prefix"))
    assert "underline" in page.js(style.format(".kept"))
    assert page.js(style.format(".kept")) != page.js(style.format(".prefix"))
    assert page.texts(".rollout .prefix")[0] == "given "
    dashes = page.js("[...document.querySelectorAll('.legend path')].map((p) => getComputedStyle(p).strokeDasharray)")
    assert len(set(dashes)) == 2


def test_tokens_are_shaded_by_advantage_or_entropy(page, two):
    page.open(two)
    drawn(page, "a/run 20")
    page.set("#shade", "entropy")
    page.until("document.querySelector('.rollout [title]')")
    assert page.texts(".rollout [title]")[:2] == ["given ", "words "]
    strength = "[...document.querySelectorAll('.rollout [title]')].slice(0, 3).map((n) => [n.title, Number(n.style.background.match(/, ([\\d.]+)\\)/)?.[1] ?? 1)])"
    assert page.js(strength)[:2] == [["entropy 2", 0.75], ["entropy 0.5", 0.19]]
    page.set("#shade", "advantage")
    page.until("document.querySelector('.rollout [title]').title.startsWith('advantage')")
    found = page.js(strength)
    assert [title for title, _ in found] == ["advantage 0", "advantage 0.5", "advantage -0.5"]
    assert page.js("document.querySelectorAll('.rollout .below').length") == 1  # below 0 has a wavy line too


def test_long_rollouts_are_folded_until_asked_for(page, tmp_path):
    run = made_run(tmp_path / "run")
    words = [f"w{i}" for i in range(6000)]
    records = [rollout(i, segments=[{"kind": "continuation", "text": " ".join(words)}]) for i in range(4)]
    write_rollouts(run / "rollouts" / "step_000010.parquet", records)
    page_of(run)
    page.open((tmp_path / "page.html").as_uri())
    drawn(page, "run 10")
    shown = page.texts(".rollout .text")[0]
    assert len(shown) < 1500
    assert shown.startswith("w0 w1 ")
    assert "w5999show all 6,000 words" in shown
    assert page.js("document.documentElement.scrollHeight") < 9000
    page.click(".fold")
    assert page.texts(".rollout .text")[0] == " ".join(words) + "fold"
    page.click(".fold")
    assert len(page.texts(".rollout .text")[0]) < 1500
    page.set("#search", "w3000 ")
    page.until("document.querySelector('.rollout mark')")  # what was found is not folded away


def test_every_metric_is_a_curve(page, two):
    page.open(two)
    charts = "[...document.querySelectorAll('.chart')].map((c) => c.dataset.metric)"
    assert page.js(charts)[0] == "reward_without_prefix"
    page.click("#all-metrics")
    names = page.js(charts)
    assert {"num_tokens", "outcome/no_answer", "prefix/kept_share", "cost/flops"} <= set(names)
    page.set("#metric-filter", "prefix entropy")
    page.until("document.querySelectorAll('.chart').length === 1")
    assert page.js(charts) == ["entropy_prefix"]
    page.set("#metric-filter", "reward_without")
    page.until("document.querySelectorAll('.chart svg path').length === 2")  # one line for each run
    label = page.js("document.querySelector('.chart > svg').getAttribute('aria-label')")
    assert label == "reward_without_prefix over step: a/run 0.025 to 0.5; b/run 0.025 to 0.5"


def ticks(page):
    return page.js("[...document.querySelectorAll('.chart > svg > text')].map((t) => t.textContent)")


def test_curves_fit_their_axes_and_are_read_by_key(page, tmp_path):
    run = made_run(tmp_path / "run")
    lines = [{"step": s, "bonus": 2.0 + s / 40, "spike": 1e6 if s == 7 else s / 40, "power": 10.0**s, "cost/flops": 1e12 * s,
              "step_time": 60.0} for s in range(1, 41)]  # fmt: skip
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    page_of(run)
    page.open((tmp_path / "page.html").as_uri())
    page.set("#metric-filter", "bonus")
    page.until("document.querySelector('.chart[data-metric=bonus]:first-child path')")
    box = """(() => { const plot = document.querySelector('.chart > svg > svg'), b = plot.querySelector('path').getBBox();
        return [b.y, b.y + b.height, plot.height.baseVal.value]; })()"""
    top, bottom, tall = page.js(box)
    assert 0 <= top < 20  # beyond 1, and still inside
    assert tall - 20 < bottom <= tall
    page.set("#metric-filter", "spike")
    page.until("document.querySelector('.chart output')?.textContent === '1 point beyond the axis'")
    assert "1" in ticks(page)  # the axis is that of the other points
    assert page.js("getComputedStyle(document.querySelector('.chart > svg > svg')).overflow") == "hidden"
    page.set("#curves-clip", False)
    page.until("document.querySelector('.chart output')?.textContent === ''")
    assert "1e6" in [t.replace("1.00e", "1e") for t in ticks(page)]
    page.set("#curves-log", True)
    page.set("#metric-filter", "power")
    page.until("[...document.querySelectorAll('.chart > svg > text')].some((t) => t.textContent === '1.00e20')")
    page.set("#x-axis", "minutes")
    page.until("document.querySelector('.chart > svg').getAttribute('aria-label').startsWith('power over minutes')")
    page.set("#x-axis", "flops")
    page.until("document.querySelector('.chart > svg').getAttribute('aria-label').startsWith('power over FLOPs')")
    page.set("#x-axis", "step")
    page.set("#curves-log", False)
    page.set("#metric-filter", "bonus")
    page.until("document.querySelector('.chart[data-metric=bonus]:first-child path')")
    page.js("document.querySelector('.chart > svg').focus()")
    page.key("ArrowRight")
    page.key("ArrowRight")
    page.until("document.querySelector('.chart output').textContent === 'step 2: run 2.05'")
    page.set("#smoothing", "0.9")
    page.until("document.querySelectorAll('.chart path').length === 2")  # the smooth line and, faint, the plain one


def test_one_legend_hides_and_shows_runs(page, two):
    page.open(two)
    page.set("#metric-filter", "reward_without")
    page.until("document.querySelectorAll('.chart path').length === 2")
    assert page.js("document.querySelectorAll('.legend').length") == 1
    page.js("document.querySelectorAll('.legend button')[1].click()")
    page.until("document.querySelectorAll('.chart path').length === 1")
    assert page.js("document.querySelectorAll('.legend button')[1].getAttribute('aria-pressed')") == "false"


def test_names_that_objects_have_by_themselves_are_names_like_others(page, tmp_path):
    runs = [made_run(tmp_path / name) for name in "ab"]
    (runs[0] / "metrics.jsonl").write_text('{"step": 1, "constructor": 2.0, "toString": 1}\n')
    (runs[0] / "recipe.yaml").write_text("constructor: {valueOf: 1}\n__proto__: 3\n")
    page_of(*runs)
    page.open((tmp_path / "page.html").as_uri())
    page.set("#metric-filter", "constructor")
    page.until("document.querySelector('.chart[data-metric=constructor]:first-child circle')")
    assert page.texts("#recipes > .wide tbody tr")[:2] == ["constructor.valueOf1–", "__proto__3–"]
    assert page.errors() == []


def test_what_differs_between_recipes(page, two):
    page.open(two)
    assert page.texts("#recipes > .wide tbody tr") == ["method.nameprefix_rftdr_grpo"]
    assert page.texts("#recipes > p") == ["2 settings are the same."]


def test_health_stands_on_the_page(page, tmp_path):
    run = made_run(tmp_path / "run")
    lines = [{"step": s, "reward": 0.1, "frac_reward_zero_std": 0.99} for s in range(1, 30)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    page_of(run)
    page.open((tmp_path / "page.html").as_uri())
    (found,) = page.texts("#health .finding")
    assert found.startswith("⚠ in 99 % of the groups all rollouts got the same reward (step 29)Why: ")
    assert "Try: " in found


def colour(page, what="backgroundColor"):
    return [int(n) for n in page.js(f"getComputedStyle(document.body).{what}").strip("rgb()").split(",")]


def contrast(one, other):
    """The ratio of WCAG 2."""

    def light(c):
        parts = [v / 255 / 12.92 if v / 255 <= 0.03928 else ((v / 255 + 0.055) / 1.055) ** 2.4 for v in c]
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]

    high, low = sorted((light(one), light(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


TEXTS = [
    "body",
    ".quiet",
    ".verdict b.right",
    ".verdict b.not-right",
    ".rollout .prefix",
    ".rollout .kept",
    "a",
    ".chart text",
]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_light_and_dark_can_be_read(page, two, scheme):
    page.scheme(scheme)
    page.open(two)
    drawn(page, "a/run 20")
    ground = colour(page)
    assert (sum(ground) < 150) == (scheme == "dark")
    script = """(selector) => { const n = document.querySelector(selector); let at = n, ground = "";
        const numbers = (text) => text.match(/[\\d.]+/g).map(Number);
        while (at && (ground = getComputedStyle(at).backgroundColor).endsWith(", 0)")) at = at.parentElement;
        const style = getComputedStyle(n);
        return [numbers(n instanceof SVGElement ? style.fill : style.color), numbers(at ? ground : "rgb(255,255,255)")]; }"""
    for selector in TEXTS:
        text, behind = page.js(f"({script})({json.dumps(selector)})")
        assert contrast(text[:3], behind[:3]) >= 4.5, (selector, text, behind)


def test_colours_can_be_chosen(page, two):
    page.open(two)
    page.set("#theme", "dark")
    assert sum(colour(page)) < 150
    page.set("#theme", "light")
    assert sum(colour(page)) > 700
    page.set("#theme", "")


@pytest.mark.parametrize("width", [320, 400, 800, 1600])
def test_nothing_stands_beyond_the_edge_of_a_narrow_window(page, two, width):
    page.size(width)
    page.open(two)
    page.set("#run-b", "1")
    page.until("document.querySelectorAll('.sides .rollout').length >= 8")
    assert page.js("document.documentElement.scrollWidth") <= width
    columns = page.js("getComputedStyle(document.querySelector('.sides')).gridTemplateColumns.split(' ').length")
    assert columns == (1 if width < 640 else 2)


def test_it_is_driven_by_keys_alone(page, two):
    page.open(two)
    drawn(page, "a/run 20")
    page.key("ArrowLeft")
    drawn(page, "a/run 10")
    page.key("j")
    page.key("j")
    assert page.js("document.activeElement === document.querySelectorAll('#groups summary')[1]")
    page.key("Enter")
    page.until("document.querySelectorAll('#groups > details')[1].open")
    page.key("k")
    assert page.js("document.activeElement === document.querySelectorAll('#groups summary')[0]")
    page.key("/")
    assert page.js("document.activeElement.id") == "search"
    page.key("j")  # in a field a letter is a letter
    page.until("document.querySelector('#search').value === 'j'")
    # every control can be reached, and none is without a name
    unnamed = page.js("""[...document.querySelectorAll("input, select, button")].filter((n) =>
        !(n.labels?.length || n.getAttribute("aria-label") || n.textContent.trim())).map((n) => n.outerHTML)""")
    assert unnamed == []


def test_hostile_completions_names_and_recipes_run_nothing(page, tmp_path):
    folder = tmp_path / "<img src=x onerror=document.title='ran'>"
    run = made_run(folder)
    (run / "recipe.yaml").write_text(json.dumps({"method": {"name": HOSTILE}, HOSTILE: {HOSTILE: HOSTILE}}))
    (run / "metrics.jsonl").write_text(
        "".join(json.dumps({"step": s, HOSTILE: 0.5, "__proto__": 1.0, "constructor": 2.0}) + "\n" for s in (1, 2))
    )
    (run / "evaluation.json").write_text(
        json.dumps({"accuracy": {"mean": 0.5}, "benchmarks": {HOSTILE: {"accuracy": {"mean": 0.5}, "pass": {}}}})
    )
    write_rollouts(run / "rollouts" / "step_000010.parquet", [
        rollout(i, prompt=HOSTILE, answer=HOSTILE, found=HOSTILE, outcome=[HOSTILE, "__proto__", "constructor"][i],
                segments=[{"kind": "continuation", "text": HOSTILE}]) for i in range(3)
    ])  # fmt: skip
    page_of(run)
    page.open((tmp_path / "page.html").as_uri())
    page.until("document.querySelectorAll('.rollout').length === 3")
    page.set("#search", "onerror")
    page.click("#all-metrics") if page.js("!document.querySelector('#all-metrics').hidden") else None
    page.until("document.querySelector('.rollout mark')")
    page.set("#outcome", "constructor")
    page.until("document.querySelectorAll('.rollout').length === 1")
    page.set("#outcome", "")
    time.sleep(0.2)
    assert page.js("document.title") == "prefix_rl runs"
    assert page.js("document.images.length") == 0
    assert page.js("document.scripts.length") == 4  # index, the page's own, curves, one generation
    assert HOSTILE in page.texts(".rollout .text")[0]
    assert page.errors() == []


def test_the_policy_of_the_page_stops_what_would_run(page, two):
    """The control: markup that is put into the page by force runs nothing either."""
    page.open(two)
    page.js("""document.body.insertAdjacentHTML("beforeend", "<img src=x onerror=\\"document.title='ran'\\">");
        const s = document.createElement("script"); s.textContent = "document.title = 'ran'"; document.body.append(s)""")
    time.sleep(0.3)
    assert page.js("document.title") == "prefix_rl runs"
    assert any("Content Security Policy" in text or "violates" in text for text in page.errors())


def test_a_page_whose_data_is_cut_off_says_so(page, tmp_path):
    run = lab(tmp_path / "run", "prefix_rft", 1)
    text = page_of(run)
    place = text.index('id="chunk-0-10"')
    (tmp_path / "cut.html").write_text(text[:place] + 'id="chunk-0-10">AAAA</script></body></html>')
    page.open((tmp_path / "cut.html").as_uri(), ready="document.querySelector('#groups .finding')")
    assert "cannot be opened" in page.texts("#groups .finding")[0]
    page.set("#generation", "0")
    drawn(page, "run 0")


@pytest.mark.slow
@pytest.mark.timeout(500)
def test_four_large_runs_are_quick_and_small(page, tmp_path):
    """4 runs x 50 generations x 64 rollouts of 6,000 words: what is read at once, and not when it is asked for, is quick in a
    page of a few megabytes."""
    draw, folders = random.Random(0), []
    words = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(2, 9))) for _ in range(5000)]
    for number in range(4):
        run = made_run(tmp_path / f"seed{number}" / "run", steps=500)
        (run / "rollouts" / "step_000010.parquet").unlink()
        records = [rollout(i % 8, row=i // 8, segments=[{"kind": "continuation", "text": " ".join(draw.choices(words, k=6000))}])
                   for i in range(64)]  # fmt: skip
        first = run / "rollouts" / "step_000000.parquet"
        write_rollouts(first, records)
        for g in range(1, 50):
            os.link(first, first.with_name(f"step_{10 * g:06d}.parquet"))
        folders.append(run)
    path = report([tmp_path], tmp_path / "out")["report.html"]
    assert 30e6 < path.stat().st_size <= 60e6
    page.open(path.as_uri())
    first = page.js("performance.getEntriesByName('first-contentful-paint')[0].startTime")
    assert first < 20_000  # well below a second on an idle core; reading all generations takes minutes
    assert page.js("performance.memory.usedJSHeapSize") < 60e6
    assert page.js("document.documentElement.scrollHeight") < 10_000
    assert page.js("document.querySelectorAll('*').length") < 3000
    began = time.monotonic()
    page.set("#generation", "7")
    drawn(page, "seed0/run 70")
    assert time.monotonic() - began < 20  # 0.2 s on an idle core; as first
