//! A safetensors file of any bytes is refused in one error, or every tensor of it lies in the file and has
//! as many elements as its shape says.

#![no_main]

use formats::safetensors::{Dtype, SafeTensors, TensorData, TensorSource, write_safetensors};
use libfuzzer_sys::fuzz_target;
use std::path::Path;

fuzz_target!(init: dokja_fuzz::plant(&seeds()), |bytes: &[u8]| {
    dokja_fuzz::budget::within(1 << 20, bytes.len(), || read(bytes));
});

fn read(bytes: &[u8]) {
    let Ok(file) = SafeTensors::from_bytes(Path::new("fuzzed"), bytes) else {
        return;
    };
    let mut total = 0;
    for name in file.names() {
        let (_, _, len) = file
            .describe(name)
            .expect("a tensor that is listed is there");
        total += len;
        let Ok(view) = file.get(name) else {
            continue;
        };
        assert_eq!(view.shape.iter().product::<usize>(), view.num_elements());
        match (view.to_f32(), view.to_i64()) {
            (Ok(values), Err(_)) => assert_eq!(values.len(), view.num_elements()),
            (Err(_), Ok(values)) => assert_eq!(values.len(), view.num_elements()),
            other => panic!("{name} is {} and reads as {other:?}", view.dtype),
        }
    }
    assert!(total <= bytes.len(), "tensors do not overlap");
}

fn seeds() -> Vec<Vec<u8>> {
    let dir = tempfile::tempdir().expect("a scratch folder");
    let write = |sources: &[TensorSource]| {
        let path = dir.path().join("seed");
        let metadata = [("format".to_string(), "pt".to_string())].into();
        write_safetensors(&path, sources, &metadata).expect("a valid file");
        std::fs::read(path).expect("the file just written")
    };
    let floats = [0.5, -1.0, f32::NAN, 3.0, f32::INFINITY, -0.0];
    let tensor = |name, shape, data| TensorSource { name, shape, data };
    let made = |dtype, len| TensorData::Made {
        dtype,
        len,
        write: &|w| w.write_all(&[0x7F; 6]),
    };
    let some = [
        tensor("a", &[2, 3], TensorData::F32(&floats)),
        tensor("b", &[6, 1], TensorData::Bf16(&floats)),
        tensor("c", &[2], TensorData::I64(&[7, -1])),
        tensor("d", &[], TensorData::F32(&floats[..1])),
        tensor("e", &[3], made(Dtype::F16, 3)),
        tensor("f", &[6], made(Dtype::F8E4M3, 6)),
    ];
    vec![write(&[]), write(&some[..1]), write(&some)]
}
