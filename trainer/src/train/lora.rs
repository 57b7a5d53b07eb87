//! The product of a linear layer with a LoRA on it: `y = x Wᵀ + b + scale · (dropout(x) Aᵀ) Bᵀ`, and its gradients (Hu et al.,
//! "LoRA", 2021). One operation, because the additions of separate ones would be passes over memory of their own.
//!
//! Legend: x [N, in], W [out, in], A [rank, in], B [out, rank], b [out].

use super::{
    dropout::Draw,
    frozen::{AsB, Frozen},
    kernels::scale,
};
use fledgling_kernels::{
    Operand, Strided,
    gemm::{Behind, Pair, product},
    narrow,
};
use std::{borrow::Cow, ops::Range};

/// What the product is made of beside its tensors, which are x, A, B, then W where it is not frozen in blocks, then b
/// where there is one.
#[derive(Debug, Clone)]
pub struct LoraProduct {
    /// W, where it is frozen in blocks.
    pub matrix: Option<Frozen>,
    /// Whether there is a bias.
    pub has_bias: bool,
    /// Columns of B.
    pub rank: usize,
    /// The factor of the addition.
    pub scale: f32,
    /// The draws of dropout.
    pub draw: Option<Draw>,
    /// The addition is in W already (quantised with it): it is not made, but its gradients are. Straight through the
    /// quantisation: those of A and B are the addition's, that of x comes from W as it is used.
    pub is_merged: bool,
}

/// The tensors of a product, whatever holds them.
#[derive(Debug, Clone, Copy)]
pub struct Tensors<T> {
    /// [N, in]
    pub x: T,
    /// [rank, in]
    pub a: T,
    /// [out, rank]
    pub b: T,
    /// [out, in], where it is not frozen in blocks.
    pub weight: Option<T>,
    /// [out]
    pub bias: Option<T>,
}

impl LoraProduct {
    /// Names tensors that are in order.
    ///
    /// # Panics
    /// When one is missing.
    pub fn tensors<T>(&self, inputs: impl IntoIterator<Item = T>) -> Tensors<T> {
        let mut inputs = inputs.into_iter();
        let mut next = || inputs.next().expect("the inputs are those of the product");
        Tensors {
            x: next(),
            a: next(),
            b: next(),
            weight: self.matrix.is_none().then(&mut next),
            bias: self.has_bias.then(&mut next),
        }
    }

    /// The shape of W. [out, in]
    fn shape(&self, of: &Tensors<&[f32]>) -> [usize; 2] {
        [of.b.len() / self.rank, of.a.len() / self.rank]
    }

    /// `y`. -> [N, out]
    pub fn forward(&self, of: &Tensors<&[f32]>) -> Vec<f32> {
        let ([n_out, n_in], rank) = (self.shape(of), self.rank);
        let n = of.x.len() / n_in;
        let (x, w) = (Strided::rows(of.x, n_in), self.matrix(of, false));
        if self.is_merged {
            return product([n, n_out, n_in], &x, &w, of.bias);
        }
        let low = self.low(of, &self.dropped(of.x));
        let (low, b) = (Strided::rows(&low, rank), Strided::rows(of.b, rank));
        product(
            [n, n_out, n_in + rank],
            &Behind::new(&x, n_in, &low),
            &Behind::new(&w, n_in, &b),
            of.bias,
        )
    }

    /// Gradients of x, A and B, where they are wanted.
    pub fn backward(
        &self,
        of: &Tensors<&[f32]>,
        dy: &[f32],
        wanted: [bool; 3],
    ) -> [Option<Vec<f32>>; 3] {
        let ([n_out, n_in], rank) = (self.shape(of), self.rank);
        let n = of.x.len() / n_in;
        let dropped = self.dropped(of.x);
        let d_low = (wanted[1] || (wanted[0] && !self.is_merged)).then(|| {
            let mut d_low = times_rows(dy, &narrow::transposed(of.b, rank), n_out);
            scale(&mut d_low, self.scale);
            d_low
        }); // [N, rank]
        let d_low = d_low.as_deref().unwrap_or_default();
        let dx = wanted[0].then(|| {
            let (dy, w) = (Strided::rows(dy, n_out), self.matrix(of, true));
            if self.draw.is_none() && !self.is_merged {
                let (low, a) = (Strided::rows(d_low, rank), Strided::columns(of.a, n_in));
                return product(
                    [n, n_in, n_out + rank],
                    &Behind::new(&dy, n_out, &low),
                    &Behind::new(&w, n_out, &a),
                    None,
                );
            }
            let mut dx = product([n, n_in, n_out], &dy, &w, None);
            if let Some(draw) = self.draw.filter(|_| !self.is_merged) {
                for (dx, more) in dx.iter_mut().zip(draw.dx(of.a, d_low)) {
                    *dx += more;
                }
            }
            dx
        });
        let da = wanted[1].then(|| columns_times(d_low, &dropped, n));
        let db = wanted[2].then(|| {
            let low = self.low(of, &dropped);
            narrow::transposed(&columns_times(&low, dy, n), n_out)
        });
        [dx, da, db]
    }

    fn dropped<'a>(&self, x: &'a [f32]) -> Cow<'a, [f32]> {
        match self.draw {
            Some(draw) => draw.dropped(x.to_vec()).into(),
            None => x.into(),
        }
    }

    /// `scale · dropout(x) Aᵀ`. -> [N, rank]
    fn low(&self, of: &Tensors<&[f32]>, dropped: &[f32]) -> Vec<f32> {
        let mut low = times_rows(dropped, of.a, of.a.len() / self.rank);
        scale(&mut low, self.scale);
        low
    }

    /// W as B of a product `x Wᵀ`, or of `x W` when `is_transposed`.
    fn matrix<'a>(&'a self, of: &Tensors<&'a [f32]>, is_transposed: bool) -> Matrix<'a> {
        let n_in = of.a.len() / self.rank;
        match (&self.matrix, of.weight) {
            (Some(matrix), _) => Matrix::Blocks(matrix.as_b(is_transposed)),
            (None, Some(weight)) if is_transposed => Matrix::Dense(Strided::columns(weight, n_in)),
            (None, Some(weight)) => Matrix::Dense(Strided::rows(weight, n_in)),
            (None, None) => unreachable!("a matrix is in blocks or dense"),
        }
    }
}

/// A matrix of the base as a side of a product, however it is held.
enum Matrix<'a> {
    Blocks(AsB<'a>),
    Dense(Strided<'a>),
}

impl Operand for Matrix<'_> {
    fn pack(&self, lanes: Range<usize>, depth: Range<usize>, width: usize, panel: &mut [f32]) {
        match self {
            Self::Blocks(blocks) => blocks.pack(lanes, depth, width, panel),
            Self::Dense(dense) => dense.pack(lanes, depth, width, panel),
        }
    }

    fn pack_pairs(
        &self,
        lanes: Range<usize>,
        depth: Range<usize>,
        width: usize,
        panel: &mut [Pair],
    ) {
        match self {
            Self::Blocks(blocks) => blocks.pack_pairs(lanes, depth, width, panel),
            Self::Dense(dense) => dense.pack_pairs(lanes, depth, width, panel),
        }
    }
}

/// `x · bᵀ`: x [N, k], b [r, k] -> [N, r]
fn times_rows(x: &[f32], b: &[f32], k: usize) -> Vec<f32> {
    let (n, r) = (x.len() / k, b.len() / k);
    if r <= narrow::MOST {
        return narrow::dots(x, b, k);
    }
    product([n, r, k], &Strided::rows(x, k), &Strided::rows(b, k), None)
}

/// `dᵀ · x`: d [N, r], x [N, c] -> [r, c]
fn columns_times(d: &[f32], x: &[f32], n: usize) -> Vec<f32> {
    let (r, c) = (d.len() / n, x.len() / n);
    if r <= narrow::MOST {
        return narrow::outer(d, x, n);
    }
    product(
        [r, c, n],
        &Strided::columns(d, r),
        &Strided::columns(x, c),
        None,
    )
}
