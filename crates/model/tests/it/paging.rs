//! Experts that are read when they are needed: the same bits as with all of them in memory.

use crate::determinism::{sequences, tiny};
use dokja_model::config::Compute;
use dokja_model::init::initial_weights;
use dokja_model::transformer::{Batch, Transformer};
use dokja_model::weights::{Blocks, Layout, Source, TensorSpec};
use kernels_cpu::Isa;
use std::convert::Infallible;
use std::sync::Arc;
use tensor::{Activations, Device};

/// A checkpoint in memory.
struct Weights {
    layout: Layout,
    values: Vec<f32>,
}

impl Source for Weights {
    type Error = Infallible;

    fn read(&self, spec: &TensorSpec, row: usize, out: &mut [f32]) -> Result<(), Infallible> {
        let stored = self.layout.find(&spec.name).unwrap();
        let rows = &self.values[stored.span.range()][row * spec.width()..];
        out.copy_from_slice(&rows[..out.len()]);
        Ok(())
    }

    fn blocks(&self, _: &TensorSpec) -> Result<Option<Blocks<'_>>, Infallible> {
        Ok(None)
    }
}

fn load(device: &Device, source: &Arc<Weights>, expert_cache_bytes: Option<usize>) -> Transformer {
    let config = tiny(Compute::F32);
    let loaded = Transformer::load(
        device,
        config,
        Activations::Int16,
        source,
        expert_cache_bytes,
    );
    loaded.unwrap()
}

/// Logits of the main model and of the prediction layer.
fn logits(device: &Device, model: &mut Transformer, ids: &[u32]) -> [Vec<f32>; 2] {
    let batch = Batch::from_sequences(&[ids.to_vec()]);
    let mut state = model.train_state(device, ids.len());
    let (logits, mtp, _) = model.logits(device, &mut state, &batch);
    [logits.host().to_vec(), mtp.unwrap().host().to_vec()]
}

#[test]
fn a_token_has_the_same_bits_whatever_is_in_memory() {
    let config = tiny(Compute::F32);
    let layout = Layout::new(&config);
    let values = initial_weights(&config, &layout, 3);
    let source = Arc::new(Weights { layout, values });
    for threads in [1, 2] {
        let device = Device::cpu(Isa::detect(), threads);
        let mut whole = load(&device, &source, None);
        assert!(whole.expert_cache_stats().is_none());
        // The sizes of one expert and of all: three sparse layers of five.
        let mut roomy = load(&device, &source, Some(usize::MAX));
        logits(&device, &mut roomy, &sequences(&[90])[0]);
        let held = roomy.expert_cache_stats().unwrap();
        assert_eq!(
            (held.misses, held.lookups),
            (15, 15),
            "every expert is used"
        );
        let one = held.bytes / 15;
        for budget in [0, one, 2 * one + 1, 7 * one, held.bytes] {
            let mut paged = load(&device, &source, Some(budget));
            for ids in sequences(&[1, 40, 2, 90, 1]) {
                let want = logits(&device, &mut whole, &ids);
                assert!(logits(&device, &mut paged, &ids) == want, "{budget}");
                let stats = paged.expert_cache_stats().unwrap();
                assert!(stats.bytes <= budget.max(one), "{stats:?}, {budget}");
                assert!(stats.bytes_packed == stats.misses * one as u64);
            }
            let stats = paged.expert_cache_stats().unwrap();
            match budget == held.bytes {
                true => assert_eq!(stats.misses, 15, "each is read once"),
                false => assert!(stats.misses > 15),
            }
        }
        // The bound may change while the model runs.
        roomy.set_expert_cache_bytes(3 * one);
        logits(&device, &mut roomy, &sequences(&[9])[0]);
        let before = roomy.expert_cache_stats().unwrap();
        logits(&device, &mut roomy, &sequences(&[90])[0]);
        let after = roomy.expert_cache_stats().unwrap();
        assert!(after.bytes <= 3 * one && after.misses > before.misses);
    }
}
