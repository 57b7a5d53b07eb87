//! The command `fledgling`.

fn main() -> std::process::ExitCode {
    fledgling::cli::main()
}
