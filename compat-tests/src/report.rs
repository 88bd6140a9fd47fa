//! Numbers measured: printed (seen with `--nocapture`) and appended to `target/compat-report.txt`.
use std::fs::OpenOptions;
use std::io::Write;
use std::time::Duration;

/// Prints one line and appends it to `compat-report.txt` in cargo's target directory.
pub fn report(line: &str) {
    println!("{line}");
    let path = crate::target_dir().join("compat-report.txt");
    if let Ok(mut file) = OpenOptions::new().create(true).append(true).open(path) {
        // one write call, so that lines of tests running side by side stay whole
        let _ = file.write_all(format!("{line}\n").as_bytes());
    }
}

/// Milliseconds with one digit.
pub fn ms(d: Duration) -> String {
    format!("{:.1} ms", d.as_secs_f64() * 1e3)
}

/// The middle value; panics on an empty list.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}
