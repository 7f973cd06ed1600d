//! Weights in the Hugging Face layout: safetensors, one file or several, with the tensors of a layer's
//! experts one by one or in one, in F32, BF16, F16 or FP8.
//!
//! FP8 (E4M3) comes with scales beside it, under the name of the weight: `<name>_scale_inv` with a scale
//! for each block of 128 x 128 (`quant_method` `fp8`; `weight_block_size` says otherwise), `<name>_scale`
//! for the whole tensor or for each row (`compressed-tensors`). A weight is value * scale in f32. Experts in
//! one tensor (E, rows, columns) have scales (E, ..), each expert's as those of a matrix; its blocks start
//! anew with it, not with the rows that are `up_proj`. The scales that such files have for activations are
//! not used: activations are not rounded here.

use crate::{CheckpointError, tally};
use formats::mmap::Advice;
use formats::safetensors::{Dtype, SafeTensors, TensorView};
use model::names::{self, Stored};
use model::weights::TensorSpec;
use model::{Layout, ModelConfig};
use std::collections::HashSet;
use std::path::{Path, PathBuf};

/// The safetensors of a checkpoint directory.
pub(crate) struct HuggingFace {
    path: PathBuf,
    file: SafeTensors,
    block: [usize; 2], // rows and columns that share a scale
}

/// What files of FP8 weights have beside them.
const SCALES: [&str; 2] = ["_scale_inv", "_scale"];
const OF_ACTIVATIONS: [&str; 3] = [".input_scale", ".k_scale", ".v_scale"];

/// How the scales of an FP8 tensor lie: of one matrix, or of one after the other.
struct Scales<'a> {
    view: TensorView<'a>,
    rows: usize, // of one matrix
    cols: usize,
    block: [usize; 2], // rows and columns that share a scale
    of_one: usize,     // scales from one matrix to the next; 0: all share theirs
}

impl Scales<'_> {
    /// The first scale of a row, counted through all matrices.
    fn of_row(&self, row: usize) -> usize {
        let (matrix, row) = (row / self.rows, row % self.rows);
        matrix * self.of_one + row / self.block[0] * self.across()
    }

    /// Scales of a row.
    fn across(&self) -> usize {
        self.cols.div_ceil(self.block[1])
    }
}

impl HuggingFace {
    /// Maps the files; reads none of the weights.
    pub(crate) fn open(dir: &Path, config_json: &str) -> Result<HuggingFace, CheckpointError> {
        Ok(HuggingFace {
            path: dir.to_path_buf(),
            file: SafeTensors::open(dir)?,
            block: weight_block_size(config_json).unwrap_or([128, 128]),
        })
    }

    /// Types with the number of tensors and the bytes of each.
    pub(crate) fn stored(&self) -> Vec<(String, usize, u64)> {
        let described = self.file.names().filter_map(|name| {
            let (dtype, _, bytes) = self.file.describe(name).ok()?;
            Some((dtype, bytes))
        });
        tally(described)
    }

    /// The number of tensors, and of their elements.
    pub(crate) fn held(&self) -> (usize, u128) {
        let shapes = self.file.names().filter_map(|name| {
            let (_, shape, _) = self.file.describe(name).ok()?;
            Some(shape)
        });
        let elements = shapes.map(|shape| shape.iter().map(|n| *n as u128).product::<u128>());
        (self.file.len(), elements.sum())
    }

    /// Every tensor of the layout has its place, in a type that can be read and with the scales that it
    /// needs, and every tensor of the files is one of them.
    pub(crate) fn check(
        &self,
        config: &ModelConfig,
        layout: &Layout,
    ) -> Result<(), CheckpointError> {
        let mut used: HashSet<String> = HashSet::new();
        for spec in &layout.tensors {
            let place = self.place(config, spec)?;
            let view = self.file.get(&place.name)?;
            view.copy_range_to_f32(0, &mut [])?;
            if view.dtype == Dtype::F8E4M3 {
                self.scales(&place)?.view.copy_range_to_f32(0, &mut [])?;
            }
            used.extend(SCALES.map(|suffix| format!("{}{suffix}", place.name)));
            used.insert(place.name);
        }
        let is_scale = |name: &str| OF_ACTIVATIONS.iter().any(|end| name.ends_with(end));
        let known =
            |name: &str| used.contains(name) || is_scale(name) || names::is_redundant(config, name);
        match self.file.names().find(|name| !known(name)) {
            None => Ok(()),
            Some(name) => Err(CheckpointError::Unknown {
                path: self.path.clone(),
                name: name.to_string(),
            }),
        }
    }

    /// Where the files have a tensor.
    fn place(&self, config: &ModelConfig, spec: &TensorSpec) -> Result<Stored, CheckpointError> {
        let places = names::hugging_face(config, spec.part, &spec.shape);
        let found = places.into_iter().find(|p| self.file.contains(&p.name));
        let place = found.ok_or_else(|| CheckpointError::Missing {
            path: self.path.clone(),
            name: spec.name.clone(),
        })?;
        let shape = self.file.get(&place.name)?.shape;
        if shape != place.shape {
            return Err(CheckpointError::Shape {
                path: self.path.clone(),
                name: place.name,
                found: shape.to_vec(),
                expected: place.shape,
            });
        }
        Ok(place)
    }

    /// Values of a tensor in f32, from row `row` on; `out` has room for whole rows.
    pub(crate) fn read(
        &self,
        config: &ModelConfig,
        spec: &TensorSpec,
        row: usize,
        out: &mut [f32],
    ) -> Result<(), CheckpointError> {
        let place = self.place(config, spec)?;
        let view = self.file.get(&place.name)?;
        view.copy_range_to_f32(place.start + row * spec.width(), out)?;
        match view.dtype {
            Dtype::F8E4M3 => self.scale(&place, row, out),
            _ => Ok(()),
        }
    }

    /// Tells what will become of a tensor.
    pub(crate) fn advise(&self, config: &ModelConfig, spec: &TensorSpec, advice: Advice) {
        let stored = self.place(config, spec).ok();
        let stored = stored.and_then(|place| Some((self.file.get(&place.name).ok()?.dtype, place)));
        if let Some((dtype, place)) = stored {
            let bytes = |elements: usize| elements * dtype.size();
            let range = bytes(place.start)..bytes(place.start + spec.span.len);
            self.file.advise(&place.name, range, advice);
        }
    }

    /// Multiplies FP8 values, from row `row` of a tensor on, by their scales.
    fn scale(&self, place: &Stored, row: usize, out: &mut [f32]) -> Result<(), CheckpointError> {
        let scales = self.scales(place)?;
        let (cols, across) = (scales.cols, scales.across());
        let row = place.start / cols + row;
        let last = row + (out.len() / cols).saturating_sub(1);
        // A tensor lies within one matrix, and so do its scales.
        let start = scales.of_row(row);
        let mut values = vec![0.0; scales.of_row(last) + across - start];
        scales.view.copy_range_to_f32(start, &mut values)?;
        for (r, row_values) in out.chunks_exact_mut(cols).enumerate() {
            let of_row = &values[scales.of_row(row + r) - start..];
            for (part, scale) in row_values.chunks_mut(scales.block[1]).zip(of_row) {
                part.iter_mut().for_each(|value| *value *= scale);
            }
        }
        Ok(())
    }

    /// The scales of an FP8 tensor, whose shape tells what shares one.
    fn scales(&self, place: &Stored) -> Result<Scales<'_>, CheckpointError> {
        let wrong = |what: String| CheckpointError::Scale {
            path: self.path.clone(),
            name: place.name.clone(),
            what,
        };
        let name = SCALES
            .iter()
            .map(|suffix| format!("{}{suffix}", place.name))
            .find(|name| self.file.contains(name))
            .ok_or_else(|| wrong("has no scale beside it".into()))?;
        let (matrices, rows, cols) = match *place.shape.as_slice() {
            [rows, cols] => (None, rows, cols),
            [matrices, rows, cols] => (Some(matrices), rows, cols),
            _ => return Err(wrong("is FP8 but no matrix".into())),
        };
        let view = self.file.get(&name)?;
        let blocks = [rows.div_ceil(self.block[0]), cols.div_ceil(self.block[1])];
        let (is_shared, of_one) = match (matrices, view.shape) {
            (Some(n), [first, rest @ ..]) if *first == n => (false, rest),
            // One for all experts; what is left cannot be told apart.
            (Some(_), [] | [1]) => (true, &[][..]),
            (Some(_), _) => (false, &[0][..]),
            (None, shape) => (false, shape),
        };
        let block = match of_one {
            [] | [1] | [1, 1] => [rows, cols],
            &[n] | &[n, 1] if n == rows => [1, cols],
            shape if shape == blocks => self.block,
            _ => {
                let (shape, of_each) = (&place.shape, matrices.map_or("", |_| " for each expert"));
                let found = view.shape;
                return Err(wrong(format!(
                    "is {shape:?} with scales {found:?}, expected one, one a row, or {blocks:?}{of_each}"
                )));
            }
        };
        let of_one = match is_shared {
            true => 0,
            false => rows.div_ceil(block[0]) * cols.div_ceil(block[1]),
        };
        Ok(Scales {
            view,
            rows,
            cols,
            block,
            of_one,
        })
    }
}

/// `quantization_config.weight_block_size`, where config.json says it.
fn weight_block_size(config_json: &str) -> Option<[usize; 2]> {
    let config: serde_json::Value = serde_json::from_str(config_json).ok()?;
    let size = config["quantization_config"]["weight_block_size"].as_array()?;
    let size: Vec<usize> = size
        .iter()
        .filter_map(|n| n.as_u64().and_then(|n| usize::try_from(n).ok()))
        .filter(|&n| n > 0)
        .collect();
    size.try_into().ok()
}
