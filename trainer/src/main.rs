//! The command `fledgling`.

#[cfg(feature = "train")]
#[global_allocator]
static ALLOCATOR: fledgling_kernels::HugePages = fledgling_kernels::HugePages;

fn main() -> std::process::ExitCode {
    fledgling::cli::main()
}
