//! Runs the hostile clients against any running server of the transport:
//! `hostile SERVICE PID OPERATION HEX [CASE]`; CASE is a number, OPERATION and HEX a request that
//! the server answers with error 0. Needs root.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use compat_tests::shm::{Target, hostile};

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().collect();
    let [_, service, pid, operation, hex, rest @ ..] = &args[..] else {
        eprintln!("usage: hostile SERVICE PID OPERATION HEX [CASE]");
        return ExitCode::from(2);
    };
    let payload = (0..hex.len() / 2).map(|i| u8::from_str_radix(&hex[2 * i..2 * i + 2], 16));
    let (Ok(pid), Ok(operation), Ok(payload)) = (
        pid.parse(),
        operation.parse(),
        payload.collect::<Result<Vec<u8>, _>>(),
    ) else {
        eprintln!("PID and OPERATION are numbers, HEX has two digits per byte");
        return ExitCode::from(2);
    };
    let target = Target {
        service: service.clone(),
        pid,
        probe: (operation, payload),
        secret: None,
    };
    let wanted = |name: &str| {
        let number = name.split(' ').next();
        rest.is_empty() || rest.iter().any(|case| Some(case.as_str()) == number)
    };
    let mut failed = 0;
    for (name, case) in hostile::ALL.into_iter().filter(|(name, _)| wanted(name)) {
        let result = std::panic::catch_unwind(|| case(&target));
        println!(
            "{} {name}",
            if result.is_ok() { "ok    " } else { "FAILED" }
        );
        failed += u8::from(result.is_err());
    }
    ExitCode::from(failed.min(1))
}
