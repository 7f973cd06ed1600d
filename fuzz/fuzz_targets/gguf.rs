//! A GGUF file of any bytes is refused in one error, or every key and tensor of it is found by name, every
//! tensor lies in the file, and those of a known type have as many values as their shape says.

#![no_main]

use formats::gguf::{Array, Gguf, GgufTensorSource, Strings, Value, write_gguf};
use libfuzzer_sys::fuzz_target;
use numerics::BlockType;
use std::path::Path;

fuzz_target!(init: dokja_fuzz::plant(&seeds()), |bytes: &[u8]| {
    dokja_fuzz::budget::within(1 << 20, bytes.len(), || read(bytes));
});

fn read(bytes: &[u8]) {
    let Ok(file) = Gguf::from_bytes(Path::new("fuzzed"), bytes) else {
        return;
    };
    for (key, value) in file.metadata() {
        assert!(
            file.value(key)
                .is_some_and(|found| std::ptr::eq(found, value))
        );
        let _ = (file.u64(key), file.f64(key), file.bool(key), file.str(key));
        let _ = (file.i32s(key), file.f32s(key), file.bools(key));
        if let Ok(strings) = file.strings(key) {
            assert_eq!(strings.iter().count(), strings.len());
        }
        let _ = value.described();
    }
    let mut total = 0;
    for tensor in file.tensors() {
        let found = file
            .get(tensor.name)
            .expect("a tensor that is listed is there");
        assert!(std::ptr::eq(found.bytes, tensor.bytes));
        total += tensor.bytes.len();
        if let Ok(values) = tensor.to_f32() {
            assert_eq!(values.len(), tensor.num_elements());
        }
    }
    assert!(total <= bytes.len(), "tensors do not overlap");
}

fn seeds() -> Vec<Vec<u8>> {
    let dir = tempfile::tempdir().expect("a scratch folder");
    let write = |metadata: &[(&str, Value)], types: &[BlockType]| {
        let path = dir.path().join("seed");
        let metadata: Vec<(String, Value)> = metadata
            .iter()
            .map(|(key, value)| (key.to_string(), value.clone()))
            .collect();
        let source = |block_type: &BlockType| {
            let len = block_type.bytes_for(256).expect("whole blocks");
            GgufTensorSource {
                name: block_type.name(),
                shape: &[1, 256],
                block_type: *block_type,
                data: Box::new(move |w| Ok(w.write_all(&vec![0x3C; len])?)),
            }
        };
        let sources: Vec<GgufTensorSource> = types.iter().map(source).collect();
        write_gguf(&path, &metadata, &sources).expect("a valid file");
        std::fs::read(path).expect("the file just written")
    };
    let strings: Strings = ["", "a", "the sea"].into_iter().collect();
    let values = [
        ("u8", Value::U8(255)),
        ("i16", Value::I16(-2)),
        ("u32", Value::U32(1 << 31)),
        ("f32", Value::F32(1e-5)),
        ("bool", Value::Bool(true)),
        ("string", Value::String("two\nlines".into())),
        ("u64", Value::U64(u64::MAX)),
        ("f64", Value::F64(0.1)),
        ("i32s", Value::Array(Array::I32(vec![3, -3]))),
        ("f32s", Value::Array(Array::F32(vec![0.5, f32::NAN]))),
        ("bools", Value::Array(Array::Bool(vec![true, false]))),
        ("strings", Value::Array(Array::String(strings))),
        ("general.alignment", Value::U32(64)),
    ];
    vec![
        write(&[], &[]),
        write(&values[..12], &[]),
        write(&[], &[BlockType::F32]),
        write(&[], &BlockType::ALL),
    ]
}
