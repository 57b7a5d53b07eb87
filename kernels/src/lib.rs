//! f32 kernels for training on a CPU: matrix products ([`gemm()`]) and the operations between them, forward and backward.
//!
//! Everything works on slices, in parallel over rayon's threads. Results depend neither on the number of threads nor on
//! the instruction set: blocks have fixed sizes, and every sum has a fixed order, of fused multiply-adds.

pub mod gemm;
mod huge_pages;
mod wide;
mod zeros;

pub use gemm::{Isa, Operand, Strided, gemm};
pub use huge_pages::HugePages;
pub use wide::wide;
pub use zeros::zeros;
