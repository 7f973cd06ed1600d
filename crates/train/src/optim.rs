//! The optimizers' state, and one update of all parameters.
//!
//! Matrices of the network are moved by Muon (or, if the recipe says so, by AdamW); embedding, head and
//! gains by AdamW; router biases by the trainer, which knows the loads. Formulas: `kernels_cpu::muon`,
//! `kernels_cpu::adamw`.
//!
//! State: one momentum for each parameter, and a second moment for those of AdamW, laid out in the order of
//! the layout.

use model::Layout;
use model::weights::{Role, TensorSpec};
use tensor::ops::adamw::{self, AdamW};
use tensor::ops::muon::{self, Matrix, Muon};
use tensor::{Device, Tensor};

use crate::recipe::{MatrixOptimizer, Optim};

/// Momenta of all parameters.
pub struct Optimizer {
    settings: Optim,
    momentum: Tensor,      // in the layout of the parameters
    second: Tensor,        // those of AdamW, one after another
    plan: Vec<Assignment>, // one for each tensor of the layout
}

#[derive(Clone, Copy)]
enum Assignment {
    Muon,
    AdamW { second: usize }, // where its second moment begins
    None,
}

/// What a state is called in the file of a checkpoint: `momentum.<tensor>` or `second.<tensor>`.
pub struct StateTensor<'a> {
    /// Its name.
    pub name: String,
    /// As the parameter's.
    pub shape: &'a [usize],
    /// Its values.
    pub values: &'a [f32],
}

impl Optimizer {
    /// A state of zeros.
    pub fn new(device: &Device, layout: &Layout, settings: Optim) -> Optimizer {
        let mut second_len = 0;
        let mut adamw = |tensor: &TensorSpec| {
            let second = second_len;
            second_len += tensor.span.len;
            Assignment::AdamW { second }
        };
        let plan = layout
            .tensors
            .iter()
            .map(|tensor| match (tensor.role, settings.matrices) {
                (Role::Matrix, MatrixOptimizer::Muon) => Assignment::Muon,
                (Role::Matrix | Role::Embedding | Role::Gain, _) => adamw(tensor),
                (Role::RouterBias, _) => Assignment::None,
            })
            .collect();
        Optimizer {
            settings,
            momentum: Tensor::zeros(device, &[layout.len]),
            second: Tensor::zeros(device, &[second_len]),
            plan,
        }
    }

    /// One update. `step` counts from 1; `lr` is that of the step; `grad_scale` multiplies the gradient.
    pub fn step(
        &mut self,
        device: &Device,
        layout: &Layout,
        params: &mut Tensor,
        grads: &Tensor,
        lr: f64,
        grad_scale: f32,
        step: u64,
    ) {
        let o = &self.settings;
        let muon = Muon {
            lr: lr as f32,
            momentum: o.muon_momentum,
            nesterov: true,
            weight_decay: o.weight_decay,
            ns_steps: o.muon_ns_steps,
        };
        for (tensor, assignment) in layout.tensors.iter().zip(&self.plan) {
            let Assignment::AdamW { second } = *assignment else {
                continue;
            };
            let span = tensor.span.range();
            let adamw = AdamW {
                lr: match tensor.role {
                    Role::Matrix => lr,
                    _ => lr * o.adamw_lr_ratio,
                } as f32,
                beta1: o.beta1,
                beta2: o.beta2,
                eps: o.eps,
                weight_decay: match tensor.role {
                    Role::Gain => 0.0,
                    _ => o.weight_decay,
                },
            };
            adamw::step(
                device,
                params.range_mut(span.clone()),
                self.momentum.range_mut(span.clone()),
                self.second.range_mut(second..second + tensor.span.len),
                grads.range(span),
                grad_scale,
                &adamw,
                step,
            );
        }
        let mut weights = Ranges::new(params.host_mut());
        let mut momenta = Ranges::new(self.momentum.host_mut());
        let mut matrices: Vec<Matrix> = Vec::new();
        for (tensor, assignment) in layout.tensors.iter().zip(&self.plan) {
            if matches!(assignment, Assignment::Muon) {
                let span = tensor.span.range();
                matrices.push(Matrix {
                    w: weights.take(span.clone()),
                    momentum: momenta.take(span.clone()),
                    grad: &grads.host()[span],
                    rows: tensor.shape[0],
                    cols: tensor.shape[1],
                });
            }
        }
        muon::step(device, &mut matrices, grad_scale, &muon);
    }

    /// Everything that a checkpoint must hold.
    pub fn state<'a>(&'a self, layout: &'a Layout) -> Vec<StateTensor<'a>> {
        let mut state = Vec::new();
        for (tensor, assignment) in layout.tensors.iter().zip(&self.plan) {
            let mut add = |kind: &str, values: &'a [f32]| {
                state.push(StateTensor {
                    name: format!("{kind}.{}", tensor.name),
                    shape: &tensor.shape,
                    values,
                });
            };
            match *assignment {
                Assignment::None => {}
                Assignment::Muon => add("momentum", &self.momentum.host()[tensor.span.range()]),
                Assignment::AdamW { second } => {
                    add("momentum", &self.momentum.host()[tensor.span.range()]);
                    add(
                        "second",
                        &self.second.host()[second..second + tensor.span.len],
                    );
                }
            }
        }
        state
    }

    /// Hands out each tensor of [`Optimizer::state`] to be filled, by name and shape.
    ///
    /// # Errors
    /// The first error of `read`.
    pub fn restore<E>(
        &mut self,
        layout: &Layout,
        mut read: impl FnMut(&str, &[usize], &mut [f32]) -> Result<(), E>,
    ) -> Result<(), E> {
        for (tensor, assignment) in layout.tensors.iter().zip(&self.plan) {
            let momentum = format!("momentum.{}", tensor.name);
            let span = tensor.span.range();
            match *assignment {
                Assignment::None => {}
                Assignment::Muon => {
                    read(
                        &momentum,
                        &tensor.shape,
                        &mut self.momentum.host_mut()[span],
                    )?;
                }
                Assignment::AdamW { second } => {
                    read(
                        &momentum,
                        &tensor.shape,
                        &mut self.momentum.host_mut()[span],
                    )?;
                    let range = second..second + tensor.span.len;
                    let name = format!("second.{}", tensor.name);
                    read(&name, &tensor.shape, &mut self.second.host_mut()[range])?;
                }
            }
        }
        Ok(())
    }
}

/// Disjoint ranges of a slice, taken in ascending order.
struct Ranges<'a> {
    rest: &'a mut [f32],
    start: usize, // of `rest` in the slice
}

impl<'a> Ranges<'a> {
    fn new(all: &'a mut [f32]) -> Ranges<'a> {
        Ranges {
            rest: all,
            start: 0,
        }
    }

    fn take(&mut self, range: std::ops::Range<usize>) -> &'a mut [f32] {
        let rest = std::mem::take(&mut self.rest);
        let (taken, rest) = rest[range.start - self.start..].split_at_mut(range.len());
        (self.rest, self.start) = (rest, range.end);
        taken
    }
}
