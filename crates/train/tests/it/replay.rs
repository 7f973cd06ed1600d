//! Segments of a run, trained again.

use crate::{WHOLE, World};
use dokja_train::StageError;
use dokja_train::replay::{Difference, Segment, replay, segments};
use formats::ledger::{Record, verify_chain};
use formats::run_dir::{RunDir, Stage};
use kernels_cpu::Isa;
use std::fs;
use std::ops::ControlFlow;
use tensor::Device;

impl World {
    fn run(&self, name: &str) -> RunDir {
        RunDir::new(&self.dir.path().join(name))
    }

    fn records(&self, name: &str) -> Vec<Record> {
        let chain = verify_chain(self.run(name).root()).unwrap();
        assert!(chain.first_fault().is_none());
        let records = chain.records.into_iter();
        records.map(|check| check.record.unwrap()).collect()
    }

    fn segments(&self, name: &str) -> Vec<Segment> {
        segments(&self.records(name), Stage::Pretrain)
    }

    /// What comes of a segment of the run `name`, with the recipe changed by `sets`.
    fn replay(
        &self,
        name: &str,
        segment: &Segment,
        threads: usize,
        sets: &[&str],
    ) -> Result<Result<(), Difference>, StageError> {
        let records = self.records(name);
        self.with_inputs(name, sets, |inputs| {
            let device = Device::cpu(Isa::detect(), threads);
            let go_on = &mut |_| ControlFlow::Continue(());
            let result = replay(device, inputs, &records, segment, go_on)?;
            Ok(result.unwrap())
        })
    }
}

fn steps(segments: &[Segment]) -> Vec<(u64, u64)> {
    (segments.iter())
        .map(|segment| (segment.first_step(), segment.end.step))
        .collect()
}

#[test]
fn every_segment_has_the_recorded_bits_on_any_number_of_threads() {
    let world = World::new();
    // A checkpoint every five steps, and one where the run was stopped.
    world.train("run", 2, false, 7, &[]).unwrap();
    world.train("run", 1, true, WHOLE, &[]).unwrap();
    let segments = world.segments("run");
    assert_eq!(steps(&segments), [(0, 5), (5, 7), (7, 10), (10, 12)]);
    for (threads, segment) in [1, 2, 3, 1].into_iter().zip(&segments) {
        assert!(segment.missing(&world.run("run")).is_none());
        let result = world.replay("run", segment, threads, &[]).unwrap();
        assert_eq!(result, Ok(()), "{segment:?}");
    }
    fs::remove_dir_all(world.run("run").checkpoint(Stage::Pretrain, 5)).unwrap();
    let is_missing = |segment: &Segment| segment.missing(&world.run("run")).is_some();
    assert_eq!(
        segments.iter().map(is_missing).collect::<Vec<_>>(),
        [false, true, false, false]
    );
}

#[test]
fn a_checkpoint_that_a_resumption_left_behind_ends_no_segment() {
    let world = World::new();
    world.train("run", 1, false, 7, &[]).unwrap();
    fs::remove_dir_all(world.run("run").checkpoint(Stage::Pretrain, 7)).unwrap();
    world.train("run", 1, true, WHOLE, &[]).unwrap();
    let segments = world.segments("run");
    assert_eq!(steps(&segments), [(0, 5), (5, 10), (10, 12)]);
    assert_eq!(world.replay("run", &segments[1], 1, &[]).unwrap(), Ok(()));
}

#[test]
fn what_differs_from_the_record_is_named() {
    let world = World::new();
    world.train("run", 1, false, WHOLE, &[]).unwrap();
    let segments = world.segments("run");
    let (first, second) = (&segments[0], &segments[1]);
    let start = world.run("run").checkpoint(Stage::Pretrain, 5);
    for (file, named) in [
        ("model.safetensors", "weights"),
        ("optimizer.safetensors", "state of the optimizer"),
    ] {
        let bytes = fs::read(start.join(file)).unwrap();
        let mut changed = bytes.clone();
        // The lowest bit of the last value.
        let at = bytes.len() - 4;
        changed[at] ^= 1;
        fs::write(start.join(file), changed).unwrap();
        match world.replay("run", second, 1, &[]).unwrap() {
            Err(Difference::Start { what, .. }) => assert_eq!(what, named),
            other => panic!("{file}: {other:?}"),
        }
        fs::write(start.join(file), bytes).unwrap();
    }

    // A checkpoint that claims the segment was done already.
    let path = start.join("trainer.json");
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replace("\"step\": 5", "\"step\": 10")).unwrap();
    match world.replay("run", second, 1, &[]).unwrap() {
        Err(Difference::Start { what, found, .. }) => {
            assert_eq!(what, "counters");
            assert!(found.starts_with("10 steps"), "{found}");
        }
        other => panic!("{other:?}"),
    }
    fs::write(&path, text).unwrap();

    let path = world.run("run").metrics(Stage::Pretrain);
    let text = fs::read_to_string(&path).unwrap();
    let mut lines: Vec<serde_json::Value> = (text.lines())
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let norm = lines[6]["grad_norm"].as_f64().unwrap();
    lines[6]["grad_norm"] = f64::from_bits(norm.to_bits() + 1).into();
    let changed: Vec<String> = lines.iter().map(|line| line.to_string() + "\n").collect();
    fs::write(&path, changed.concat()).unwrap();
    let (step, what) = (7, "grad_norm");
    assert_eq!(
        world.replay("run", second, 1, &[]).unwrap(),
        Err(Difference::Step { step, what })
    );
    fs::write(&path, &text).unwrap();
    assert_eq!(world.replay("run", second, 1, &[]).unwrap(), Ok(()));

    let mut other = first.clone();
    other.end.weights_sha256 = second.end.weights_sha256.clone();
    match world.replay("run", &other, 1, &[]).unwrap() {
        Err(Difference::End { what, computed, .. }) => {
            assert_eq!((what, &computed), ("weights", &first.end.weights_sha256));
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_run_is_repeated_only_from_what_it_was_made_from() {
    let world = World::new();
    world.train("run", 1, false, WHOLE, &[]).unwrap();
    let segments = world.segments("run");
    let told = |sets: &[&str]| {
        let error = world.replay("run", &segments[1], 1, sets).unwrap_err();
        assert!(matches!(error, StageError::Changed { .. }));
        error.to_string()
    };
    assert!(told(&["optim.lr=0.1"]).contains("another recipe"));
    assert!(told(&["seed=9"]).contains("another recipe"));
    // A ledger that does not promise the batches.
    let mut records = world.records("run");
    records.retain(|record| record.kind != "batches");
    let error = world.with_inputs("run", &[], |inputs| {
        let go_on = &mut |_| ControlFlow::Continue(());
        let device = Device::cpu(Isa::detect(), 1);
        replay(device, inputs, &records, &segments[1], go_on).unwrap_err()
    });
    assert!(error.to_string().contains("\"batches\""), "{error}");
}
