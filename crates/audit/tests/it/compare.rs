//! Models made from one another, and models that have nothing to do with one another.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use dokja_audit::compare::{
    CompareOptions, Comparison, Component, Finding, Pair, Relation, Weights, compare,
};
use formats::safetensors::{TensorData, TensorSource, write_safetensors};
use kernels_cpu::Isa;
use model::config::MlpType;
use model::names::{LayerPart, Part, Projection};
use model::weights::{Role, TensorSpec};
use model::{Layout, ModelConfig};
use numerics::{Philox, Rng};
use serde_json::{Value, json};
use tensor::Device;
use testkit::tiny_model::tiny;

/// Enough units of each kind to tell by.
fn config() -> ModelConfig {
    use MlpType::{Dense, Sparse};
    ModelConfig {
        vocab_size: 150,
        hidden_size: 80,
        intermediate_size: 64,
        num_attention_heads: 8,
        num_key_value_heads: 4,
        head_dim: 12,
        mlp_layer_types: vec![Dense, Dense, Sparse, Sparse],
        num_experts: 16,
        moe_intermediate_size: 24,
        ..tiny()
    }
}

/// Weights by the name of their tensor.
#[derive(Clone)]
struct Model {
    config: ModelConfig,
    tensors: BTreeMap<String, (TensorSpec, Vec<f32>)>,
}

impl Model {
    /// Drawn from `seed`, with gains as training leaves them.
    fn new(config: ModelConfig, seed: u64) -> Model {
        let layout = Layout::new(&config);
        let tensors = layout.tensors.iter().map(|spec| {
            let philox = Philox::new(seed, &spec.name);
            let values = (0..spec.span.len as u64).map(|idx| match spec.role {
                Role::Gain => 1.0 + 0.02 * philox.normal(idx),
                _ => 0.02 * philox.normal(idx),
            });
            (spec.name.clone(), (spec.clone(), values.collect()))
        });
        Model {
            tensors: tensors.collect(),
            config,
        }
    }

    /// As after long training: every value moved by as much as it is large.
    fn trained(mut self) -> Model {
        for (name, (spec, values)) in &mut self.tensors {
            let philox = Philox::new(99, name);
            for (idx, value) in values.iter_mut().enumerate() {
                let moved = philox.normal(idx as u64);
                *value += match spec.role {
                    Role::Gain => 0.01 * moved,
                    _ => 0.02 * moved,
                };
            }
        }
        self
    }

    /// Rows of a tensor in another order.
    fn take_rows(&mut self, part: Part, order: &[usize]) {
        self.each(part, |cols, values| {
            let rows: Vec<&[f32]> = values.chunks(cols).collect();
            order.iter().flat_map(|&row| rows[row].to_vec()).collect()
        });
    }

    /// Columns of a tensor in another order.
    fn take_columns(&mut self, part: Part, order: &[usize]) {
        self.each(part, |cols, values| {
            let rows = values.chunks(cols);
            rows.flat_map(|row| order.iter().map(|&col| row[col]))
                .collect()
        });
    }

    fn each(&mut self, part: Part, f: impl Fn(usize, &[f32]) -> Vec<f32>) {
        let mut all = self.tensors.values_mut();
        let (spec, values) = all.find(|(spec, _)| spec.part == part).unwrap();
        *values = f(spec.width(), values);
    }

    /// A directory whose configuration says `model_type`, with further tensors (rows, cols).
    fn write(&self, dir: &Path, model_type: &str, more: &[(&str, [usize; 2], u64)]) -> Weights {
        fs::create_dir_all(dir).unwrap();
        let mut config: Value = self.config.to_json();
        config["model_type"] = json!(model_type);
        fs::write(dir.join("config.json"), config.to_string()).unwrap();
        let more: Vec<(String, Vec<usize>, Vec<f32>)> = (more.iter())
            .map(|&(name, shape, seed)| {
                let philox = Philox::new(seed, name);
                let values = (0..(shape[0] * shape[1]) as u64).map(|idx| philox.normal(idx));
                (name.to_owned(), shape.to_vec(), values.collect())
            })
            .collect();
        let own = self
            .tensors
            .iter()
            .map(|(name, (spec, values))| TensorSource {
                name,
                shape: &spec.shape,
                data: TensorData::F32(values),
            });
        let others = more.iter().map(|(name, shape, values)| TensorSource {
            name,
            shape,
            data: TensorData::F32(values),
        });
        let tensors: Vec<TensorSource<'_>> = own.chain(others).collect();
        write_safetensors(&dir.join("model.safetensors"), &tensors, &BTreeMap::new()).unwrap();
        Weights::open(dir).unwrap()
    }
}

fn beside(a: &Weights, b: &Weights, references: &[Weights]) -> Comparison {
    let (mut last, mut total) = (0, 0);
    let comparison = compare(
        a,
        b,
        references,
        CompareOptions {
            device: &Device::cpu(Isa::detect(), 2),
            alpha: 0.001,
            on_block: &mut |done, of| {
                assert!(done > last);
                (last, total) = (done, of);
            },
        },
    )
    .unwrap();
    assert_eq!(last, total, "all blocks are told");
    comparison
}

/// `a` and `b`, written and compared.
fn compared(a: &Model, b: &Model) -> Comparison {
    let scratch = tempfile::tempdir().unwrap();
    let dir = |name| scratch.path().join(name);
    let a = a.write(&dir("a"), "exaone_moe", &[]);
    let b = b.write(&dir("b"), "exaone_moe", &[]);
    beside(&a, &b, &[])
}

fn results(comparison: &Comparison) -> Vec<(Component, Relation)> {
    let findings = comparison.pair.findings.iter();
    findings.map(|f| (f.component, f.result)).collect()
}

fn of(comparison: &Comparison, component: Component) -> &Finding {
    let mut findings = comparison.pair.findings.iter();
    findings.find(|f| f.component == component).unwrap()
}

fn shuffled(count: usize, stream: &str) -> Vec<usize> {
    let mut order: Vec<usize> = (0..count).collect();
    Rng::new(5, stream).shuffle(&mut order);
    order
}

#[test]
fn models_begun_from_other_random_numbers_are_not_related_though_their_gains_point_one_way() {
    let (a, b) = (Model::new(config(), 1), Model::new(config(), 2));
    let gains = |model: &Model| model.tensors["model.norm.weight"].1.clone();
    let (x, y) = (gains(&a), gains(&b));
    let dot = |x: &[f32], y: &[f32]| x.iter().zip(y).map(|(x, y)| x * y).sum::<f32>();
    assert!(dot(&x, &y) / (dot(&x, &x) * dot(&y, &y)).sqrt() > 0.999);
    let comparison = compared(&a, &b);
    assert_eq!(comparison.pair.verdict, Relation::NoneFound);
    let results = results(&comparison);
    assert_eq!(results.len(), 9, "every component is there: {results:?}");
    assert!(
        results
            .iter()
            .all(|(_, result)| *result == Relation::NoneFound)
    );
    for finding in &comparison.pair.findings {
        let found = finding.in_place.as_ref().unwrap();
        assert!(found.log10_p_adjusted > -1.0, "{finding:?}");
        assert!(found.similarity.abs() < 0.2, "{finding:?}");
        assert_eq!(found.identical, 0);
    }
}

#[test]
fn a_model_trained_on_from_another_is_related_in_every_component() {
    let a = Model::new(config(), 1);
    let comparison = compared(&a, &a.clone().trained());
    assert_eq!(comparison.pair.verdict, Relation::Related);
    for (component, result) in results(&comparison) {
        assert_eq!(result, Relation::Related, "{component:?}");
    }
    let experts = of(&comparison, Component::Experts)
        .in_place
        .as_ref()
        .unwrap();
    assert_eq!((experts.blocks, experts.units), (32, 32 * 24));
    assert!(
        experts.matches > 700 && experts.shuffled_matches < 70,
        "{experts:?}"
    );
    assert!(
        experts.log10_p < -300.0 && experts.p_value == 0.0,
        "{experts:?}"
    );
    assert_eq!(experts.identical, 0);
    let same = compared(&a, &a);
    let experts = of(&same, Component::Experts).in_place.as_ref().unwrap();
    assert_eq!((experts.identical, experts.matches), (768, 768));
}

#[test]
fn one_component_that_was_taken_over_is_named_and_no_other() {
    let (a, mut b) = (Model::new(config(), 1), Model::new(config(), 2));
    let is_router = |spec: &TensorSpec| matches!(spec.part, Part::Layer(_, LayerPart::Router));
    for (name, (spec, values)) in &mut b.tensors {
        if is_router(spec) {
            values.clone_from(&a.tensors[name].1);
        }
    }
    let comparison = compared(&a, &b);
    assert_eq!(comparison.pair.verdict, Relation::Related);
    for (component, result) in results(&comparison) {
        let expected = match component {
            Component::Router => Relation::Related,
            _ => Relation::NoneFound,
        };
        assert_eq!(result, expected, "{component:?}");
    }
}

#[test]
fn hidden_units_and_a_stream_that_were_put_into_another_order_are_found() {
    let a = Model::new(config(), 1);
    let mut b = a.clone().trained();
    let layers = |part| {
        [
            Part::Layer(0, part),
            Part::Layer(1, part),
            Part::MtpLayer(part),
        ]
    };
    let [gate, up, down] = [Projection::Gate, Projection::Up, Projection::Down]
        .map(|projection| layers(LayerPart::Mlp(projection)));
    for layer in 0..3 {
        let order = shuffled(64, &format!("layer {layer}"));
        b.take_rows(gate[layer], &order);
        b.take_rows(up[layer], &order);
        b.take_columns(down[layer], &order);
    }
    let comparison = compared(&a, &b);
    for (component, result) in results(&comparison) {
        let expected = match component {
            Component::Mlp => Relation::Reordered,
            _ => Relation::Related,
        };
        assert_eq!(result, expected, "{component:?}");
    }

    // The whole stream as well: now no row of any matrix stands as it did.
    let order = shuffled(80, "stream");
    let tensors: Vec<TensorSpec> = b.tensors.values().map(|(spec, _)| spec.clone()).collect();
    for spec in tensors {
        let writes = |part: LayerPart| {
            use Projection::Down;
            matches!(
                part,
                LayerPart::O
                    | LayerPart::Mlp(Down)
                    | LayerPart::Shared(Down)
                    | LayerPart::Expert(_, Down)
            )
        };
        match spec.part {
            Part::Layer(_, part) | Part::MtpLayer(part) if writes(part) => {
                b.take_rows(spec.part, &order);
            }
            _ if spec.shape.last() == Some(&80) => b.take_columns(spec.part, &order),
            _ => {}
        }
    }
    let comparison = compared(&a, &b);
    for (component, result) in results(&comparison) {
        let expected = match component {
            Component::Mlp | Component::Embedding | Component::Head => Relation::Reordered,
            // Five gains before attention and five after it do not tell 80 dimensions apart.
            Component::Norms => Relation::NoneFound,
            _ => Relation::Related,
        };
        assert_eq!(result, expected, "{component:?}");
    }
}

#[test]
fn sizes_that_differ_are_told_and_not_compared() {
    let wider = ModelConfig {
        hidden_size: 96,
        num_nextn_predict_layers: 0,
        ..config()
    };
    let comparison = compared(&Model::new(config(), 1), &Model::new(wider, 2));
    assert_eq!(comparison.pair.verdict, Relation::NoneFound);
    let embedding = of(&comparison, Component::Embedding);
    assert!(embedding.in_place.is_none() && embedding.in_any_order.is_some());
    let experts = of(&comparison, Component::Experts);
    assert_eq!(experts.result, Relation::NotComparable);
    let reason = experts.reason.as_deref();
    assert_eq!(reason, Some("the stream has 80 and 96 dimensions"));
}

#[test]
fn models_of_other_kinds_are_read_by_their_names_and_a_part_that_sees_is_judged_apart() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = |name| scratch.path().join(name);
    let visual = |seed| {
        [
            ("visual.blocks.0.mlp.gate_proj.weight", [64, 40], seed),
            ("visual.blocks.0.mlp.up_proj.weight", [64, 40], seed),
            ("visual.blocks.0.mlp.down_proj.weight", [40, 64], seed),
            ("visual.patch_embed.proj.weight", [40, 12], seed),
        ]
    };
    let a = Model::new(config(), 1).write(&dir("a"), "unheard_of", &visual(7));
    let b = Model::new(config(), 2).write(&dir("b"), "exaone_moe", &visual(7));
    let c = Model::new(config(), 1).write(&dir("c"), "another", &visual(8));
    let comparison = beside(&a, &b, std::slice::from_ref(&c));
    assert_eq!(comparison.pair.verdict, Relation::Related);
    for finding in &comparison.pair.findings {
        let expected = match finding.tower.as_str() {
            "" => Relation::NoneFound,
            _ => Relation::Related,
        };
        assert_eq!(finding.result, expected, "{finding:?}");
    }
    // The first model of reference is the same language model with other eyes; the other pair has nothing in common.
    let [of_a, of_b] = comparison.references.as_slice() else {
        panic!("each of the two beside the reference");
    };
    assert_eq!(of_a.verdict, Relation::Related);
    let eyes = |pair: &Pair| {
        let mut findings = pair.findings.iter();
        findings.find(|f| !f.tower.is_empty()).unwrap().result
    };
    assert_eq!(
        (eyes(of_a), eyes(of_b)),
        (Relation::NoneFound, Relation::NoneFound)
    );
    assert_eq!(of_b.verdict, Relation::NoneFound);
    // The least likely of all tests is corrected for all of them.
    let pairs = [&comparison.pair, of_a, of_b];
    let findings = || pairs.iter().flat_map(|pair| &pair.findings);
    let in_place = findings().filter_map(|f| f.in_place.as_ref());
    let in_any_order = findings().filter_map(|f| f.in_any_order.as_ref());
    let tests: Vec<(f64, f64)> = (in_place.map(|f| (f.log10_p, f.log10_p_adjusted)))
        .chain(in_any_order.map(|f| (f.log10_p, f.log10_p_adjusted)))
        .collect();
    let least = tests.iter().min_by(|x, y| x.0.total_cmp(&y.0)).unwrap();
    assert!(tests.len() > 50);
    assert!((least.1 - least.0 - (tests.len() as f64).log10()).abs() < 1e-9);
}

#[test]
fn what_is_no_model_is_told() {
    let scratch = tempfile::tempdir().unwrap();
    assert!(Weights::open(scratch.path()).is_err());
    fs::write(
        scratch.path().join("config.json"),
        "{\"model_type\": \"other\"}",
    )
    .unwrap();
    let values = [0.0f32; 4];
    let tensors = [TensorSource {
        name: "something.weight",
        shape: &[2, 2],
        data: TensorData::F32(&values),
    }];
    let path = scratch.path().join("model.safetensors");
    write_safetensors(&path, &tensors, &BTreeMap::new()).unwrap();
    let error = Weights::open(scratch.path()).err().unwrap().to_string();
    assert!(error.contains("other"), "{error}");
}
