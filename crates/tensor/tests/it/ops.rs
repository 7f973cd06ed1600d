//! Every op, forward and backward, at every size of its table: against the reference on every
//! instruction set of this processor, and the reference's gradients against differences.

use testkit::cases::{self, Table};
use testkit::{Mode, conform, grad};

/// Kernel against reference, on every instruction set, with the same bits on 1, 2 and 3 threads.
fn conforms(table: Table) {
    let devices = conform::devices();
    for case in table(Mode::Conform) {
        conform::check(case.as_ref(), &devices);
    }
}

/// Reference against differences.
fn differentiates(table: Table) {
    for case in table(Mode::Grad) {
        grad::check(case.as_ref());
    }
}

/// Both tests for the table of each file.
macro_rules! tables {
    ($($op:ident)*) => {
        $(mod $op {
            #[test]
            fn agrees_with_the_reference_on_every_instruction_set() {
                super::conforms(super::cases::$op::cases);
            }
            #[test]
            fn has_the_gradient_of_differences() {
                super::differentiates(super::cases::$op::cases);
            }
        })*

        #[test]
        fn every_table_is_tested() {
            let tested = [$(stringify!($op)),*];
            for (name, _) in cases::ALL {
                assert!(tested.contains(&name), "{name}");
            }
            assert_eq!(tested.len(), cases::ALL.len());
        }
    };
}

tables! {
    gemm gemm_blocks grouped_gemm attention qk_norm_rope rms_norm swiglu router moe_permute cross_entropy
    embedding elementwise adamw muon
}
