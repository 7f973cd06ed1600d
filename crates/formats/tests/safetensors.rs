//! The safetensors reader against hostile headers, and the writer against the format's own library.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use dokja_formats as formats;
use formats::safetensors::{
    Dtype, SafeTensors, SafeTensorsError, TensorData, TensorSource, sha256_of_tensors,
    write_safetensors,
};
use proptest::prelude::*;

fn sources<'a>(matrix: &'a [f32], ids: &'a [i64]) -> [TensorSource<'a>; 4] {
    [
        TensorSource {
            name: "b.weight",
            shape: &[2, 3],
            data: TensorData::F32(matrix),
        },
        TensorSource {
            name: "a.weight",
            shape: &[3, 2],
            data: TensorData::Bf16(matrix),
        },
        TensorSource {
            name: "ids",
            shape: &[2],
            data: TensorData::I64(ids),
        },
        TensorSource {
            name: "scalar",
            shape: &[],
            data: TensorData::F32(&matrix[..1]),
        },
    ]
}

const MATRIX: [f32; 6] = [1.0, -2.5, 3.0e-3, f32::MAX, 0.0, -0.0];

fn write_sample(dir: &Path) -> PathBuf {
    let path = dir.join("model.safetensors");
    let metadata = BTreeMap::from([("format".to_string(), "pt".to_string())]);
    let hash = write_safetensors(&path, &sources(&MATRIX, &[7, -1]), &metadata).unwrap();
    assert_eq!(hash, formats::hash::hash_file(&path).unwrap());
    assert_eq!(
        hash.sha256,
        sha256_of_tensors(&sources(&MATRIX, &[7, -1]), &metadata).unwrap()
    );
    path
}

#[test]
fn what_is_written_reads_back() {
    let dir = tempfile::tempdir().unwrap();
    write_sample(dir.path());
    let tensors = SafeTensors::open(dir.path()).unwrap();
    assert_eq!(
        tensors.names().collect::<Vec<_>>(),
        ["a.weight", "b.weight", "ids", "scalar"]
    );
    assert_eq!(tensors.metadata()["format"], "pt");
    let b = tensors.get("b.weight").unwrap();
    assert_eq!((b.dtype, b.shape), (Dtype::F32, &[2usize, 3][..]));
    let bits = |v: &[f32]| v.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
    assert_eq!(bits(&b.to_f32().unwrap()), bits(&MATRIX));
    let rounded = tensors.get("a.weight").unwrap().to_f32().unwrap();
    assert_eq!(rounded[1], -2.5);
    assert!((rounded[2] - 3.0e-3).abs() < 3.0e-3 / 256.0);
    assert_eq!(tensors.get("ids").unwrap().to_i64().unwrap(), [7, -1]);
    assert_eq!(tensors.get("scalar").unwrap().shape, &[] as &[usize]);
    assert!(matches!(
        tensors.get("no"),
        Err(SafeTensorsError::Missing { .. })
    ));
    assert!(matches!(
        tensors.get("ids").unwrap().to_f32(),
        Err(SafeTensorsError::Dtype { .. })
    ));
    let short = tensors.get("ids").unwrap().copy_to_f32(&mut [0.0]);
    assert!(matches!(
        short,
        Err(SafeTensorsError::Len {
            found: 2,
            expected: 1,
            ..
        })
    ));
}

#[test]
fn the_formats_own_library_reads_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = fs::read(write_sample(dir.path())).unwrap();
    let theirs = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let ours = SafeTensors::open(dir.path()).unwrap();
    assert_eq!(theirs.len(), ours.len());
    for name in ours.names() {
        assert_eq!(
            theirs.tensor(name).unwrap().data(),
            ours.get(name).unwrap().bytes
        );
        assert_eq!(
            theirs.tensor(name).unwrap().shape(),
            ours.get(name).unwrap().shape
        );
    }
}

#[test]
fn order_of_the_tensors_does_not_change_a_byte() {
    let mut reversed = sources(&MATRIX, &[7, -1]);
    reversed.reverse();
    let none = BTreeMap::new();
    assert_eq!(
        sha256_of_tensors(&reversed, &none).unwrap(),
        sha256_of_tensors(&sources(&MATRIX, &[7, -1]), &none).unwrap()
    );
}

#[test]
fn a_shape_that_does_not_fit_or_a_name_given_twice_is_not_written() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.safetensors");
    let data = TensorData::F32(&MATRIX);
    let wrong = [TensorSource {
        name: "w",
        shape: &[7],
        data,
    }];
    let twice = [TensorSource {
        name: "w",
        shape: &[6],
        data,
    }; 2];
    for tensors in [&wrong[..], &twice[..]] {
        let failed = write_safetensors(&path, tensors, &BTreeMap::new());
        assert!(matches!(failed, Err(SafeTensorsError::Write { .. })));
    }
    assert!(!path.exists());
}

#[test]
fn shards_are_joined_by_their_index() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let all = sources(&MATRIX, &[7, -1]);
    write_safetensors(&at("one.safetensors"), &all[..2], &BTreeMap::new()).unwrap();
    write_safetensors(&at("two.safetensors"), &all[2..], &BTreeMap::new()).unwrap();
    let index = |ids: &str| {
        let text = format!(
            r#"{{"weight_map": {{"a.weight": "one.safetensors", "b.weight": "one.safetensors",
            "scalar": "two.safetensors", "ids": "{ids}"}}}}"#
        );
        fs::write(at("model.safetensors.index.json"), text).unwrap();
        SafeTensors::open(dir.path())
    };
    assert_eq!(index("two.safetensors").unwrap().len(), 4);
    assert!(matches!(
        index("one.safetensors"),
        Err(SafeTensorsError::Index { .. })
    ));
    assert!(matches!(
        index("../two.safetensors"),
        Err(SafeTensorsError::ShardName { .. })
    ));
    assert!(matches!(
        index("gone.safetensors"),
        Err(SafeTensorsError::File(_))
    ));
}

fn open_bytes(bytes: &[u8]) -> Result<SafeTensors, SafeTensorsError> {
    SafeTensors::from_bytes(Path::new("bytes.safetensors"), bytes)
}

fn with_header(header: &str, data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    bytes.resize(bytes.len() + data, 0);
    bytes
}

#[test]
fn offsets_that_wrap_around_are_refused() {
    // Nine tensors of nearly 2^61 bytes each: their ends sum up to the edge of 64 bits.
    let each = 1u64 << 61;
    let tensors: Vec<String> = (0..8)
        .map(|i| {
            let (start, last) = (i * each, i == 7);
            let len = if last { each - 1 } else { each };
            format!(
                r#""t{i}":{{"dtype":"U8","shape":[{len}],"data_offsets":[{start},{}]}}"#,
                start + len
            )
        })
        .collect();
    let failed = open_bytes(&with_header(&format!("{{{}}}", tensors.join(",")), 4)).unwrap_err();
    assert!(
        failed.to_string().contains("a tensor ends at byte"),
        "{failed}"
    );
}

#[test]
fn hostile_headers_are_named() {
    let twice = r#"{"t":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},
        "t":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#;
    let hole = r#"{"t":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#;
    let shape = r#"{"t":{"dtype":"F32","shape":[4294967296,4294967296,2],"data_offsets":[0,8]}}"#;
    let backward = r#"{"t":{"dtype":"F32","shape":[0],"data_offsets":[8,0]}}"#;
    let deep = format!("{{\"__metadata__\":{}", "[".repeat(100_000));
    for header in [twice, hole, shape, backward, &deep, "", "[]", "{\"t\":1}"] {
        let failed = open_bytes(&with_header(header, 8));
        assert!(matches!(failed, Err(SafeTensorsError::Header { .. })));
    }
    let mut long = with_header("{}", 0);
    long[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    assert!(matches!(
        open_bytes(&long),
        Err(SafeTensorsError::Header { .. })
    ));
    assert!(matches!(
        open_bytes(b"1234567"),
        Err(SafeTensorsError::Header { .. })
    ));
    assert!(open_bytes(&with_header("{}", 0)).unwrap().is_empty());
}

fn read_everything(tensors: &SafeTensors) {
    for name in tensors.names() {
        if let Ok(view) = tensors.get(name) {
            let _ = (view.to_f32(), view.to_i64());
        }
    }
}

proptest! {
    #[test]
    fn a_damaged_file_is_an_error_or_stays_in_bounds(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        cut in any::<prop::sample::Index>(),
        cuts in any::<bool>(),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let mut bytes = fs::read(write_sample(dir.path())).unwrap();
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if cuts {
            bytes.truncate(cut.index(bytes.len()));
        }
        if let Ok(tensors) = open_bytes(&bytes) {
            read_everything(&tensors);
        }
    }

    #[test]
    fn an_invented_header_is_an_error_or_stays_in_bounds(
        dtype in prop::sample::select(vec!["F32", "BF16", "F16", "I64", "U8", "F4", "X"]),
        shape in prop::collection::vec(prop_oneof![0u64..5, Just(1 << 32), Just(u64::MAX)], 0..4),
        start in prop_oneof![0u64..9, Just(u64::MAX)],
        end in prop_oneof![0u64..65, Just(u64::MAX)],
        data in 0usize..65,
    ) {
        let header =
            format!(
                r#"{{"t":{{"dtype":"{dtype}","shape":{shape:?},
                "data_offsets":[{start},{end}]}}}}"#
            );
        if let Ok(tensors) = open_bytes(&with_header(&header, data)) {
            read_everything(&tensors);
        }
    }
}
