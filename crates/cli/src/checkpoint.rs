//! Opens a checkpoint directory: its configuration, and its weights in the order of the layout.

use anyhow::{Context, Result};
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
        Ok(train::checkpoint::read_weights(&self.dir, &self.layout)?)
    }
}
