//! What training would take on a cluster that is not here: memory, communication, time and cost.
//!
//! Arithmetic, not a measurement: it is as good as the figures of the cluster, of which `products_of_peak` must have been
//! measured with the kernels that will run. Nothing is taken to overlap, so times are upper bounds of a program that
//! reaches that share; what no model knows (stragglers, failures, reading of data) is not in them.
//!
//! How the work is laid out, for n devices:
//! - `pipeline` P: the layers are cut into P equal stages of n/P devices each. A stage waits for the others for
//!   (P-1) of (M+P-1) of its time, with M micro-steps.
//! - data: the D = n/P devices of a stage each take rows of their own, and have all of its weights but experts.
//!   Gradients are summed and weights handed round once a step; optimizer states are cut among the D.
//! - `expert` E: the experts of a layer are cut among E of the D. A token goes to its A experts and comes back, forward
//!   and backward.
//!
//! Bytes of a device, with p_s and p_e its parameters of dense parts and of experts, and R replicas of each:
//! weights 2 (bf16), gradients 4, master weights and moments 12/R (AdamW) or 8/R (Muon, of matrices); activations as
//! the trainer keeps them, for min(M, P) micro-steps. With `recompute` only what layers begin with is kept, and one
//! layer's activations at a time are computed again, by a fourth forward pass (Chen et al. 2016, arXiv 1604.06174), which
//! the trainer of this crate does not do.
//!
//! Seconds of a step, for T tokens: products 3 (or 4) forward passes of T/n tokens; experts 4 A D_model 2 bytes for each token
//! and sparse layer, (E-1)/E of it to other devices; gradients 6 bytes (4 out, 2 back) of each parameter, (R-1)/R of it.
//! What leaves a node goes over the network, the rest over the links of the node.
//! (Sources of the scheme: Rajbhandari et al. 2020, arXiv 1910.02054; Narayanan et al. 2021, arXiv 2104.04473; Lepikhin
//! et al. 2021, arXiv 2006.16668.)

use model::config::MlpType;
use model::weights::Role;
use model::{Layout, ModelConfig, flops};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::recipe::{MatrixOptimizer, Recipe};

/// Machines, as a file describes them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cluster {
    /// Devices in all.
    pub devices: u64,
    /// Devices that share a node's links.
    pub devices_per_node: u64,
    /// Memory of a device, in 10^9 bytes.
    pub memory_gb: f64,
    /// Peak of a device on bf16 factors, in 10^12 operations a second.
    pub peak_tflops: f64,
    /// Share of the peak that products reach, as measured.
    pub products_of_peak: f64,
    /// Bytes a second from a device to the others of its node, in 10^9.
    pub link_gb_per_sec: f64,
    /// Bytes a second from a device to other nodes, in 10^9.
    pub network_gb_per_sec: f64,
    /// What a device costs for an hour, in any currency.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub price_per_device_hour: Option<f64>,
}

/// Why there is no plan.
#[derive(Debug, Error, PartialEq)]
pub enum PlanError {
    /// Not a description of a cluster; the text says where.
    #[error("{0}")]
    Toml(String),
    /// A value out of range.
    #[error("{key} is {got}; it must be {expected}")]
    Value {
        /// The key.
        key: &'static str,
        /// What it holds.
        got: f64,
        /// What it may hold.
        expected: &'static str,
    },
    /// There is no way to cut the work.
    #[error(
        "{rows} rows a step (train.rows_per_step) cannot be cut evenly among {devices} devices, {micro} at a time \
         (train.rows_per_micro_step), in any layout; let the rows be a multiple of the devices"
    )]
    Rows {
        /// Rows of a step.
        rows: u64,
        /// Devices.
        devices: u64,
        /// Rows of a micro-step.
        micro: u64,
    },
    /// No layout fits.
    #[error(
        "the layout that takes least needs {needed:.1} GB on a device, which has {has:.1}; take more devices, fewer rows \
         of a micro-step (train.rows_per_micro_step), or shorter ones (train.seq_len)"
    )]
    Memory {
        /// What the least demanding layout takes, in 10^9 bytes.
        needed: f64,
        /// What a device has.
        has: f64,
    },
}

/// How the work is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Parallel {
    /// Stages of layers.
    pub pipeline: u64,
    /// Devices of a stage, each with rows of its own.
    pub data: u64,
    /// Of these, the devices that one set of experts is cut among.
    pub expert: u64,
    /// Micro-steps of a step, on each device.
    pub micro_steps: u64,
    /// Whether activations are computed again for the backward pass.
    pub recompute: bool,
}

/// Bytes on the device that has most.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Bytes {
    /// In bf16.
    pub weights: f64,
    /// In f32.
    pub gradients: f64,
    /// Master weights and moments, its share.
    pub optimizer: f64,
    /// What the backward pass needs.
    pub activations: f64,
}

impl Bytes {
    /// All of them.
    pub fn total(&self) -> f64 {
        self.weights + self.gradients + self.optimizer + self.activations
    }
}

/// Seconds of a step.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Seconds {
    /// Products.
    pub products: f64,
    /// Stages that wait for one another.
    pub waiting: f64,
    /// Tokens to their experts and back.
    pub experts: f64,
    /// Gradients and weights.
    pub gradients: f64,
}

impl Seconds {
    /// All of them, one after another.
    pub fn total(&self) -> f64 {
        self.products + self.waiting + self.experts + self.gradients
    }
}

/// What a stage of training would take.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Plan {
    /// The layout that is fastest of those that fit.
    pub parallel: Parallel,
    /// Of the fullest device.
    pub bytes: Bytes,
    /// Of a step.
    pub step: Seconds,
    /// Of all steps.
    pub seconds: f64,
    /// The model's operations, as a share of what the devices could do in that time.
    pub mfu: f64,
    /// Tokens of all steps.
    pub tokens: f64,
    /// What all devices cost for that time, where a price is known.
    pub cost: Option<f64>,
}

impl Cluster {
    /// Reads a description.
    ///
    /// # Errors
    /// Where the text, a key, or a value is wrong.
    pub fn from_toml(text: &str) -> Result<Cluster, PlanError> {
        let cluster: Cluster =
            toml::from_str(text).map_err(|e| PlanError::Toml(e.to_string().trim_end().into()))?;
        let positive = "a number above 0";
        let is_positive = |x: f64| x.is_finite() && x > 0.0;
        let is_count = |x: f64| (1.0..=1e6).contains(&x);
        for (key, got, is_right, expected) in [
            (
                "devices",
                cluster.devices as f64,
                is_count as fn(f64) -> bool,
                "from 1 to 1000000",
            ),
            (
                "devices_per_node",
                cluster.devices_per_node as f64,
                is_count,
                "from 1 to 1000000",
            ),
            ("memory_gb", cluster.memory_gb, is_positive, positive),
            ("peak_tflops", cluster.peak_tflops, is_positive, positive),
            (
                "products_of_peak",
                cluster.products_of_peak,
                |x| x > 0.0 && x <= 1.0,
                "above 0, at most 1",
            ),
            (
                "link_gb_per_sec",
                cluster.link_gb_per_sec,
                is_positive,
                positive,
            ),
            (
                "network_gb_per_sec",
                cluster.network_gb_per_sec,
                is_positive,
                positive,
            ),
            (
                "price_per_device_hour",
                cluster.price_per_device_hour.unwrap_or(0.0),
                |x| x.is_finite() && x >= 0.0,
                "a number from 0",
            ),
        ] {
            if !is_right(got) {
                return Err(PlanError::Value { key, got, expected });
            }
        }
        Ok(cluster)
    }

    /// Seconds to send `bytes` from every device of a group to the others, evenly. It has `group` devices, of which each
    /// is the `stride`-th after the one before; they fill nodes.
    fn exchange(&self, bytes: f64, group: u64, stride: u64) -> f64 {
        let of_node = (self.devices_per_node / stride).clamp(1, group);
        let inside = of_node - 1;
        let outside = group - 1 - inside;
        let each = bytes / group as f64;
        let links = inside as f64 * each / (self.link_gb_per_sec * 1e9);
        links + outside as f64 * each / (self.network_gb_per_sec * 1e9)
    }
}

/// What the model holds, and what a step of it costs, before it is cut.
struct Work {
    dense_params: f64,
    expert_params: f64,
    /// Of the parameters of dense parts and of experts: bytes of master weights and moments of each.
    optimizer_bytes: [f64; 2],
    layers: u64,
    sparse_layers: u64,
    experts: u64,
    /// Bytes that a token's visits to experts move in one sparse layer, forward and backward.
    visit_bytes: f64,
    /// Of activations, for a token: all of them, those of one layer, and what layers begin with.
    kept_bytes: f64,
    layer_bytes: f64,
    stream_bytes: f64,
    /// Of training, nothing computed twice.
    flops_per_token: f64,
    seq_len: u64,
    rows: u64,
    micro: u64,
}

impl Work {
    fn new(config: &ModelConfig, recipe: &Recipe) -> Work {
        let layout = Layout::new(config);
        let is_expert = |name: &str| name.contains(".experts.");
        let (mut params, mut optimizer) = ([0.0; 2], [0.0; 2]);
        for spec in &layout.tensors {
            let of = usize::from(is_expert(&spec.name));
            let len = spec.span.len as f64;
            params[of] += len;
            let is_muon =
                recipe.optim.matrices == MatrixOptimizer::Muon && spec.role == Role::Matrix;
            optimizer[of] += len * if is_muon { 8.0 } else { 12.0 };
        }
        let with_mtp = recipe.loss.mtp_weight > 0.0;
        let counts = flops::count(config, &layout, recipe.train.seq_len, with_mtp);
        let sparse = config
            .mlp_layer_types
            .iter()
            .filter(|t| **t == MlpType::Sparse);
        Work {
            dense_params: params[0],
            expert_params: params[1],
            optimizer_bytes: optimizer,
            layers: config.num_hidden_layers as u64,
            sparse_layers: sparse.count() as u64,
            experts: config.num_experts.max(1) as u64,
            visit_bytes: (4 * config.num_experts_per_tok * config.hidden_size * 2) as f64,
            kept_bytes: flops::kept_bytes(config) as f64,
            layer_bytes: flops::kept_bytes(config) as f64 / config.num_hidden_layers as f64,
            stream_bytes: (4 * config.hidden_size * config.num_hidden_layers) as f64,
            flops_per_token: 3.0 * counts.forward_flops_per_token,
            seq_len: recipe.train.seq_len as u64,
            rows: recipe.train.rows_per_step as u64,
            micro: recipe.train.rows_per_micro_step as u64,
        }
    }

    fn tokens(&self) -> f64 {
        (self.rows * self.seq_len) as f64
    }

    fn bytes(&self, p: Parallel) -> Bytes {
        let (stages, expert) = (p.pipeline as f64, p.expert as f64);
        let replicas = [p.data as f64, (p.data / p.expert) as f64];
        let dense = self.dense_params / stages;
        let experts = self.expert_params / stages / expert;
        let in_flight = p.micro_steps.min(p.pipeline) as f64;
        let row_tokens = (self.micro * self.seq_len) as f64;
        Bytes {
            weights: 2.0 * (dense + experts),
            gradients: 4.0 * (dense + experts),
            optimizer: self.optimizer_bytes[0] / stages / replicas[0]
                + self.optimizer_bytes[1] / stages / expert / replicas[1],
            activations: row_tokens
                * match p.recompute {
                    true => self.stream_bytes / stages * in_flight + self.layer_bytes,
                    false => self.kept_bytes / stages * in_flight,
                },
        }
    }

    fn seconds(&self, p: Parallel, cluster: &Cluster) -> Seconds {
        let (stages, tokens) = (p.pipeline as f64, self.tokens());
        let rate = cluster.devices as f64 * cluster.peak_tflops * 1e12 * cluster.products_of_peak;
        let passes = if p.recompute { 4.0 / 3.0 } else { 1.0 };
        let products = passes * tokens * self.flops_per_token / rate;
        let of_device = tokens / p.data as f64 * self.sparse_layers as f64 / stages;
        let dense = 6.0 * self.dense_params / stages;
        let experts = 6.0 * self.expert_params / stages / p.expert as f64;
        Seconds {
            products,
            waiting: products * (p.pipeline - 1) as f64 / p.micro_steps as f64,
            experts: cluster.exchange(of_device * self.visit_bytes, p.expert, 1),
            gradients: cluster.exchange(dense, p.data, 1)
                + cluster.exchange(experts, p.data / p.expert, p.expert),
        }
    }

    /// Every way to cut the work evenly.
    fn layouts(&self, devices: u64) -> Vec<Parallel> {
        let divisors = |n: u64, most: u64| (1..=n.min(most)).filter(move |d| n.is_multiple_of(*d));
        let mut all = Vec::new();
        for pipeline in divisors(devices, self.layers) {
            let data = devices / pipeline;
            let is_even = self.layers.is_multiple_of(pipeline);
            if !is_even || !self.rows.is_multiple_of(data * self.micro) {
                continue;
            }
            let micro_steps = self.rows / (data * self.micro);
            for expert in divisors(data, self.experts) {
                if self.experts.is_multiple_of(expert) {
                    all.extend([false, true].map(|recompute| Parallel {
                        pipeline,
                        data,
                        expert,
                        micro_steps,
                        recompute,
                    }));
                }
            }
        }
        all
    }
}

/// The fastest layout of those that fit, and what it takes.
///
/// # Errors
/// When the rows cannot be cut among the devices, or nothing fits.
pub fn plan(config: &ModelConfig, recipe: &Recipe, cluster: &Cluster) -> Result<Plan, PlanError> {
    let work = Work::new(config, recipe);
    let layouts = work.layouts(cluster.devices);
    let least = |layouts: &[Parallel]| {
        let needed = layouts.iter().map(|p| work.bytes(*p).total());
        needed.min_by(f64::total_cmp)
    };
    let Some(needed) = least(&layouts) else {
        return Err(PlanError::Rows {
            rows: work.rows,
            devices: cluster.devices,
            micro: work.micro,
        });
    };
    let memory = cluster.memory_gb * 1e9;
    let fitting = layouts
        .into_iter()
        .filter(|p| work.bytes(*p).total() <= memory);
    let timed = fitting.map(|p| (p, work.seconds(p, cluster)));
    let fastest = timed.min_by(|a, b| a.1.total().total_cmp(&b.1.total()));
    let Some((parallel, step)) = fastest else {
        return Err(PlanError::Memory {
            needed: needed / 1e9,
            has: cluster.memory_gb,
        });
    };
    let steps = recipe.train.steps as f64;
    let seconds = step.total() * steps;
    let devices = cluster.devices as f64;
    let could = step.total() * devices * cluster.peak_tflops * 1e12;
    Ok(Plan {
        bytes: work.bytes(parallel),
        mfu: work.tokens() * work.flops_per_token / could,
        tokens: work.tokens() * steps,
        cost: (cluster.price_per_device_hour).map(|price| price * devices * seconds / 3600.0),
        parallel,
        step,
        seconds,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLUSTER: &str = "devices = 64\ndevices_per_node = 8\nmemory_gb = 80\npeak_tflops = 990\n\
        products_of_peak = 0.5\nlink_gb_per_sec = 450\nnetwork_gb_per_sec = 50\nprice_per_device_hour = 2\n";

    const RECIPE: &str = "[model]\nhidden_size = 2048\nintermediate_size = 8192\nnum_hidden_layers = 16\n\
        num_attention_heads = 16\nnum_key_value_heads = 4\nhead_dim = 128\nnum_experts = 32\n\
        num_experts_per_tok = 4\nmoe_intermediate_size = 1024\n[train]\nsteps = 100\nseq_len = 4096\n\
        rows_per_step = 256\nrows_per_micro_step = 1\n";

    fn recipe(sets: &[&str]) -> (ModelConfig, Recipe) {
        let sets: Vec<String> = sets.iter().map(|set| (*set).to_owned()).collect();
        let recipe = Recipe::from_toml(RECIPE, &sets).unwrap();
        let ids = crate::recipe::SpecialIds {
            bos: 1,
            eos: 2,
            pad: 0,
        };
        (recipe.config(32_000, &ids).unwrap(), recipe)
    }

    fn cluster(change: &str, to: &str) -> Cluster {
        Cluster::from_toml(&CLUSTER.replace(change, to)).unwrap()
    }

    #[test]
    fn one_device_takes_what_its_operations_take() {
        let (config, recipe) = recipe(&["train.rows_per_step=1", "optim.matrices=\"adamw\""]);
        let one = cluster("devices = 64", "devices = 1");
        let plan = plan(&config, &recipe, &one).unwrap();
        let layout = Layout::new(&config);
        let counts = flops::count(&config, &layout, 4096, true);
        let by_hand = 4096.0 * 3.0 * counts.forward_flops_per_token / (990e12 * 0.5);
        assert!((plan.step.total() / by_hand - 1.0).abs() < 1e-12);
        assert!((plan.mfu - 0.5).abs() < 1e-12);
        assert_eq!(
            (plan.step.waiting, plan.step.experts, plan.step.gradients),
            (0.0, 0.0, 0.0)
        );
        let kept = plan.bytes.weights + plan.bytes.gradients + plan.bytes.optimizer;
        assert!((kept / (18.0 * layout.len as f64) - 1.0).abs() < 1e-12);
        assert!((plan.cost.unwrap() / (2.0 * plan.seconds / 3600.0) - 1.0).abs() < 1e-12);
        assert!((plan.seconds / (100.0 * by_hand) - 1.0).abs() < 1e-12);
    }

    #[test]
    fn what_leaves_a_node_goes_over_the_network() {
        let cluster = cluster("", "");
        assert_eq!(cluster.exchange(1e9, 1, 1), 0.0);
        // A quarter each to three others of the node.
        assert!((cluster.exchange(1e9, 4, 1) - 0.75 / 450.0).abs() < 1e-12);
        // A sixteenth each to seven of the node and to eight of another.
        let by_hand = 7.0 / 16.0 / 450.0 + 8.0 / 16.0 / 50.0;
        assert!((cluster.exchange(1e9, 16, 1) - by_hand).abs() < 1e-12);
        // Two of a node, six elsewhere; none of a node.
        let by_hand = 1.0 / 8.0 / 450.0 + 6.0 / 8.0 / 50.0;
        assert!((cluster.exchange(1e9, 8, 4) - by_hand).abs() < 1e-12);
        assert!((cluster.exchange(1e9, 8, 8) - 7.0 / 8.0 / 50.0).abs() < 1e-12);
    }

    #[test]
    fn the_layout_is_the_fastest_that_fits() {
        let (config, recipe) = recipe(&[]);
        let roomy = plan(&config, &recipe, &cluster("", "")).unwrap();
        let work = Work::new(&config, &recipe);
        for p in work.layouts(64) {
            assert_eq!(p.pipeline * p.data, 64);
            assert_eq!(p.micro_steps * p.data, 256);
            let fits = work.bytes(p).total() <= 80e9;
            let seconds = work.seconds(p, &cluster("", "")).total();
            assert!(!fits || seconds >= roomy.step.total(), "{p:?}");
        }
        // Less memory: more is cut, and it takes longer.
        let totals = work.layouts(64).into_iter().map(|p| work.bytes(p).total());
        let least = totals.min_by(f64::total_cmp).unwrap();
        let tight = format!("memory_gb = {}", (roomy.bytes.total() * least).sqrt() / 1e9);
        let tight = plan(&config, &recipe, &cluster("memory_gb = 80", &tight)).unwrap();
        assert!(tight.bytes.total() < roomy.bytes.total());
        assert!(tight.seconds >= roomy.seconds && tight.parallel != roomy.parallel);
        let none = plan(
            &config,
            &recipe,
            &cluster("memory_gb = 80", "memory_gb = 0.5"),
        );
        assert!(none.unwrap_err().to_string().contains("needs"));
    }

    #[test]
    fn more_of_anything_is_never_slower() {
        let (config, recipe) = recipe(&[]);
        let seconds = |change, to| {
            plan(&config, &recipe, &cluster(change, to))
                .unwrap()
                .seconds
        };
        let as_it_is = seconds("", "");
        for (change, to) in [
            ("products_of_peak = 0.5", "products_of_peak = 0.6"),
            ("link_gb_per_sec = 450", "link_gb_per_sec = 900"),
            ("network_gb_per_sec = 50", "network_gb_per_sec = 100"),
            ("memory_gb = 80", "memory_gb = 180"),
            ("devices = 64", "devices = 128"),
        ] {
            assert!(seconds(change, to) <= as_it_is, "{to}");
        }
    }

    #[test]
    fn wrong_descriptions_and_rows_that_cannot_be_cut_are_told() {
        let told = |change: &str, to: &str| {
            let wrong = Cluster::from_toml(&CLUSTER.replace(change, to));
            wrong.unwrap_err().to_string()
        };
        assert!(told("devices = 64", "devices = 0").contains("devices is 0; it must be from 1"));
        assert!(told("0.5", "1.5").contains("products_of_peak is 1.5"));
        assert!(told("memory_gb = 80", "memory_gb = nan").contains("memory_gb is NaN"));
        assert!(told("memory_gb", "memory").contains("unknown field"));
        assert!(told("network_gb_per_sec = 50\n", "").contains("network_gb_per_sec"));
        let (config, recipe) = recipe(&["train.rows_per_step=3"]);
        let told = plan(&config, &recipe, &cluster("", ""))
            .unwrap_err()
            .to_string();
        assert!(told.contains("3 rows a step"), "{told}");
    }
}
