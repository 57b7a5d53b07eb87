//! The product of a linear layer with a LoRA on it: `y = x Wᵀ + b + scale · (dropout(x) Aᵀ) Bᵀ`, and its gradients (Hu et al.,
//! "LoRA", 2021). One operation, because the additions of separate ones would be passes over memory of their own.
//!
//! Legend: x [N, in], W [out, in], A [rank, in], B [out, rank], b [out].

use super::{
    dropout::Draw,
    frozen::Frozen,
    kernels::{Product, scale},
};
use fledgling_kernels::{
    Strided,
    gemm::{Start, gemm, product},
};

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
        let mut y = match (&self.matrix, of.weight) {
            (Some(matrix), _) => matrix.product(of.x, false, of.bias),
            (None, Some(weight)) => {
                let (x, weight) = (Strided::rows(of.x, n_in), Strided::rows(weight, n_in));
                product([n, n_out, n_in], &x, &weight, of.bias)
            }
            (None, None) => unreachable!("a matrix is in blocks or dense"),
        };
        if !self.is_merged {
            let low = self.low(of, n, n_in);
            let (low, b) = (Strided::rows(&low, rank), Strided::rows(of.b, rank));
            gemm(n, n_out, rank, &low, &b, Start::Add, &mut y);
        }
        y
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
        let adds_to_x = wanted[0] && !self.is_merged;
        let d_low = (wanted[1] || adds_to_x).then(|| {
            let (dy, b) = (Strided::rows(dy, n_out), Strided::columns(of.b, rank));
            let mut d_low = product([n, rank, n_out], &dy, &b, None);
            scale(&mut d_low, self.scale);
            d_low
        }); // [N, rank]
        let d_low = d_low.as_deref().unwrap_or_default();
        let dx = wanted[0].then(|| {
            let mut dx = match (&self.matrix, of.weight) {
                (Some(matrix), _) => matrix.product(dy, true, None),
                (None, Some(weight)) => {
                    let (dy, weight) = (Strided::rows(dy, n_out), Strided::columns(weight, n_in));
                    product([n, n_in, n_out], &dy, &weight, None)
                }
                (None, None) => unreachable!("a matrix is in blocks or dense"),
            };
            match self.draw {
                _ if self.is_merged => {}
                None => {
                    let (d_low, a) = (Strided::rows(d_low, rank), Strided::columns(of.a, n_in));
                    gemm(n, n_in, rank, &d_low, &a, Start::Add, &mut dx);
                }
                Some(draw) => {
                    for (dx, more) in dx.iter_mut().zip(draw.dx(of.a, d_low)) {
                        *dx += more;
                    }
                }
            }
            dx
        });
        let da = wanted[1].then(|| match self.draw {
            Some(draw) => draw.da(of.x, d_low),
            None => Self::down(n, rank, n_in).db(of.x, d_low),
        });
        let db = wanted[2].then(|| {
            let low = self.low(of, n, n_in);
            let (dy, low) = (Strided::columns(dy, n_out), Strided::columns(&low, rank));
            product([n_out, rank, n], &dy, &low, None)
        });
        [dx, da, db]
    }

    /// `scale · dropout(x) Aᵀ`. -> [N, rank]
    fn low(&self, of: &Tensors<&[f32]>, n: usize, n_in: usize) -> Vec<f32> {
        let mut low = match self.draw {
            Some(draw) => draw.product(of.x, of.a),
            None => Self::down(n, self.rank, n_in).forward(of.x, of.a, None),
        };
        scale(&mut low, self.scale);
        low
    }

    fn down(n: usize, rank: usize, n_in: usize) -> Product {
        Product {
            m: n,
            n: rank,
            k: n_in,
            a_transposed: false,
            b_transposed: true,
        }
    }
}
