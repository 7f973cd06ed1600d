//! A matrix of the network: y = x W^T, with its packed copies.
//!
//! forward   y (T, n) = x (T, k) W^T, W (n, k)
//! backward  dx = dy W        dW += dy^T x
//!
//! The f32 weights stay in the flat array; the packed copies are in the type that is multiplied
//! (`compute`) and are made again after every change of the weights.

use crate::weights::{Matrices, Span};
use tensor::ops::gemm::{self, Store};
use tensor::{Compute, Device, Packed, Tensor, View, ViewMut};

/// A matrix, packed for the products it takes part in.
pub struct Linear {
    span: Span,
    compute: Compute,
    rows: usize,              // n, outputs
    cols: usize,              // k, inputs
    forward: Packed,          // of W
    backward: Option<Packed>, // of W^T; absent outside training
}

impl Linear {
    /// The matrix at `span`, of `rows` outputs.
    pub(crate) fn new(
        device: &Device,
        compute: Compute,
        span: Span,
        rows: usize,
        trains: bool,
        weights: &mut dyn Matrices,
    ) -> Linear {
        let cols = span.len / rows;
        assert_eq!(rows * cols, span.len, "linear: the span is a whole matrix");
        Linear {
            span,
            compute,
            rows,
            cols,
            forward: weights.pack(device, compute, span, cols),
            backward: trains.then(|| weights.pack_transposed(device, compute, span, cols)),
        }
    }

    /// Packs the present weights.
    pub fn refresh(&mut self, device: &Device, params: &Tensor) {
        let w = params.range(self.span.range());
        self.forward.pack(device, w);
        if let Some(backward) = &mut self.backward {
            backward.pack_transposed(device, w);
        }
    }

    /// Bytes that a product with it reads.
    pub(crate) fn bytes(&self) -> usize {
        self.forward.bytes()
    }

    /// x (T, k) -> y (T, n).
    pub fn forward(&self, device: &Device, y: ViewMut, x: View, store: Store) {
        gemm::matmul(device, y, x, &self.forward, store);
    }

    /// dy (T, n) -> dx (T, k).
    ///
    /// # Panics
    /// When the matrix was made without `trains`.
    pub fn backward_input(&self, device: &Device, dx: ViewMut, dy: View, store: Store) {
        let packed = self
            .backward
            .as_ref()
            .expect("a model made for training packs both ways");
        gemm::matmul(device, dx, dy, packed, store);
    }

    /// Adds dy^T x to the gradient of the weights.
    pub fn backward_weight(&self, device: &Device, grads: &mut Tensor, dy: View, x: View) {
        let m = x.len() / self.cols;
        assert_eq!(
            dy.len(),
            m * self.rows,
            "linear: dy and x have the same rows"
        );
        gemm::matmul_tn(
            device,
            self.compute,
            grads.range_mut(self.span.range()),
            dy,
            x,
            m,
        );
    }
}
