//! The Debian packages, installed by apt on a fresh Debian with systemd (`make check-package`).
//!
//! `PACKAGES_UNDER_TEST` names the folder with the packages; without it every test here is skipped
//! by name. `pve-cluster` and what depends on it are stand-ins (`tools/stand-ins.sh`); with
//! `PMXCFS_REFERENCE` the stand-in contains the real C daemon.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]
#[path = "package/content.rs"]
mod content;
#[path = "package/install.rs"]
mod install;
#[path = "package/restart.rs"]
mod restart;
#[path = "package/service.rs"]
mod service;
#[path = "package/setup.rs"]
mod setup;
