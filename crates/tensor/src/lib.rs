//! Device memory and the ops on it.
//!
//! [`Device`] is a closed enum; every op of `ops` matches on it in exactly one file, and nothing else
//! does. A second device is a second arm in each of those files.
//!
//! Reading order: [`device`], [`tensor`], [`packed`], then [`ops`].

pub mod device;
pub mod ops;
pub mod packed;
pub mod tensor;

pub use device::Device;
pub use kernels_cpu::Compute;
pub use packed::{Activations, Packed, Stored};
pub use tensor::{Tensor, View, ViewMut};
