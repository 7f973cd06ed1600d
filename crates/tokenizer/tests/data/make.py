#!/usr/bin/env python3
"""Makes the recorded answers in this folder: what two other libraries make of the same files and texts.

    python3 -m venv venv && venv/bin/pip install tokenizers==0.23.3 sentencepiece==0.2.3
    venv/bin/python make.py

    library.json        tokenizer.json files of every kind that is understood (their models and what they have in common
                        apart), texts, and for files and texts the ids and the decoded text of `tokenizers`
    patterns.json       patterns in Oniguruma's syntax, and the pieces that `tokenizers` cuts texts into
    sentencepiece.json  vocabularies with scores, and the ids of `sentencepiece`

A case is [text, ids, what differs from the text]; runs of one id are written [id, count], and long texts so by
character. The corpus and the texts are written here and for this. Characters are those of
Unicode 10: the tables of `tokenizers` end there.
"""
import io
import json
from pathlib import Path

import sentencepiece
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

HERE = Path(__file__).resolve().parent

CORPUS = """\
the keeper of the lighthouse lights the lamp of the lighthouse at night, don't you see?
the lamp of the harbour is lit at night; the keeper's boat is in the harbour.
등대지기는 밤마다 등대의 불을 켠다. 등대의 불은 멀리서도 보인다.
灯台守は毎晩、灯台の明かりをつける。灯台の明かりは遠くからも見える。
Der Wärter zündet die Lampe an. Die Lampe des Leuchtturms ist hell.
In 1987 there were 12 lamps, in 1999 there were 3; 1987 + 12 = 1999.
if (lamp) {
    return light(lamp);
}
e\u0301te\u0301 \u00e9t\u00e9 ... !!! ---
"""

TEXTS = [
    "", " ", "a", "the lamp of the lighthouse", " the lamp", "The Lamp, don't you're I'LL we'VE 'S '\u017f",
    "12345 1 22 333 4444 3.14 \u0663\u0664\u0665 \u2167 \u00b2 \u00bd \u4e00",
    "  two   spaces\tand\ttabs \n\n\r\n lone\rCR \u00a0nbsp\u3000wide\u2028sep",
    " " * 40 + "x", "\n" * 12, "x" + " " * 7, "  \n  \n x", "e\u0301 n\u0303\u0323 a\u0300\u0301\u0302 \u0301 lone",
    "\u1112\u1161\u11ab\u1100\u116e\u11a8 한국의 등대\uac00\u11a8", "등대의 불은 멀리서도 보인다.",
    "👩\u200d👧 👨\u200d👩\u200d👧\u200d👦 🏳\ufe0f\u200d🌈 👍🏽 🇰🇷", "NUL \x00 bell \x07 esc \x1b del \x7f",
    "灯台守は毎晩、灯台の。 Der Wärter zündet.", "mixed한국English日本語العربيةעבריתไทยहिन्दी",
    "<s>", "</s>text<s>", "x<s>y </s> z", "<unk>", "<|end|><|end|>glued<|end|>", "<|end", "<|<|end|>|>", "< | end | >",
    "a [MASK] b", "a[MASK]b", "  [MASK]\n[MASK]  ", "day today days day, DAY day\u0301", "caf\u00e9 cafe\u0301 CAFE\u0301",
    "<0x0A> <0xZZ> <0x00>", "\u2581 \u2581\u2581the \u2581lamp", "\u0120 \u010a \u0120the\u0120", "a" * 10000,
    "7" * 1000, "-" * 300 + " " * 300 + "-", "\ufb01 \ufb02 \uff46\uff55 \u2460 \u3300 \u212b \u00c5", "\u0391\u03a3 \u03c3\u03c2",
    "\u0130i \u0131I", "\ufeffBOM", "\u202eRTL\u202c", "\U0010fffd\ue000", "zebra zebra !!?? zebras",
    "http://a.b/c?d=e&f=%20#g", "if (x) {\n    return y;\n}\n\n", "\t\tindent\n        eight\n",
]

# Texts that show how a file cuts, and those with what looks like a token.
CUTS = (5, 6, 7, 11, 12, 30, 42)
TOKENS = (*range(19, 26), 27, 29, 30, 31, 32, 33, 37)

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
WORDED = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
          r"|\s+(?!\S)|\s+")
O200K = (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
         r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
         r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")
DEEPSEEK = (r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"
            r"|\s*[\r\n]+|\s+(?!\S)|\s+")
BAILING = (r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+")

PATTERNS = [
    GPT2, WORDED % r"\p{N}{1,3}", WORDED % r"\p{N}", O200K, DEEPSEEK, BAILING,
    r"\p{N}{1,3}+", r"\p{N}{2}?", r"\p{L}{2,3}?", r"\p{L}++", r"[^ ]*+", r"(?i)the|LAMP", r"t(?i)he|lamp", r"(?i:L)a",
    r"\w+", r"\W+", r"\d+", r"\s", r"\h+", r"^.", r".$", r"\s+$", r"\bt", r"\B\w", r".+", r"(?m:.+)",
    r"(?<=t)h", r"(?<!t)h", r"(?=h)", r"(?!h)\p{L}", r"[a-c\-x]+", r"[+\-*/=]", r"[^a-z0-9\s]+", r"[\w\-.]+", r"[a~~b&c]+",
    r"\p{Lu}\p{Ll}*", r"\p{^L}+", r"\p{Han}+", r"\p{Hangul}", r"\p{Alphabetic}+", r"\p{Alpha}+",
    r"\p{Punct}+", r"\p{Upper}", r"\p{Lower}+", r"[가-힣]+", r"[一-龥぀-ゟ゠-ヿ]+", r"\x{AC00}|\x41|\uB4F1",
    r"(the|lamp)+ ", r"(?:a|ab)(?:c|bcd)?", r"(?>a|ab)b", r"a{,2}b", r"a{x}", r"\.|\/|\(|\<|\-", r" ?\S", r"(?#what)l", r"\Ath", r"p\z",
    r"(?=(\d{3})+(?!\d))", r"\t|\n|\r|\f|\v|\e|\a",
]

PATTERN_TEXTS = [TEXTS[i] for i in (5, 6, 7, 12, 16, 17)] + [
    "a{x} abcd aab\ntab{x}\n", "The LAMP lamp\nthe\n", "x~-a&b 1234567 A.B/(c)<d>\x1b\x0b", "a\u200db \u24d0\u2167\u203f_",
]


def runs(ids):
    """Ids, with [id, count] for four or more in a row."""
    out, start = [], 0
    for i in range(1, len(ids) + 1):
        if i == len(ids) or ids[i] != ids[start]:
            out += [[ids[start], i - start]] if i - start > 3 else list(ids[start:i])
            start = i
    return out


def packed(text):
    """A text, or its runs of characters where it is long."""
    return text if len(text) < 200 else [entry if isinstance(entry, list) else [entry, 1] for entry in runs(text)]


def train(pre_tokenizer, vocab_size, special, alphabet, **options):
    """Vocabulary and merges."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=special, initial_alphabet=alphabet, show_progress=False, **options)
    tokenizer.train_from_iterator(CORPUS.splitlines(keepends=True) * 3, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return model["vocab"], model["merges"]


def shared_models():
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    vocab, merges = train(byte_level, 400, ["<s>", "</s>"], sorted(pre_tokenizers.ByteLevel.alphabet()))
    # Tokens that no merges make.
    for token in ["zebra", "\u0120zebra", "??", "\u0120!!", "day"]:
        assert token not in vocab
        vocab[token] = len(vocab)
    model = {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None,
             "fuse_unk": False, "byte_fallback": False, "ignore_merges": False}
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    metaspace = pre_tokenizers.Metaspace()
    chars, char_merges = train(metaspace, 400, ["<unk>", "<s>", "</s>", *byte_tokens], [], limit_alphabet=60)
    bare, bare_merges = train(metaspace, 160, ["<unk>", "<s>", "</s>"], [], limit_alphabet=60)
    return {
        "bytes": {**model, "vocab": vocab, "merges": merges},
        "chars": {**model, "unk_token": "<unk>", "fuse_unk": True, "byte_fallback": True, "vocab": chars, "merges": char_merges},
        "bare": {**model, "unk_token": "<unk>", "vocab": bare, "merges": bare_merges},
    }


def added(content, id, **flags):
    return {"id": id, "content": content, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True, **flags}


def byte_level(add_prefix_space=False, use_regex=False):
    return {"type": "ByteLevel", "add_prefix_space": add_prefix_space, "trim_offsets": True, "use_regex": use_regex}


def split(pattern, behavior="Isolated", invert=False, kind="Regex"):
    return {"type": "Split", "pattern": {kind: pattern}, "behavior": behavior, "invert": invert}


def row(*steps):
    return {"type": "Sequence", "pretokenizers": list(steps)}


def normal(*parts):
    return {"type": "Sequence", "normalizers": list(parts)}


def template(before=(), after=(), ids=None):
    special = [{"SpecialToken": {"id": token, "type_id": 0}} for token in (*before, *after)]
    text = {"Sequence": {"id": "A", "type_id": 0}}
    single = special[: len(before)] + [text] + special[len(before):]
    return {"type": "TemplateProcessing", "single": single, "pair": [text, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {token: {"id": token, "ids": [ids[token]], "tokens": [token]} for token in (*before, *after)}}


def metaspace(scheme="always", split=True):
    return {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": scheme, "split": split}


PREPEND = {"type": "Prepend", "prepend": "\u2581"}
TO_MARKS = {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}
TO_SPACES = {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "}
LLAMA_DECODER = {"type": "Sequence", "decoders": [TO_SPACES, {"type": "ByteFallback"}, {"type": "Fuse"},
                                                  {"type": "Strip", "content": " ", "start": 1, "stop": 0}]}


def common(shared, model):
    """What the files of a model have where they say nothing else."""
    vocab = shared[model]["vocab"]
    tokens = [added(token, vocab[token]) for token in ("<unk>", "<s>", "</s>") if token in vocab]
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": tokens, "normalizer": None, "pre_tokenizer": None,
            "post_processor": None, "decoder": byte_level() if model == "bytes" else LLAMA_DECODER}


def files(shared):
    """Name, model, texts, and what differs from a file without anything."""
    top = {name: len(model["vocab"]) for name, model in shared.items()}
    ids = {token: shared["bytes"]["vocab"][token] for token in ("<s>", "</s>")}
    two, three = (common(shared, model)["added_tokens"] for model in ("bytes", "chars"))
    end = top["bytes"]
    word = WORDED % r"\p{N}"

    every = range(len(TEXTS))

    def bytes_(name, pre, texts=CUTS, **other):
        return name, "bytes", texts, {"pre_tokenizer": pre, **other}

    def chars(name, model="chars", texts=TOKENS, **other):
        return name, model, texts, other

    llama = {"normalizer": normal(PREPEND, TO_MARKS)}
    yield bytes_("gpt-2", byte_level(use_regex=True), every)
    yield bytes_("gpt-2 with a prefix", byte_level(True, True))
    yield bytes_("digits", row({"type": "Digits", "individual_digits": True}, byte_level(use_regex=True)))
    yield bytes_("digits together, a prefix each", row({"type": "Digits", "individual_digits": False}, byte_level(True)))
    yield bytes_("llama 3", row(split(WORDED % r"\p{N}{1,3}"), byte_level()), every, ignore_merges=True,
                 post_processor={"type": "Sequence", "processors": [byte_level(), template(["<s>"], ids=ids)]})
    yield bytes_("qwen 2", row(split(word), byte_level()), normalizer={"type": "NFC"})
    yield bytes_("deepseek 3", row(split(r"\p{N}{1,3}"), split("[一-龥぀-ゟ゠-ヿ]+"), split(DEEPSEEK), byte_level()),
                 post_processor=template(["<s>"], ["</s>"], ids=ids))
    yield bytes_("possessive", row(split(BAILING), byte_level()), normalizer={"type": "NFKC"})
    yield bytes_("nfd", byte_level(use_regex=True), normalizer={"type": "NFD"})
    yield bytes_("nfkd", byte_level(), normalizer=normal({"type": "NFKD"}, {"type": "Replace", "pattern": {"String": "th"}, "content": "TH"}))
    for behavior in ("Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous"):
        yield bytes_(behavior, row(split(" ", behavior, kind="String"), byte_level()))
        yield bytes_(f"{behavior}, inverted", row(split(r"[a-z]+", behavior, True), byte_level()))
    flags = [
        added("<|end|>", end), added("[MASK]", end + 1, lstrip=True), added("day", shared["bytes"]["vocab"]["day"], single_word=True, special=False),
        added("<|", end + 2, special=False), added("\n", end + 3, rstrip=True, special=False),
    ]
    yield bytes_("added tokens", byte_level(use_regex=True), TOKENS, added_tokens=two + flags)
    normalized = [
        added("<|end|>", end, normalized=True, rstrip=True), added("cafe\u0301", end + 1, normalized=True, special=False),
        added("\ufb01", end + 2, normalized=True, special=False), added("e\u0301", end + 3, special=False),
    ]
    yield bytes_("added tokens, normalised", byte_level(use_regex=True), TOKENS, added_tokens=two + normalized, normalizer={"type": "NFKC"})
    yield chars("llama 2", texts=every, **llama, post_processor=template(["<s>"], ids={"<s>": 1}))
    end = top["chars"]
    # Not special: the library fails to skip a special token that normalisation changes.
    ends = added("<|end|>", end, normalized=True, special=False)
    yield chars("llama 2 with added tokens", **llama, added_tokens=three + [ends, added("[MASK]", end + 1, rstrip=True)])
    yield chars("gemma", texts=CUTS, normalizer=TO_MARKS, pre_tokenizer=split(" ", "MergedWithPrevious", kind="String"),
                decoder={"type": "Sequence", "decoders": LLAMA_DECODER["decoders"][:3]})
    for fuse in (False, True):
        yield chars(f"metaspace, fuse_unk {fuse}", "bare", every if fuse else CUTS, pre_tokenizer=metaspace(), decoder=metaspace(), fuse_unk=fuse)
    yield chars("metaspace first", "bare", TOKENS, pre_tokenizer=metaspace("first", False), decoder=metaspace("first", False))
    yield chars("metaspace never", "bare", CUTS, pre_tokenizer=metaspace("never"), decoder=metaspace("never"), unk_token=None)
    yield chars("metaspace with bytes", pre_tokenizer=metaspace("first"), decoder=metaspace("first"))


def library():
    shared = shared_models()
    recorded, decoders_seen = [], []
    for name, model, texts, parts in files(shared):
        options = {key: parts.pop(key) for key in ("ignore_merges", "fuse_unk", "unk_token") if key in parts}
        file = {**common(shared, model), **parts}
        tokenizer = Tokenizer.from_str(json.dumps({**file, "model": {**shared[model], **options}}))
        cases = []
        for index in texts:
            text = TEXTS[index]
            ids = tokenizer.encode(text, add_special_tokens=False).ids
            around = tokenizer.encode(text).ids  # recorded of short texts
            differs = {} if around == ids or len(ids) > 20 else {"around": runs(around)}
            expected = text
            for key, skip in (("decoded", False), ("skipped", True)):
                decoded = tokenizer.decode(ids, skip_special_tokens=skip)
                if decoded != expected:
                    differs[key] = packed(decoded)
                expected = decoded
            cases.append([index, runs(ids), differs] if differs else [index, runs(ids)])
        record = {"name": name, "model": model, "options": options, "file": parts, "cases": cases}
        if file["decoder"] not in decoders_seen:
            # Ids that no text gives: bytes that are no characters, in any order.
            decoders_seen.append(file["decoder"])
            size = tokenizer.get_vocab_size()
            odd = [[(7 * i + 3 * j * j) % size for j in range(12)] for i in range(1, 6)]
            record["odd"] = [{"ids": ids, "decoded": tokenizer.decode(ids, skip_special_tokens=False)} for ids in odd]
        recorded.append(record)
    return {"models": shared, "common": {model: common(shared, model) for model in shared}, "texts": [packed(text) for text in TEXTS], "files": recorded}


def patterns():
    recorded = []
    for pattern in PATTERNS:
        step = pre_tokenizers.Split(Regex(pattern), "isolated")
        pieces = []
        for text in PATTERN_TEXTS:
            cut, end = [], 0
            for piece, (start, stop) in step.pre_tokenize_str(text):
                assert start == end, (pattern, text)
                cut.append(len(piece))
                end = stop
            pieces.append(runs(cut))
        recorded.append({"pattern": pattern, "lengths": pieces})
    return {"texts": PATTERN_TEXTS, "patterns": recorded}


def scored():
    recorded = []
    for prefix in (True, False):
        out = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(CORPUS.splitlines() * 3), model_writer=out, model_type="bpe", vocab_size=400, byte_fallback=True,
            normalization_rule_name="identity", add_dummy_prefix=prefix, remove_extra_whitespaces=False, character_coverage=0.98,
            split_by_whitespace=prefix, allow_whitespace_only_pieces=True, minloglevel=2, num_threads=1, hard_vocab_limit=False)
        model = sentencepiece.SentencePieceProcessor(model_proto=out.getvalue())
        size = model.get_piece_size()
        kinds = [(model.is_unknown, 2), (model.is_control, 3), (model.is_unused, 5), (model.is_byte, 6)]
        cases = []
        for index in range(len(TEXTS)) if prefix else CUTS:
            ids = model.encode(TEXTS[index])
            decoded = model.decode(ids)
            cases.append([index, runs(ids)] + ([] if decoded == TEXTS[index] else [{"decoded": packed(decoded)}]))
        recorded.append({
            "add_space_prefix": prefix, "tokens": [model.id_to_piece(i) for i in range(size)], "scores": [round(model.get_score(i), 4) for i in range(size)],
            "token_types": [next((n for test, n in kinds if test(i)), 1) for i in range(size)], "cases": cases,
        })
    return {"texts": [packed(text) for text in TEXTS], "vocabularies": recorded}


for name, value in (("library", library()), ("patterns", patterns()), ("sentencepiece", scored())):
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    (HERE / f"{name}.json").write_text(text + "\n", encoding="utf-8")
    print(f"{name}.json: {len(text.encode())} bytes")
