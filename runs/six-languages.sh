#!/usr/bin/env bash
# Trains on real text in six languages, through the commands anybody uses, and measures the held-out files.
#
# usage: runs/six-languages.sh CORPUS_DIR OUT_DIR [STEPS]
#
# CORPUS_DIR holds <lang>.jsonl.zst and heldout/<lang>.txt for ko en es de ja vi. STEPS, by default, is what
# 36 minutes allow at the speed of the first steps on this machine.
# Prints bits per byte of every held-out file, and what `xz -9e` makes of it.
set -euo pipefail
corpus=$(realpath "$1") out=$2 steps=${3:-}
here=$(cd "$(dirname "$0")/.." && pwd)
cd "$here"
cargo build --release --quiet
dokja=$here/target/release/dokja
recipe=$here/recipes/six-languages/pretrain.toml
minutes=36

mkdir -p "$out"
if [ ! -e "$out/data" ]; then
  args=()
  for lang in ko en es de ja vi; do args+=(--corpus "$corpus/$lang.jsonl.zst"); done
  "$dokja" data build --out "$out/data" "${args[@]}"
fi
if [ ! -e "$out/tokenizer.json" ]; then
  "$dokja" tokenizer train --data "$out/data" --vocab-size 16384 --out "$out/tokenizer.json"
fi
sets=(--set "data.dir=$out/data" --set "data.tokenizer=$out/tokenizer.json")

if [ -z "$steps" ]; then
  # Twenty steps tell the speed; they are not part of the run.
  probe=$(mktemp -d)
  speed=$("$dokja" pretrain "$recipe" --run-dir "$probe/run" "${sets[@]}" --json \
    --set train.steps=20 --set eval.tokens=0 --set checkpoint.every=0 |
    python3 -c 'import json, sys; print(json.load(sys.stdin)["tokens_per_sec"])')
  rm -rf "$probe"
  per_step=$(python3 -c 'import sys, tomllib
train = tomllib.load(open(sys.argv[1], "rb"))["train"]
print(train["seq_len"] * train["rows_per_step"])' "$recipe")
  steps=$(python3 -c "print(int($speed * 60 * $minutes / $per_step))")
  echo "$speed tokens/s: $steps steps in $minutes minutes" >&2
fi

start=$(date +%s)
"$dokja" pretrain "$recipe" --run-dir "$out/run" "${sets[@]}" --set "train.steps=$steps"
echo "trained in $(($(date +%s) - start)) s" >&2
files=$(printf '%s,' "$corpus"/heldout/*.txt)
"$dokja" eval "$out/run" --suite bits-per-byte --set "files=${files%,}" --out "$out/eval"
for file in "$corpus"/heldout/*.txt; do
  python3 - "$file" "$(xz -9e -c "$file" | wc -c)" <<'PY'
import os, sys
path, packed = sys.argv[1], int(sys.argv[2])
print(f"xz -9e  {os.path.basename(path):8} {8 * packed / os.path.getsize(path):.3f} bits per byte")
PY
done
