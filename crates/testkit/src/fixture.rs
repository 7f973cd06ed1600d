//! Cases that were computed by an implementation that is not ours.
//!
//! A case is a folder with a checkpoint (`config.json`, `model.safetensors`) and
//! `expected.safetensors`: `ids` [B, T], `logits` [B, T, V], `loss` [], `grad.<tensor>`, `mtp_logits`
//! [B, T-1, V], `mtp_loss` [], `router.<layer>` [B, T, A]. Not every case has all of them.

use model::{Layout, ModelConfig};
use reference::loss::Sequence;
use safetensors::SafeTensors;
use std::path::{Path, PathBuf};

/// Bound on logits, relative to the largest.
pub const LOGITS: f64 = 2e-5;
/// Bound on gradients, as normalised mean-square error.
pub const GRADIENTS: f64 = 1e-9;
/// Bound on a loss, relative to it: of f32 sums over a vocabulary.
pub const LOSSES: f64 = 1e-5;

/// Why a case cannot be had. A test prints it and passes.
#[derive(Debug, thiserror::Error)]
#[error("skipped {case}: no such case in {} (set DOKJA_REFERENCE_DIR)", root.display())]
pub struct Skipped {
    case: String,
    root: PathBuf,
}

/// A case in memory.
pub struct Published {
    /// What the checkpoint says it is.
    pub config: ModelConfig,
    /// Where its tensors lie in `params`.
    pub layout: Layout,
    /// All weights.
    pub params: Vec<f32>,
    /// `ids`, every token counting.
    pub sequences: Vec<Sequence>,
    expected: Vec<u8>,
}

impl Published {
    /// The case of a name, in the folder named by `DOKJA_REFERENCE_DIR` or beside the checkout.
    ///
    /// # Errors
    /// When there is no such folder.
    ///
    /// # Panics
    /// When what is in it is not a case.
    pub fn open(case: &str) -> Result<Published, Skipped> {
        let default = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/reference");
        let root = std::env::var_os("DOKJA_REFERENCE_DIR").map_or(default, PathBuf::from);
        let folder = root.join(case);
        let case = case.to_string();
        if !folder.join("config.json").exists() {
            return Err(Skipped { case, root });
        }
        let read = |name: &str| match std::fs::read(folder.join(name)) {
            Ok(bytes) => bytes,
            Err(error) => panic!("{case}: {name}: {error}"),
        };
        let config = String::from_utf8_lossy(&read("config.json")).into_owned();
        let config =
            ModelConfig::from_json(&config).unwrap_or_else(|error| panic!("{case}: {error}"));
        let layout = Layout::new(&config);
        let weights = read("model.safetensors");
        let weights = parse(&weights);
        assert_eq!(layout.tensors.len(), weights.len(), "{case}: tensors");
        let mut params = vec![0.0; layout.len];
        for tensor in &layout.tensors {
            let values = floats(&weights, &tensor.name);
            let values = values.unwrap_or_else(|| panic!("{case}: no tensor {}", tensor.name));
            params[tensor.span.range()].copy_from_slice(&values);
        }
        let mut published = Published {
            config,
            layout,
            params,
            sequences: vec![],
            expected: read("expected.safetensors"),
        };
        let (ids, shape) = published.ids("ids").expect("a case has ids");
        published.sequences = ids.chunks_exact(shape[1]).map(Sequence::text).collect();
        Ok(published)
    }

    /// The expected values of a name, if the case has them.
    pub fn floats(&self, name: &str) -> Option<Vec<f64>> {
        let values = floats(&parse(&self.expected), name)?;
        Some(values.into_iter().map(f64::from).collect())
    }

    /// The expected indices of a name and their shape, if the case has them.
    pub fn ids(&self, name: &str) -> Option<(Vec<u32>, Vec<usize>)> {
        let file = parse(&self.expected);
        let tensor = file.tensor(name).ok()?;
        let ids = tensor.data().as_chunks::<8>().0.iter();
        let ids = ids.map(|bytes| i64::from_le_bytes(*bytes) as u32).collect();
        Some((ids, tensor.shape().to_vec()))
    }

    /// Whether the experts `ours` (T, A), best first, are those expected of a layer.
    ///
    /// The other implementation asks its top-k for no order: of three or more experts it promises the
    /// set only, of two the first is the better one.
    ///
    /// # Errors
    /// The first token where they are not, and both choices.
    pub fn same_experts(&self, layer: usize, ours: &[u32]) -> Result<(), String> {
        let name = format!("router.{layer}");
        let (theirs, _) = self.ids(&name).ok_or_else(|| format!("no {name}"))?;
        if ours.len() != theirs.len() {
            return Err(format!(
                "{name}: {} choices for {}",
                ours.len(),
                theirs.len()
            ));
        }
        let a = self.config.num_experts_per_tok;
        let tokens = ours.chunks_exact(a).zip(theirs.chunks_exact(a));
        for (t, (ours, theirs)) in tokens.enumerate() {
            let (mut ours, mut theirs) = (ours.to_vec(), theirs.to_vec());
            if a > 2 {
                ours.sort_unstable();
                theirs.sort_unstable();
            }
            if ours != theirs {
                return Err(format!("{name}, token {t}: {ours:?} for {theirs:?}"));
            }
        }
        Ok(())
    }
}

fn parse(bytes: &[u8]) -> SafeTensors<'_> {
    SafeTensors::deserialize(bytes).unwrap_or_else(|error| panic!("not safetensors: {error}"))
}

fn floats(file: &SafeTensors, name: &str) -> Option<Vec<f32>> {
    let tensor = file.tensor(name).ok()?;
    let values = tensor.data().as_chunks::<4>().0.iter();
    Some(values.map(|bytes| f32::from_le_bytes(*bytes)).collect())
}
