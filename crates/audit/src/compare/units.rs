//! Units of a model that could as well stand in any other order, and the values by which they are told apart.
//!
//! | component | a block | its units | what is compared |
//! |---|---|---|---|
//! | embedding, head | the matrix | dimensions of the stream | their values over tokens, in two halves |
//! | norms | all gains | dimensions of the stream | their gains: before attention, before what follows it |
//! | attention values | a head of values | its channels | rows of V; columns of O |
//! | attention heads | a layer | heads of keys and values | rows of K, of V, of the first Q of each |
//! | MLP, shared expert, expert | one of them | hidden units | rows of gate, rows of up, columns of down |
//! | router | a layer | experts | their rows, in two halves |
//!
//! Rows are not read whole where they are long: [`VALUES`] of each unit, spread evenly, tell units apart as well, since
//! those of one kind that have nothing in common correlate by a hundredth.
//!
//! Channels of queries and keys are no units: positions give each a frequency of its own.

use std::ops::Range;

use model::names::{LayerPart, Part, Projection};
use serde::Serialize;

use super::CompareError;
use super::matching::{Units, Values};
use super::weights::{Heads, Tensor, Tower, Weights};

/// Values by which a unit is told, over all kinds.
const VALUES: usize = 4096;

/// A part of a model that is judged apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Component {
    /// The embedding of tokens.
    Embedding,
    /// The output head, where it is not the embedding.
    Head,
    /// Gains of the norms of all layers.
    Norms,
    /// Channels of values.
    AttentionValues,
    /// Heads of keys and values.
    AttentionHeads,
    /// Dense feed-forward parts.
    Mlp,
    /// Experts that every token goes through.
    SharedExperts,
    /// Experts that are chosen.
    Experts,
    /// What chooses them.
    Router,
}

impl Component {
    /// All of them, in the order of a report.
    pub(super) const ALL: [Component; 9] = [
        Component::Embedding,
        Component::Head,
        Component::Norms,
        Component::AttentionValues,
        Component::AttentionHeads,
        Component::Mlp,
        Component::SharedExperts,
        Component::Experts,
        Component::Router,
    ];

    /// Its name in a report.
    pub fn name(self) -> &'static str {
        match self {
            Component::Embedding => "embedding",
            Component::Head => "head",
            Component::Norms => "norms",
            Component::AttentionValues => "attention values",
            Component::AttentionHeads => "attention heads",
            Component::Mlp => "mlp",
            Component::SharedExperts => "shared experts",
            Component::Experts => "experts",
            Component::Router => "router",
        }
    }

    /// What its units are.
    pub fn units(self) -> &'static str {
        match self {
            Component::Embedding | Component::Head | Component::Norms => "dimensions",
            Component::AttentionValues => "channels",
            Component::AttentionHeads => "heads",
            Component::Mlp | Component::SharedExperts | Component::Experts => "hidden units",
            Component::Router => "experts",
        }
    }
}

/// A layer: one of the stack, or the prediction layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum At {
    Layer(usize),
    Mtp,
}

impl At {
    fn part(self, part: LayerPart) -> Part {
        match self {
            At::Layer(layer) => Part::Layer(layer, part),
            At::Mtp => Part::MtpLayer(part),
        }
    }
}

/// Units that are compared with one another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Block {
    /// Dimensions of the stream, by the rows of this matrix.
    Stream(Part),
    /// Dimensions of the stream, by all gains.
    Norms,
    /// Channels of a head of values.
    Channels(At, usize),
    /// Heads of a layer.
    Heads(At),
    /// Hidden units of a feed-forward part.
    Hidden(At, Feed),
    /// Experts of a layer, by the router's rows.
    Experts(At),
}

/// A feed-forward part of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Feed {
    Dense,
    Shared,
    Expert(usize),
}

impl Feed {
    pub(super) fn part(self, projection: Projection) -> LayerPart {
        match self {
            Feed::Dense => LayerPart::Mlp(projection),
            Feed::Shared => LayerPart::Shared(projection),
            Feed::Expert(expert) => LayerPart::Expert(expert, projection),
        }
    }
}

/// A model, a tower of it, and which rows and columns of matrices are read: the same ones of both models, in one order.
pub(super) struct Reader<'a> {
    pub(super) weights: &'a Weights,
    pub(super) tower: &'a Tower,
    /// Tokens that both models have.
    pub(super) tokens: Vec<usize>,
    /// Dimensions of the stream.
    pub(super) dims: Vec<usize>,
}

impl Reader<'_> {
    /// The blocks of a component.
    pub(super) fn blocks(&self, component: Component) -> Vec<Block> {
        let parts = self.tower.tensors.keys();
        let at_layers = parts.filter_map(|part| match *part {
            Part::Layer(layer, part) => Some((At::Layer(layer), part)),
            Part::MtpLayer(part) => Some((At::Mtp, part)),
            _ => None,
        });
        let has = |part| self.tower.tensors.contains_key(&part);
        let mut blocks = Vec::new();
        let up = Projection::Up;
        match component {
            Component::Embedding if has(Part::EmbedTokens) => {
                blocks.push(Block::Stream(Part::EmbedTokens));
            }
            Component::Head if has(Part::LmHead) => blocks.push(Block::Stream(Part::LmHead)),
            Component::Norms if !self.gains(LayerPart::AttentionNorm).is_empty() => {
                blocks.push(Block::Norms);
            }
            Component::Embedding | Component::Head | Component::Norms => {}
            Component::AttentionValues => {
                let heads = self.tower.heads.map_or(0, |heads| heads.key);
                for (at, part) in at_layers {
                    if part == LayerPart::V && has(at.part(LayerPart::O)) {
                        blocks.extend((0..heads).map(|head| Block::Channels(at, head)));
                    }
                }
            }
            Component::AttentionHeads => {
                let is_known = self.tower.heads.is_some();
                blocks.extend((at_layers).filter_map(|(at, part)| {
                    (is_known && part == LayerPart::K).then_some(Block::Heads(at))
                }));
            }
            Component::Mlp => {
                blocks.extend((at_layers).filter_map(|(at, part)| {
                    (part == LayerPart::Mlp(up)).then_some(Block::Hidden(at, Feed::Dense))
                }));
            }
            Component::SharedExperts => {
                blocks.extend((at_layers).filter_map(|(at, part)| {
                    (part == LayerPart::Shared(up)).then_some(Block::Hidden(at, Feed::Shared))
                }));
            }
            Component::Experts => {
                blocks.extend(at_layers.filter_map(|(at, part)| match part {
                    LayerPart::Expert(expert, projection) if projection == up => {
                        Some(Block::Hidden(at, Feed::Expert(expert)))
                    }
                    _ => None,
                }));
            }
            Component::Router => {
                blocks.extend((at_layers).filter_map(|(at, part)| {
                    (part == LayerPart::Router).then_some(Block::Experts(at))
                }));
            }
        }
        blocks
    }

    /// Values that tell the units of a block apart; nothing where a tensor is missing or too small.
    pub(super) fn units(&self, block: Block) -> Result<Option<Units>, CompareError> {
        match block {
            Block::Stream(part) => self.stream(part),
            Block::Norms => self.norms(),
            Block::Channels(at, head) => self.channels(at, head),
            Block::Heads(at) => self.heads(at),
            Block::Hidden(at, feed) => self.hidden(at, feed),
            Block::Experts(at) => self.experts(at),
        }
    }

    fn tensor(&self, part: Part) -> Option<&Tensor> {
        self.tower.tensors.get(&part)
    }

    fn stream(&self, part: Part) -> Result<Option<Units>, CompareError> {
        let Some(tensor) = self.tensor(part) else {
            return Ok(None);
        };
        let tokens: Vec<usize> = spread(self.tokens.len(), VALUES)
            .map(|idx| self.tokens[idx])
            .collect();
        let half = |first: usize| -> Vec<usize> {
            tokens.iter().copied().skip(first).step_by(2).collect()
        };
        let columns = 0..tensor.cols;
        let kinds = [half(0), half(1)];
        let kinds = (kinds.iter()).map(|rows| self.columns(tensor, rows, columns.clone()));
        units(tensor.cols, kinds)
    }

    /// All gains of one place, (D) each.
    fn gains(&self, place: LayerPart) -> Vec<&Tensor> {
        let of_layers = self.tower.tensors.iter().filter(
            |(part, _)| matches!(part, Part::Layer(_, p) | Part::MtpLayer(p) if *p == place),
        );
        of_layers.map(|(_, tensor)| tensor).collect()
    }

    fn norms(&self) -> Result<Option<Units>, CompareError> {
        let places = [LayerPart::AttentionNorm, LayerPart::MlpNorm];
        let places = places.map(|place| self.gains(place));
        let count = places[0].first().map_or(0, |gain| gain.cols);
        let kinds = places.iter().map(|gains| {
            let width = gains.len();
            let (mut values, mut gain) = (vec![0.0; count * width], vec![0.0; count]);
            for (idx, tensor) in gains.iter().enumerate() {
                if tensor.cols != count {
                    return Ok(None);
                }
                self.weights.read(tensor, 0, &mut gain)?;
                for (unit, value) in gain.iter().enumerate() {
                    values[unit * width + idx] = *value;
                }
            }
            Ok(Some(Values { width, values }))
        });
        units(count, kinds)
    }

    fn channels(&self, at: At, head: usize) -> Result<Option<Units>, CompareError> {
        let v = self.tensor(at.part(LayerPart::V));
        let o = self.tensor(at.part(LayerPart::O));
        let (Some(v), Some(o), Some(heads)) = (v, o, self.tower.heads) else {
            return Ok(None);
        };
        let dims = self.dims(VALUES / 2);
        let of_queries = head * (heads.query / heads.key) * heads.dim;
        let kinds = [
            self.rows(v, head * heads.dim..(head + 1) * heads.dim, &dims),
            self.columns(o, &dims, of_queries..of_queries + heads.dim),
        ];
        units(heads.dim, kinds.into_iter())
    }

    fn heads(&self, at: At) -> Result<Option<Units>, CompareError> {
        let parts = [LayerPart::K, LayerPart::V, LayerPart::Q];
        let Some(Heads { query, key, dim }) = self.tower.heads else {
            return Ok(None);
        };
        let dims = self.dims((VALUES / parts.len() / dim).max(1));
        let kinds = parts.iter().map(|&part| {
            let Some(tensor) = self.tensor(at.part(part)) else {
                return Ok(None);
            };
            let step = match part {
                LayerPart::Q => query / key * dim,
                _ => dim,
            };
            let (mut values, width) = (Vec::new(), dim * dims.len());
            for head in 0..key {
                match self.rows(tensor, head * step..head * step + dim, &dims)? {
                    Some(rows) => values.extend(rows.values),
                    None => return Ok(None),
                }
            }
            Ok(Some(Values { width, values }))
        });
        units(key, kinds)
    }

    fn hidden(&self, at: At, feed: Feed) -> Result<Option<Units>, CompareError> {
        let tensor = |projection| self.tensor(at.part(feed.part(projection)));
        let (Some(up), Some(down)) = (tensor(Projection::Up), tensor(Projection::Down)) else {
            return Ok(None);
        };
        let (count, dims) = (up.rows, self.dims(VALUES / 3));
        let gate = tensor(Projection::Gate).filter(|gate| gate.rows == count);
        let kinds = [
            gate.map(|gate| self.rows(gate, 0..count, &dims)),
            Some(self.rows(up, 0..count, &dims)),
            Some(self.columns(down, &dims, 0..count)),
        ];
        units(count, kinds.into_iter().flatten())
    }

    fn experts(&self, at: At) -> Result<Option<Units>, CompareError> {
        let Some(tensor) = self.tensor(at.part(LayerPart::Router)) else {
            return Ok(None);
        };
        let dims = self.dims(VALUES);
        let half =
            |first: usize| -> Vec<usize> { dims.iter().copied().skip(first).step_by(2).collect() };
        let kinds = [half(0), half(1)];
        let kinds = (kinds.iter()).map(|dims| self.rows(tensor, 0..tensor.rows, dims));
        units(tensor.rows, kinds)
    }

    /// At most `most` of the dimensions.
    fn dims(&self, most: usize) -> Vec<usize> {
        spread(self.dims.len(), most)
            .map(|idx| self.dims[idx])
            .collect()
    }

    /// Units are rows; of each these columns. Nothing where the tensor has no such rows or columns.
    fn rows(
        &self,
        tensor: &Tensor,
        rows: Range<usize>,
        cols: &[usize],
    ) -> Result<Option<Values>, CompareError> {
        if rows.end > tensor.rows || cols.iter().any(|col| *col >= tensor.cols) {
            return Ok(None);
        }
        let mut values = Vec::with_capacity(rows.len() * cols.len());
        let mut whole = vec![0.0; tensor.cols];
        for row in rows {
            self.weights.read(tensor, row, &mut whole)?;
            values.extend(cols.iter().map(|col| whole[*col]));
        }
        let width = cols.len();
        Ok(Some(Values { width, values }))
    }

    /// Units are columns; of each these rows. Nothing where the tensor has no such rows or columns.
    fn columns(
        &self,
        tensor: &Tensor,
        rows: &[usize],
        cols: Range<usize>,
    ) -> Result<Option<Values>, CompareError> {
        if cols.end > tensor.cols || rows.iter().any(|row| *row >= tensor.rows) {
            return Ok(None);
        }
        let width = rows.len();
        let mut values = vec![0.0; cols.len() * width];
        let mut whole = vec![0.0; tensor.cols];
        for (idx, row) in rows.iter().enumerate() {
            self.weights.read(tensor, *row, &mut whole)?;
            for (unit, value) in whole[cols.clone()].iter().enumerate() {
                values[unit * width + idx] = *value;
            }
        }
        Ok(Some(Values { width, values }))
    }
}

/// Units of the kinds that are there; a kind with fewer than two values tells nothing.
fn units(
    count: usize,
    kinds: impl Iterator<Item = Result<Option<Values>, CompareError>>,
) -> Result<Option<Units>, CompareError> {
    let kinds: Option<Vec<Values>> = kinds.collect::<Result<_, _>>()?;
    let told = kinds.map(|mut kinds| {
        kinds.retain(|kind| kind.width > 1);
        Units { count, kinds }
    });
    Ok(told.filter(|units| count > 0 && !units.kinds.is_empty()))
}

/// At most `most` of `0..len`, evenly spread.
pub(super) fn spread(len: usize, most: usize) -> impl Iterator<Item = usize> {
    let count = len.min(most);
    (0..count).map(move |idx| idx * len / count)
}
