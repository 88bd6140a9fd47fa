//! What is in the packages.
use crate::setup::packages_or_skip;
use compat_tests::here;
use std::process::Command;

/// Paths below `/lib` and `/usr/lib` are the same on every Debian since 12.
fn merged(path: &str) -> String {
    match path.strip_prefix("/lib/") {
        Some(rest) => format!("/usr/lib/{rest}"),
        None => path.to_string(),
    }
}

#[test]
fn has_every_file_of_the_original() {
    let Some(packages) = packages_or_skip("has_every_file_of_the_original") else {
        return;
    };
    let ours: Vec<String> = packages
        .files("pve-cluster-rs")
        .iter()
        .map(|f| merged(f))
        .collect();
    for file in packages.files("pve-cluster") {
        if !file.starts_with("/usr/share/doc/") {
            assert!(
                ours.contains(&merged(&file)),
                "{file} is missing: {ours:#?}"
            );
        }
    }
    assert!(ours.contains(&"/usr/share/man/man8/create_pmxcfs_db.8.gz".to_string()));
    let conffiles = Command::new("dpkg-deb")
        .arg("-I")
        .arg(packages.file("pve-cluster-rs"))
        .arg("conffiles")
        .output()
        .unwrap();
    assert!(!conffiles.status.success(), "there must be no conffiles");
}

#[test]
fn relations_take_the_place_of_the_original() {
    let Some(packages) = packages_or_skip("relations_take_the_place_of_the_original") else {
        return;
    };
    let field = |name| packages.field("pve-cluster-rs", name);
    assert_eq!(field("Provides"), "pve-cluster (= 9.1.6)");
    assert_eq!(field("Conflicts"), "pve-cluster");
    assert_eq!(field("Replaces"), "pve-cluster");
    let depends = field("Depends");
    for needed in [
        "corosync (>= 2.3.4-1)",
        "sqlite3",
        "systemd",
        "librrd8",
        "libcpg4",
        "libpve-common-perl",
    ] {
        assert!(depends.contains(needed), "{needed}: {depends}");
    }
    assert_eq!(field("Version"), env!("CARGO_PKG_VERSION"));
}

/// Neither file names nor debug information nor messages of a panic tell where it was built.
#[test]
fn nothing_tells_where_it_was_built() {
    let Some(packages) = packages_or_skip("nothing_tells_where_it_was_built") else {
        return;
    };
    let mut names = vec![
        format!("{}/", here().parent().unwrap().display()),
        format!("{}/", packages.dir().display()),
    ];
    if let Ok(home) = std::env::var("HOME") {
        names.extend(["cargo/", "rustup/"].map(|place| format!("{home}/.{place}")));
    }
    for entry in std::fs::read_dir(packages.dir()).unwrap() {
        let deb = entry.unwrap().path();
        if deb.extension().is_none_or(|e| e != "deb") {
            continue;
        }
        let data = Command::new("dpkg-deb")
            .arg("--fsys-tarfile")
            .arg(&deb)
            .output()
            .unwrap();
        assert!(data.status.success() && !data.stdout.is_empty());
        for name in &names {
            let found = data
                .stdout
                .windows(name.len())
                .any(|w| w == name.as_bytes());
            assert!(!found, "{} contains {name}", deb.display());
        }
    }
}

#[test]
fn lintian_finds_no_error() {
    let Some(packages) = packages_or_skip("lintian_finds_no_error") else {
        return;
    };
    let mut lintian = Command::new("lintian");
    lintian.args(["--allow-root", "--fail-on", "error"]);
    for name in ["pve-cluster-rs", "libpmxcfs0", "libpmxcfs-dev"] {
        lintian.arg(packages.file(name));
    }
    let out = lintian.output().unwrap();
    let text = String::from_utf8_lossy(&out.stdout);
    println!("{text}");
    assert!(out.status.success(), "{text}");
}

/// The man page of the daemon explains every option that `--help` names.
#[test]
fn man_page_names_every_option() {
    let Some(packages) = packages_or_skip("man_page_names_every_option") else {
        return;
    };
    let script = "set -e; d=$(mktemp -d); trap 'rm -rf $d' EXIT; dpkg-deb -x \"$1\" $d; \
                  $d/usr/bin/pmxcfs --help; echo =====; gzip -dc $d/usr/share/man/man8/pmxcfs.8.gz";
    let out = Command::new("sh")
        .args(["-c", script, "sh"])
        .arg(packages.file("pve-cluster-rs"))
        .output()
        .unwrap();
    let text = String::from_utf8(out.stdout).unwrap();
    let (help, page) = text.split_once("=====").unwrap();
    let page = page.replace("\\-", "-");
    let options: Vec<&str> = help
        .split_whitespace()
        .filter(|word| word.starts_with("--"))
        .map(|word| word.trim_end_matches([',', ']']))
        .collect();
    assert!(options.len() > 10, "{help}");
    for option in options {
        assert!(page.contains(option), "pmxcfs(8) does not name {option}");
    }
}
