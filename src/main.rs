//! The binary `nf`: everything is in the library.

fn main() -> std::process::ExitCode {
    neural_fabric::cli::main()
}
