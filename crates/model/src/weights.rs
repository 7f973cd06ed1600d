//! Which tensors a model has, and where they lie.
//!
//! All parameters live in one flat f32 array, gradients and optimizer moments in others of the same
//! layout. [`Layout`] lists the checkpoint's tensors in the order in which they lie there; tensors that
//! one matrix product uses together (q, k, v; gate and up; the experts of a layer) are neighbours, so
//! that a fused matrix is a [`Span`] over several of them. What they are called on disk is in
//! [`crate::names`].

use crate::config::{MlpType, ModelConfig};
use crate::experts::SharedCache;
use crate::names::{self, LayerPart, Part, Projection};
use numerics::BlockType;
use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;
use tensor::{Activations, Compute, Device, Packed, Stored, Tensor};

/// A contiguous range of the flat parameter array.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// First element.
    pub start: usize,
    /// Number of elements.
    pub len: usize,
}

impl Span {
    /// As a range of indices.
    pub fn range(self) -> Range<usize> {
        self.start..self.start + self.len
    }

    /// Cut into `count` parts of one length.
    pub fn parts(self, count: usize) -> impl Iterator<Item = Span> {
        (0..count).map(move |idx| self.part(idx, count))
    }

    /// Part `idx` of `count` parts of one length.
    pub fn part(self, idx: usize, count: usize) -> Span {
        let len = self.len / count;
        Span {
            start: self.start + idx * len,
            len,
        }
    }
}

/// How a tensor is initialised and trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Embedding and head: normal at the start, AdamW.
    Embedding,
    /// A matrix inside the network: normal at the start, Muon.
    Matrix,
    /// The gain of a norm: one at the start, AdamW without decay.
    Gain,
    /// The router's selection bias: zero at the start, moved by the load, never by a gradient.
    RouterBias,
}

/// One tensor of the checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    /// Its name in the Hugging Face layout.
    pub name: String,
    /// What it does.
    pub part: Part,
    /// Rows and columns, or one length.
    pub shape: Vec<usize>,
    /// Where it lies.
    pub span: Span,
    /// How it is treated.
    pub role: Role,
}

impl TensorSpec {
    /// Elements of a row: of a matrix its columns, of anything else all.
    pub fn width(&self) -> usize {
        match self.shape.as_slice() {
            &[_, cols] => cols,
            _ => self.span.len,
        }
    }
}

/// Attention weights of a layer.
#[derive(Clone, Copy, Debug)]
pub struct AttentionSpans {
    /// q, k, v rows one after another: ((H+2G)*K, D).
    pub qkv_proj: Span,
    /// (D, H*K).
    pub o_proj: Span,
    /// Gains of queries and keys, (K) each, where the architecture norms them.
    pub qk_norm: Option<[Span; 2]>,
}

/// A SwiGLU.
#[derive(Clone, Copy, Debug)]
pub struct SwigluSpans {
    /// gate rows, then up rows: (2F, D).
    pub gate_up_proj: Span,
    /// (D, F).
    pub down_proj: Span,
}

/// What follows attention.
#[derive(Clone, Copy, Debug)]
pub enum MlpSpans {
    /// One SwiGLU.
    Dense(SwigluSpans),
    /// Router, experts, shared expert.
    Sparse {
        /// (E, D).
        router: Span,
        /// (E).
        router_bias: Span,
        /// gate_up (E, 2F, D), down (E, D, F).
        experts: SwigluSpans,
        /// The always-on expert.
        shared: SwigluSpans,
    },
}

/// One decoder layer.
#[derive(Clone, Copy, Debug)]
pub struct BlockSpans {
    /// (D), before attention or after it.
    pub attention_norm: Span,
    /// Attention.
    pub attention: AttentionSpans,
    /// (D), before the feed-forward part or after it.
    pub mlp_norm: Span,
    /// Feed-forward part.
    pub mlp: MlpSpans,
}

/// The multi-token-prediction layer.
#[derive(Clone, Copy, Debug)]
pub struct MtpSpans {
    /// (D, 2D).
    pub fc: Span,
    /// (D).
    pub pre_fc_norm_embedding: Span,
    /// (D).
    pub pre_fc_norm_hidden: Span,
    /// Dense, full attention.
    pub block: BlockSpans,
    /// (D).
    pub norm: Span,
}

/// All tensors of a model, and its parts as spans.
#[derive(Clone, Debug)]
pub struct Layout {
    /// In the order of the flat array.
    pub tensors: Vec<TensorSpec>,
    /// (V, D).
    pub embed_tokens: Span,
    /// L layers.
    pub layers: Vec<BlockSpans>,
    /// (D).
    pub norm: Span,
    /// (V, D); where they are tied, the span of the embedding.
    pub lm_head: Span,
    /// The multi-token-prediction layer, where there is one.
    pub mtp: Option<MtpSpans>,
    /// Length of the flat array.
    pub len: usize,
    /// Length of its first part, which is kept in f32; equal to `len` in the layout of training.
    pub kept_len: usize,
}

struct Builder<'a> {
    config: &'a ModelConfig,
    tensors: Vec<TensorSpec>,
    len: usize,
    /// Where matrices go, if not between the others.
    matrices: Option<usize>,
}

impl Builder<'_> {
    fn add(&mut self, part: Part, shape: &[usize], role: Role) -> Span {
        let is_packed = role == Role::Matrix || part == Part::LmHead;
        let end = match &mut self.matrices {
            Some(matrices) if is_packed || part == Part::EmbedTokens => matrices,
            _ => &mut self.len,
        };
        let span = Span {
            start: *end,
            len: shape.iter().product(),
        };
        *end += span.len;
        let written = names::hugging_face(self.config, part, shape).swap_remove(0);
        self.tensors.push(TensorSpec {
            name: written.name,
            part,
            shape: shape.to_vec(),
            span,
            role,
        });
        span
    }

    fn gain(&mut self, part: Part, d: usize) -> Span {
        self.add(part, &[d], Role::Gain)
    }

    fn matrix(&mut self, part: Part, rows: usize, cols: usize) -> Span {
        self.add(part, &[rows, cols], Role::Matrix)
    }

    /// A SwiGLU whose matrices are called as `of` says.
    fn swiglu(&mut self, of: impl Fn(Projection) -> Part, f: usize) -> SwigluSpans {
        let d = self.config.hidden_size;
        let gate = self.matrix(of(Projection::Gate), f, d);
        let up = self.matrix(of(Projection::Up), f, d);
        SwigluSpans {
            gate_up_proj: join(gate, up),
            down_proj: self.matrix(of(Projection::Down), d, f),
        }
    }

    fn experts(&mut self, of: impl Fn(usize, Projection) -> Part) -> SwigluSpans {
        let (d, f) = (self.config.hidden_size, self.config.moe_intermediate_size);
        let end = |b: &Self| b.matrices.unwrap_or(b.len);
        let since = |b: &Self, start: usize| Span {
            start,
            len: end(b) - start,
        };
        let first = end(self);
        for e in 0..self.config.num_experts {
            self.matrix(of(e, Projection::Gate), f, d);
            self.matrix(of(e, Projection::Up), f, d);
        }
        let gate_up_proj = since(self, first);
        let first = end(self);
        for e in 0..self.config.num_experts {
            self.matrix(of(e, Projection::Down), d, f);
        }
        SwigluSpans {
            gate_up_proj,
            down_proj: since(self, first),
        }
    }

    fn block(&mut self, of: impl Fn(LayerPart) -> Part, mlp: MlpType) -> BlockSpans {
        let config = self.config;
        let (d, k) = (config.hidden_size, config.head_dim);
        let (q_size, kv_size) = (config.q_size(), config.kv_size());
        let attention_norm = self.gain(of(LayerPart::AttentionNorm), d);
        let q = self.matrix(of(LayerPart::Q), q_size, d);
        let keys = self.matrix(of(LayerPart::K), kv_size, d);
        let values = self.matrix(of(LayerPart::V), kv_size, d);
        let o_proj = self.matrix(of(LayerPart::O), d, q_size);
        let attention = AttentionSpans {
            qkv_proj: join(join(q, keys), values),
            o_proj,
            qk_norm: config
                .architecture
                .has_qk_norm()
                .then(|| [LayerPart::QNorm, LayerPart::KNorm].map(|part| self.gain(of(part), k))),
        };
        let mlp_norm = self.gain(of(LayerPart::MlpNorm), d);
        let mlp = match mlp {
            MlpType::Dense => {
                let f = config.intermediate_size;
                MlpSpans::Dense(self.swiglu(|p| of(LayerPart::Mlp(p)), f))
            }
            MlpType::Sparse => {
                let e = config.num_experts;
                MlpSpans::Sparse {
                    router: self.matrix(of(LayerPart::Router), e, d),
                    router_bias: self.add(of(LayerPart::RouterBias), &[e], Role::RouterBias),
                    experts: self.experts(|e, p| of(LayerPart::Expert(e, p))),
                    shared: self.swiglu(|p| of(LayerPart::Shared(p)), config.shared_size()),
                }
            }
        };
        BlockSpans {
            attention_norm,
            attention,
            mlp_norm,
            mlp,
        }
    }
}

fn join(a: Span, b: Span) -> Span {
    assert_eq!(a.start + a.len, b.start, "fused tensors are neighbours");
    Span {
        start: a.start,
        len: a.len + b.len,
    }
}

impl Layout {
    /// The layout that a configuration implies.
    pub fn new(config: &ModelConfig) -> Layout {
        Layout::build(config, None)
    }

    /// As [`Layout::new`], with the embedding and all matrices that are only multiplied with behind everything
    /// else: these are packed when the model is opened, and the rows of that are read one by one.
    pub fn for_serving(config: &ModelConfig) -> Layout {
        let kept = Layout::build(config, Some(0)).kept_len;
        Layout::build(config, Some(kept))
    }

    fn build(config: &ModelConfig, matrices: Option<usize>) -> Layout {
        let (v, d) = (config.vocab_size, config.hidden_size);
        let mut b = Builder {
            config,
            tensors: Vec::new(),
            len: 0,
            matrices,
        };
        let embed_tokens = b.add(Part::EmbedTokens, &[v, d], Role::Embedding);
        let layers = (0..config.num_hidden_layers)
            .map(|l| b.block(|part| Part::Layer(l, part), config.mlp_layer_types[l]))
            .collect();
        let norm = b.gain(Part::Norm, d);
        let lm_head = match config.tie_word_embeddings {
            true => embed_tokens,
            false => b.add(Part::LmHead, &[v, d], Role::Embedding),
        };
        let mtp = (config.num_nextn_predict_layers == 1).then(|| MtpSpans {
            fc: b.matrix(Part::MtpFc, d, 2 * d),
            pre_fc_norm_embedding: b.gain(Part::MtpNormEmbedding, d),
            pre_fc_norm_hidden: b.gain(Part::MtpNormHidden, d),
            block: b.block(Part::MtpLayer, MlpType::Dense),
            norm: b.gain(Part::MtpNorm, d),
        });
        Layout {
            tensors: b.tensors,
            embed_tokens,
            layers,
            norm,
            lm_head,
            mtp,
            len: b.matrices.unwrap_or(b.len),
            kept_len: b.len,
        }
    }

    /// The tensor of a name.
    pub fn find(&self, name: &str) -> Option<&TensorSpec> {
        self.tensors.iter().find(|t| t.name == name)
    }

    /// Spans of the router biases, layer by layer.
    pub fn router_biases(&self) -> Vec<Span> {
        self.layers
            .iter()
            .filter_map(|l| match l.mlp {
                MlpSpans::Sparse { router_bias, .. } => Some(router_bias),
                MlpSpans::Dense(_) => None,
            })
            .collect()
    }
}

/// Where matrices come from when a model is made.
pub(crate) trait Matrices {
    /// The rows of a span, each of `k` values: products give x W^T.
    fn pack(&mut self, device: &Device, compute: Compute, span: Span, k: usize) -> Packed;
    /// The same for products that give dy W. Asked for in training alone.
    fn pack_transposed(
        &mut self,
        device: &Device,
        compute: Compute,
        span: Span,
        k: usize,
    ) -> Packed;
    /// Tells that a span will be asked for soon.
    fn prefetch(&self, _: Span) {}
    /// Where the experts of a layer are to be kept, if not all in memory.
    fn expert_cache(&self) -> Option<SharedCache> {
        None
    }
}

/// Parameters in f32, in the order of the layout.
impl Matrices for &Tensor {
    fn pack(&mut self, device: &Device, compute: Compute, span: Span, k: usize) -> Packed {
        let mut packed = Packed::new(device, compute, span.len / k, k);
        packed.pack(device, self.range(span.range()));
        packed
    }

    fn pack_transposed(
        &mut self,
        device: &Device,
        compute: Compute,
        span: Span,
        k: usize,
    ) -> Packed {
        let mut packed = Packed::new(device, compute, k, span.len / k);
        packed.pack_transposed(device, self.range(span.range()));
        packed
    }
}

/// The weights of a model on disk.
pub trait Source {
    /// Why a tensor cannot be read.
    type Error;

    /// Values of a tensor, row-major, from row `row` on; `out` has room for whole rows.
    ///
    /// # Errors
    /// When the tensor is not there, or in a form that is not read.
    fn read(&self, spec: &TensorSpec, row: usize, out: &mut [f32]) -> Result<(), Self::Error>;

    /// The rows of a matrix in the blocks of integers that it is stored in, and their type; none where it is
    /// stored otherwise.
    ///
    /// # Errors
    /// As [`Source::read`].
    fn blocks(&self, spec: &TensorSpec) -> Result<Option<Blocks<'_>>, Self::Error>;

    /// Told before a tensor is read, where that is known: a disk can begin to work.
    fn prefetch(&self, _: &TensorSpec) {}

    /// Told when a tensor has been read and will not be for a while: its pages need not stay mapped.
    fn release(&self, _: &TensorSpec) {}
}

/// Rows of a matrix in blocks.
pub type Blocks<'a> = (BlockType, Cow<'a, [u8]>);

/// Matrices that are read one at a time.
pub(crate) struct Read<S: Source> {
    layout: Arc<Layout>,
    by_start: Vec<usize>, // tensors of the layout, in the order in which they lie
    source: Arc<S>,
    activations: Activations,
    experts: Option<SharedCache>,
    values: Vec<f32>,
    failed: Option<S::Error>,
}

impl<S: Source> Read<S> {
    /// Of a layout for serving; the experts of its layers go to a cache, where there is one.
    pub(crate) fn new(
        layout: Arc<Layout>,
        source: Arc<S>,
        activations: Activations,
        experts: Option<SharedCache>,
    ) -> Read<S> {
        let mut by_start: Vec<usize> = (0..layout.tensors.len()).collect();
        by_start.sort_by_key(|&idx| layout.tensors[idx].span.start);
        Read {
            layout,
            by_start,
            source,
            activations,
            experts,
            values: Vec::new(),
            failed: None,
        }
    }

    /// The first error, after which all values were NaN.
    pub(crate) fn finish(self) -> Result<(), S::Error> {
        self.failed.map_or(Ok(()), Err)
    }

    /// The tensors of a span, in order.
    fn specs(&self, span: Span) -> impl Iterator<Item = &TensorSpec> {
        let spec = |&idx: &usize| &self.layout.tensors[idx];
        let first = (self.by_start).partition_point(|idx| spec(idx).span.start < span.start);
        let rest = self.by_start[first..].iter().map(spec);
        rest.take_while(move |spec| span.range().contains(&spec.span.start))
    }
}

impl<S: Source> Matrices for Read<S> {
    fn pack(&mut self, device: &Device, compute: Compute, span: Span, k: usize) -> Packed {
        let mut values = std::mem::take(&mut self.values);
        values.clear();
        // What each tensor gives: blocks, or a range of the values.
        let mut parts: Vec<(Option<Blocks>, Range<usize>)> = Vec::new();
        let mut failed = None;
        for spec in self.specs(span) {
            let start = values.len();
            let blocks = self.source.blocks(spec).and_then(|blocks| {
                if blocks.is_none() {
                    values.resize(start + spec.span.len, 0.0);
                    self.source.read(spec, 0, &mut values[start..])?;
                }
                Ok(blocks)
            });
            let blocks = blocks.unwrap_or_else(|error| {
                failed.get_or_insert(error);
                values.truncate(start);
                values.resize(start + spec.span.len, f32::NAN);
                None
            });
            match parts.last_mut() {
                Some((None, range)) if blocks.is_none() => range.end = values.len(),
                _ => parts.push((blocks, start..values.len())),
            }
        }
        let stored: Vec<Stored> = (parts.iter())
            .map(|(blocks, range)| match blocks {
                Some((block_type, bytes)) => Stored::Blocks(*block_type, bytes),
                None => Stored::F32(&values[range.clone()]),
            })
            .collect();
        let packed = Packed::of(device, compute, self.activations, k, &stored);
        self.specs(span).for_each(|spec| self.source.release(spec));
        self.values = values;
        self.failed = self.failed.take().or(failed);
        packed
    }

    fn pack_transposed(&mut self, _: &Device, _: Compute, _: Span, _: usize) -> Packed {
        unreachable!("a model that is read is not trained")
    }

    fn prefetch(&self, span: Span) {
        self.specs(span).for_each(|spec| self.source.prefetch(spec));
    }

    fn expert_cache(&self) -> Option<SharedCache> {
        self.experts.clone()
    }
}
