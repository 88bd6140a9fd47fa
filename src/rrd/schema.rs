//! What the files hold: data sources and archives (status.md 9.3). Pure.
#![forbid(unsafe_code)]

use jiff::Timestamp;
use jiff::tz::TimeZone;

use super::key::Kind;

/// Seconds between two points of a file.
pub const STEP: u32 = 60;

/// How the values of a data source are to be understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Type {
    /// The value itself.
    Gauge,
    /// Growth of the value per second.
    Derive,
}

/// One column of a file.
#[derive(Debug, Clone, Copy)]
pub struct DataSource {
    name: &'static str,
    kind: Type,
}

const fn gauge(name: &'static str) -> DataSource {
    DataSource {
        name,
        kind: Type::Gauge,
    }
}

const fn derive(name: &'static str) -> DataSource {
    DataSource {
        name,
        kind: Type::Derive,
    }
}

const NODE: [DataSource; 19] = [
    gauge("loadavg"),
    gauge("maxcpu"),
    gauge("cpu"),
    gauge("iowait"),
    gauge("memtotal"),
    gauge("memused"),
    gauge("swaptotal"),
    gauge("swapused"),
    gauge("roottotal"),
    gauge("rootused"),
    derive("netin"),
    derive("netout"),
    gauge("memavailable"),
    gauge("arcsize"),
    gauge("pressurecpusome"),
    gauge("pressureiosome"),
    gauge("pressureiofull"),
    gauge("pressurememorysome"),
    gauge("pressurememoryfull"),
];

const GUEST: [DataSource; 17] = [
    gauge("maxcpu"),
    gauge("cpu"),
    gauge("maxmem"),
    gauge("mem"),
    gauge("maxdisk"),
    gauge("disk"),
    derive("netin"),
    derive("netout"),
    derive("diskread"),
    derive("diskwrite"),
    gauge("memhost"),
    gauge("pressurecpusome"),
    gauge("pressurecpufull"),
    gauge("pressureiosome"),
    gauge("pressureiofull"),
    gauge("pressurememorysome"),
    gauge("pressurememoryfull"),
];

const STORAGE: [DataSource; 2] = [gauge("total"), gauge("used")];

/// Archives of every file: a day, a month, a year and ten years and more.
const ARCHIVES: [&str; 8] = [
    "RRA:AVERAGE:0.5:1:1440",
    "RRA:AVERAGE:0.5:30:1440",
    "RRA:AVERAGE:0.5:360:1440",
    "RRA:AVERAGE:0.5:10080:570",
    "RRA:MAX:0.5:1:1440",
    "RRA:MAX:0.5:30:1440",
    "RRA:MAX:0.5:360:1440",
    "RRA:MAX:0.5:10080:570",
];

/// Data sources of a file, in the order of its columns.
pub fn data_sources(kind: Kind) -> &'static [DataSource] {
    match kind {
        Kind::Node => &NODE,
        Kind::Guest => &GUEST,
        Kind::Storage => &STORAGE,
    }
}

/// What librrd is told to create: data sources, then archives.
pub fn definitions(kind: Kind) -> Vec<String> {
    let sources = data_sources(kind).iter().map(|source| {
        let kind = match source.kind {
            Type::Gauge => "GAUGE",
            Type::Derive => "DERIVE",
        };
        // Unknown after two minutes without a value; never negative; no maximum.
        format!("DS:{}:{kind}:120:0:U", source.name)
    });
    sources
        .chain(ARCHIVES.iter().map(|archive| (*archive).to_owned()))
        .collect()
}

/// Start of the day of `now` in `zone`, both in seconds since the epoch. A file made today takes
/// values from here on; the archives of all nodes are aligned alike.
pub fn last_midnight(now: u32, zone: &TimeZone) -> i64 {
    let now = i64::from(now);
    Timestamp::from_second(now)
        .and_then(|time| time.to_zoned(zone.clone()).start_of_day())
        .map_or(now - now % 86_400, |start| start.timestamp().as_second())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn zone(rule: &str) -> TimeZone {
        TimeZone::posix(rule).unwrap()
    }

    #[test]
    fn days_start_at_local_midnight() {
        let now = 1_795_333_407; // 2026-11-22 07:43:27 UTC
        assert_eq!(last_midnight(now, &TimeZone::UTC), 1_795_305_600);
        assert_eq!(last_midnight(1_795_305_600, &TimeZone::UTC), 1_795_305_600);
        assert_eq!(last_midnight(1_795_305_599, &TimeZone::UTC), 1_795_219_200);
        let berlin = zone("CET-1CEST,M3.5.0,M10.5.0/3");
        assert_eq!(last_midnight(now, &berlin), 1_795_302_000);
        // Already the next day there.
        let auckland = zone("NZST-12NZDT,M9.5.0,M4.1.0/3");
        assert_eq!(last_midnight(1_795_345_199, &auckland), 1_795_258_800);
        assert_eq!(last_midnight(1_795_345_200, &auckland), 1_795_345_200);
    }

    #[test]
    fn days_on_which_the_clock_changes() {
        let berlin = zone("CET-1CEST,M3.5.0,M10.5.0/3");
        // 2026-10-25 12:00 CET; that day began in summer time.
        assert_eq!(last_midnight(1_792_926_000, &berlin), 1_792_879_200);
        // A zone whose summer time starts at midnight: the day starts at 01:00.
        let cuba = zone("CST5CDT,M3.2.0/0,M11.1.0/1");
        // 2026-03-08 12:00 CDT
        assert_eq!(last_midnight(1_772_985_600, &cuba), 1_772_946_000);
    }

    #[test]
    fn the_edges_of_time() {
        let berlin = zone("CET-1CEST,M3.5.0,M10.5.0/3");
        assert_eq!(last_midnight(0, &berlin), -3600);
        assert_eq!(last_midnight(0, &TimeZone::UTC), 0);
        assert!(last_midnight(u32::MAX, &berlin) > i64::from(u32::MAX) - 86_400);
    }
}
