//! The benchmark's binary.

use std::process::ExitCode;

fn main() -> ExitCode {
    bench_consumer::main()
}
