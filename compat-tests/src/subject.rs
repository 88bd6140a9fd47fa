//! The binary a test runs on.
use std::path::PathBuf;

/// Who made the binary: decides which column of `differences.md` it has to follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The binary under test.
    Ours,
    /// The implementation the golden data was recorded from.
    Reference,
}

/// A binary and what it is expected to be.
#[derive(Clone, Debug)]
pub struct Subject {
    pub kind: Kind,
    pub binary: PathBuf,
}

impl Subject {
    /// The binary named by `PMXCFS_UNDER_TEST`, else the release build of this workspace. Panics
    /// with the way to build it when it does not exist.
    pub fn ours() -> Self {
        crate::require_tools();
        let binary = match std::env::var_os("PMXCFS_UNDER_TEST") {
            Some(path) => PathBuf::from(path),
            None => crate::target_dir().join("release/pmxcfs"),
        };
        assert!(
            binary.is_file(),
            "no binary at {}: build it with `cargo build --release --bins` or name one in \
             PMXCFS_UNDER_TEST",
            binary.display()
        );
        Self {
            kind: Kind::Ours,
            binary,
        }
    }

    /// The binary named by `PMXCFS_REFERENCE`; `None` when that is not set, with a line that says
    /// so. Panics when it is set and names nothing.
    pub fn reference_or_skip(test: &str) -> Option<Self> {
        match std::env::var_os("PMXCFS_REFERENCE") {
            None => {
                crate::report(&format!("SKIPPED {test}: PMXCFS_REFERENCE is not set"));
                None
            }
            Some(path) => {
                crate::require_tools();
                let binary = PathBuf::from(path);
                assert!(
                    binary.is_file(),
                    "PMXCFS_REFERENCE: no file {}",
                    binary.display()
                );
                Some(Self {
                    kind: Kind::Reference,
                    binary,
                })
            }
        }
    }

    pub fn is_ours(&self) -> bool {
        self.kind == Kind::Ours
    }

    /// Word for reports.
    pub fn name(&self) -> &'static str {
        match self.kind {
            Kind::Ours => "ours",
            Kind::Reference => "reference",
        }
    }
}

/// Runs a test of the reference, and once more if that failed: now and then the reference hangs
/// when it is told to stop, which says nothing about the test.
pub fn twice(name: &str, test: impl Fn()) {
    let first = std::panic::catch_unwind(std::panic::AssertUnwindSafe(&test));
    if first.is_err() {
        crate::report(&format!("{name} failed on the reference, second attempt"));
        test();
    }
}
