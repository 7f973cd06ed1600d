//! Products of groups of rows, each group with its own matrix: the experts of a layer.
//!
//! Rows are sorted by group; `offsets` (E+1) are their borders. A row may read another row of the input
//! (`rows`), so that the permuted input is never written out. Groups may be empty.

use crate::gemm::{Compute, Packed, Rows, rows_times, tn_group};
use crate::pool::SharedMut;
use crate::{Cpu, Store};

/// Rows `offsets[e]..offsets[e+1]` of y (N, n) = the same rows of x (or x at `rows`) times `b[e]`.
pub fn grouped_matmul(
    cpu: &Cpu,
    y: &mut [f32],
    x: &[f32],
    rows: Option<&[u32]>,
    offsets: &[u32],
    b: &[Packed],
    store: Store,
) {
    assert_eq!(
        offsets.len(),
        b.len() + 1,
        "grouped_matmul: one matrix per group"
    );
    let total = offsets[b.len()] as usize;
    assert_eq!(y.len(), total * b[0].n(), "grouped_matmul: y is not (N, n)");
    let (isa, out) = (cpu.isa(), SharedMut::new(y));
    cpu.pool.for_ranges(total, 1, &|range| {
        for (e, b) in b.iter().enumerate() {
            let start = range.start.max(offsets[e] as usize);
            let end = range.end.min(offsets[e + 1] as usize);
            if start < end {
                let panels = 0..b.n().div_ceil(b.panel_width());
                rows_times(isa, out, x, rows, start..end, b, panels, store);
            }
        }
    });
}

/// c (E, p, q): `c[e]` += sum over the rows of group e, in order, of a^T b.
pub fn grouped_matmul_tn(
    cpu: &Cpu,
    compute: Compute,
    c: &mut [f32],
    a: &[f32],
    a_rows: Option<&[u32]>,
    b: &[f32],
    b_rows: Option<&[u32]>,
    offsets: &[u32],
    p: usize,
    q: usize,
) {
    let groups = offsets.len() - 1;
    assert_eq!(
        c.len(),
        groups * p * q,
        "grouped_matmul_tn: c is not (E, p, q)"
    );
    let isa = cpu.isa();
    let out = SharedMut::new(c);
    let (a, b) = (
        Rows {
            data: a,
            gather: a_rows,
            width: p,
        },
        Rows {
            data: b,
            gather: b_rows,
            width: q,
        },
    );
    cpu.pool.for_ranges(p, 12, &|cols| {
        for e in 0..groups {
            let rows = offsets[e] as usize..offsets[e + 1] as usize;
            let c = out.offset(e * p * q);
            tn_group(isa, compute, c, a, b, rows, cols.clone());
        }
    });
}
