//! The binary `nf`: everything is in the library.

/// A schedule call makes some hundred small allocations on several threads; see docs/adr/0011.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    neural_fabric::cli::main()
}
