#!/usr/bin/env python3
"""Is a tokenizer.json of ours the same tokenizer in the Hugging Face `tokenizers` library?

usage: python3 runs/check_tokenizer.py [--dokja PROGRAM] [--vocab-size N]... [--train PATH]... [TEXT FILE]...

Trains vocabularies with `dokja tokenizer train` (on the built-in world, and on every --train file), loads
each in the library and compares ids and decoded text of both: of every paragraph of the given files, of
the files as a whole, and of random text from all of Unicode. Exit status 1 at the first difference.

Needs the network the first time: it installs the library into an environment under the temporary directory.
"""
import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import unicodedata
import venv
from pathlib import Path

VERSION = "0.23.3"
ROOT = Path(__file__).resolve().parent.parent


def in_environment():
    """Starts this script again with an interpreter that has the library."""
    home = Path(tempfile.gettempdir()) / f"dokja-tokenizers-{VERSION}"
    python = home / "bin" / "python"
    if not (home / "ready").exists():
        venv.create(home, with_pip=True, clear=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", f"tokenizers=={VERSION}"], check=True)
        (home / "ready").touch()
    os.execv(python, [str(python), *sys.argv])


def known_characters():
    """Characters that this Python and the library's normalizer know: the library's table is that of Unicode 10, and
    a combining mark of later versions is put into another order by it, whatever the tokenizer."""
    from tokenizers import normalizers

    nfc = normalizers.NFC()
    known = []
    for c in map(chr, range(0x110000)):
        category = unicodedata.category(c)
        if category in ("Cn", "Cs"):
            continue
        probes = (c, unicodedata.normalize("NFD", c), f"a{c}\u0327", f"a\u0301{c}\u0327")
        if category == "Co" or all(nfc.normalize_str(p) == unicodedata.normalize("NFC", p) for p in probes):
            known.append(c)
    return known


def random_texts(count, seed):
    """Text from near and far in Unicode, with what the format makes special."""
    rng = random.Random(seed)
    known = known_characters()
    special = ["<|user|>", "<|endofturn|>", "<think>", "[PAD]", "'s", "'LL", "  ", "\r\n", " ", "\n\n", "\u200d",
               "e\u0301", "\u1112\u1161\u11ab", "한국의 수도는", "the sea of the", "12345", "3.14", "https://a.b/c?d=e"]
    blocks = [(0x20, 0x7F), (0x80, 0x250), (0x300, 0x370), (0x1100, 0x1200), (0x3040, 0x3100), (0x4E00, 0x5000),
              (0xAC00, 0xAD00), (0x1F300, 0x1F650)]
    blocks = [[c for c in known if low <= ord(c) < high] for low, high in blocks]
    for _ in range(count):
        parts = []
        for _ in range(rng.randrange(40)):
            kind = rng.random()
            if kind < 0.3:
                parts.append(rng.choice(special))
            elif kind < 0.8:
                parts.append("".join(rng.choices(rng.choice(blocks), k=rng.randrange(1, 12))))
            else:
                parts.append(rng.choice(known))
        yield "".join(parts)


def ours(dokja, tokenizer, command, lines, *options):
    done = subprocess.run([dokja, "tokenizer", command, tokenizer, *options], input="".join(line + "\n" for line in lines),
                          capture_output=True, encoding="utf-8")
    if done.returncode != 0:
        sys.exit(f"dokja tokenizer {command} failed: {done.stderr}")
    return [json.loads(line) for line in done.stdout.removesuffix("\n").split("\n")]


def compare(dokja, path, texts):
    from tokenizers import Tokenizer

    theirs = Tokenizer.from_file(str(path))
    ids = ours(dokja, path, "encode", map(json.dumps, texts), "--json-strings")
    assert len(ids) == len(texts)
    expected = [e.ids for e in theirs.encode_batch(texts, add_special_tokens=False)]
    for text, found, wanted in zip(texts, ids, expected):
        if found != wanted:
            at = next((i for i, pair in enumerate(zip(found, wanted)) if pair[0] != pair[1]), min(len(found), len(wanted)))
            sys.exit(f"{path}: ids differ from place {at} on\n  text     {text[:400]!r}\n  ours     "
                     f"{[theirs.id_to_token(i) for i in found[at:at + 8]]}\n  theirs   "
                     f"{[theirs.id_to_token(i) for i in wanted[at:at + 8]]}")
    decoded = ours(dokja, path, "decode", map(json.dumps, ids), "--json")
    for text, found, wanted in zip(texts, decoded, theirs.decode_batch(ids, skip_special_tokens=False)):
        if found != wanted:
            sys.exit(f"{path}: decoded text differs\n  text     {text[:400]!r}\n  ours     {found[:400]!r}\n  "
                     f"theirs   {wanted[:400]!r}")
    return sum(map(len, ids)), sum(len(text.encode()) for text in texts)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dokja", help="the program (default: built from this checkout)")
    parser.add_argument("--vocab-size", type=int, action="append", help="default: 1500 and 8192")
    parser.add_argument("--train", action="append", default=[], metavar="PATH", help="text to train on, besides the built-in world")
    parser.add_argument("text", nargs="*", help="text files to compare")
    args = parser.parse_args()
    try:
        import tokenizers
        ready = tokenizers.__version__ == VERSION
    except ImportError:
        ready = False
    if not ready:
        in_environment()

    dokja = args.dokja
    if dokja is None:
        subprocess.run(["cargo", "build", "--release", "--quiet", "--package", "dokja-cli"], cwd=ROOT, check=True)
        target = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
        dokja = target / "release" / "dokja"

    texts = list(random_texts(20_000, 1))
    for name in args.text:
        text = Path(name).read_text(encoding="utf-8")
        texts += text.split("\n\n") + [text]
    with tempfile.TemporaryDirectory() as scratch:
        data = Path(scratch) / "data"
        command = [dokja, "data", "build", "--out", data, "--builtin", "--builtin-bytes", "2000000", "--builtin-dialogues", "0"]
        for path in args.train:
            command += ["--corpus", path]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        for size in args.vocab_size or [1500, 8192]:
            path = Path(scratch) / f"tokenizer-{size}.json"
            train = [dokja, "tokenizer", "train", "--data", data, "--vocab-size", str(size), "--out", path, "--json"]
            made = json.loads(subprocess.run(train, check=True, capture_output=True).stdout)
            num_ids, num_bytes = compare(dokja, path, texts)
            print(f"vocabulary of {made['vocab_size']}: {len(texts)} texts, {num_bytes} bytes, {num_ids} ids: the same")


if __name__ == "__main__":
    main()
