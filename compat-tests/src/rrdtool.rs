//! The program `rrdtool`.
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

/// What `rrdtool` prints when it is run as `command` says. It does not wait for a file that the
/// daemon is just writing, so that is done here.
///
/// # Panics
/// It cannot be run, or fails.
pub fn rrdtool(command: &mut Command) -> String {
    let start = Instant::now();
    loop {
        let output = command
            .output()
            .unwrap_or_else(|error| panic!("cannot run rrdtool (apt install rrdtool): {error}"));
        let error = String::from_utf8_lossy(&output.stderr);
        if error.contains("could not lock RRD") && start.elapsed() < Duration::from_secs(5) {
            thread::sleep(Duration::from_millis(10));
            continue;
        }
        assert!(output.status.success(), "{command:?}: {error}");
        return String::from_utf8(output.stdout).unwrap();
    }
}
