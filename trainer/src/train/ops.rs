//! The operations between the matrix products as operations of Burn's with a backward pass of their own: [`kernels`] on
//! the CPU, through Burn's extension points. Shapes as in [`super::model`].

use super::{
    frozen::Frozen,
    kernels::{self, Heads, Product},
    lora::{LoraProduct, Tensors},
};
use burn::{
    backend::{
        Autodiff, Backend, Dispatch, Flex,
        autodiff::{
            checkpoint::{base::Checkpointer, strategy::CheckpointStrategy},
            grads::Gradients,
            ops::{Backward, Ops, OpsKind},
        },
        backend_extension,
        tensor::FloatTensor,
    },
    tensor::{Shape, Tensor, TensorData},
};
use fledgling_core::spec::{ModelSpec, Pairing, Position};

/// What an operation computes.
#[derive(Debug, Clone)]
pub enum Op {
    /// x [N, C], gamma [C]
    RmsNorm {
        /// Added to the mean square.
        eps: f32,
    },
    /// x [N, C], gamma [C], beta [C]
    LayerNorm {
        /// Added to the variance.
        eps: f32,
    },
    /// gate, up
    SwiGlu,
    /// x
    Gelu,
    /// q [N, H * D], k [N, KV * D], v [N, KV * D]
    Attention(Heads),
    /// qkv [N, (H + 2 KV) * D]
    AttentionQkv(Heads),
    /// a, b
    Product(Product),
    /// a, b, a row that is added to every row of the product
    ProductPlus(Product),
    /// x [N, in], A [rank, in], B [out, rank], W [out, in] where it is not in blocks, a bias [out] where there is one
    LoraProduct(LoraProduct),
    /// x [N, in], or [N, out] when `is_transposed`
    FrozenProduct {
        /// The other factor, which has no gradient.
        matrix: Frozen,
        /// `x W` instead of `x Wᵀ`.
        is_transposed: bool,
    },
}

impl Op {
    /// Shape of the output, from those of the inputs.
    fn output_shape(&self, inputs: &[&Shape]) -> Shape {
        let first = inputs[0];
        match self {
            Self::AttentionQkv(heads) => Shape::from([first[0], heads.n_head * heads.head_dim]),
            Self::Product(product) | Self::ProductPlus(product) => {
                Shape::from([product.m, product.n])
            }
            Self::LoraProduct(_) => Shape::from([first[0], inputs[2][0]]),
            Self::FrozenProduct {
                matrix,
                is_transposed,
            } => Shape::from([first[0], matrix.shape()[usize::from(*is_transposed)]]),
            _ => first.clone(),
        }
    }

    /// The operation that makes the gradient of the only input from that of the output, where no input is needed for it.
    fn linear_backward(&self) -> Option<Self> {
        match self {
            Self::FrozenProduct {
                matrix,
                is_transposed,
            } => Some(Self::FrozenProduct {
                matrix: matrix.clone(),
                is_transposed: !is_transposed,
            }),
            _ => None,
        }
    }
}

/// Operations by the number of their inputs; the output has the shape of the first, but for products.
#[backend_extension(Flex, Cube: cfg(feature = "gpu"), Autodiff)]
pub trait FusedOps: Backend {
    /// One input.
    fn fused1(a: FloatTensor<Self>, op: Op) -> FloatTensor<Self>;
    /// Two inputs.
    fn fused2(a: FloatTensor<Self>, b: FloatTensor<Self>, op: Op) -> FloatTensor<Self>;
    /// Three inputs.
    fn fused3(
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        c: FloatTensor<Self>,
        op: Op,
    ) -> FloatTensor<Self>;
    /// Four inputs.
    fn fused4(
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        c: FloatTensor<Self>,
        d: FloatTensor<Self>,
        op: Op,
    ) -> FloatTensor<Self>;
    /// Five inputs.
    fn fused5(
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        c: FloatTensor<Self>,
        d: FloatTensor<Self>,
        e: FloatTensor<Self>,
        op: Op,
    ) -> FloatTensor<Self>;
}

/// A backend that has the operations, forward and backward.
pub trait Kernels: Backend {
    /// The output for `inputs`.
    fn forward<const N: usize>(op: &Op, inputs: [FloatTensor<Self>; N]) -> FloatTensor<Self>;
    /// The gradients of those inputs that are `wanted`, from that of the output.
    fn backward<const N: usize>(
        op: &Op,
        inputs: [FloatTensor<Self>; N],
        dy: FloatTensor<Self>,
        wanted: [bool; N],
    ) -> [Option<FloatTensor<Self>>; N];
}

impl FusedOps for Flex {
    fn fused1(a: FloatTensor<Self>, op: Op) -> FloatTensor<Self> {
        <Self as Kernels>::forward(&op, [a])
    }
    fn fused2(a: FloatTensor<Self>, b: FloatTensor<Self>, op: Op) -> FloatTensor<Self> {
        <Self as Kernels>::forward(&op, [a, b])
    }
    fn fused3(
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        c: FloatTensor<Self>,
        op: Op,
    ) -> FloatTensor<Self> {
        <Self as Kernels>::forward(&op, [a, b, c])
    }
    fn fused4(
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        c: FloatTensor<Self>,
        d: FloatTensor<Self>,
        op: Op,
    ) -> FloatTensor<Self> {
        <Self as Kernels>::forward(&op, [a, b, c, d])
    }
    fn fused5(
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        c: FloatTensor<Self>,
        d: FloatTensor<Self>,
        e: FloatTensor<Self>,
        op: Op,
    ) -> FloatTensor<Self> {
        <Self as Kernels>::forward(&op, [a, b, c, d, e])
    }
}

impl<B: Kernels, C: CheckpointStrategy> FusedOps for Autodiff<B, C> {
    fn fused1(a: FloatTensor<Self>, op: Op) -> FloatTensor<Self> {
        tracked::<B, C, 1>([a], op)
    }
    fn fused2(a: FloatTensor<Self>, b: FloatTensor<Self>, op: Op) -> FloatTensor<Self> {
        tracked::<B, C, 2>([a, b], op)
    }
    fn fused3(
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        c: FloatTensor<Self>,
        op: Op,
    ) -> FloatTensor<Self> {
        tracked::<B, C, 3>([a, b, c], op)
    }
    fn fused4(
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        c: FloatTensor<Self>,
        d: FloatTensor<Self>,
        op: Op,
    ) -> FloatTensor<Self> {
        tracked::<B, C, 4>([a, b, c, d], op)
    }
    fn fused5(
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        c: FloatTensor<Self>,
        d: FloatTensor<Self>,
        e: FloatTensor<Self>,
        op: Op,
    ) -> FloatTensor<Self> {
        tracked::<B, C, 5>([a, b, c, d, e], op)
    }
}

/// The backward step of an operation.
#[derive(Debug)]
struct FusedBackward;

impl<B: Kernels, const N: usize> Backward<B, N> for FusedBackward {
    /// The inputs, where the backward pass needs them.
    type State = (Option<[FloatTensor<B>; N]>, Op);

    fn backward(
        self,
        ops: Ops<Self::State, N>,
        grads: &mut Gradients,
        _checkpointer: &mut Checkpointer,
    ) {
        let dy = grads.consume::<B>(&ops.node);
        let (inputs, op) = ops.state;
        let wanted = ops.parents.each_ref().map(Option::is_some);
        let gradients: Vec<_> = match (inputs, op.linear_backward()) {
            (_, Some(backward)) => vec![Some(<B as Kernels>::forward(&backward, [dy]))],
            (Some(inputs), None) => <B as Kernels>::backward(&op, inputs, dy, wanted).into(),
            (None, None) => unreachable!("the inputs of {op:?} were kept"),
        };
        for (parent, gradient) in ops.parents.iter().zip(gradients) {
            if let (Some(parent), Some(gradient)) = (parent, gradient) {
                grads.register::<B>(parent.id, gradient);
            }
        }
    }
}

fn tracked<B: Kernels, C: CheckpointStrategy, const N: usize>(
    inputs: [FloatTensor<Autodiff<B, C>>; N],
    op: Op,
) -> FloatTensor<Autodiff<B, C>> {
    let nodes = inputs.each_ref().map(FloatTensor::<Autodiff<B, C>>::node);
    let values = inputs.map(FloatTensor::<Autodiff<B, C>>::into_primitive);
    match FusedBackward.prepare::<C>(nodes).compute_bound().stateful() {
        OpsKind::Tracked(prep) => {
            let kept = op.linear_backward().is_none().then(|| values.clone());
            let output = <B as Kernels>::forward(&op, values);
            prep.finish((kept, op), output)
        }
        OpsKind::UnTracked(prep) => prep.finish(<B as Kernels>::forward(&op, values)),
    }
}

type FlexTensor = FloatTensor<Flex>;

/// The values of a contiguous tensor.
fn slice(tensor: &FlexTensor) -> &[f32] {
    tensor
        .as_slice::<f32>()
        .expect("the tensor was made contiguous, and float tensors are f32 here")
}

fn tensor(values: Vec<f32>, like: &FlexTensor) -> FlexTensor {
    FlexTensor::from_data(TensorData::new(values, like.layout().shape().clone()))
}

impl Kernels for Flex {
    fn forward<const N: usize>(op: &Op, inputs: [FlexTensor; N]) -> FlexTensor {
        let inputs = inputs.map(|input| input.to_contiguous());
        let x = inputs.each_ref().map(slice);
        let y = match op {
            Op::RmsNorm { eps } => kernels::rms_norm(x[0], x[1], *eps),
            Op::LayerNorm { eps } => kernels::layer_norm(x[0], x[1], x[2], *eps),
            Op::SwiGlu => kernels::swiglu(x[0], x[1]),
            Op::Gelu => kernels::gelu(x[0]),
            Op::Attention(heads) => kernels::attention(x[0], x[1], x[2], heads),
            Op::AttentionQkv(heads) => kernels::attention_qkv(x[0], heads),
            Op::Product(product) => product.forward(x[0], x[1], None),
            Op::ProductPlus(product) => product.forward(x[0], x[1], Some(x[2])),
            Op::LoraProduct(product) => product.forward(&product.tensors(x)),
            Op::FrozenProduct {
                matrix,
                is_transposed,
            } => matrix.product(x[0], *is_transposed),
        };
        FlexTensor::from_data(TensorData::new(
            y,
            op.output_shape(&inputs.each_ref().map(|input| input.layout().shape())),
        ))
    }

    fn backward<const N: usize>(
        op: &Op,
        inputs: [FlexTensor; N],
        dy: FlexTensor,
        wanted: [bool; N],
    ) -> [Option<FlexTensor>; N] {
        let (inputs, dy) = (
            inputs.map(|input| input.to_contiguous()),
            dy.to_contiguous(),
        );
        let (x, dy) = (inputs.each_ref().map(slice), slice(&dy));
        let want = |idx: usize| wanted[idx];
        let gradients: Vec<Option<Vec<f32>>> = match op {
            Op::RmsNorm { eps } => vec![
                want(0).then(|| kernels::rms_norm_dx(x[0], x[1], dy, *eps)),
                want(1).then(|| kernels::rms_norm_dgamma(x[0], dy, x[1].len(), *eps)),
            ],
            Op::LayerNorm { eps } => vec![
                want(0).then(|| kernels::layer_norm_dx(x[0], x[1], dy, *eps)),
                want(1).then(|| kernels::layer_norm_dgamma(x[0], dy, x[1].len(), *eps)),
                want(2).then(|| kernels::sum_over_rows(dy, x[2].len())),
            ],
            Op::SwiGlu => {
                let (d_gate, d_up) = kernels::swiglu_backward(x[0], x[1], dy);
                vec![Some(d_gate), Some(d_up)]
            }
            Op::Gelu => vec![Some(kernels::gelu_backward(x[0], dy))],
            Op::Attention(heads) => kernels::attention_backward(x[0], x[1], x[2], dy, heads)
                .map(Some)
                .into(),
            Op::AttentionQkv(heads) => {
                vec![Some(kernels::attention_qkv_backward(x[0], dy, heads))]
            }
            Op::Product(product) => vec![
                want(0).then(|| product.da(x[1], dy)),
                want(1).then(|| product.db(x[0], dy)),
            ],
            Op::ProductPlus(product) => vec![
                want(0).then(|| product.da(x[1], dy)),
                want(1).then(|| product.db(x[0], dy)),
                want(2).then(|| kernels::sum_over_rows(dy, x[2].len())),
            ],
            Op::LoraProduct(product) => {
                let wanted = [want(0), want(1), want(2)];
                product.backward(&product.tensors(x), dy, wanted).into()
            }
            Op::FrozenProduct {
                matrix,
                is_transposed,
            } => vec![Some(matrix.product(dy, !is_transposed))],
        };
        let mut gradients = gradients.into_iter();
        inputs.each_ref().map(|input| {
            gradients
                .next()
                .flatten()
                .map(|values| tensor(values, input))
        })
    }
}

/// `a · b`, each as it is or transposed.
pub fn product(a: Tensor<2>, b: Tensor<2>, transposed: [bool; 2]) -> Tensor<2> {
    let product = sizes(&a, &b, transposed);
    Tensor::from_dispatch(Dispatch::fused2(
        a.into_dispatch(),
        b.into_dispatch(),
        Op::Product(product),
    ))
}

/// `x Wᵀ + b`: x [N, in], weight [out, in], bias [out] -> [N, out]
pub fn linear(x: Tensor<2>, weight: Tensor<2>, bias: Tensor<1>) -> Tensor<2> {
    let product = sizes(&x, &weight, [false, true]);
    Tensor::from_dispatch(Dispatch::fused3(
        x.into_dispatch(),
        weight.into_dispatch(),
        bias.into_dispatch(),
        Op::ProductPlus(product),
    ))
}

fn sizes(a: &Tensor<2>, b: &Tensor<2>, [a_transposed, b_transposed]: [bool; 2]) -> Product {
    let ([m, k], [k_of_b, n]) = (
        turned(a.dims(), a_transposed),
        turned(b.dims(), b_transposed),
    );
    assert_eq!(k, k_of_b, "the factors do not fit each other");
    Product {
        m,
        n,
        k,
        a_transposed,
        b_transposed,
    }
}

/// A linear layer with a LoRA: `x Wᵀ + b + scale · (dropout(x) Aᵀ) Bᵀ`. W and b have no gradient. -> [N, out]
pub fn lora_product(
    of: LoraProduct,
    tensors: Tensors<Tensor<2>>,
    bias: Option<Tensor<1>>,
) -> Tensor<2> {
    let Tensors {
        x, a, b, weight, ..
    } = tensors;
    let [x, a, b] = [x, a, b].map(Tensor::into_dispatch);
    let op = Op::LoraProduct(of);
    Tensor::from_dispatch(
        match (
            weight.map(Tensor::into_dispatch),
            bias.map(Tensor::into_dispatch),
        ) {
            (None, None) => Dispatch::fused3(x, a, b, op),
            (Some(d), None) | (None, Some(d)) => Dispatch::fused4(x, a, b, d, op),
            (Some(weight), Some(bias)) => Dispatch::fused5(x, a, b, weight, bias, op),
        },
    )
}

/// `x Wᵀ`, or `x W` when `is_transposed`. [N, in] -> [N, out], or the other way round
pub fn frozen_product(x: Tensor<2>, matrix: &Frozen, is_transposed: bool) -> Tensor<2> {
    let matrix = matrix.clone();
    Tensor::from_dispatch(Dispatch::fused1(
        x.into_dispatch(),
        Op::FrozenProduct {
            matrix,
            is_transposed,
        },
    ))
}

fn turned([rows, columns]: [usize; 2], turn: bool) -> [usize; 2] {
    if turn {
        [columns, rows]
    } else {
        [rows, columns]
    }
}

/// `x / rms(x) * gamma`. [N, C]
pub fn rms_norm(x: Tensor<2>, gamma: Tensor<1>, eps: f32) -> Tensor<2> {
    Tensor::from_dispatch(Dispatch::fused2(
        x.into_dispatch(),
        gamma.into_dispatch(),
        Op::RmsNorm { eps },
    ))
}

/// `(x - mean) / std * gamma + beta`. [N, C]
pub fn layer_norm(x: Tensor<2>, gamma: Tensor<1>, beta: Tensor<1>, eps: f32) -> Tensor<2> {
    Tensor::from_dispatch(Dispatch::fused3(
        x.into_dispatch(),
        gamma.into_dispatch(),
        beta.into_dispatch(),
        Op::LayerNorm { eps },
    ))
}

/// `silu(gate) * up`.
pub fn swiglu(gate: Tensor<2>, up: Tensor<2>) -> Tensor<2> {
    Tensor::from_dispatch(Dispatch::fused2(
        gate.into_dispatch(),
        up.into_dispatch(),
        Op::SwiGlu,
    ))
}

/// The tanh form of GELU.
pub fn gelu(x: Tensor<2>) -> Tensor<2> {
    Tensor::from_dispatch(Dispatch::fused1(x.into_dispatch(), Op::Gelu))
}

/// Causal attention with rotary positions and grouped heads: q [N, H * D], k and v [N, KV * D] -> [N, H * D].
pub fn attention(q: Tensor<2>, k: Tensor<2>, v: Tensor<2>, heads: &Heads) -> Tensor<2> {
    Tensor::from_dispatch(Dispatch::fused3(
        q.into_dispatch(),
        k.into_dispatch(),
        v.into_dispatch(),
        Op::Attention(heads.clone()),
    ))
}

/// As [`attention`], of q, k and v beside each other: [N, (H + 2 KV) * D] -> [N, H * D].
pub fn attention_qkv(qkv: Tensor<2>, heads: &Heads) -> Tensor<2> {
    Tensor::from_dispatch(Dispatch::fused1(
        qkv.into_dispatch(),
        Op::AttentionQkv(heads.clone()),
    ))
}

/// The extents of a batch's attention, with the rotations of its positions.
pub fn heads(spec: &ModelSpec, n_rows: usize, n_tokens: usize) -> Heads {
    let (pairing, rotations) = match &spec.position {
        Position::Rope {
            base,
            dim,
            pairing,
            freq_factors,
        } => {
            let angle = |t: usize, i: usize| {
                let factor = freq_factors.get(i).map_or(1.0, |&factor| f64::from(factor));
                t as f64 * f64::from(*base).powf(-2.0 * i as f64 / *dim as f64) / factor
            };
            let rotation = |t: usize, i: usize| {
                let (sin, cos) = angle(t, i).sin_cos();
                (cos as f32, sin as f32)
            };
            let rotations = (0..n_tokens)
                .flat_map(|t| (0..dim / 2).map(move |i| rotation(t, i)))
                .collect();
            (*pairing, rotations)
        }
        _ => (Pairing::Neighbours, [].into()),
    };
    Heads {
        n_rows,
        n_tokens,
        n_head: spec.n_head,
        n_kv_head: spec.n_kv_head,
        head_dim: spec.head_dim,
        rotations,
        pairing,
    }
}
