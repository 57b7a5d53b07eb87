//! f32 kernels for training on a CPU: matrix products ([`gemm()`]) and the operations between them, forward and backward.
//!
//! Everything works on slices, in parallel over the threads of [`threads`]. Results depend neither on the number of threads nor on
//! the instruction set: blocks have fixed sizes, and every sum has a fixed order, of fused multiply-adds. (Products in
//! bf16 are an exception, see [`gemm`](mod@gemm).)

mod exp;
pub mod gemm;
mod huge_pages;
pub mod narrow;
pub mod threads;
mod wide;
mod zeros;

pub use exp::exp;
pub use gemm::{Isa, Operand, Precision, Strided, gemm};
pub use huge_pages::HugePages;
pub use wide::wide;
pub use zeros::zeros;
