//! The table of embeddings: in memory where it is trained, on disk where a model is served.
//!
//! A token needs one row of the table, which in a large model is gigabytes. The source of a served model is
//! asked for just these rows; what of them is in memory is the system's to decide.

use crate::weights::{Source, Span, TensorSpec};
use std::cell::RefCell;
use std::sync::Arc;
use tensor::ops::embedding;
use tensor::{Device, Tensor, ViewMut};

/// Writes the row of an index.
type ReadRow = Box<dyn Fn(usize, &mut [f32]) + Send>;

/// Where the rows come from.
pub(crate) enum Embedding {
    /// A span of the parameters.
    Kept(Span),
    /// A source, which is asked for a row at a time.
    Read {
        read: ReadRow,
        rows: RefCell<Vec<f32>>, // those of a step
    },
}

impl Embedding {
    /// The rows of `spec` from `source`. What cannot be read is NaN, so that no token is drawn from it.
    pub(crate) fn of<S>(source: Arc<S>, spec: TensorSpec) -> Embedding
    where
        S: Source + Send + Sync + 'static,
    {
        Embedding::Read {
            read: Box::new(move |row, out| {
                if source.read(&spec, row, out).is_err() {
                    out.fill(f32::NAN);
                }
            }),
            rows: RefCell::default(),
        }
    }

    /// x (n, D) = the rows of the first n `ids`.
    pub(crate) fn forward(
        &self,
        device: &Device,
        params: &Tensor,
        x: ViewMut,
        ids: &Tensor<u32>,
        n: usize,
        d: usize,
    ) {
        match self {
            Embedding::Kept(span) => {
                embedding::forward(device, x, params.range(span.range()), ids.rows(n), d);
            }
            Embedding::Read { read, rows } => {
                let mut rows = rows.borrow_mut();
                rows.resize(n * d, 0.0);
                for (row, &id) in rows.chunks_exact_mut(d).zip(&ids.host()[..n]) {
                    read(id as usize, row);
                }
                x.write(&rows);
            }
        }
    }
}
