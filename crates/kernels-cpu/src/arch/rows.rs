//! For what is written out in assembler: which rows a tile has, and where they lie.

/// `$f!($args; rows)` with the first R of a number of rows. A row is its two sums, counted over all rows, and its address:
/// from one of the pointers `p0` to `p3`, each for three rows, with `s` bytes between them.
macro_rules! by_rows {
    ($r:ident of 3, $f:ident $args:tt) => {
        by_rows!(@ $r $f $args [] 1: (0 1 "{p0}") 2: (2 3 "{p0} + 1 * {s}") 3: (4 5 "{p0} + 2 * {s}"))
    };
    ($r:ident of 6, $f:ident $args:tt) => {
        by_rows!(
            @ $r $f $args []
            1: (0 1 "{p0}") 2: (2 3 "{p0} + 1 * {s}") 3: (4 5 "{p0} + 2 * {s}")
            4: (6 7 "{p1}") 5: (8 9 "{p1} + 1 * {s}") 6: (10 11 "{p1} + 2 * {s}")
        )
    };
    ($r:ident of 12, $f:ident $args:tt) => {
        by_rows!(
            @ $r $f $args []
            1: (0 1 "{p0}") 2: (2 3 "{p0} + 1 * {s}") 3: (4 5 "{p0} + 2 * {s}")
            4: (6 7 "{p1}") 5: (8 9 "{p1} + 1 * {s}") 6: (10 11 "{p1} + 2 * {s}")
            7: (12 13 "{p2}") 8: (14 15 "{p2} + 1 * {s}") 9: (16 17 "{p2} + 2 * {s}")
            10: (18 19 "{p3}") 11: (20 21 "{p3} + 1 * {s}") 12: (22 23 "{p3} + 2 * {s}")
        )
    };
    (@ $r:ident $f:ident $args:tt [$($before:tt)*] $count:literal: $row:tt $($rest:tt)*) => {
        if $r == $count {
            by_rows!(of $f $args [$($before)* $row])
        } else {
            by_rows!(@ $r $f $args [$($before)* $row] $($rest)*)
        }
    };
    (@ $r:ident $f:ident $args:tt [$($before:tt)*]) => { debug_assert!(false, "a tile of {} rows", $r) };
    (of $f:ident ($($args:tt)*) [$($rows:tt)*]) => { $f!($($args)*; $($rows)*) };
}
pub(super) use by_rows;
