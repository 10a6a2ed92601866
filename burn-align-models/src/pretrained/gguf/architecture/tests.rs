use super::*;

#[test]
fn paired_rows_are_put_in_halves() {
    // Two heads of four features: pairs (0, 1), (2, 3) of each head.
    let rows = Rows::Paired { heads: 2 };
    assert_eq!(rows.order(8), Some(vec![0, 2, 1, 3, 4, 6, 5, 7]));
    assert_eq!(Rows::AsTheyAre.order(8), None);
    assert_eq!(rows.expected(8), None);
    assert!(rows.expected(6).is_some());
    assert!(Rows::Paired { heads: usize::MAX }.expected(8).is_some());
}

#[test]
fn fused_rows_are_put_by_head() {
    // Two heads of two features: queries 0..4, keys 4..8, values 8..12.
    let rows = Rows::ByPart { heads: 2 };
    let order = vec![0, 1, 4, 5, 8, 9, 2, 3, 6, 7, 10, 11];
    assert_eq!(rows.order(12), Some(order));
    assert_eq!(rows.expected(12), None);
    for wrong in [0, 8, 13] {
        assert!(rows.expected(wrong).is_some(), "{wrong}");
    }
}

#[test]
fn ranges_of_rows_are_cut_out() {
    let [start, end, all] = [4, 6, 8];
    let rows = Rows::Range { start, end, all };
    assert_eq!(rows.order(8), Some(vec![4, 5]));
    assert_eq!(rows.count(8), 2);
    assert_eq!(rows.expected(8), None);
    assert_eq!(rows.expected(9), Some("8 rows".to_owned()));
}

#[test]
fn names_come_apart() {
    assert_eq!(
        block_parts("blk.12.attn_q.weight"),
        Some((12, "attn_q", "weight"))
    );
    assert_eq!(block_parts("output.weight"), None);
    assert_eq!(module_and_kind("attn_q.bias"), Some(("attn_q", "bias")));
    assert_eq!(module_and_kind("attn_q.scale"), None);
}
