import itertools
import socket
import threading
import time
from dataclasses import replace

import pytest
from examples import examples
from fake_server import STOP, FakeServer, made
from hypothesis import given
from hypothesis import strategies as st
from small import byte_level_bpe, characters

from prefix_rl.engines.base import Engine, Request, Sampling, completions
from prefix_rl.engines.server import ServerEngine
from prefix_rl.engines.settings import API_KEY, EngineSettings
from prefix_rl.errors import DataError, StackError

QUICK = EngineSettings("server", retries=3, retry_wait=0.02, max_in_flight=4, timeout=120.0)


@pytest.fixture(scope="module")
def tokenizer():
    return byte_level_bpe()


def engine(tokenizer, *servers, max_length=100, model="policy", **changes):
    urls = tuple(s if isinstance(s, str) else s.url for s in servers)
    return ServerEngine(replace(QUICK, endpoints=urls, **changes), model, [STOP], tokenizer, max_length)


def asked(count, limit=10):
    return [[i, i + 1, i + 2] for i in range(count)], [limit] * count, list(range(100, 100 + count))


def expected(prompts, limits, seeds):
    return [made(*row) for row in zip(prompts, seeds, limits, strict=True)]


# --- the driver of all engines ----------------------------------------------------------------------------------------


class Reversed(Engine):
    """Finishes what it was given last first, some at a time."""

    stops = (STOP,)

    def __init__(self, at_once, some):
        super().__init__()
        self.at_once, self.some, self.running, self.most = at_once, some, [], 0

    def submit(self, request):
        self.running.append(request)
        self.most = max(self.most, len(self.running))

    def finished(self, timeout):
        done = [self.running.pop() for _ in range(min(self.some, len(self.running)))]
        return [(r, made(r.prompt, r.seed, r.limit)) for r in done]

    def facts(self):
        return {}


@given(count=st.integers(0, 30), at_once=st.integers(1, 9), some=st.integers(1, 9))
@examples(60)
def test_every_request_comes_back_once_whatever_the_order(count, at_once, some):
    one = Reversed(at_once, some)
    prompts, limits, seeds = asked(count)
    limits = [limit * (i % 3 > 0) for i, limit in enumerate(limits)]  # every third wants nothing
    assert one.generate(prompts, limits, seeds, Sampling()) == expected(prompts, limits, seeds)
    assert one.most <= at_once


def test_a_request_may_wait_for_what_comes_back_first():
    one, back = Reversed(4, 2), []

    def source():
        yield Request([1], 5, 1, about="first")
        while not back:
            yield None
        yield Request([2], 5, 2, about="second")

    for group in completions(one, source()):
        back += [request.about for request, _ in group]
    assert back == ["first", "second"]


def test_a_promise_that_nothing_can_keep_is_an_error():
    with pytest.raises(RuntimeError, match="to come"):
        list(completions(Reversed(1, 1), iter([None])))


# --- servers: what goes well ------------------------------------------------------------------------------------------


def test_servers_get_ids_a_seed_and_a_limit_for_each_completion(tokenizer):
    with FakeServer(tokenizer) as server:
        one = engine(tokenizer, server)
        rows = [[1, 2], [3, 4, 5]], [7, 2], [2**48 - 1, 12]
        assert one.generate(*rows, Sampling(0.6, 0.9)) == expected(*rows)
        facts, counts = one.facts(), one.counts
        one.close()
    sent = sorted(server.asked, key=lambda a: a["prompt"])
    assert sent[0] == {
        "model": "policy", "prompt": [1, 2], "max_tokens": 7, "seed": 2**48 - 1, "temperature": 0.6, "top_p": 0.9,
        "top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0, "n": 1, "stop_token_ids": [STOP],
        "return_token_ids": True, "add_special_tokens": False,
    }  # fmt: skip
    assert (sent[1]["max_tokens"], sent[1]["seed"]) == (2, 12)
    assert (facts["name"], facts["version"], facts["dtype"], facts["endpoints"]) == ("server", "9.9", None, 1)
    assert "not its weights" in facts["checked"]
    assert (counts.prompt_tokens, counts.cached_tokens) == (5, 1 + 1)  # the server says half of each


@pytest.mark.parametrize("servers", [1, 3])
def test_completions_do_not_depend_on_the_number_of_servers(tokenizer, servers):
    rows = asked(60)
    with FakeServer(tokenizer, delay=0.01) as a, FakeServer(tokenizer, delay=0.01) as b, FakeServer(tokenizer) as c:
        chosen = [a, b, c][:servers]
        one = engine(tokenizer, *chosen)
        assert one.generate(*rows, Sampling()) == expected(*rows)
        one.close()
        assert sum(len(s.asked) for s in chosen) == 60
        assert all(s.asked for s in chosen)


def test_no_more_requests_are_in_flight_than_wanted(tokenizer):
    running, most, together = [], [], threading.Barrier(3)

    def watch(number, given):
        if number >= 0:
            running.append(number)
            most.append(len(running))
            together.wait(300)  # each waits until three are there, so three there are
            running.remove(number)

    with FakeServer(tokenizer, fault=watch) as server:
        one = engine(tokenizer, server, max_in_flight=3)
        one.generate(*asked(30), Sampling())
        one.close()
    assert max(most) == 3


def test_a_key_comes_from_the_environment(tokenizer, monkeypatch):
    with FakeServer(tokenizer, key="secret-1") as server:
        with pytest.raises(DataError, match=API_KEY):
            engine(tokenizer, server)
        monkeypatch.setenv(API_KEY, "secret-1")
        one = engine(tokenizer, server)
        assert "secret-1" not in repr((one.facts(), one.settings))
        one.close()


# --- servers: what goes wrong for a while -----------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", [500, 502, 503, (429, {"Retry-After": "0.05"}), "html", "text", "short", "break"])
def test_what_goes_wrong_for_a_while_is_asked_again(tokenizer, wrong):
    rows = asked(20)
    with FakeServer(tokenizer, fault=lambda number, given: wrong if number in (0, 5, 6, 7) else None) as server:
        one = engine(tokenizer, server)
        assert one.generate(*rows, Sampling()) == expected(*rows)
        one.close()
        assert len(server.asked) == 24


def test_a_server_that_asks_for_a_pause_gets_it(tokenizer):
    times = []

    def busy(number, given):
        if number >= 0:
            times.append(time.monotonic())
        return (429, {"Retry-After": "0.5"}) if number == 0 else None

    with FakeServer(tokenizer, fault=busy) as server:
        one = engine(tokenizer, server, max_in_flight=1)
        one.generate(*asked(1), Sampling())
        one.close()
    assert times[1] - times[0] >= 0.5


def test_the_waits_grow(tokenizer):
    times = []

    def down(number, given):
        times.append(time.monotonic())
        return 503 if 0 <= number < 3 else None

    with FakeServer(tokenizer, fault=down) as server:
        one = engine(tokenizer, server, max_in_flight=1, retry_wait=0.1)
        one.generate(*asked(1), Sampling())
        one.close()
    waits = [b - a for a, b in itertools.pairwise(times[1:])]  # the first is the probe
    assert waits[0] >= 0.1
    assert waits[1] >= 0.2
    assert waits[2] >= 0.4


def test_a_server_that_dies_is_left_out_and_nothing_is_lost(tokenizer, capsys):
    rows = asked(80)

    def dies(number, given):
        if number == 5:
            b.close()

    with FakeServer(tokenizer, delay=0.02) as a, FakeServer(tokenizer, delay=0.02, fault=dies) as b:
        one = engine(tokenizer, a, b)
        assert one.generate(*rows, Sampling()) == expected(*rows)
        one.close()
        assert 0 < len(b.asked) < 40
    assert f"{b.url} is left out after 4 failures" in capsys.readouterr().err


def test_a_timeout_is_no_completion(tokenizer):
    rows = asked(6)
    with FakeServer(tokenizer, fault=lambda number, given: "hang" if number == 1 else None) as server:
        one = engine(tokenizer, server, timeout=1.0)
        assert one.generate(*rows, Sampling()) == expected(*rows)
        one.close()


# --- servers: what does not go well any more --------------------------------------------------------------------------


def test_what_is_done_is_handed_over_before_the_end_of_all_servers_is_said(tokenizer):
    with FakeServer(tokenizer, delay=0.01) as server:
        one = engine(tokenizer, server)
        requests = [Request(p, n, s) for p, n, s in zip(*asked(40), strict=True)]
        back = []
        with pytest.raises(StackError, match=r"no endpoint answers any more; what is done is kept.*same command"):  # noqa: PT012
            for group in completions(one, requests, seconds=0.01):
                back += group
                if not server.closed:
                    server.close()
        one.close()
    assert 0 < len(back) < 40
    assert all(ids == made(r.prompt, r.seed, r.limit) for r, ids in back)


@pytest.mark.parametrize(("wrong", "said"), [(500, "told to say 500"), ("html", "text/html instead of JSON"),
                                             ("text", "no token ids"), ("short", "no whole completion")])  # fmt: skip
def test_one_completion_that_never_comes_ends_the_run(tokenizer, wrong, said):
    def never(number, given):
        return wrong if given["prompt"] == [3, 4, 5] else None

    with FakeServer(tokenizer, fault=never) as a, FakeServer(tokenizer, fault=never) as b:
        one = engine(tokenizer, a, b, max_in_flight=1)
        with pytest.raises((DataError, StackError), match=said):
            one.generate(*asked(30), Sampling())
        one.close()


def test_a_request_that_is_refused_is_not_asked_again(tokenizer):
    with FakeServer(tokenizer, fault=lambda number, given: 400 if number == 2 else None) as server:
        one = engine(tokenizer, server, max_in_flight=1)
        with pytest.raises(DataError, match="refuses /v1/completions, status 400: told to say 400"):
            one.generate(*asked(8), Sampling())
        one.close()
    assert [a["seed"] for a in server.asked].count(102) == 1


# --- servers: what is said before anything starts ---------------------------------------------------------------------


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def test_no_endpoint_that_answers(tokenizer):
    url = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(StackError, match=rf"no endpoint answers; nothing was sampled[\s\S]*{url}: "):
        engine(tokenizer, url)


def test_one_of_two_that_does_not_answer_is_left_out(tokenizer, capsys):
    with FakeServer(tokenizer) as server:
        one = engine(tokenizer, server, f"http://127.0.0.1:{free_port()}")
        assert one.generate(*asked(8), Sampling()) == expected(*asked(8))
        assert one.facts()["endpoints"] == 1
        one.close()
    assert "does not answer and is left out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"model": "polici"}, r"serves 'polici', not 'policy' \(did you mean polici\?\).*engine.served_model=NAME"),
        ({"context": 99}, "takes 99 tokens, but the longest prompt and completion have 100.*--max-model-len 100"),
        ({"fault": lambda number, given: "text" if number < 0 else None}, "returns text and no token ids|no token ids"),
        ({"fault": lambda number, given: "html" if number < 0 else None}, "text/html instead of JSON.*<html>"),
        ({"fault": lambda number, given: 500 if number < 0 else None}, "status 500: told to say 500"),
    ],
)
def test_an_endpoint_that_serves_something_else_is_refused_with_the_others_named_too(tokenizer, options, said):
    with FakeServer(tokenizer) as good, FakeServer(tokenizer, **options) as bad, FakeServer(tokenizer, "x") as other:
        with pytest.raises(DataError, match=said) as found:
            engine(tokenizer, good, bad, other)
        assert f"{other.url} serves 'x'" in str(found.value)
        assert good.asked == []


def test_another_tokenizer_is_found_by_the_ids_of_a_probe(tokenizer):
    with FakeServer(characters()) as server:
        with pytest.raises(DataError, match="another tokenizer"):
            engine(tokenizer, server)


def test_settings_that_make_no_sense_are_found_before_anything_is_asked():
    def found(**given):
        return "\n".join(EngineSettings(**{"name": "server", **given}).faults())

    assert "engine.endpoints is empty" in found()
    assert "'localhost:8000' is no address; give http://HOST:PORT" in found(endpoints=("localhost:8000",))
    assert "is no address" in found(endpoints=("http://localhost:99999",))
    assert "twice" in found(endpoints=("http://a:1/v1", "http://a:1"))
    secret = found(endpoints=("https://me:hidden@a:1",))
    assert API_KEY in secret
    assert "hidden" not in secret
    assert "of engine.name = server" in found(name="vllm", endpoints=("http://a:1",))
    assert found(endpoints=("https://a/some/path", "http://[::1]:80")) == ""
