//! The checked-in bindings are those of the installed headers.
//!
//! Needs libclang (Debian: `libclang-dev`). Without it there is nothing to compare with: the test
//! says so and passes, unless `REQUIRE_LIBCLANG` is set, as `make check` does.
#![allow(clippy::unwrap_used)] // a test ends at the first surprise

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Release of corosync whose headers made the checked-in bindings.
const MADE_FROM: &str = "3.1.7";

/// Directories in which Debian, Fedora and a plain LLVM installation keep libclang.
fn libclang_is_there() -> bool {
    if std::env::var_os("LIBCLANG_PATH").is_some() {
        return true;
    }
    let mut directories: Vec<PathBuf> = vec!["/usr/lib64".into(), "/usr/lib".into()];
    for parent in ["/usr/lib", "/usr/local"] {
        for entry in std::fs::read_dir(parent).into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().starts_with("llvm") {
                directories.push(entry.path().join("lib"));
            }
        }
    }
    directories.into_iter().any(|directory| {
        std::fs::read_dir(directory)
            .into_iter()
            .flatten()
            .flatten()
            .any(|entry| {
                let name = entry.file_name();
                let name = name.to_string_lossy();
                // Not libclang-cpp.so, which is another library.
                (name.starts_with("libclang.so") || name.starts_with("libclang-"))
                    && !name.starts_with("libclang-cpp")
                    && name.contains(".so")
            })
    })
}

fn include_arguments() -> Vec<String> {
    let output = Command::new("pkg-config")
        .args([
            "--cflags",
            "libcpg",
            "libcmap",
            "libquorum",
            "libcorosync_common",
        ])
        .output()
        .expect("pkg-config runs");
    assert!(
        output.status.success(),
        "pkg-config: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout)
        .unwrap()
        .split_whitespace()
        .map(str::to_owned)
        .collect()
}

fn generate(root: &Path) -> String {
    bindgen::Builder::default()
        .header(root.join("wrapper.h").to_str().unwrap())
        .clang_args(include_arguments())
        .rust_target(bindgen::RustTarget::stable(85, 0).unwrap())
        .rust_edition(bindgen::RustEdition::Edition2024)
        .use_core()
        .allowlist_function("(cpg|cmap|quorum)_.*|cs_strerror")
        .allowlist_type("cpg_model_v1_data_t")
        .allowlist_var("(CPG|CMAP|QUORUM|CS)_.*")
        .blocklist_type("iovec")
        .raw_line("use libc::iovec;")
        .prepend_enum_name(false)
        .generate_comments(false)
        .merge_extern_blocks(true)
        .formatter(bindgen::Formatter::Prettyplease)
        .generate()
        .expect("the headers are readable")
        .to_string()
}

#[test]
fn bindings_are_those_of_the_installed_headers() {
    if !libclang_is_there() {
        assert!(
            std::env::var_os("REQUIRE_LIBCLANG").is_none(),
            "libclang is not installed (Debian: libclang-dev)"
        );
        eprintln!("libclang is not installed: the bindings were not compared with the headers");
        return;
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let path = root.join("src/bindings.rs");
    let new = generate(root);
    if std::env::var_os("UPDATE_BINDINGS").is_some() {
        std::fs::write(&path, &new).unwrap();
    }
    let old = std::fs::read_to_string(&path).unwrap();
    let installed = Command::new("pkg-config")
        .args(["--modversion", "libcpg"])
        .output()
        .unwrap();
    let installed = String::from_utf8_lossy(&installed.stdout).trim().to_owned();
    if installed == MADE_FROM {
        let difference = old.lines().zip(new.lines()).find(|(old, new)| old != new);
        assert!(
            old == new,
            "src/bindings.rs differs from the installed headers: {difference:#?}"
        );
    } else {
        // Another release may know more; what we use of it must not have changed.
        let known: HashSet<&str> = new.lines().map(str::trim).collect();
        let gone: Vec<&str> = old
            .lines()
            .filter(|line| !known.contains(line.trim()))
            .collect();
        assert!(
            gone.is_empty(),
            "corosync {installed} differs from {MADE_FROM}: {gone:#?}"
        );
    }
}
