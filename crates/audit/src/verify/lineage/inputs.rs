//! What the stages were given: data and its shards, the tokenizer, recipes, the order of batches.

use std::path::{Path, PathBuf};

use formats::hash;
use formats::json;
use formats::ledger::Record;
use formats::ledger::records::{Batches, Data, Recipe, Tokenizer};
use formats::run_dir::RunDir;
use serde::Deserialize;

use super::{Walk, inside};
use crate::finding::Claim;

/// What the audit reads of a data directory's `manifest.json` (docs/formats/data.md).
#[derive(Deserialize)]
struct Manifest {
    shards: Vec<ShardEntry>,
}

#[derive(Deserialize)]
struct ShardEntry {
    file: String,
    sha256: String,
}

impl Walk<'_> {
    pub(super) fn data(&mut self, name: &str, record: &Record, data: Data) {
        let inside = Path::new(&data.location).is_relative();
        let manifest = format!("{}/manifest.json", data.location.trim_end_matches('/'));
        if inside {
            self.must_have(Claim::Data, name, record, &manifest, &data.manifest_sha256);
        }
        // A location inside the run is checked like an artefact's path before it is used.
        let dir = match (self.options.data_dir, inside) {
            (Some(dir), false) => dir.to_path_buf(),
            (_, true)
                if record
                    .artefacts
                    .iter()
                    .any(|a| a.path == manifest && a.is_path_inside()) =>
            {
                self.run_dir.join(&data.location)
            }
            (_, true) => return self.data = Some(data),
            (None, false) => PathBuf::from(&data.location),
        };
        self.shards(name, &dir, &data);
        self.data = Some(data);
    }

    /// Compares every shard that the manifest lists.
    fn shards(&mut self, name: &str, dir: &Path, data: &Data) {
        let path = dir.join("manifest.json");
        let shown = self.shown(&path);
        let found = match hash::sha256_file(&path) {
            Ok(found) => found,
            Err(e) if e.is_not_found() && Path::new(&data.location).is_absolute() => {
                let detail =
                    format!("the data is not here ({e}); say where it lies to have it tested");
                return self.missing(Claim::Data, name, detail);
            }
            Err(e) => return self.failed(Claim::Data, name, &[shown], e.to_string()),
        };
        if found != data.manifest_sha256 {
            let recorded = &data.manifest_sha256;
            let detail = format!("the manifest {shown} has SHA-256 {found} instead of {recorded}");
            return self.failed(Claim::Data, name, &[shown], detail);
        }
        let manifest: Manifest = match json::read(&path) {
            Ok(manifest) => manifest,
            Err(e) => return self.failed(Claim::Data, name, &[shown], e.to_string()),
        };
        if manifest.shards.is_empty() {
            let detail = "its manifest lists no shards".to_string();
            return self.failed(Claim::Data, name, &[shown], detail);
        }
        let mut sound = vec![shown];
        for ShardEntry { file, sha256 } in &manifest.shards {
            let leads_out = file.contains(['/', '\\', '\0']) || file.starts_with('.');
            let path = dir.join(file);
            let shown = self.shown(&path);
            if leads_out {
                let detail = format!("the manifest lists {file:?}, outside its directory");
                self.failed(Claim::Data, name, &[shown], detail);
                continue;
            }
            match hash::sha256_file(&path) {
                Ok(found) if found == *sha256 => sound.push(shown),
                Ok(found) => {
                    let detail =
                        format!("the shard {shown} has SHA-256 {found} instead of {sha256}");
                    self.failed(Claim::Data, name, &[shown], detail);
                }
                Err(e) => self.failed(Claim::Data, name, &[shown], e.to_string()),
            }
        }
        let n = sound.len() - 1;
        if n == manifest.shards.len() {
            self.ok(
                Claim::Data,
                name,
                &sound,
                format!("the manifest and its {n} shards are the recorded ones"),
            );
        }
    }

    /// Relative to the run directory, if it lies there.
    fn shown(&self, path: &Path) -> String {
        path.strip_prefix(self.run_dir)
            .unwrap_or(path)
            .display()
            .to_string()
    }

    pub(super) fn tokenizer(&mut self, name: &str, record: &Record, tokenizer: Tokenizer) {
        self.must_have(
            Claim::Tokenizer,
            name,
            record,
            "tokenizer.json",
            &tokenizer.sha256,
        );
        let manifest = self.data.as_ref().map(|data| data.manifest_sha256.as_str());
        match (&tokenizer.trained_on_manifest_sha256, manifest) {
            (None, _) => {
                let detail = "the tokenizer was brought along, not trained by this run".to_string();
                self.not_tested(Claim::Tokenizer, name, detail);
            }
            (Some(trained_on), Some(manifest)) if trained_on == manifest => {
                let detail = "it was trained on the recorded data".to_string();
                self.ok(Claim::Tokenizer, name, &[], detail);
            }
            (Some(trained_on), _) => {
                let detail =
                    format!("it was trained on the manifest {trained_on}, not recorded before");
                self.failed(Claim::Tokenizer, name, &[], detail);
            }
        }
        self.tokenizer = Some(tokenizer);
    }

    pub(super) fn recipe(&mut self, name: &str, record: &Record, recipe: &Recipe) {
        let path = inside(&RunDir::new(Path::new("")).recipe(recipe.stage));
        if self.must_have(Claim::Recipe, name, record, &path, &recipe.sha256) {
            let detail = format!(
                "the recipe of {} was recorded before its first checkpoint",
                recipe.stage
            );
            self.ok(Claim::Recipe, name, &[path], detail);
        }
        self.recipes.push(recipe.stage);
    }

    pub(super) fn batches(&mut self, name: &str, batches: &Batches) {
        if hash::is_sha256_hex(&batches.commitment_sha256) {
            let detail = format!(
                "the order of {} was committed: {}",
                batches.stage, batches.order
            );
            self.ok(Claim::Data, name, &[], detail);
        } else {
            self.failed(
                Claim::Data,
                name,
                &[],
                "its commitment is no digest".to_string(),
            );
        }
        self.batches.push(batches.stage);
    }
}
