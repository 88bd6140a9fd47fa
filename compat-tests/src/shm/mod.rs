//! Clients of the shared-memory transport that do what libqb never does: [`peer`] speaks the
//! protocol by hand, [`hostile`] has one function per case of ipc-transport.md 10, [`cycles`]
//! connects and dies very often. They work against any server of the protocol: a [`Target`].

pub mod cycles;
pub mod hostile;
pub mod peer;
mod target;

pub use peer::Peer;
pub use target::{Identity, NOBODY, ROOT, Secret, Target, www_data};
