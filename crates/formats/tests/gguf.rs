//! GGUF files: what is written reads back, published files have their published values, and hostile
//! files are told.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
#![expect(
    clippy::print_stdout,
    reason = "a failed test is told by its panic, a skipped one by a line"
)]

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use dokja_formats as formats;
use formats::gguf::{
    Array, BoxError, Gguf, GgufError, GgufTensorSource, Strings, Value, write_gguf,
};
use formats::safetensors::SafeTensors;
use numerics::{BlockType, Philox, nmse};
use proptest::prelude::*;

fn every_value() -> Vec<(String, Value)> {
    let strings: Strings = ["", "a", "한국어", "", "Ġthe"].into_iter().collect();
    [
        ("general.architecture", Value::String("exaone-moe".into())),
        ("u8", Value::U8(255)),
        ("i8", Value::I8(-128)),
        ("u16", Value::U16(65_535)),
        ("i16", Value::I16(-2)),
        ("u32", Value::U32(1 << 31)),
        ("i32", Value::I32(-7)),
        ("f32", Value::F32(1e-5)),
        ("bool", Value::Bool(true)),
        ("string", Value::String("두 줄\n".into())),
        ("u64", Value::U64(u64::MAX)),
        ("i64", Value::I64(i64::MIN)),
        ("f64", Value::F64(0.1)),
        ("u8s", Value::Array(Array::U8(vec![0, 255]))),
        ("i8s", Value::Array(Array::I8(vec![-1]))),
        ("u16s", Value::Array(Array::U16(vec![1, 2, 3]))),
        ("i16s", Value::Array(Array::I16(vec![-1, 2]))),
        ("u32s", Value::Array(Array::U32(vec![9; 5]))),
        ("i32s", Value::Array(Array::I32(vec![3, -3]))),
        ("f32s", Value::Array(Array::F32(vec![0.5, -0.0]))),
        ("bools", Value::Array(Array::Bool(vec![true, false, true]))),
        ("strings", Value::Array(Array::String(strings))),
        ("u64s", Value::Array(Array::U64(vec![1 << 40]))),
        ("i64s", Value::Array(Array::I64(vec![-5, 5]))),
        ("f64s", Value::Array(Array::F64(vec![1.0 / 3.0]))),
        ("nothing", Value::Array(Array::String(Strings::default()))),
    ]
    .map(|(key, value)| (key.to_string(), value))
    .to_vec()
}

/// Bytes that differ from tensor to tensor.
fn bytes_of(block_type: BlockType, elements: usize) -> Vec<u8> {
    let philox = Philox::new(2, block_type.name());
    let len = block_type.bytes_for(elements).unwrap();
    (0..len as u32)
        .map(|i| philox.block([i, 0, 0, 0])[0] as u8)
        .collect()
}

fn source<'a>(
    name: &'a str,
    shape: &'a [usize],
    block_type: BlockType,
    bytes: &'a [u8],
) -> GgufTensorSource<'a> {
    GgufTensorSource {
        name,
        shape,
        block_type,
        data: Box::new(move |w| {
            for piece in bytes.chunks(7) {
                w.write_all(piece)?;
            }
            Ok(())
        }),
    }
}

/// One tensor of eight values, so that the file ends with its last byte.
fn small(dir: &Path) -> Vec<u8> {
    let path = dir.join("small.gguf");
    let metadata = [
        ("a.key".to_string(), Value::U32(7)),
        (
            "texts".to_string(),
            Value::Array(Array::String(["x", "yz"].into_iter().collect())),
        ),
        ("truths".to_string(), Value::Array(Array::Bool(vec![true]))),
    ];
    let bytes = bytes_of(BlockType::F32, 8);
    let tensors = [source("w", &[2, 4], BlockType::F32, &bytes)];
    write_gguf(&path, &metadata, &tensors).unwrap();
    fs::read(path).unwrap()
}

fn open_bytes(bytes: &[u8]) -> Result<Gguf, GgufError> {
    Gguf::from_bytes(Path::new("bytes.gguf"), bytes)
}

/// What is wrong, and where.
fn refused(bytes: &[u8]) -> (String, u64) {
    match open_bytes(bytes) {
        Err(GgufError::Invalid { path, offset, what }) => {
            assert!(path.extension().is_some_and(|e| e == "gguf"));
            (what, offset)
        }
        other => panic!("not refused: {other:?}"),
    }
}

/// The parts of a file, put together by hand.
#[derive(Clone)]
struct Parts {
    head: Vec<u8>,
    pairs: Vec<Vec<u8>>,
    tensors: Vec<Vec<u8>>,
    data: usize,
}

impl Parts {
    fn new() -> Parts {
        Parts {
            head: b"GGUF\x03\0\0\0".to_vec(),
            pairs: vec![],
            tensors: vec![],
            data: 64,
        }
    }

    fn pair(mut self, key: &str, value_type: u32, value: &[u8]) -> Parts {
        let pair = [&text(key), &value_type.to_le_bytes()[..], value].concat();
        self.pairs.push(pair);
        self
    }

    fn tensor(mut self, name: &str, ne: &[u64], ggml_type: u32, offset: u64) -> Parts {
        let mut tensor = text(name);
        tensor.extend((ne.len() as u32).to_le_bytes());
        tensor.extend(ne.iter().flat_map(|n| n.to_le_bytes()));
        tensor.extend(ggml_type.to_le_bytes());
        tensor.extend(offset.to_le_bytes());
        self.tensors.push(tensor);
        self
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes = self.head.clone();
        bytes.extend((self.tensors.len() as u64).to_le_bytes());
        bytes.extend((self.pairs.len() as u64).to_le_bytes());
        bytes.extend(self.pairs.concat());
        bytes.extend(self.tensors.concat());
        bytes.resize(bytes.len().next_multiple_of(32) + self.data, 0);
        bytes
    }
}

fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
}

#[test]
fn metadata_of_every_type_reads_back_in_its_order() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    let written = write_gguf(&path, &every_value(), &[]).unwrap();
    assert_eq!(written, formats::hash::hash_file(&path).unwrap());
    let gguf = Gguf::open(&path).unwrap();
    assert_eq!(gguf.metadata(), every_value());
    assert!(gguf.is_empty() && gguf.version() == 3);
    for (key, value) in every_value() {
        assert_eq!(gguf.value(&key), Some(&value));
    }
    assert_eq!(gguf.value("absent"), None);
}

#[test]
fn numbers_are_found_whatever_their_width_and_told_when_they_do_not_fit() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    write_gguf(&path, &every_value(), &[]).unwrap();
    let gguf = Gguf::open(&path).unwrap();
    assert_eq!(gguf.u64("u8").unwrap(), 255);
    assert_eq!(gguf.u64("u16").unwrap(), 65_535);
    assert_eq!(gguf.u64("u32").unwrap(), 1 << 31);
    assert_eq!(gguf.u64("u64").unwrap(), u64::MAX);
    assert_eq!(gguf.value("i64").unwrap().as_i64(), Some(i64::MIN));
    assert_eq!(gguf.value("u64").unwrap().as_i64(), None);
    assert_eq!(gguf.f64("f32").unwrap(), f64::from(1e-5f32));
    assert_eq!(gguf.f64("f64").unwrap(), 0.1);
    assert!(gguf.bool("bool").unwrap());
    assert_eq!(gguf.str("string").unwrap(), "두 줄\n");
    let strings = gguf.strings("strings").unwrap();
    let all: Vec<&str> = strings.iter().collect();
    assert_eq!(all, ["", "a", "한국어", "", "Ġthe"]);
    assert_eq!((strings.get(2), strings.get(5)), (Some("한국어"), None));
    assert!(gguf.strings("nothing").unwrap().is_empty());
    for (key, expected) in [
        ("u8s", vec![0, 255]),
        ("i8s", vec![-1]),
        ("u16s", vec![1, 2, 3]),
        ("i16s", vec![-1, 2]),
        ("u32s", vec![9; 5]),
        ("i32s", vec![3, -3]),
        ("i64s", vec![-5, 5]),
    ] {
        assert_eq!(gguf.i32s(key).unwrap(), expected, "{key}");
    }
    assert_eq!(gguf.f32s("f32s").unwrap(), [0.5, -0.0]);
    assert_eq!(gguf.bools("bools").unwrap(), [true, false, true]);

    let told = |failed: GgufError, parts: &[&str]| {
        let text = failed.to_string();
        assert!(parts.iter().all(|p| text.contains(p)), "{text}");
    };
    told(
        gguf.u64("i32").unwrap_err(),
        &["m.gguf", "i32 -7", "not negative"],
    );
    told(gguf.u64("f32").unwrap_err(), &["\"f32\"", "an integer"]);
    told(
        gguf.u64("absent").unwrap_err(),
        &["m.gguf", "no key \"absent\""],
    );
    told(
        gguf.i32s("u64s").unwrap_err(),
        &["an array of 1 u64", "32 bits"],
    );
    told(gguf.str("bool").unwrap_err(), &["bool true", "a string"]);
    told(gguf.f64("u8").unwrap_err(), &["u8 255", "f64"]);
    told(
        gguf.strings("string").unwrap_err(),
        &["a string", "an array"],
    );
}

#[test]
fn tensors_of_every_block_type_read_back() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("t.gguf");
    let shape = [3, 2, 256];
    let all: Vec<_> = BlockType::ALL
        .iter()
        .map(|t| (*t, bytes_of(*t, 3 * 2 * 256)))
        .collect();
    let scales = bytes_of(BlockType::F32, 5);
    let mut sources: Vec<_> = all
        .iter()
        .map(|(t, bytes)| source(t.name(), &shape, *t, bytes))
        .collect();
    sources.insert(1, source("scales", &[5], BlockType::F32, &scales));
    let hash = write_gguf(&path, &[], &sources).unwrap();
    assert_eq!(hash, formats::hash::hash_file(&path).unwrap());
    assert_eq!(hash, write_gguf(&path, &[], &sources).unwrap());

    let gguf = Gguf::open(&path).unwrap();
    assert_eq!(gguf.len(), sources.len());
    let names: Vec<&str> = gguf.tensors().map(|t| t.name).collect();
    assert_eq!(&names[..3], ["F32", "scales", "F16"]);
    for (block_type, bytes) in &all {
        let tensor = gguf.get(block_type.name()).unwrap();
        assert_eq!(tensor.shape, shape);
        assert_eq!(tensor.block_type, Some(*block_type));
        assert_eq!(tensor.bytes, bytes);
        let mut values = vec![0.0; 3 * 2 * 256];
        block_type.dequantise(bytes, &mut values).unwrap();
        let bits = |v: &[f32]| v.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&tensor.to_f32().unwrap()), bits(&values));
    }
    let scales_read = gguf.get("scales").unwrap();
    assert_eq!(
        (scales_read.shape, scales_read.bytes),
        (&[5][..], &scales[..])
    );
    assert_eq!(scales_read.bytes.as_ptr().addr() % 32, 0);
    let short = scales_read.copy_to_f32(&mut [0.0; 4]).unwrap_err();
    assert!(short.to_string().contains("\"scales\""), "{short}");
    let missing = gguf.get("F33").unwrap_err().to_string();
    assert!(missing.contains("no tensor \"F33\""), "{missing}");
    assert!(gguf.contains("F32") && !gguf.contains("f32"));
}

#[test]
fn what_other_readers_would_refuse_is_not_written() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.gguf");
    let bytes = bytes_of(BlockType::F32, 256);
    let f32s = |name, shape| source(name, shape, BlockType::F32, &bytes);
    let long = "n".repeat(64);
    let huge = [1 << 40, 1 << 40];
    let cases = [
        (vec![f32s("w", &[256]), f32s("w", &[256])], "twice"),
        (vec![f32s("", &[256])], "0 bytes"),
        (vec![f32s(&long, &[256])], "64 bytes"),
        (vec![f32s("w", &[])], "no dimension"),
        (vec![f32s("w", &[1, 1, 1, 1, 256])], "1 to 4"),
        (vec![f32s("w", &[0, 256])], "none of them 0"),
        (vec![f32s("w", &huge)], "can be counted"),
        (vec![f32s("w", &[255])], "expected 1020 bytes, got 1024"),
        (vec![f32s("w", &[257])], "expected 1028 bytes, got 1024"),
        (
            vec![source("w", &[2, 128], BlockType::Q4K, &bytes)],
            "multiple of 256",
        ),
    ];
    for (tensors, expected) in cases {
        let failed = write_gguf(&path, &[], &tensors).unwrap_err().to_string();
        assert!(
            failed.contains(expected) && failed.contains("x.gguf"),
            "{failed}"
        );
    }
    let pair = |key: &str, n| (key.to_string(), Value::U32(n));
    for (metadata, expected) in [
        (vec![pair("a", 1), pair("a", 1)], "twice"),
        (vec![pair("", 1)], "0 bytes"),
        (vec![pair("general.alignment", 64)], "expected 32"),
    ] {
        let failed = write_gguf(&path, &metadata, &[]).unwrap_err().to_string();
        assert!(failed.contains(expected), "{failed}");
    }
    assert!(write_gguf(&path, &[pair("general.alignment", 32)], &[]).is_ok());
}

#[test]
fn a_source_that_fails_leaves_the_old_file_and_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.gguf");
    fs::write(&path, b"old").unwrap();
    let failing = |cause: fn() -> BoxError| GgufTensorSource {
        name: "w",
        shape: &[4],
        block_type: BlockType::F32,
        data: Box::new(move |w: &mut dyn Write| {
            w.write_all(&[0; 8])?;
            Err(cause())
        }),
    };
    let failed = write_gguf(&path, &[], &[failing(|| "the shard is gone".into())]).unwrap_err();
    let told = failed.to_string();
    assert!(
        told.contains("\"w\"") && told.contains("the shard is gone"),
        "{told}"
    );
    // An error of the source's own files is the source's, not that of the file being written.
    let eof: fn() -> BoxError = || io::Error::from(io::ErrorKind::UnexpectedEof).into();
    let failed = write_gguf(&path, &[], &[failing(eof)]).unwrap_err();
    assert!(matches!(failed, GgufError::Source { .. }), "{failed}");
    assert_eq!(fs::read(&path).unwrap(), b"old");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn a_file_cut_at_any_byte_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = small(dir.path());
    assert!(open_bytes(&bytes).is_ok());
    for cut in 0..bytes.len() {
        let (what, offset) = refused(&bytes[..cut]);
        assert!(offset <= cut as u64, "cut at {cut}: {what} (byte {offset})");
    }
}

#[test]
fn files_of_another_kind_or_version_are_told() {
    let dir = tempfile::tempdir().unwrap();
    let with = |at: usize, new: &[u8]| {
        let mut bytes = small(dir.path());
        bytes[at..at + new.len()].copy_from_slice(new);
        bytes
    };
    for (bytes, expected, at) in [
        (with(0, b"GGML"), "does not begin with GGUF", 0),
        (with(0, b"FUGG"), "big-endian", 0),
        (with(4, &[0, 0, 0, 3]), "big-endian", 4),
        (with(4, &[1, 0, 0, 0]), "version 1", 4),
        (with(4, &[4, 0, 0, 0]), "version 4", 4),
        (with(4, &[0; 4]), "version 0", 4),
    ] {
        let (what, offset) = refused(&bytes);
        assert!(
            what.contains(expected) && offset == at,
            "{what} (byte {offset})"
        );
    }
    let second = open_bytes(&with(4, &[2, 0, 0, 0])).unwrap();
    assert_eq!((second.version(), second.len()), (2, 1));
}

#[test]
fn absurd_numbers_of_things_are_refused_before_memory_is_taken() {
    let dir = tempfile::tempdir().unwrap();
    for count in [1u64 << 60, u64::MAX, 1 << 32] {
        for at in [8, 16] {
            let mut bytes = small(dir.path());
            bytes[at..at + 8].copy_from_slice(&count.to_le_bytes());
            let (what, offset) = refused(&bytes);
            assert!(what.contains("bytes left") && offset == at as u64, "{what}");
        }
        for element in [0u32, 5, 7, 8, 12] {
            let array = [&element.to_le_bytes()[..], &count.to_le_bytes()].concat();
            let (what, offset) = refused(&Parts::new().pair("k", 9, &array).bytes());
            assert!(what.contains("bytes left"), "{what}");
            assert_eq!(offset, 24 + 9 + 4 + 4);
        }
        let (what, _) = refused(&Parts::new().pair("k", 8, &count.to_le_bytes()).bytes());
        assert!(what.contains("bytes left"), "{what}");
        let mut key = Parts::new().pair("k", 0, &[1]);
        key.pairs[0][..8].copy_from_slice(&count.to_le_bytes());
        assert!(refused(&key.bytes()).0.contains("expected at most 65535"));
        let mut name = Parts::new().tensor("w", &[4], 0, 0);
        name.tensors[0][..8].copy_from_slice(&count.to_le_bytes());
        assert!(refused(&name.bytes()).0.contains("expected at most 255"));
        // The numbers of an array of texts fit, the length of the second text does not.
        let texts = [
            &8u32.to_le_bytes()[..],
            &2u64.to_le_bytes(),
            &text("x"),
            &count.to_le_bytes(),
        ];
        assert!(
            refused(&Parts::new().pair("k", 9, &texts.concat()).bytes())
                .0
                .contains("a text")
        );
    }
}

#[test]
fn metadata_that_contradicts_itself_is_told() {
    let p = Parts::new;
    let nested = [&9u32.to_le_bytes()[..], &1u64.to_le_bytes(), &[0; 12]].concat();
    let odd = [&13u32.to_le_bytes()[..], &1u64.to_le_bytes(), &[0; 8]].concat();
    let truths = [&7u32.to_le_bytes()[..], &2u64.to_le_bytes(), &[1, 3]].concat();
    let not_utf8 = [&2u64.to_le_bytes()[..], b"a\xff"].concat();
    let in_array = [&8u32.to_le_bytes()[..], &1u64.to_le_bytes(), &not_utf8].concat();
    for (parts, expected) in [
        (
            p().pair("k", 0, &[1]).pair("k", 0, &[1]),
            "key \"k\" is there twice",
        ),
        (p().pair("", 0, &[1]), "an empty key"),
        (p().pair("k", 13, &[1]), "has type 13"),
        (p().pair("k", 7, &[2]), "a bool is 2"),
        (p().pair("k", 8, &not_utf8), "not UTF-8"),
        (p().pair("k", 9, &in_array), "not UTF-8"),
        (p().pair("k", 9, &nested), "array of arrays"),
        (p().pair("k", 9, &odd), "array of type 13"),
        (p().pair("k", 9, &truths), "a bool is 3"),
    ] {
        let (what, _) = refused(&parts.bytes());
        assert!(what.contains(expected), "{what}");
    }
    for alignment in [0u32, 3, 48, 1 << 17, u32::MAX] {
        let parts = p().pair("general.alignment", 4, &alignment.to_le_bytes());
        let (what, offset) = refused(&parts.bytes());
        assert!(what.contains("power of two") && offset == 24, "{what}");
    }
    let text_alignment = p().pair("general.alignment", 8, &text("32"));
    assert!(refused(&text_alignment.bytes()).0.contains("is a string"));
    let split = p().pair("split.count", 2, &[3, 0]);
    assert!(matches!(
        open_bytes(&split.bytes()),
        Err(GgufError::Split { count: 3, .. })
    ));
    assert!(open_bytes(&p().pair("split.count", 2, &[1, 0]).bytes()).is_ok());
}

#[test]
fn tensors_that_do_not_fit_are_told() {
    let p = Parts::new;
    let big = u64::MAX;
    for (parts, expected) in [
        (
            p().tensor("w", &[4], 0, 0).tensor("w", &[4], 0, 32),
            "tensor \"w\" is there twice",
        ),
        (p().tensor("", &[4], 0, 0), "without a name"),
        (p().tensor("w", &[], 0, 0), "0 dimensions"),
        (p().tensor("w", &[1; 5], 0, 0), "5 dimensions"),
        (p().tensor("w", &[4, 0], 0, 0), "is 0"),
        (p().tensor("w", &[1 << 32, 1 << 32], 0, 0), "can be counted"),
        (p().tensor("w", &[big], 0, 0), "can be counted"),
        (p().tensor("w", &[1 << 62], 0, 0), "can be counted"),
        (p().tensor("w", &[1 << 40], 0, 0), "the file has"),
        (p().tensor("w", &[16, 2], 8, 0), "multiple of 32"),
        (p().tensor("w", &[128, 2], 12, 0), "multiple of 256"),
        (p().tensor("w", &[4], 0, 4), "a multiple of 32"),
        (p().tensor("w", &[4], 0, 64), "the file has"),
        (p().tensor("w", &[4], 0, big - 31), "the file has"),
        (p().tensor("w", &[17], 0, 0), "the file has"),
        (
            p().tensor("a", &[9], 0, 0).tensor("b", &[4], 0, 32),
            "within another",
        ),
        (
            p().tensor("a", &[4], 0, 32).tensor("b", &[9], 0, 0),
            "within another",
        ),
        (
            p().tensor("a", &[4], 0, 0).tensor("b", &[4], 0, 0),
            "within another",
        ),
        (
            p().tensor("a", &[4], 99, 0).tensor("b", &[4], 99, 0),
            "within another",
        ),
        (p().tensor("w", &[4], 99, 64), "the file has"),
    ] {
        let (what, _) = refused(&parts.bytes());
        assert!(what.contains(expected), "expected {expected}: {what}");
    }
    let mut name = p().tensor("w", &[4], 0, 0);
    name.tensors[0][8] = 0xff;
    assert!(refused(&name.bytes()).0.contains("not UTF-8"));
}

#[test]
fn other_alignments_holes_and_any_order_of_the_data_are_read() {
    let mut parts = Parts::new()
        .pair("general.alignment", 4, &8u32.to_le_bytes())
        .tensor("second", &[2], 0, 16)
        .tensor("first", &[3, 1], 0, 0);
    parts.data = 0;
    let mut bytes = parts.bytes();
    let header = 24 + parts.pairs.concat().len() + parts.tensors.concat().len();
    bytes.truncate(header.next_multiple_of(8));
    bytes.extend((0..6).flat_map(|i| (i as f32).to_le_bytes()));
    let gguf = open_bytes(&bytes).unwrap();
    assert_eq!(
        gguf.get("first").unwrap().to_f32().unwrap(),
        [0.0, 1.0, 2.0]
    );
    assert_eq!(gguf.get("first").unwrap().shape, [1, 3]);
    assert_eq!(gguf.get("second").unwrap().to_f32().unwrap(), [4.0, 5.0]);
    let names: Vec<_> = gguf.tensors().map(|t| t.name).collect();
    assert_eq!(names, ["second", "first"]);
}

#[test]
fn a_tensor_of_a_type_that_is_not_read_is_listed_and_told_when_asked_for() {
    let parts = Parts::new()
        .tensor("odd", &[32, 1 << 40], 20, 0)
        .tensor("w", &[8], 0, 32);
    let gguf = open_bytes(&parts.bytes()).unwrap();
    let odd = gguf.get("odd").unwrap();
    assert_eq!((odd.block_type, odd.ggml_type), (None, 20));
    assert_eq!((odd.shape, odd.bytes.len()), (&[1 << 40, 32][..], 32));
    let told = odd.to_f32().unwrap_err().to_string();
    assert!(told.contains("\"odd\"") && told.contains("20"), "{told}");
    assert_eq!(gguf.get("w").unwrap().to_f32().unwrap(), [0.0; 8]);
}

fn read_everything(gguf: &Gguf) {
    for (key, _) in gguf.metadata() {
        let _ = (gguf.u64(key), gguf.f64(key), gguf.i32s(key));
        if let Ok(strings) = gguf.strings(key) {
            assert_eq!(strings.iter().count(), strings.len());
        }
    }
    for tensor in gguf.tensors() {
        assert_eq!(gguf.get(tensor.name).unwrap().bytes, tensor.bytes);
        if let Ok(values) = tensor.to_f32() {
            assert_eq!(values.len(), tensor.num_elements());
        }
    }
}

proptest! {
    #[test]
    fn a_damaged_file_is_an_error_or_stays_in_bounds(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in any::<prop::sample::Index>(),
        cuts in any::<bool>(),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.gguf");
        let all: Vec<_> = BlockType::ALL.iter().map(|t| (*t, bytes_of(*t, 256))).collect();
        let sources: Vec<_> =
            all.iter().map(|(t, bytes)| source(t.name(), &[256], *t, bytes)).collect();
        write_gguf(&path, &every_value(), &sources).unwrap();
        let mut bytes = fs::read(&path).unwrap();
        let header = bytes.len() - all.iter().map(|(_, b)| b.len()).sum::<usize>();
        for (at, value) in changes {
            // In the part that is judged: the elements may be anything.
            let at = at.index(header);
            bytes[at] = value;
        }
        if cuts {
            bytes.truncate(cut.index(bytes.len()));
        }
        if let Ok(gguf) = open_bytes(&bytes) {
            read_everything(&gguf);
        }
    }

    #[test]
    fn an_invented_tensor_is_an_error_or_stays_in_bounds(
        ne in prop::collection::vec(
            prop_oneof![1u64..5, Just(32), Just(256), Just(1 << 32), any::<u64>()], 0..6),
        ggml_type in 0u32..32,
        offset in prop_oneof![Just(0u64), Just(32), Just(64), Just(u64::MAX - 31), any::<u64>()],
    ) {
        let mut parts = Parts::new().tensor("a", &ne, ggml_type, offset).tensor("b", &[4], 0, 0);
        parts.data = 300;
        if let Ok(gguf) = open_bytes(&parts.bytes()) {
            read_everything(&gguf);
        }
    }
}

/// The folder of published files, unless it is not there.
fn published() -> Option<PathBuf> {
    let default = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/reference");
    let root = std::env::var_os("DOKJA_REFERENCE_DIR").map_or(default, PathBuf::from);
    let folder = root.join("exaone_moe_256");
    if folder.join("gguf/expected.json").exists() {
        return Some(folder);
    }
    let root = root.display();
    println!("skipped exaone_moe_256/gguf: not in {root} (set DOKJA_REFERENCE_DIR)");
    None
}

#[test]
fn published_files_have_their_published_values() {
    let Some(folder) = published() else { return };
    let expected = fs::read(folder.join("gguf/expected.json")).unwrap();
    let expected: serde_json::Value = serde_json::from_slice(&expected).unwrap();
    let mut types = Vec::new();
    for (file, facts) in expected["files"].as_object().unwrap() {
        let gguf = Gguf::open(&folder.join("gguf").join(file)).unwrap();
        assert_eq!(gguf.str("general.architecture").unwrap(), "exaone-moe");
        assert_eq!(gguf.u64("exaone-moe.block_count").unwrap(), 5);
        assert_eq!(gguf.strings("tokenizer.ggml.tokens").unwrap().len(), 512);
        for (name, facts) in facts["dequantized"].as_object().unwrap() {
            let tensor = gguf.get(name).unwrap();
            let block_type = tensor.known_type().unwrap();
            assert_eq!(block_type.name(), facts["type"], "{file}, {name}");
            let values = tensor.to_f32().unwrap();
            let first = facts["first_512"].as_array().unwrap();
            assert!(first.len() == values.len().min(512), "{file}, {name}");
            for (i, (got, expected)) in values.iter().zip(first).enumerate() {
                let expected = expected.as_f64().unwrap() as f32;
                let same = got.to_bits() == expected.to_bits();
                assert!(same, "{file}, {name}, value {i}: {got} for {expected}");
            }
            types.push(block_type);
        }
    }
    types.sort();
    types.dedup();
    assert!(types.len() >= 8, "{types:?}");
}

#[test]
fn our_blocks_lose_no_more_than_those_of_the_published_files() {
    let Some(folder) = published() else { return };
    let weights = SafeTensors::open(&folder).unwrap();
    let values = weights.get("lm_head.weight").unwrap().to_f32().unwrap();
    for file in ["Q8_0", "Q6_K", "Q5_K", "Q4_K", "Q4_0", "bf16"] {
        let gguf = Gguf::open(&folder.join(format!("gguf/{file}.gguf"))).unwrap();
        let tensor = gguf.get("output.weight").unwrap();
        let block_type = tensor.known_type().unwrap();
        let mut bytes = vec![0; tensor.bytes.len()];
        block_type.quantise(&values, &mut bytes).unwrap();
        let mut ours = vec![0.0; values.len()];
        block_type.dequantise(&bytes, &mut ours).unwrap();
        let theirs = nmse(&tensor.to_f32().unwrap(), &values).sqrt();
        let ours = nmse(&ours, &values).sqrt();
        assert!(
            ours <= theirs * 1.001,
            "{block_type}: {ours:.6} for {theirs:.6}"
        );
    }
}
