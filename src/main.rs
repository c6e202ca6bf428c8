//! The `farmhand` program.

fn main() -> std::process::ExitCode {
    farmhand::cli::main()
}
