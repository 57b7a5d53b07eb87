use super::*;
use proptest::{collection::vec, prelude::*};

fn text(tokens: impl IntoIterator<Item = u32>) -> Encoded {
    Encoded {
        tokens: tokens.into_iter().collect(),
        counted: None,
    }
}

fn whole(tokens: impl IntoIterator<Item = u32>, n_prompt: usize) -> Encoded {
    let tokens: Vec<u32> = tokens.into_iter().collect();
    let counted = (0..tokens.len()).map(|i| i >= n_prompt).collect();
    Encoded {
        tokens,
        counted: Some(counted),
    }
}

fn pack(
    mode: PackMode,
    context: usize,
    documents: &[Encoded],
) -> (Vec<Row>, Vec<Outcome>, PackStats) {
    let mut packer = Packer::new(mode, context);
    let (mut rows, mut outcomes) = (Vec::new(), Vec::new());
    for document in documents {
        outcomes.push(packer.push(document));
        rows.extend(std::iter::from_fn(|| packer.pop()));
    }
    packer.finish();
    rows.extend(std::iter::from_fn(|| packer.pop()));
    let stats = packer.stats().clone();
    (rows, outcomes, stats)
}

fn tokens(rows: &[Row]) -> Vec<&[u32]> {
    rows.iter().map(|row| row.tokens.as_slice()).collect()
}

/// Segments of all rows with their masks.
fn segments(rows: &[Row]) -> Vec<(Vec<u32>, Vec<bool>)> {
    let mut out = Vec::new();
    for row in rows {
        let mut start = 0;
        for len in &row.segments {
            let range = start..start + *len as usize;
            out.push((
                row.tokens[range.clone()].to_vec(),
                row.counted[range].to_vec(),
            ));
            start += *len as usize;
        }
    }
    out
}

#[test]
fn texts_fill_rows_and_overlap_by_a_token() {
    let (rows, _, stats) = pack(
        PackMode::Segments,
        4,
        &[text(0..4), text(10..13), text(20..22)],
    );
    // Three positions of the first text and one of the second fill a row.
    assert_eq!(
        tokens(&rows),
        [&[0, 1, 2, 3, 10, 11][..], &[11, 12, 20, 21]]
    );
    assert_eq!(rows[0].segments, [4, 2]);
    assert_eq!(rows[0].counted, [false, true, true, true, false, true]);
    assert_eq!((stats.positions, stats.counted, stats.tokens), (6, 6, 10));
    assert!((stats.fill(4) - 0.75).abs() < 1e-12);
}

#[test]
fn one_document_a_row_or_a_window_of_it() {
    let (rows, outcomes, _) = pack(
        PackMode::One,
        3,
        &[text(0..8), whole(10..13, 1), text(20..21)],
    );
    assert_eq!(
        tokens(&rows),
        [&[0, 1, 2, 3][..], &[3, 4, 5, 6], &[6, 7], &[10, 11, 12]]
    );
    assert_eq!(
        outcomes,
        [Outcome::Placed, Outcome::Placed, Outcome::Dropped]
    );
}

#[test]
fn a_stream_runs_on_through_documents_with_their_masks() {
    let (rows, _, _) = pack(
        PackMode::Concat,
        3,
        &[text([0, 1, 9]), whole([2, 3, 4, 9], 2), text([5, 9])],
    );
    assert_eq!(
        tokens(&rows),
        [&[0, 1, 9, 2][..], &[2, 3, 4, 9], &[9, 5, 9]]
    );
    assert_eq!(rows[0].counted, [false, true, true, false]);
    assert_eq!(rows[1].counted, [false, false, true, true]);
    assert_eq!(rows[2].counted, [false, true, true]);
    assert!(rows.iter().all(|row| row.segments.len() == 1));
}

#[test]
fn a_window_without_anything_to_learn_is_no_row() {
    let (rows, _, _) = pack(PackMode::Concat, 3, &[whole(0..9, 8)]);
    assert_eq!(tokens(&rows), [&[6, 7, 8]]);
}

#[test]
fn a_long_chat_loses_its_end_and_falls_out_when_no_answer_is_left() {
    for mode in [PackMode::Segments, PackMode::One] {
        let (rows, outcomes, stats) =
            pack(mode, 4, &[whole(0..9, 3), whole(0..9, 5), whole(0..3, 3)]);
        assert_eq!(tokens(&rows), [&[0, 1, 2, 3, 4]]);
        assert_eq!(rows[0].counted, [false, false, false, true, true]);
        assert_eq!(
            outcomes,
            [Outcome::Truncated, Outcome::Dropped, Outcome::Dropped]
        );
        assert_eq!((stats.truncated, stats.dropped), (1, 2));
    }
}

#[test]
fn chats_go_where_they_fit_best() {
    let chat = |n: u32, id: u32| whole((0..=n).map(|_| id), 1);
    let documents = [
        chat(5, 1),
        chat(7, 2),
        chat(3, 3),
        chat(2, 4),
        chat(3, 5),
        chat(1, 6),
    ];
    let (rows, _, _) = pack(PackMode::Segments, 10, &documents);
    let ids: Vec<Vec<u32>> = rows
        .iter()
        .map(|row| {
            let mut ids = row.tokens.clone();
            ids.dedup();
            ids
        })
        .collect();
    assert_eq!(ids, [vec![2, 3], vec![1, 4, 5], vec![6]]);
}

/// Documents with tokens that occur nowhere else, so that each can be followed.
fn documents() -> impl Strategy<Value = Vec<Encoded>> {
    let lengths = prop_oneof![0_usize..12, 0_usize..90];
    vec((lengths, any::<bool>(), any::<u64>()), 0..60).prop_map(|shapes| {
        let mut next = 0;
        let document = |(len, is_text, bits): (usize, bool, u64)| {
            let tokens: Vec<u32> = (next..next + len as u32).collect();
            next += len as u32;
            let mask = |()| {
                (0..len)
                    .map(|i| i > 0 && bits >> (i % 64) & 1 == 1)
                    .collect()
            };
            Encoded {
                tokens,
                counted: (!is_text).then_some(()).map(mask),
            }
        };
        shapes.into_iter().map(document).collect()
    })
}

fn modes() -> impl Strategy<Value = PackMode> {
    prop_oneof![
        Just(PackMode::Segments),
        Just(PackMode::Concat),
        Just(PackMode::One)
    ]
}

/// How often each token is a target that counts.
fn targets(rows: &[Row]) -> BTreeMap<u32, usize> {
    let mut counts = BTreeMap::new();
    for (tokens, counted) in segments(rows) {
        for (token, _) in tokens.iter().zip(&counted).filter(|(_, counted)| **counted) {
            *counts.entry(*token).or_default() += 1;
        }
    }
    counts
}

/// What has to be learnt of the documents.
fn wanted(mode: PackMode, context: usize, documents: &[Encoded]) -> BTreeMap<u32, usize> {
    let mut wanted = BTreeMap::new();
    let mut is_first = true;
    for document in documents.iter().filter(|d| d.n_counted() > 0) {
        let cut = mode != PackMode::Concat && document.counted.is_some();
        let end = if cut { context + 1 } else { usize::MAX };
        for (i, token) in document.tokens.iter().enumerate().take(end) {
            let counts = document.counted.as_ref().is_none_or(|counted| counted[i]);
            // Only in a stream is there something before the first token of a document.
            let has_input = i > 0 || (mode == PackMode::Concat && !is_first);
            if counts && has_input {
                wanted.insert(*token, 1);
            }
        }
        is_first = false;
    }
    wanted
}

proptest! {
    #[test]
    fn each_token_is_learnt_once_and_no_row_is_too_long(documents in documents(), mode in modes(), context in 1_usize..40) {
        let (rows, outcomes, stats) = pack(mode, context, &documents);
        for row in &rows {
            prop_assert_eq!(row.segments.iter().sum::<u32>() as usize, row.tokens.len());
            prop_assert_eq!(row.counted.len(), row.tokens.len());
            prop_assert!(row.n_positions() <= context && row.n_counted() > 0);
            prop_assert!(row.segments.iter().all(|len| *len >= 2));
            prop_assert!(mode == PackMode::Segments || row.segments.len() == 1);
        }
        for (tokens, counted) in segments(&rows) {
            prop_assert!(!counted[0]);
            // Of a document's tokens none is missing within a segment.
            prop_assert!(mode == PackMode::Concat || tokens.windows(2).all(|pair| pair[1] == pair[0] + 1));
        }
        prop_assert_eq!(targets(&rows), wanted(mode, context, &documents));
        prop_assert_eq!(stats.rows, rows.len() as u64);
        prop_assert_eq!(stats.positions, rows.iter().map(|row| row.n_positions() as u64).sum::<u64>());
        prop_assert_eq!(stats.dropped, outcomes.iter().filter(|o| **o == Outcome::Dropped).count() as u64);
        prop_assert!(stats.fill(context) <= 1.0);
    }

    #[test]
    fn chats_are_cut_only_at_the_context(documents in documents(), context in 1_usize..40) {
        let (rows, outcomes, _) = pack(PackMode::Segments, context, &documents);
        let segments = segments(&rows);
        for (document, outcome) in documents.iter().zip(outcomes) {
            let Some(counted) = &document.counted else { continue };
            let n = document.tokens.len().min(context + 1);
            let kept = (document.tokens[..n].to_vec(), counted[..n].to_vec());
            prop_assert_eq!(segments.contains(&kept), outcome != Outcome::Dropped);
            prop_assert_eq!(outcome == Outcome::Dropped, n < 2 || !kept.1.contains(&true));
            prop_assert_eq!(outcome == Outcome::Truncated, n < document.tokens.len() && outcome != Outcome::Dropped);
        }
    }

    #[test]
    fn the_same_documents_make_the_same_rows(documents in documents(), mode in modes(), context in 1_usize..40) {
        prop_assert_eq!(pack(mode, context, &documents), pack(mode, context, &documents));
    }
}

#[test]
fn open_rows_are_bounded_and_fill_is_good() {
    let mut packer = Packer::new(PackMode::Segments, 512);
    let mut state = 1_u64;
    for _ in 0..20_000 {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        let len = 20 + (state >> 33) as u32 % 400;
        packer.push(&whole(0..len, 5));
        while packer.pop().is_some() {}
        assert!(packer.bins.rows.len() <= OPEN_ROWS);
        assert_eq!(packer.bins.rows.len(), packer.bins.by_room.len());
    }
    packer.finish();
    assert!(
        packer.stats().fill(512) > 0.97,
        "{}",
        packer.stats().fill(512)
    );
}
