"""What TRL's vLLM is asked for while training, with a stand-in for the engine."""

import threading
from types import SimpleNamespace

import pytest
import torch
from test_trainer import TOKENIZER, FakeEngine, generation, trainer
from trl.trainer import grpo_trainer

from prefix_rl.contradictions import vllm_context
from prefix_rl.data.problems import Problem
from prefix_rl.errors import RecipeError
from prefix_rl.methods.dr_grpo import DrGRPO
from prefix_rl.methods.luffy import LUFFY
from prefix_rl.policy import Policy
from prefix_rl.prefixes import Prefix
from prefix_rl.recipe import load_recipe
from prefix_rl.seam.vllm import EachRow, Rows, difference, each_row, generating

EOS = TOKENIZER.eos_token_id


class Alone:
    """One process."""

    def objects(self, items):
        return list(items)

    def own(self, rows):
        return slice(0, rows)

    def sums(self, values):
        return values.tolist()


class Parameters(SimpleNamespace):
    def clone(self):
        return Parameters(**vars(self))


class Llm:
    """vLLM in this process: notes what it is asked, and writes as many tokens as it may."""

    def __init__(self):
        self.asked = []

    def generate(self, prompts, sampling_params, use_tqdm=False):
        self.asked.append([(p["prompt_token_ids"], s.max_tokens, s.seed) for p, s in
                           zip(prompts, sampling_params, strict=True)])  # fmt: skip
        return [SimpleNamespace(prompt_token_ids=p["prompt_token_ids"], outputs=[SimpleNamespace(
            token_ids=[7] * s.max_tokens, logprobs=[{7: SimpleNamespace(rank=1, logprob=-1.5)}] * s.max_tokens)])
            for p, s in zip(prompts, sampling_params, strict=True)]  # fmt: skip


class Colocated(FakeEngine):
    """TRL's VLLMGeneration in the one place that matters here: one object of parameters for all rows."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.llm = Llm()

    def generate(self, prompts, images, num_generations, profiler=None):
        from trl.generation.vllm_generation import extract_logprobs

        assert num_generations == 1
        given = [{"prompt_token_ids": ids} for ids in prompts]
        shared = Parameters(max_tokens=self.max_completion_length, seed=None)
        found = self.llm.generate(given, sampling_params=shared, use_tqdm=False)
        ids = [one.token_ids for output in found for one in output.outputs]
        return [output.prompt_token_ids for output in found], ids, *extract_logprobs(found)


@pytest.fixture
def colocated(monkeypatch):
    monkeypatch.setattr(grpo_trainer, "VLLMGeneration", Colocated)


def test_a_row_gets_what_is_left_of_the_budget_and_a_complete_one_nothing(tmp_path, colocated):
    made = trainer(tmp_path, LUFFY(), use_vllm=True, vllm_mode="colocate", max_completion_length=60)
    batch = generation(made)
    ((asked),) = made.vllm_generation.llm.asked
    prefixes = batch["prefix_mask"].sum(dim=1).tolist()
    assert prefixes == [34, 0, 0, 0, 34, 0, 0, 0]
    # the two demonstrations that are complete are not asked for
    assert [limit for _, limit, _ in asked] == [60] * 6
    assert len({seed for *_, seed in asked}) == 6
    generated = batch["completion_mask"].sum() - batch["prefix_mask"].sum()
    assert generated == sum(limit for _, limit, _ in asked)  # nothing was thrown away
    assert batch["sampling_per_token_logps"][batch["prefix_mask"]].isnan().all()


def test_a_partial_prefix_leaves_the_rest_of_the_budget(tmp_path, colocated):
    made = trainer(tmp_path, use_vllm=True, vllm_mode="colocate")
    batch = generation(made)
    (asked,) = made.vllm_generation.llm.asked
    prefixes = batch["prefix_mask"].sum(dim=1).tolist()
    assert max(prefixes) > 0
    assert [limit for _, limit, _ in asked] == [24 - prefix for prefix in prefixes]
    assert batch["completion_mask"].sum(dim=1).tolist() == [24] * 8


def test_a_batch_of_complete_demonstrations_asks_for_nothing():
    llm, shared = Llm(), Parameters(max_tokens=9, seed=None)
    engine = SimpleNamespace(llm=llm, mode="colocate")
    with each_row(engine, Rows([0, 0], [1, 2]), Alone()):
        found = engine.llm.generate([{"prompt_token_ids": [5]}] * 2, sampling_params=shared)
    assert llm.asked == []
    assert [output.outputs[0].token_ids for output in found] == [[], []]
    assert engine.llm is llm


def test_ranks_that_hold_an_engine_together_ask_it_for_the_rows_of_all(monkeypatch):
    def gather(found, own, group):
        assert group == "ours"
        found[:] = [([1], [11]), own]  # the rank before this one

    monkeypatch.setattr(torch.distributed, "get_world_size", lambda group: 2)
    monkeypatch.setattr(torch.distributed, "all_gather_object", gather)
    llm = Llm()
    engine = SimpleNamespace(llm=llm, mode="colocate", tp_group="ours")
    with each_row(engine, Rows([0, 4], [12, 13]), Alone()):
        prompts = [{"prompt_token_ids": [i]} for i in (5, 6, 7)]
        found = engine.llm.generate(prompts, sampling_params=Parameters(max_tokens=9, seed=None))
    assert llm.asked == [[([5], 1, 11), ([7], 4, 13)]]
    assert [len(output.outputs[0].token_ids) for output in found] == [1, 0, 4]


@pytest.mark.parametrize("changes", [{"continuous": True}, {"shared_prefill": False}])
def test_generation_of_transformers_is_left_as_it_is_where_that_is_asked_for(changes):
    made = {"continuous": False, "shared_prefill": True, **changes}
    asked = SimpleNamespace(
        use_vllm=False,
        use_transformers_continuous_batching=made["continuous"],
        speed=SimpleNamespace(shared_prefill=made["shared_prefill"]),
        accelerator=SimpleNamespace(unwrap_model=lambda wrapped: wrapped),
        model_wrapped=torch.nn.Linear(1, 1),
    )
    with generating(asked, Alone())(None, 2) as found:
        assert found is None


def test_rollouts_can_be_made_again_and_calls_differ(tmp_path, colocated):
    def seeds(**changes):
        made = trainer(tmp_path, DrGRPO(), use_vllm=True, vllm_mode="colocate", **changes)
        found = []
        for step in (0, 0, 1):
            made.state.global_step = step
            generation(made)
            found.append([seed for *_, seed in made.vllm_generation.llm.asked[-1]])
        return found

    first = seeds()
    assert first == seeds()
    assert len({seed for call in first for seed in call}) == 24
    assert not {seed for call in first for seed in call} & {seed for call in seeds(seed=1) for seed in call}


def test_ranks_have_seeds_of_their_own():
    class Second(Alone):
        def own(self, rows):
            return slice(rows, 2 * rows)

    def seeds(ranks):
        engine = SimpleNamespace(llm=Llm(), mode="colocate")
        state, args = SimpleNamespace(global_step=3), SimpleNamespace(seed=0)
        each = EachRow(SimpleNamespace(vllm_generation=engine, state=state, args=args, max_completion_length=8,
                                       model=SimpleNamespace(training=True)), ranks)  # fmt: skip
        with each([Prefix([1, 2]), Prefix([])], 2):
            engine.llm.generate([{"prompt_token_ids": [5]}] * 2, sampling_params=Parameters(max_tokens=8, seed=None))
        return engine.llm.asked[0] if hasattr(engine.llm, "asked") else None

    one, other = seeds(Alone()), seeds(Second())
    assert [limit for _, limit, _ in one] == [6, 8]
    assert not {seed for *_, seed in one} & {seed for *_, seed in other}


def test_a_server_gets_each_row_as_a_request_of_its_own():
    lock, asked = threading.Lock(), []

    class Client:
        model = "m"

        def generate(self, prompts, n, max_tokens, generation_kwargs, logprobs):
            with lock:
                asked.append((prompts, n, max_tokens, generation_kwargs, logprobs))
            return {"prompt_ids": prompts, "completion_ids": [[7] * max_tokens], "logprobs": [[[-1.0]] * max_tokens],
                    "logprob_token_ids": [[[7]] * max_tokens]}  # fmt: skip

    client = Client()
    generation = SimpleNamespace(mode="server", vllm_client=client)
    with each_row(generation, Rows([3, 0, 1], [11, 12, 13]), Alone()):
        assert generation.vllm_client.model == "m"
        found = generation.vllm_client.generate(
            prompts=[[1], [2], [3]], n=1, max_tokens=9, generation_kwargs={"stop_token_ids": [1]}, logprobs=0
        )
    assert generation.vllm_client is client
    assert found == {
        "prompt_ids": [[1], [2], [3]], "completion_ids": [[7] * 3, [], [7]], "logprobs": [[[-1.0]] * 3, [], [[-1.0]]],
        "logprob_token_ids": [[[7]] * 3, [], [[7]]],
    }  # fmt: skip
    assert sorted(asked) == [
        ([[1]], 1, 3, {"stop_token_ids": [1], "seed": 11}, 0), ([[3]], 1, 1, {"stop_token_ids": [1], "seed": 13}, 0)
    ]  # fmt: skip


def test_the_difference_of_sampler_and_trainer_is_told_apart_by_prefix():
    nan = torch.nan
    output = {
        "sampling_per_token_logps": torch.tensor([[nan, -1.0, -2.0], [-2.0, -3.0, -9.0]]),
        "old_per_token_logps": torch.tensor([[-5.0, -1.5, -2.25], [-2.0, -2.75, -1.0]]),
        "completion_mask": torch.tensor([[1, 1, 1], [1, 1, 0]]),
    }
    prefixes = torch.tensor([[True, False, False], [False, False, False]])
    # with: (0.5 + 0.25) / 2; without: (0 + 0.25) / 2, the third token is padding
    assert difference(output, prefixes, Alone()) == {
        "sampler/difference_with_prefix": 0.375, "sampler/difference_without_prefix": 0.125
    }  # fmt: skip
    assert difference({"completion_mask": output["completion_mask"]}, prefixes, Alone()) == {}


def test_what_would_make_all_rollouts_the_same_is_refused():
    given = {
        "model": {"name_or_path": "m"},
        "data": {"train": "d"},
        "method": {"name": "dr_grpo"},
        "output": {"dir": "o"},
    }
    training = {"use_vllm": True, "generation_kwargs": {"seed": 3, "top_k": 5}, "vllm_max_model_length": 256,
                "max_completion_length": 256}  # fmt: skip
    with pytest.raises(RecipeError) as found:
        load_recipe({**given, "training": training})
    text = str(found.value)
    assert "training.generation_kwargs.seed = 3: all rollouts of a group would be the same" in text
    assert "training.vllm_max_model_length = 256 leaves no room for a prompt" in text
    assert "top_k" not in text
    recipe = load_recipe({**given, "training": {"use_vllm": True, "vllm_max_model_length": 300,
                                                "max_completion_length": 256}})  # fmt: skip

    class Letters(Policy):
        """A letter is a token, and two stand around the problem."""

        def __init__(self):
            pass

        example = (1, 2)

        def prompt_ids(self, problem, instruction=""):
            return [1, *problem.text.encode(), 2]

    assert vllm_context(recipe, Letters(), [Problem("a", "x" * 42, "1")]) == []
    (fault,) = vllm_context(recipe, Letters(), [Problem("a", "x" * 42, "1"), Problem("b", "x" * 43, "1")])
    assert "longest prompt has 45 tokens" in fault
    assert "set it to 301 or more" in fault
