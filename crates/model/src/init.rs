//! Initial weights as a function of a seed.
//!
//! Matrices and embeddings are normal with standard deviation `initializer_range`, gains are one, router
//! biases zero. Each tensor draws from a stream of its own, named by the generator and the tensor, so that
//! any tensor can be regenerated alone and the order of the layout does not matter.

use crate::config::ModelConfig;
use crate::weights::{Layout, Role};
use numerics::Philox;

/// Name and version of this generator, written into the ledger.
pub const GENERATOR: &str = "dokja-init-philox-normal-1";

/// All parameters, in the order of the layout.
pub fn initial_weights(config: &ModelConfig, layout: &Layout, seed: u64) -> Vec<f32> {
    let mut weights = vec![0.0f32; layout.len];
    for tensor in &layout.tensors {
        let values = &mut weights[tensor.span.range()];
        match tensor.role {
            Role::Gain => values.fill(1.0),
            Role::RouterBias => {}
            Role::Matrix | Role::Embedding => {
                let philox = Philox::new(seed, &format!("{GENERATOR}/{}", tensor.name));
                for (i, w) in values.iter_mut().enumerate() {
                    *w = philox.normal(i as u64) * config.initializer_range;
                }
            }
        }
    }
    weights
}
