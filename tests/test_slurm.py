"""The jobs of recipes/slurm: their syntax, what they would run, and that what they would run is understood."""

import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from prefix_rl.recipe import load_recipe

ROOT = Path(__file__).parents[1]
JOBS = sorted((ROOT / "recipes" / "slurm").glob("*.slurm"))
RECIPE = "recipes/qwen2.5-math-7b/prefix_rl.yaml"


def dry(job, *arguments, nodes="n1 n2"):
    """What a job would run, a command a line."""
    environment = {**os.environ, "DRY_RUN": "1", "NODES": nodes, "PYTHONPATH": str(ROOT),
                   "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}  # fmt: skip
    done = subprocess.run(["bash", ROOT / "recipes" / "slurm" / job, *arguments], cwd=ROOT, env=environment,
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [shlex.split(line) for line in done.stdout.splitlines() if not line.startswith("waiting")]


def test_there_are_three_jobs():
    assert [job.name for job in JOBS] == ["collect.slurm", "serve_and_train.slurm", "train.slurm"]


@pytest.mark.parametrize("job", [*JOBS, ROOT / "recipes" / "slurm" / "common.sh"], ids=lambda path: path.name)
def test_bash_understands_a_job(job):
    subprocess.run(["bash", "-n", job], check=True)


@pytest.mark.parametrize("job", JOBS, ids=lambda path: path.name)
def test_a_job_without_a_recipe_says_how_it_is_used(job):
    done = subprocess.run(["bash", job], cwd=ROOT, capture_output=True, text=True, env={**os.environ, "NODES": "n1 n2"})
    assert done.returncode != 0
    assert f"usage: sbatch recipes/slurm/{job.name} RECIPE" in done.stderr


def launched(command, tmp_path, rank=1):
    """What the inner bash of a step executes on the node of this number."""
    inner = command[command.index("bash") :]
    program = tmp_path / "python"
    program.write_text('#!/bin/bash\nprintf "%s\\n" "$@"\n')
    program.chmod(0o755)
    environment = {**os.environ, "SLURM_NODEID": str(rank), "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    return subprocess.run(inner, capture_output=True, text=True, check=True, env=environment).stdout.splitlines()


def programs(folder, **texts):
    for name, text in texts.items():
        (folder / name).write_text(f"#!/bin/bash\n{text}\n")
        (folder / name).chmod(0o755)


@pytest.mark.parametrize(("status", "queued"), [(75, True), (0, False), (2, False)])
def test_a_job_that_is_asked_to_stop_asks_its_training_and_is_queued_again(tmp_path, status, queued):
    # srun says when it can be asked (it opens the pipe), and ends with a status once it was
    os.mkfifo(tmp_path / "ready")
    programs(
        tmp_path,
        srun=f"trap 'echo asked >> {tmp_path}/log; exit {status}' USR1\necho here > {tmp_path}/ready\n"
        "while :; do sleep 0.05; done",
        scontrol=f'echo "$@" >> {tmp_path}/log',
    )
    environment = {**os.environ, "NODES": "n1", "SLURM_JOB_ID": "17", "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    job = subprocess.Popen(["bash", ROOT / "recipes" / "slurm" / "train.slurm", RECIPE], cwd=ROOT, env=environment)
    (tmp_path / "ready").read_text()
    job.send_signal(signal.SIGUSR1)
    assert job.wait() == status
    assert (tmp_path / "log").read_text().splitlines() == ["asked", *(["requeue 17"] if queued else [])]


def option(command, name):
    return command[command.index(name) + 1]


def test_training_on_two_nodes(tmp_path):
    overrides = ["training.gradient_accumulation_steps=16", "data.instruction= $HOME and 'quotes'"]
    (command,) = dry("train.slurm", RECIPE, *overrides)
    assert command[:3] == ["srun", "--nodes=2", "--ntasks-per-node=1"]
    made = launched(command, tmp_path)
    assert (option(made, "--num_machines"), option(made, "--num_processes")) == ("2", "16")
    assert (option(made, "--machine_rank"), option(made, "--main_process_ip")) == ("1", "n1")
    assert made[:2] == ["-m", "prefix_rl.launch"]  # which ends with 75 where the training has saved and stopped
    assert made[made.index("-m", 2) :] == [
        "-m",
        "prefix_rl.train",
        "--config",
        RECIPE,
        *overrides,
    ]  # nothing is expanded
    assert (ROOT / option(made, "--config_file")).is_file()
    load_recipe(ROOT / RECIPE, overrides)


def test_one_node_serves_and_the_others_train(tmp_path):
    serve, train = dry("serve_and_train.slurm", RECIPE, "training.max_steps=9", nodes="n1,n2,n3")
    assert "--nodelist=n1" in serve
    assert serve[serve.index("vllm") : serve.index("vllm") + 3] == [
        "vllm", "serve", load_recipe(ROOT / RECIPE).model.name_or_path
    ]  # fmt: skip
    assert option(serve, "--weight-transfer-config") == '{"backend": "nccl"}'
    assert "--nodelist=n2,n3" in train
    made = launched(train, tmp_path, rank=0)
    assert (option(made, "--num_processes"), option(made, "--main_process_ip")) == ("16", "n2")
    overrides = made[made.index(RECIPE) + 1 :]
    recipe = load_recipe(ROOT / RECIPE, overrides)
    assert recipe.training_value("vllm_mode") == "server"
    assert recipe.training_value("vllm_server_base_url") == "http://n1:8000"
    assert recipe.training_value("max_steps") == 9


def test_serving_and_training_need_two_nodes():
    environment = {**os.environ, "DRY_RUN": "1", "NODES": "n1"}
    done = subprocess.run(["bash", ROOT / "recipes" / "slurm" / "serve_and_train.slurm", RECIPE], cwd=ROOT,
                          env=environment, capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 2
    assert "at least --nodes=2" in done.stderr


def test_collecting_through_a_server_on_each_node():
    given = ["--output", "runs/t", "--k", "64", "model.name_or_path=some/model"]
    *serves, collect = dry("collect.slurm", RECIPE, *given)
    assert ["--nodelist=n1" in serves[0], "--nodelist=n2" in serves[1], len(serves)] == [True, True, 2]
    assert all(option(serve, "serve") == "some/model" for serve in serves)
    assert collect == ["prefix-rl", "collect", RECIPE, *given, "--engine", "server", "--endpoints",
                       "http://n1:8000,http://n2:8000"]  # fmt: skip
