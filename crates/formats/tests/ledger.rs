//! The ledger under attack and after accidents: no byte, line or key can be changed unnoticed, and
//! a process killed in the middle of a write leaves nothing that the next one cannot clear up.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::fs;
use std::path::Path;

use dokja_formats as formats;
use formats::keys::Key;
use formats::ledger::chain::verify_bytes;
use formats::ledger::records::{Checkpoint, Eval, Genesis, Machine, Resume};
use formats::ledger::{Event, Fault, Ledger, LedgerError, verify_chain};
use formats::run_dir::{RunDir, Stage};
use proptest::prelude::*;

fn key() -> Key {
    Key::from_secret([42; 32])
}

fn genesis() -> Event {
    Event::Genesis(Genesis {
        dokja_version: "0.1.0".into(),
        code_commit: None,
        machine: Machine {
            cpu: "a \"cpu\"".into(),
            isa: "avx2".into(),
            cores: 2,
            memory_bytes: 1 << 33,
        },
        created: String::new(),
    })
}

/// Five records about two files.
fn sample(dir: &Path) -> Vec<u8> {
    let run = RunDir::new(dir);
    let mut ledger = Ledger::open_or_create(dir, key()).unwrap();
    ledger.append(&genesis(), vec![]).unwrap();
    fs::write(run.tokenizer(), b"{}").unwrap();
    for step in 1..=3 {
        let file = ledger.artefact(&run.tokenizer()).unwrap();
        let checkpoint = Checkpoint {
            stage: Stage::Pretrain,
            step,
            tokens: step * 100,
            weights_sha256: "ab".repeat(32),
            optimizer_sha256: "cd".repeat(32),
            parent_weights_sha256: "ef".repeat(32),
        };
        ledger
            .append(&Event::Checkpoint(checkpoint), vec![file])
            .unwrap();
    }
    let eval = Eval {
        suite: "한국어 world".into(),
        weights_sha256: "ab".repeat(32),
        score: 0.1 + 0.2,
        ci95: Some([1e-9, 1e21]),
    };
    ledger.append(&Event::Eval(eval), vec![]).unwrap();
    fs::read(run.ledger()).unwrap()
}

fn has_fault(bytes: &[u8]) -> bool {
    let chain = verify_bytes(bytes);
    chain.first_fault().is_some() || chain.tail.is_some()
}

fn lines(bytes: &[u8]) -> Vec<&[u8]> {
    bytes.split_inclusive(|b| *b == b'\n').collect()
}

#[test]
fn an_untouched_ledger_has_no_fault_and_goes_on_after_reopening() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = sample(dir.path());
    assert!(!has_fault(&bytes));
    let mut ledger = Ledger::open_or_create(dir.path(), key()).unwrap();
    assert_eq!(ledger.records().len(), 5);
    let head = ledger.head().to_string();
    let resumed = Event::Resume(Resume {
        stage: Stage::Pretrain,
        step: 3,
    });
    let record = ledger.append(&resumed, vec![]).unwrap();
    assert_eq!((record.seq, record.prev.as_str()), (5, head.as_str()));
    assert_eq!(record.event().unwrap(), resumed);
    let chain = verify_chain(dir.path()).unwrap();
    assert!(chain.first_fault().is_none() && chain.records.len() == 6);
    assert_eq!(chain.head(), ledger.head());
}

#[test]
fn every_flipped_byte_is_found_in_its_line() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = sample(dir.path());
    let mut line = 1;
    for at in 0..bytes.len() {
        for mask in [0x01, 0x20, 0x80] {
            let mut changed = bytes.clone();
            changed[at] ^= mask;
            let chain = verify_bytes(&changed);
            let found = match chain.first_fault() {
                Some((check, _)) => check.line,
                None => chain.records.len() + usize::from(chain.tail.is_some()),
            };
            assert_eq!(found, line, "byte {at} xor {mask:#x}");
        }
        line += usize::from(bytes[at] == b'\n');
    }
}

#[test]
fn removed_repeated_reordered_and_inserted_lines_are_found() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = sample(dir.path());
    let all = lines(&bytes);
    for i in 0..all.len() {
        let mut repeated = all.clone();
        repeated.insert(i, all[i]);
        assert!(has_fault(&repeated.concat()), "line {i} repeated");
        if i + 1 < all.len() {
            let mut removed = all.clone();
            removed.remove(i);
            let chain = verify_bytes(&removed.concat());
            let (check, _) = chain.first_fault().unwrap();
            assert_eq!(check.position, i as u64, "line {i} removed");
            assert!(check.faults.contains(&Fault::Seq {
                expected: i as u64,
                found: i as u64 + 1
            }));
            let mut swapped = all.clone();
            swapped.swap(i, i + 1);
            assert!(
                has_fault(&swapped.concat()),
                "lines {i} and {} swapped",
                i + 1
            );
        }
        let mut inserted = all.clone();
        inserted.insert(i, b"\n");
        assert!(has_fault(&inserted.concat()), "empty line before {i}");
    }
}

#[test]
fn a_record_signed_by_another_key_is_found() {
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let bytes = sample(dir.path());
    let stranger = Key::from_secret([1; 32]);
    let mut ledger = Ledger::open_or_create(other.path(), stranger.clone()).unwrap();
    ledger.append(&genesis(), vec![]).unwrap();
    drop(ledger);
    let foreign = fs::read(RunDir::new(other.path()).ledger()).unwrap();

    let mut spliced = lines(&bytes);
    spliced[2] = &foreign;
    let chain = verify_bytes(&spliced.concat());
    let fault = Fault::OtherKey {
        first: key().public_hex(),
        found: stranger.public_hex(),
    };
    assert!(chain.records[2].faults.contains(&fault));

    let failed = Ledger::open_or_create(dir.path(), stranger);
    assert!(matches!(failed, Err(LedgerError::OtherKey { .. })));
}

#[test]
fn a_line_cut_off_by_a_kill_is_removed_and_the_rest_kept() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = sample(dir.path());
    let run = RunDir::new(dir.path());
    let last = bytes.len() - lines(&bytes)[4].len();
    fs::create_dir_all(
        run.checkpoints_dir(Stage::Pretrain)
            .join(".dokja-tmp-9-9-step-00000004"),
    )
    .unwrap();
    for cut in [last + 1, last + 100, bytes.len() - 1] {
        fs::write(run.ledger(), &bytes[..cut]).unwrap();
        let ledger = Ledger::open_or_create(dir.path(), key()).unwrap();
        assert_eq!(ledger.recovery().torn_bytes, (cut - last) as u64);
        assert_eq!(ledger.records().len(), 4);
        drop(ledger);
        assert_eq!(fs::read(run.ledger()).unwrap(), &bytes[..last]);
    }
    assert_eq!(
        fs::read_dir(run.checkpoints_dir(Stage::Pretrain))
            .unwrap()
            .count(),
        0
    );
}

#[test]
fn a_complete_but_wrong_line_is_refused_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let mut bytes = sample(dir.path());
    let at = lines(&bytes)[0].len() + 40;
    bytes[at] ^= 1;
    let path = RunDir::new(dir.path()).ledger();
    fs::write(&path, &bytes).unwrap();
    let failed = Ledger::open_or_create(dir.path(), key()).unwrap_err();
    assert!(
        matches!(
            failed,
            LedgerError::Broken {
                seq: 1,
                line: 2,
                ..
            }
        ),
        "{failed}"
    );
    assert_eq!(fs::read(&path).unwrap(), bytes);
}

#[test]
fn a_second_writer_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let first = Ledger::open_or_create(dir.path(), key()).unwrap();
    let failed = Ledger::open_or_create(dir.path(), key());
    assert!(matches!(failed, Err(LedgerError::Locked { .. })));
    drop(first);
    assert!(Ledger::open_or_create(dir.path(), key()).is_ok());
}

#[test]
fn a_file_elsewhere_cannot_be_an_artefact() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = Ledger::open_or_create(dir.path(), key()).unwrap();
    let failed = ledger.artefact(Path::new("/etc/hosts"));
    assert!(matches!(failed, Err(LedgerError::Outside { .. })));
}

#[test]
fn paths_out_of_the_run_are_refused_even_when_signed() {
    let dir = tempfile::tempdir().unwrap();
    let mut ledger = Ledger::open_or_create(dir.path(), key()).unwrap();
    fs::write(dir.path().join("x"), b"x").unwrap();
    for path in ["../x", "/x", "a//x", "./x", "a/../x", ""] {
        let mut artefact = ledger.artefact(&dir.path().join("x")).unwrap();
        artefact.path = path.to_string();
        ledger.append(&genesis(), vec![artefact]).unwrap();
    }
    let chain = verify_chain(dir.path()).unwrap();
    assert!(
        chain
            .records
            .iter()
            .all(|c| matches!(c.faults[..], [Fault::Artefact { .. }]))
    );
}

proptest! {
    #[test]
    fn any_bytes_are_judged_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        prop_assert!(bytes.is_empty() || has_fault(&bytes));
    }

    #[test]
    fn any_payload_keeps_its_digest_through_the_file(
        text in any::<String>(),
        score in prop::num::f64::NORMAL | prop::num::f64::ZERO | prop::num::f64::SUBNORMAL,
    ) {
        let dir = tempfile::tempdir().unwrap();
        let mut ledger = Ledger::open_or_create(dir.path(), key()).unwrap();
        let eval = Eval { suite: text, weights_sha256: String::new(), score, ci95: None };
        let event = Event::Eval(eval);
        ledger.append(&event, vec![]).unwrap();
        let chain = verify_chain(dir.path()).unwrap();
        prop_assert!(chain.first_fault().is_none());
        prop_assert_eq!(chain.records[0].record.as_ref().unwrap().event().unwrap(), event);
    }
}
