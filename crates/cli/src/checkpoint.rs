//! Opens a checkpoint directory: its configuration, and its weights in the order of the layout.

use anyhow::{Context, Result, bail};
use formats::safetensors::SafeTensors;
use model::{Layout, ModelConfig};
use std::path::{Path, PathBuf};

/// A checkpoint whose configuration has been read.
pub(crate) struct Checkpoint {
    pub(crate) dir: PathBuf,
    pub(crate) config: ModelConfig,
    pub(crate) layout: Layout,
}

impl Checkpoint {
    /// Opens a run directory's last checkpoint, or a checkpoint directory.
    pub(crate) fn open(path: &Path) -> Result<Checkpoint> {
        let dir = formats::run_dir::resolve_model(path)?;
        let file = dir.join("config.json");
        let text = std::fs::read_to_string(&file)
            .with_context(|| format!("cannot read {}", file.display()))?;
        let config = ModelConfig::from_json(&text)
            .with_context(|| format!("cannot use {}", file.display()))?;
        let layout = Layout::new(&config);
        Ok(Checkpoint {
            dir,
            config,
            layout,
        })
    }

    /// All parameters in f32. Every tensor of the layout must be there with its shape, and no other.
    pub(crate) fn weights(&self) -> Result<Vec<f32>> {
        let file = SafeTensors::open(&self.dir)?;
        let mut weights = vec![0.0; self.layout.len];
        for tensor in &self.layout.tensors {
            let view = file.get(&tensor.name)?;
            if view.shape != tensor.shape {
                bail!(
                    "{}: tensor {} is {:?}, but config.json implies {:?}",
                    self.dir.display(),
                    tensor.name,
                    view.shape,
                    tensor.shape
                );
            }
            view.copy_to_f32(&mut weights[tensor.span.range()])?;
        }
        if let Some(name) = file.names().find(|name| self.layout.find(name).is_none()) {
            bail!(
                "{}: tensor {name} has no place in the architecture of config.json",
                self.dir.display()
            );
        }
        Ok(weights)
    }
}
