//! Which documents are joined (union-find with halving of paths: Tarjan and van Leeuwen, 1984).

/// A forest of documents.
#[derive(Debug)]
pub(super) struct Union {
    parent: Vec<u32>,
}

impl Union {
    /// Each document alone.
    pub(super) fn new(n: usize) -> Self {
        Self {
            parent: (0..n as u32).collect(),
        }
    }

    fn find(&mut self, mut doc: u32) -> u32 {
        while self.parent[doc as usize] != doc {
            let up = self.parent[self.parent[doc as usize] as usize];
            self.parent[doc as usize] = up;
            doc = up;
        }
        doc
    }

    /// Joins the groups of two documents. The root is the smaller number, which keeps [`Union::flat`] one pass.
    pub(super) fn join(&mut self, a: u32, b: u32) {
        let (a, b) = (self.find(a), self.find(b));
        self.parent[a.max(b) as usize] = a.min(b);
    }

    /// For each document a document that names its group.
    pub(super) fn flat(&mut self) -> &[u32] {
        for doc in 0..self.parent.len() {
            // A parent is a smaller number, so it points to its root already.
            self.parent[doc] = self.parent[self.parent[doc] as usize];
        }
        &self.parent
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_named_by_their_smallest_document() {
        let mut union = Union::new(7);
        for (a, b) in [(6, 5), (5, 2), (1, 4), (4, 1), (3, 6)] {
            union.join(a, b);
        }
        assert_eq!(union.flat(), [0, 1, 2, 2, 1, 2, 2]);
    }
}
