//! Files of every kind, plain and compressed, honest and hostile.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    sync::Arc,
};

use dokja_data::{
    Document, Record,
    extract::{ExtractError, Limits, Position, SkipReason, Skips, extract},
};
use parquet::{
    data_type::{ByteArray, ByteArrayType},
    file::{properties::WriterProperties, writer::SerializedFileWriter},
    schema::parser::parse_message_type,
};
use proptest::prelude::*;

fn read_with(path: &Path, limits: &Limits) -> Result<(Vec<Document>, Skips), ExtractError> {
    let mut documents = Vec::new();
    let position = Position::default();
    let skips = extract(path, limits, &position, &mut |record| {
        if let Record::Document(document) = record {
            documents.push(document);
        }
        Ok::<(), ExtractError>(())
    })?;
    // Of what was read to its end, every byte was seen.
    let file_bytes = fs::metadata(path).expect("it was just read").len();
    if !skips.counts.contains_key(&SkipReason::TooLong) {
        assert_eq!(position.bytes(), file_bytes, "{}", path.display());
    }
    Ok((documents, skips))
}

fn read(path: &Path) -> Result<(Vec<Document>, Skips), ExtractError> {
    read_with(path, &Limits::default())
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).expect("memory takes it");
    encoder.finish().expect("memory takes it")
}

fn zstandard(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 3).expect("memory takes it")
}

struct Scratch(tempfile::TempDir);

impl Scratch {
    fn new() -> Scratch {
        Scratch(tempfile::tempdir().expect("a scratch folder"))
    }

    fn file(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.0.path().join(name);
        fs::write(&path, bytes).expect("the scratch folder takes it");
        path
    }
}

fn parquet_file(rows: &[(Option<&str>, &str)]) -> Vec<u8> {
    let schema = "message m { optional binary text (UTF8); required binary lang (UTF8); \
                  required int64 n; }";
    let schema = Arc::new(parse_message_type(schema).expect("a schema"));
    let props = Arc::new(WriterProperties::builder().build());
    let mut bytes = Vec::new();
    let mut writer = SerializedFileWriter::new(&mut bytes, schema, props).expect("a writer");
    let mut group = writer.next_row_group().expect("a row group");
    let mut column = group.next_column().expect("text").expect("text");
    let texts: Vec<ByteArray> = rows
        .iter()
        .filter_map(|(t, _)| t.map(ByteArray::from))
        .collect();
    let levels: Vec<i16> = rows.iter().map(|(t, _)| i16::from(t.is_some())).collect();
    column
        .typed::<ByteArrayType>()
        .write_batch(&texts, Some(&levels), None)
        .expect("written");
    column.close().expect("closed");
    let mut column = group.next_column().expect("lang").expect("lang");
    let langs: Vec<ByteArray> = rows.iter().map(|(_, l)| ByteArray::from(*l)).collect();
    column
        .typed::<ByteArrayType>()
        .write_batch(&langs, None, None)
        .expect("written");
    column.close().expect("closed");
    let mut column = group.next_column().expect("n").expect("n");
    let numbers: Vec<i64> = (0..rows.len() as i64).collect();
    column
        .typed::<parquet::data_type::Int64Type>()
        .write_batch(&numbers, None, None)
        .expect("written");
    column.close().expect("closed");
    group.close().expect("closed");
    writer.close().expect("closed");
    bytes
}

#[test]
fn every_kind_gives_the_same_documents_plain_and_compressed() {
    let scratch = Scratch::new();
    let parquet = parquet_file(&[(Some("등대"), "ko"), (Some("pier"), "en")]);
    let cases: [(&str, &[u8], usize); 5] = [
        ("a.txt", "등대와 바다\n".as_bytes(), 1),
        ("a.md", b"# Pier\n\nlong\n", 1),
        ("a.html", b"<p>Pier</p>", 1),
        (
            "a.jsonl",
            b"{\"text\":\"x\"}\n{\"text\":\"y\",\"lang\":\"en\",\"source\":\"s\"}",
            2,
        ),
        ("a.parquet", &parquet, 2),
    ];
    for (name, bytes, count) in cases {
        let (plain, skips) = read(&scratch.file(name, bytes)).expect(name);
        assert_eq!((plain.len(), skips.total()), (count, 0), "{name}");
        // The compression is told by the bytes, not by the name.
        for (other, packed) in [
            (format!("{name}.gz"), gzip(bytes)),
            (format!("{name}.zst"), zstandard(bytes)),
            (format!("b{name}"), zstandard(bytes)),
        ] {
            assert_eq!(
                read(&scratch.file(&other, &packed)).expect(&other).0,
                plain,
                "{other}"
            );
        }
    }
}

#[test]
fn parquet_rows_without_text_are_counted_and_columns_are_named() {
    let scratch = Scratch::new();
    let bytes = parquet_file(&[(Some("a"), "ko"), (None, "ko"), (Some("b"), "en")]);
    let (documents, skips) = read(&scratch.file("a.parquet", &bytes)).expect("it is whole");
    let texts: Vec<_> = documents
        .iter()
        .map(|d| (d.text.as_str(), d.lang.as_str()))
        .collect();
    assert_eq!(texts, [("a", "ko"), ("b", "en")]);
    assert_eq!(
        (skips.examples[0].line, skips.examples[0].reason),
        (2, SkipReason::NoText)
    );
}

#[test]
fn bad_lines_are_skipped_with_their_numbers() {
    let scratch = Scratch::new();
    let mut bytes = b"{\"text\":\"one\"}\nnot json\n{\"text\":5}\n\n".to_vec();
    bytes.extend_from_slice(b"{\"text\":\"\xff\"}\n");
    bytes.extend_from_slice(format!("{{\"text\":\"{}\"}}\n", "x".repeat(200)).as_bytes());
    bytes.extend_from_slice(b"{\"text\":\"two\"}");
    let limits = Limits {
        max_document_bytes: 100,
        ..Limits::default()
    };
    let (documents, skips) = read_with(&scratch.file("a.jsonl", &bytes), &limits).expect("read");
    let texts: Vec<_> = documents.iter().map(|d| d.text.as_str()).collect();
    assert_eq!(texts, ["one", "two"]);
    let found: Vec<_> = skips.examples.iter().map(|s| (s.line, s.reason)).collect();
    assert_eq!(
        found,
        [
            (2, SkipReason::InvalidJson),
            (3, SkipReason::InvalidJson),
            (5, SkipReason::InvalidUtf8),
            (6, SkipReason::TooLong)
        ]
    );
}

#[test]
fn long_text_is_cut_without_loss_and_bad_parts_are_skipped() {
    let scratch = Scratch::new();
    let limits = Limits {
        max_document_bytes: 64,
        ..Limits::default()
    };
    let text: String = (0..60).map(|i| format!("{i}번째 줄이다.\n")).collect();
    let (documents, _) = read_with(&scratch.file("a.txt", text.as_bytes()), &limits).expect("read");
    assert!(documents.len() > 5 && documents.iter().all(|d| d.text.len() <= 64));
    assert_eq!(
        documents
            .iter()
            .map(|d| d.text.as_str())
            .collect::<String>(),
        text
    );

    let mut bytes = text.into_bytes();
    bytes[200] = 0xff;
    let (documents, skips) = read_with(&scratch.file("b.txt", &bytes), &limits).expect("read");
    assert!(documents.len() > 5);
    assert_eq!(skips.counts[&SkipReason::InvalidUtf8], 1);
    let line = bytes[..200].iter().filter(|&&b| b == b'\n').count() as u64 + 1;
    assert!(skips.examples[0].line.abs_diff(line) <= 1);
}

#[test]
fn a_decompression_bomb_is_stopped() {
    let scratch = Scratch::new();
    let limits = Limits {
        max_expansion: 2,
        ..Limits::default()
    };
    let bomb = zstandard(&vec![b'\n'; 80 << 20]);
    for name in ["a.txt", "a.jsonl"] {
        let error = read_with(&scratch.file(name, &bomb), &limits).expect_err("it is a bomb");
        assert!(matches!(error, ExtractError::TooLarge { .. }), "{error}");
    }
    let limits = Limits {
        max_in_memory_bytes: 1000,
        ..Limits::default()
    };
    let parquet = gzip(&parquet_file(&[(Some(&"x".repeat(5000)), "en")]));
    let error = read_with(&scratch.file("a.parquet", &parquet), &limits).expect_err("too large");
    assert!(
        matches!(
            error,
            ExtractError::TooLarge {
                limit_bytes: 1000,
                ..
            }
        ),
        "{error}"
    );
}

#[test]
fn damaged_files_are_errors_that_name_the_file() {
    let scratch = Scratch::new();
    let text: String = (0..9000)
        .map(|i| format!("{{\"text\":\"line {i}\"}}\n"))
        .collect();
    for (name, packed) in [
        ("a.jsonl.gz", gzip(text.as_bytes())),
        ("b.jsonl.zst", zstandard(text.as_bytes())),
    ] {
        let error = read(&scratch.file(name, &packed[..packed.len() / 2])).expect_err("it is cut");
        assert!(matches!(error, ExtractError::Damaged { .. }), "{error}");
        assert!(error.to_string().contains(name));
    }
    let error = read(&scratch.file("a.parquet", b"PAR1 no PAR1")).expect_err("no parquet");
    assert!(matches!(error, ExtractError::Parquet { .. }), "{error}");
    let error = read(&scratch.file("a.xyz", b"x")).expect_err("no kind");
    assert!(matches!(error, ExtractError::UnknownKind { .. }), "{error}");
    assert!(read(&scratch.0.path().join("absent.txt")).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_bytes_under_any_name_do_not_panic(
        bytes in proptest::collection::vec(any::<u8>(), 0..300),
        magic in prop_oneof![
            Just(vec![]),
            Just(vec![0x1f, 0x8b]),
            Just(vec![0x28, 0xb5, 0x2f, 0xfd]),
            Just(b"PAR1".to_vec())
        ],
    ) {
        let scratch = Scratch::new();
        let bytes = [magic, bytes].concat();
        for name in ["a.txt", "a.md", "a.html", "a.jsonl"] {
            let _ = read(&scratch.file(name, &bytes));
        }
    }

    #[test]
    fn a_parquet_file_with_changed_bytes_is_read_or_refused(
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let scratch = Scratch::new();
        let mut bytes = parquet_file(&[(Some("a lighthouse"), "en"), (Some("등대"), "ko")]);
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        // What a changed index no longer names is not read: the position says nothing here.
        let path = scratch.file("a.parquet", &bytes);
        let mut take = |_: Record| Ok::<(), ExtractError>(());
        let _ = extract(&path, &Limits::default(), &Position::default(), &mut take);
    }

    #[test]
    fn json_lines_give_back_what_was_written(texts in proptest::collection::vec("\\PC{0,40}", 0..20)) {
        let scratch = Scratch::new();
        let lines: String = texts
            .iter()
            .map(|text| serde_json::json!({ "text": text }).to_string() + "\n")
            .collect();
        let (documents, skips) = read(&scratch.file("a.jsonl", lines.as_bytes())).expect("read");
        prop_assert_eq!(skips.total(), 0);
        prop_assert_eq!(documents.into_iter().map(|d| d.text).collect::<Vec<_>>(), texts);
    }
}
