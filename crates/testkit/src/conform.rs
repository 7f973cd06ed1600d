//! Kernels against the reference.

use crate::case::{Case, Start};
use crate::compare::close;
use kernels_cpu::Isa;
use tensor::Device;

/// Values before and after an output: odd, so that no vector of an output is aligned.
const GUARD: usize = 33;

/// Every instruction set of this processor, each with 1, 2 and 3 threads.
pub fn devices() -> Vec<Device> {
    let isas = Isa::available().into_iter();
    isas.flat_map(|isa| [1, 2, 3].map(|threads| Device::cpu(isa, threads)))
        .collect()
}

/// Runs the kernel of a case on each device: every output must be as near to the reference as its
/// tolerance says, with nothing written beside it, and have the same bits on all devices of one name.
///
/// # Panics
/// When one is not; the message names case, device and output.
pub fn check(case: &dyn Case, devices: &[Device]) {
    let outputs = case.outputs();
    let expected: Vec<Vec<f64>> = outputs
        .iter()
        .zip(case.reference())
        .map(|(output, reference)| match &output.start {
            Start::Sum(start) => start
                .iter()
                .zip(reference)
                .map(|(&start, x)| f64::from(start) + x)
                .collect(),
            _ => reference,
        })
        .collect();
    let mut before: Option<(&str, Vec<Vec<f64>>)> = None;
    for device in devices {
        let mut buffers: Vec<_> = outputs.iter().map(|o| o.buffer(device, GUARD)).collect();
        case.kernel(device)(&mut buffers);
        let mut all = Vec::new();
        for ((output, buffer), expected) in outputs.iter().zip(&buffers).zip(&expected) {
            let on = format!("{} threads of {}", device.threads(), device.name());
            let what = format!("{}: {} on {on}", case.name(), output.name);
            let got = buffer
                .read()
                .unwrap_or_else(|| panic!("{what}: something was written outside of it"));
            if let Err(mismatch) = close(&got, expected, output.tolerance) {
                panic!("{what}: {mismatch}");
            }
            all.push(got);
        }
        match &before {
            Some((name, first)) if *name == device.name() => {
                let threads = device.threads();
                assert!(
                    *first == all,
                    "{}: other bits on {threads} threads of {name}",
                    case.name()
                );
            }
            _ => before = Some((device.name(), all)),
        }
    }
}
