//! The dense feed-forward part: down(SiLU(gate x) * up x), gate x and up x cut where the layer has a limit.

use crate::linear::Linear;
use crate::weights::{Matrices, SwigluSpans};
use tensor::ops::gemm::Store;
use tensor::ops::swiglu;
use tensor::{Compute, Device, Tensor, View};

/// One SwiGLU of width F.
pub struct Mlp {
    gate_up: Linear, // (2F, D)
    down: Linear,    // (D, F)
    width: usize,    // F
    limit: Option<f32>,
}

/// What the backward pass of a SwiGLU needs.
pub struct MlpKept {
    gate_up: Tensor, // (T, 2F)
    act: Tensor,     // (T, F)
}

/// Working memory of the backward pass, shared by all layers of one width.
pub struct MlpScratch {
    dgate_up: Tensor, // (T, 2F)
    dact: Tensor,     // (T, F)
}

impl MlpKept {
    /// For up to `t` tokens and width `f`.
    pub fn new(device: &Device, t: usize, f: usize) -> MlpKept {
        MlpKept {
            gate_up: Tensor::zeros(device, &[t, 2 * f]),
            act: Tensor::zeros(device, &[t, f]),
        }
    }
}

impl MlpKept {
    /// By name, for [`crate::block::BlockKept::activations`].
    pub(crate) fn activations(&self) -> Vec<(&'static str, &Tensor)> {
        vec![("gate_up", &self.gate_up), ("act", &self.act)]
    }
}

impl MlpScratch {
    /// For `t` tokens and width `f`.
    pub fn new(device: &Device, t: usize, f: usize) -> MlpScratch {
        MlpScratch {
            dgate_up: Tensor::zeros(device, &[t, 2 * f]),
            dact: Tensor::zeros(device, &[t, f]),
        }
    }
}

impl Mlp {
    /// The SwiGLU at `spans`, of width `width`, its values cut at `limit`.
    pub(crate) fn new(
        device: &Device,
        compute: Compute,
        spans: SwigluSpans,
        width: usize,
        limit: Option<f32>,
        hidden_size: usize,
        trains: bool,
        weights: &mut dyn Matrices,
    ) -> Mlp {
        let mut linear = |span, rows| Linear::new(device, compute, span, rows, trains, weights);
        Mlp {
            gate_up: linear(spans.gate_up_proj, 2 * width),
            down: linear(spans.down_proj, hidden_size),
            width,
            limit,
        }
    }

    /// Packs the present weights.
    pub fn refresh(&mut self, device: &Device, params: &Tensor) {
        self.gate_up.refresh(device, params);
        self.down.refresh(device, params);
    }

    /// Bytes of its matrices.
    pub(crate) fn bytes(&self) -> usize {
        self.gate_up.bytes() + self.down.bytes()
    }

    /// F.
    pub fn width(&self) -> usize {
        self.width
    }

    /// y (T, D) = or += mlp(h (T, D)), for the first `t` rows.
    pub fn forward(
        &self,
        device: &Device,
        y: &mut Tensor,
        h: &Tensor,
        t: usize,
        store: Store,
        kept: &mut MlpKept,
    ) {
        self.gate_up.forward(
            device,
            kept.gate_up.rows_mut(t),
            h.rows(t),
            Store::Overwrite,
        );
        swiglu::forward(
            device,
            kept.act.rows_mut(t),
            kept.gate_up.rows(t),
            self.width,
            self.limit,
        );
        self.down
            .forward(device, y.rows_mut(t), kept.act.rows(t), store);
    }

    /// dx (T, D), the gradient of the output -> dh (T, D), overwritten.
    pub fn backward(
        &self,
        device: &Device,
        grads: &mut Tensor,
        dh: &mut Tensor,
        dx: View,
        h: &Tensor,
        kept: &MlpKept,
        scratch: &mut MlpScratch,
    ) {
        self.down
            .backward_input(device, scratch.dact.view_mut(), dx, Store::Overwrite);
        self.down
            .backward_weight(device, grads, dx, kept.act.view());
        swiglu::backward(
            device,
            scratch.dgate_up.view_mut(),
            scratch.dact.view(),
            kept.gate_up.view(),
            self.width,
            self.limit,
        );
        self.gate_up.backward_input(
            device,
            dh.view_mut(),
            scratch.dgate_up.view(),
            Store::Overwrite,
        );
        self.gate_up
            .backward_weight(device, grads, scratch.dgate_up.view(), h.view());
    }
}
