//! How often tokens stand in a request, without saying which.
//!
//! The count-min sketch of Cormode and Muthukrishnan (2005), of [`N_ROWS`] rows of [`WIDTH`] cells, with one change: a request fills **one**
//! row, drawn by chance. So a cell of a record stands for about a hundred ids of a vocabulary of 50,000 and nobody can tell which of them
//! was there, while a day's requests together fill all rows, and what all four agree on is known of the day as a whole.

use serde::{Deserialize, Serialize};

/// Rows, each with a hash function of its own.
pub const N_ROWS: usize = 4;
/// Cells of a row.
pub const WIDTH: usize = 512;

/// The cell of a token in a row.
pub fn cell(row: usize, id: u32) -> usize {
    // The finaliser of SplitMix64 (Steele, Lea and Flood, 2014); its upper bits are the best mixed.
    let mut z = (u64::from(id) | (row as u64) << 32).wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((z ^ (z >> 31)) >> (64 - WIDTH.ilog2())) as usize
}

/// One row of a request, its empty cells left out.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sketch {
    /// Which row.
    pub row: u8,
    /// Cells and counts of the prompt's tokens, one behind the other: `[cell, count, cell, count, …]`, by cell.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub prompt: Vec<u32>,
    /// The same of the answer's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub answer: Vec<u32>,
}

impl Sketch {
    /// Counts a request's tokens in the row that `chance` picks.
    pub fn of(chance: u64, prompt: &[u32], answer: &[u32]) -> Self {
        let row = (chance % N_ROWS as u64) as usize;
        Self {
            row: row as u8,
            prompt: counted(row, prompt),
            answer: counted(row, answer),
        }
    }

    /// Cells and counts of the prompt.
    pub fn prompt_cells(&self) -> impl Iterator<Item = (usize, u32)> + Clone + '_ {
        pairs(&self.prompt)
    }

    /// Cells and counts of the answer.
    pub fn answer_cells(&self) -> impl Iterator<Item = (usize, u32)> + Clone + '_ {
        pairs(&self.answer)
    }

    /// Whether a foreign sketch is one: rows and cells that there are, each cell once and with a count.
    pub fn is_sound(&self) -> bool {
        usize::from(self.row) < N_ROWS
            && [&self.prompt, &self.answer]
                .into_iter()
                .all(|flat| is_sound(flat))
    }
}

fn counted(row: usize, ids: &[u32]) -> Vec<u32> {
    let mut cells: Vec<u32> = ids.iter().map(|&id| cell(row, id) as u32).collect();
    cells.sort_unstable();
    let runs = cells.chunk_by(|a, b| a == b);
    runs.flat_map(|run| [run[0], run.len() as u32]).collect()
}

fn pairs(flat: &[u32]) -> impl Iterator<Item = (usize, u32)> + Clone + '_ {
    flat.as_chunks::<2>()
        .0
        .iter()
        .map(|&[cell, count]| (cell as usize, count))
}

fn is_sound(flat: &[u32]) -> bool {
    let (cells, rest) = flat.as_chunks::<2>();
    rest.is_empty()
        && cells
            .iter()
            .all(|&[cell, count]| (cell as usize) < WIDTH && count > 0)
        && cells.windows(2).all(|two| two[0][0] < two[1][0])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_stands_in_the_same_cell_for_ever() {
        // Logs outlive programs. The values are of the published SplitMix64 in another language (Python).
        assert_eq!(
            [cell(0, 0), cell(1, 0), cell(2, 17), cell(3, 49_151)],
            [452, 392, 438, 100]
        );
    }

    #[test]
    fn cells_are_filled_evenly_and_rows_differ() {
        let mut counts = [0_u32; WIDTH];
        let mut same = 0;
        for id in 0..51_200 {
            counts[cell(0, id)] += 1;
            same += u32::from(cell(0, id) == cell(1, id));
        }
        // 100 are expected; six standard deviations of a Poisson count are 60.
        assert!(counts.iter().all(|count| (40..160).contains(count)));
        assert!(same < 200, "100 by chance: {same}");
    }

    #[test]
    fn a_request_fills_one_row() {
        let sketch = Sketch::of(6, &[5, 9, 5, 5], &[]);
        assert_eq!(sketch.row, 2);
        let mut want = [(cell(2, 5), 3), (cell(2, 9), 1)];
        want.sort_unstable();
        assert_eq!(sketch.prompt_cells().collect::<Vec<_>>(), want);
        assert_eq!(sketch.answer_cells().count(), 0);
        assert!(sketch.is_sound());
    }

    #[test]
    fn what_is_no_sketch_is_seen() {
        let of = |row: u8, prompt: &[u32]| Sketch {
            row,
            prompt: prompt.to_vec(),
            answer: Vec::new(),
        };
        assert!(of(3, &[0, 1, 511, 7]).is_sound());
        for bad in [
            of(4, &[]),
            of(0, &[1]),
            of(0, &[512, 1]),
            of(0, &[3, 0]),
            of(0, &[3, 1, 3, 1]),
        ] {
            assert!(!bad.is_sound(), "{bad:?}");
        }
    }
}
