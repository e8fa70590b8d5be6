//! The `tradepost` binary.

fn main() -> std::process::ExitCode {
    tradepost::cli::main()
}
