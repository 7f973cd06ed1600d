//! Products of groups of rows, each group with its own matrix: the experts of a layer.
//!
//! y[i] (n) = x[rows[i]] (k) times B_e           for i in offsets[e]..offsets[e+1]
//! c[e] (p, q) += sum over the same i, in order, of a[a_rows[i]]^T b[b_rows[i]]
//!
//! Rows are sorted by group. They may be read through an index, so that the permuted input is never
//! written out. Groups may be empty. The bits of a row are those of `gemm::matmul`.

use crate::gemm::{
    Half, Next, Packed, Packer, Rows, block_rows, first_chain, groups_tn, last_pieces, rows_times,
};
use crate::pool::{Cut, SharedMut, part};
use crate::{Compute, Cpu, Store};
use std::ops::Range;

/// Rows that a piece of a block has at least, on average: each piece reads the panels.
const MIN_PIECE_ROWS: usize = 32;

/// Rows `offsets[e]..offsets[e+1]` of y (N, n) = the same rows of x (or those that `rows` names) times
/// `b[e]`. Rows before the first offset are left as they are. A group without rows needs no matrix.
///
/// # Panics
/// When a matrix that is needed is not there, or sizes do not fit together.
pub fn grouped_matmul(
    cpu: &Cpu,
    y: &mut [f32],
    x: &[f32],
    rows: Option<&[u32]>,
    offsets: &[u32],
    b: &[Option<Packed>],
    store: Store,
) {
    check(offsets, b.len());
    let Some(first) = b.iter().flatten().next() else {
        assert!(
            offsets[0] == offsets[b.len()],
            "grouped_matmul: rows without a matrix"
        );
        return;
    };
    let total = offsets[b.len()] as usize;
    assert!(
        (b.iter().flatten()).all(|b| (b.n(), b.k()) == (first.n(), first.k())),
        "grouped_matmul: the matrices differ in shape"
    );
    assert_eq!(
        y.len(),
        total * first.n(),
        "grouped_matmul: y is not (N, n)"
    );
    let (isa, threads, panels) = (cpu.isa(), cpu.pool.threads(), first.panels());
    let x = Rows {
        data: x,
        gather: rows,
        width: first.k(),
    };
    let (first_chain, out) = (first_chain(y, store), SharedMut::new(y));
    let group = |e: usize| offsets[e] as usize..offsets[e + 1] as usize;
    let matrix = |e: usize| b[e].as_ref().expect("a group with rows has a matrix");
    let used: Vec<usize> = (0..b.len()).filter(|&e| !group(e).is_empty()).collect();
    // Many rows are shared out in blocks of their groups. Of few, the panels of all groups in use: each is then
    // read once.
    let packer = || Packer::new(x);
    if total >= 16 * threads * b.len() {
        let most = block_rows(first).min(total.div_ceil(2 * threads));
        let blocks = |&e: &usize| {
            let count = group(e).len().div_ceil(most);
            (0..count).map(move |idx| (e, part(&group(e), idx, count)))
        };
        let blocks: Vec<(usize, Range<usize>)> = used.iter().flat_map(blocks).collect();
        // The last ones are cut by rows, since the panels of a group are few; into pieces of some tiles.
        let pieces = last_pieces(first).min(total / blocks.len().max(1) / MIN_PIECE_ROWS);
        let of = |cut: Cut| {
            let (e, rows) = &blocks[cut.item];
            (cut.of(rows), matrix(*e))
        };
        (cpu.pool).for_each_cut(blocks.len(), pieces, &packer, &|packer, cut, next| {
            let next = next.map(|cut| {
                let (rows, b) = of(cut);
                Next { rows, b, panel: 0 }
            });
            let (rows, b) = of(cut);
            rows_times(isa, out, packer, rows, b, 0..panels, first_chain, next);
        });
    } else {
        (cpu.pool).for_ranges_with(used.len() * panels, 1, &packer, &|packer, range| {
            for (nth, &e) in used.iter().enumerate() {
                let start = range.start.saturating_sub(nth * panels).min(panels);
                let end = range.end.saturating_sub(nth * panels).min(panels);
                rows_times(
                    isa,
                    out,
                    packer,
                    group(e),
                    matrix(e),
                    start..end,
                    first_chain,
                    None,
                );
            }
        });
    }
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
    check(offsets, groups);
    let a = Rows {
        data: a,
        gather: a_rows,
        width: p,
    };
    let b = Rows {
        data: b,
        gather: b_rows,
        width: q,
    };
    let rows = |e: usize| offsets[e] as usize..offsets[e + 1] as usize;
    groups_tn(cpu, compute, c, a, b, groups, Half::Both, rows);
}

fn check(offsets: &[u32], groups: usize) {
    assert_eq!(
        offsets.len(),
        groups + 1,
        "offsets are the borders of the groups"
    );
    assert!(offsets.is_sorted(), "offsets ascend");
}
