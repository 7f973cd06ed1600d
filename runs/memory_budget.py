#!/usr/bin/env python3
"""How fast is a model that does not fit into memory? Tokens per second against `--memory`.

usage: python3 runs/memory_budget.py [--dokja PROGRAM] [--experts 64,256] [--budgets 0.25,0.5,0.75,1] [--work DIR] [--json FILE]

Makes models of random weights (12 layers of width 1024, 8 of E experts of 512 for a token, bf16: 2.5 GB with 64 experts,
9.1 GB with 256), and decodes with each under several bounds, given as parts of what the whole model takes. Where it
may (root on Linux, control groups), the program runs in a group that holds no more than its bound and 256 MB for pages
of the file, which are dropped from the memory before; otherwise the file may lie in the memory all the time, and the
table says so.
"""
import argparse
import json
import os
import random
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
D, F, DENSE, LAYERS, VOCAB, HEADS, KV_HEADS, HEAD_DIM = 1024, 512, 4096, 12, 32768, 16, 4, 64
FOR_PAGES = 256 << 20
GROUP = Path("/sys/fs/cgroup/memory/dokja-budget")


def tensors(experts):
    """Names and shapes."""
    def swiglu(at, width):
        for name, shape in (("gate", (width, D)), ("up", (width, D)), ("down", (D, width))):
            yield f"{at}.{name}_proj.weight", shape

    yield "model.embed_tokens.weight", (VOCAB, D)
    for layer in range(LAYERS):
        at = f"model.layers.{layer}"
        for norm in ("input_layernorm", "post_attention_layernorm"):
            yield f"{at}.{norm}.weight", (D,)
        for name, rows in (("q", HEADS), ("k", KV_HEADS), ("v", KV_HEADS)):
            yield f"{at}.self_attn.{name}_proj.weight", (rows * HEAD_DIM, D)
        yield f"{at}.self_attn.o_proj.weight", (D, HEADS * HEAD_DIM)
        for norm in ("q_norm", "k_norm"):
            yield f"{at}.self_attn.{norm}.weight", (HEAD_DIM,)
        if layer == 0:
            yield from swiglu(f"{at}.mlp", DENSE)
            continue
        yield f"{at}.mlp.gate.weight", (experts, D)
        yield f"{at}.mlp.e_score_correction_bias", (experts,)
        for expert in range(experts):
            yield from swiglu(f"{at}.mlp.experts.{expert}", F)
        yield from swiglu(f"{at}.mlp.shared_experts", F)
    yield "model.norm.weight", (D,)
    yield "lm_head.weight", (VOCAB, D)


def make(folder, experts):
    """A checkpoint of random bf16 values of 0.008 to 0.03, either sign; gains are 1, router biases 0."""
    folder.mkdir(parents=True, exist_ok=True)
    done = folder / "model.safetensors"
    if done.exists():
        return
    config = {
        "architectures": ["ExaoneMoeForCausalLM"], "model_type": "exaone_moe", "vocab_size": VOCAB, "hidden_size": D,
        "intermediate_size": DENSE, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS, "head_dim": HEAD_DIM, "moe_intermediate_size": F, "num_experts": experts,
        "num_experts_per_tok": 8, "num_shared_experts": 1, "sliding_window": 128, "sliding_window_pattern": "LLLG",
        "first_k_dense_replace": 1, "max_position_embeddings": 32768, "routed_scaling_factor": 2.5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}, "dtype": "bfloat16"}
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    header, at = {}, 0
    for name, shape in tensors(experts):
        size = 2
        for n in shape:
            size *= n
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    random.seed(20261126)
    high = bytes((b & 0x80) | 0x3C for b in range(256))
    part = folder / "model.part"
    with part.open("wb") as file:
        file.write(struct.pack("<Q", len(head)) + head)
        for name, entry in header.items():
            count = (entry["data_offsets"][1] - entry["data_offsets"][0]) // 2
            if "norm" in name:
                file.write(b"\x80\x3f" * count)
            elif "bias" in name:
                file.write(b"\x00\x00" * count)
            else:
                values = bytearray(random.randbytes(2 * count))
                values[1::2] = values[1::2].translate(high)
                file.write(values)
    part.rename(done)


def bounded(limit):
    """Makes a group of processes that holds no more than `limit` bytes, pages of files included; None where it may not."""
    try:
        GROUP.mkdir(exist_ok=True)
        (GROUP / "memory.limit_in_bytes").write_text(str(limit))
        Path("/proc/sys/vm/drop_caches").write_text("1")
        return GROUP
    except OSError:
        return None


def decode(dokja, model, budget, tokens):
    group = bounded(budget + FOR_PAGES) if budget else None

    def enter():
        if group:
            (group / "cgroup.procs").write_text(str(os.getpid()))

    command = [dokja, "bench", "decode", str(model), "--json", "--runs", "3", "--generate", str(tokens)]
    if budget:
        command += ["--memory", str(budget)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=enter)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr}")
    return json.loads(done.stdout), group is not None


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dokja", default=str(ROOT / "target/release/dokja"))
    parser.add_argument("--experts", default="64,256", help="experts of a layer, one model for each (default 64,256)")
    parser.add_argument("--budgets", default="0.25,0.5,0.75,1", help="parts of the whole (default 0.25,0.5,0.75,1)")
    parser.add_argument("--tokens", type=int, default=64, help="tokens that are timed in a run (default 64)")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "dokja-memory-budget")
    parser.add_argument("--json", type=Path, help="where the figures go")
    args = parser.parse_args()

    rows = []
    for experts in map(int, args.experts.split(",")):
        model = args.work / str(experts)
        print(f"{experts} experts: making {model}", file=sys.stderr, flush=True)
        make(model, experts)
        told = subprocess.run([args.dokja, "inspect", str(model), "--json"], stdout=subprocess.PIPE, text=True, check=True)
        whole = json.loads(told.stdout)["here"]["memory_needed"]
        for part in map(float, args.budgets.split(",")):
            # At 1 there is room for everything beside the weights as well.
            budget = int(part * whole) + ((600 << 20) if part >= 1 else 0)
            told, is_bounded = decode(args.dokja, model, budget, args.tokens)
            cache = told.get("expert_cache")
            rows.append({
                "experts": experts, "whole_bytes": whole, "memory_bytes": budget, "peak_rss_bytes": told["peak_rss_bytes"],
                "tokens_per_sec": told["tokens_per_sec"], "group": is_bounded,
                "hit_rate": 1 - cache["misses"] / cache["lookups"] if cache else 1.0})
            row = rows[-1]
            print(f"{experts:4} experts, {whole / 1e9:5.2f} GB whole, --memory {budget / 1e9:5.2f} GB "
                  f"({'in a group of that size' if is_bounded else 'file may be cached'}): peak {row['peak_rss_bytes'] / 1e9:5.2f} GB, "
                  f"{100 * row['hit_rate']:5.1f} % of the experts were there, {row['tokens_per_sec']:7.2f} tokens/s", flush=True)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")
    if GROUP.exists():
        GROUP.rmdir()
    over = [row for row in rows if row["peak_rss_bytes"] > row["memory_bytes"]]
    sys.exit(f"{len(over)} runs held more than their bound" if over else 0)


if __name__ == "__main__":
    main()
