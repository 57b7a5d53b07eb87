//! f32 kernels for training on a CPU.
