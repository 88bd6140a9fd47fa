//! What messages say: files, and lines of the history.

use pmxcfs::dcdb::wire::Message as Payload;
use pmxcfs::dfsm::MemberId;
use pmxcfs::dfsm::wire::{Body, Message};
use pmxcfs::memdb::{Op, TreePath};

use super::cpg::Input;

pub(super) fn unique(number: usize) -> TreePath {
    TreePath::new(format!("u{number}").as_bytes())
}

/// The file a message creates (or writes).
pub(super) fn file_of(bytes: &[u8]) -> Option<(TreePath, bool)> {
    let message = Message::parse(bytes).ok()?;
    let Body::Normal { payload, .. } = message.body else {
        return None;
    };
    match Payload::parse(message.base.subtype, payload).ok()? {
        Payload::Op(Op::Create { path }) => Some((path, true)),
        Payload::Op(Op::Write { path, .. }) => Some((path, false)),
        _ => None,
    }
}

pub(super) fn describe(input: &Input) -> String {
    match input {
        Input::Quorum(quorate) => format!("quorum {quorate}"),
        Input::Lost => "corosync lost".to_owned(),
        Input::Round(number) => format!("round {number}"),
        Input::Confchg {
            members, joined, ..
        } => {
            let list = |ids: &[MemberId]| ids.iter().map(|m| m.to_string()).collect::<Vec<_>>();
            format!("members {:?} joined {:?}", list(members), list(joined))
        }
        Input::Deliver { from, bytes, seq } => match Message::parse(bytes) {
            Ok(Message {
                base,
                body: Body::Normal { count, payload },
            }) => {
                let what = Payload::parse(base.subtype, payload);
                format!("[{seq}] {from} #{count} {what:?}")
            }
            Ok(Message {
                base,
                body: Body::State { epoch, .. },
            }) => {
                format!("[{seq}] {from} {:?} of {epoch}", base.kind)
            }
            Err(error) => format!("[{seq}] {from} {error}"),
        },
    }
}
