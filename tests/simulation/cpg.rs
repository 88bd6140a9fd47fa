//! A virtual corosync: one process group over nodes that can be cut off from each other.
//!
//! All members of a component get the same messages and membership changes in the same order
//! (agreed order, virtual synchrony). A message that its sender has already got back may never
//! reach a component that the sender is cut off from, as with the real one.

use std::collections::{BTreeSet, VecDeque};
use std::rc::Rc;

use pmxcfs::dfsm::MemberId;

use super::rng::Rng;

/// What a process gets, in order.
#[derive(Debug, Clone)]
pub enum Input {
    Quorum(bool),
    Confchg {
        view: u64,
        members: Vec<MemberId>,
        joined: Vec<MemberId>,
    },
    Deliver {
        from: MemberId,
        seq: u64,
        bytes: Rc<[u8]>,
    },
    /// A message of the process to itself.
    Round(u64),
    /// The connection to corosync is gone.
    Lost,
}

#[derive(Debug, Default)]
struct Port {
    /// Component, while corosync runs.
    component: Option<usize>,
    /// It cannot reach some of its members any more and has not noticed: nothing is ordered.
    blind: bool,
    /// The process has the handle open; what it sends before it is a member is lost.
    joined: Option<MemberId>,
    /// Members it was told last.
    view: BTreeSet<MemberId>,
    quorate: bool,
    inbox: VecDeque<Input>,
    /// Last membership it has seen.
    current: u64,
    /// Highest message it has seen.
    seen: u64,
    /// Highest message it has for sure: the token has come by since.
    safe: u64,
}

pub struct Cpg {
    ports: Vec<Port>,
    seq: u64,
    views: u64,
    /// Messages that some component will never get.
    pub dropped: Vec<Dropped>,
}

/// A message that a component will never get.
pub struct Dropped {
    pub bytes: Rc<[u8]>,
    /// That component has the quorum.
    pub quorate: bool,
    /// Who sent it, and whether nobody else has it.
    pub sender: usize,
    pub alone: bool,
}

impl Cpg {
    pub fn new(nodes: usize) -> Self {
        let mut ports = Vec::new();
        for _ in 0..nodes {
            ports.push(Port {
                component: Some(0),
                quorate: true,
                ..Port::default()
            });
        }
        Cpg {
            ports,
            seq: 0,
            views: 0,
            dropped: Vec::new(),
        }
    }

    pub fn running(&self, node: usize) -> bool {
        self.ports[node].component.is_some()
    }

    /// Corosync takes messages, but they go nowhere.
    pub fn blind(&self, node: usize) -> bool {
        self.ports[node].blind
    }

    /// The memberships a node will be told next; its current one, if there is none waiting. What
    /// comes before the next one is the same for those who share all of them: whoever was cut off
    /// since may lack messages from before an earlier one.
    pub fn next_views(&self, node: usize) -> Vec<u64> {
        let view = |input: &Input| match input {
            Input::Confchg { view, .. } => Some(*view),
            _ => None,
        };
        let mut views: Vec<u64> = self.ports[node].inbox.iter().filter_map(view).collect();
        if views.is_empty() {
            views.push(self.ports[node].current);
        }
        // One that nobody has a number for yet.
        let component = self.ports[node]
            .component
            .filter(|_| self.ports[node].blind);
        views.extend(component.map(|component| u64::MAX - component as u64));
        views
    }

    /// A member that has seen everything.
    pub fn up_to_date(&self, node: usize) -> bool {
        let port = &self.ports[node];
        port.joined.is_some() && !port.blind && port.inbox.is_empty()
    }

    pub fn quorate(&self, node: usize) -> bool {
        self.ports[node].quorate
    }

    pub fn waiting(&self, node: usize) -> usize {
        self.ports[node].inbox.len()
    }

    pub fn next(&mut self, node: usize) -> Option<Input> {
        let input = self.ports[node].inbox.pop_front()?;
        match input {
            Input::Deliver { seq, .. } => self.ports[node].seen = seq,
            Input::Confchg { view, .. } => self.ports[node].current = view,
            _ => {}
        }
        Some(input)
    }

    fn members_of(&self, component: usize) -> Vec<usize> {
        let here = |n: &usize| {
            self.ports[*n].component == Some(component) && self.ports[*n].joined.is_some()
        };
        (0..self.ports.len()).filter(here).collect()
    }

    /// The token has come round to `node`, and everybody has what this node had before.
    fn token(&mut self, node: usize, component: usize) {
        let seen = self.ports[node].seen;
        for port in &mut self.ports {
            if port.component == Some(component) {
                port.safe = port.safe.max(seen);
            }
        }
    }

    /// A message of a member to itself.
    pub fn round(&mut self, node: usize, number: u64) {
        if let (Some(component), Some(_)) = (self.ports[node].component, self.ports[node].joined) {
            self.token(node, component);
            self.ports[node].inbox.push_back(Input::Round(number));
        }
    }

    /// Orders one message: everybody in the sender's component will get it.
    pub fn order(&mut self, node: usize, bytes: &Rc<[u8]>) {
        let (Some(component), Some(from)) = (self.ports[node].component, self.ports[node].joined)
        else {
            return;
        };
        self.token(node, component);
        self.seq += 1;
        for member in self.members_of(component) {
            let input = Input::Deliver {
                from,
                seq: self.seq,
                bytes: Rc::clone(bytes),
            };
            self.ports[member].inbox.push_back(input);
        }
    }

    /// Orders one message that nobody but its sender will ever get: the token has come to it, and what
    /// it sends is lost.
    pub fn order_alone(&mut self, node: usize, bytes: &Rc<[u8]>) {
        let (Some(component), Some(from)) = (self.ports[node].component, self.ports[node].joined)
        else {
            return;
        };
        self.token(node, component);
        self.seq += 1;
        let (seq, running) = (
            self.seq,
            self.ports.iter().filter(|p| p.component.is_some()),
        );
        self.dropped.push(Dropped {
            bytes: Rc::clone(bytes),
            quorate: (running.count() - 1) * 2 > self.ports.len(),
            sender: node,
            alone: true,
        });
        let bytes = Rc::clone(bytes);
        let input = Input::Deliver { from, seq, bytes };
        self.ports[node].inbox.push_back(input);
    }

    pub fn join(&mut self, node: usize, id: MemberId, rng: &mut Rng) {
        self.ports[node]
            .inbox
            .retain(|input| matches!(input, Input::Quorum(_)));
        self.ports[node].joined = Some(id);
        self.ports[node].view.clear();
        self.refresh(rng);
    }

    /// The handle is closed: only what comes from elsewhere stays.
    fn drain(&mut self, node: usize) {
        self.ports[node]
            .inbox
            .retain(|input| matches!(input, Input::Quorum(_)));
    }

    /// The process leaves: it is told, too, if it still listens.
    pub fn leave(&mut self, node: usize, listens: bool, rng: &mut Rng) {
        self.ports[node].joined = None;
        self.refresh(rng);
        if listens {
            let Some(component) = self.ports[node].component else {
                return;
            };
            let rest = self.members_of(component);
            let members = rest.iter().filter_map(|n| self.ports[*n].joined).collect();
            self.views += 1;
            self.ports[node].inbox.push_back(Input::Confchg {
                view: self.views,
                members,
                joined: Vec::new(),
            });
        } else {
            self.drain(node);
        }
        self.ports[node].view.clear();
    }

    /// Corosync stops on a node.
    pub fn stop(&mut self, node: usize, rng: &mut Rng) {
        let port = &mut self.ports[node];
        port.component = None;
        port.blind = false;
        port.joined = None;
        port.view.clear();
        port.inbox.clear();
        port.inbox.push_back(Input::Quorum(false));
        port.inbox.push_back(Input::Lost);
        port.quorate = false;
        self.refresh(rng);
    }

    pub fn start(&mut self, node: usize, component: usize, rng: &mut Rng) {
        // They miss somebody then, at the latest.
        self.notice(component, rng);
        self.ports[node].component = Some(component);
        self.refresh(rng);
    }

    /// Puts every running node into the component given for it.
    pub fn split(&mut self, components: &[usize], rng: &mut Rng) {
        // Whoever forms a new membership knows what became of the old one.
        if self.ports.iter().any(|p| p.blind) {
            self.ports.iter_mut().for_each(|p| p.blind = false);
            self.refresh(rng);
        }
        for (port, component) in self.ports.iter_mut().zip(components) {
            if port.component.is_some() {
                port.component = Some(*component);
            }
        }
        self.refresh(rng);
    }

    /// A node is cut off from its component. Both go on believing in the old membership until
    /// [`Cpg::notice`]: their numbers.
    pub fn cut(&mut self, node: usize, rng: &mut Rng) -> Option<[usize; 2]> {
        let old = self.ports[node].component?;
        let new = 1 + self.ports.iter().filter_map(|p| p.component).max()?;
        for port in self.ports.iter_mut().filter(|p| p.component == Some(old)) {
            port.blind = true;
        }
        self.ports[node].component = Some(new);
        for component in [old, new] {
            let quorate = self.is_quorate(component);
            self.drop_tail(&self.members_of(component), quorate, rng);
        }
        Some([old, new])
    }

    /// A component misses the others.
    pub fn notice(&mut self, component: usize, rng: &mut Rng) {
        for port in &mut self.ports {
            port.blind &= port.component != Some(component);
        }
        self.refresh(rng);
    }

    fn is_quorate(&self, component: usize) -> bool {
        let here = |p: &&Port| p.component == Some(component);
        self.ports.iter().filter(here).count() * 2 > self.ports.len()
    }

    /// Tells everybody what changed: quorum lost, members, quorum gained.
    fn refresh(&mut self, rng: &mut Rng) {
        let total = self.ports.len();
        let seeing = self.ports.iter().filter(|p| !p.blind);
        let components: BTreeSet<usize> = seeing.filter_map(|p| p.component).collect();
        for component in components {
            self.views += 1;
            let members = self.members_of(component);
            let quorate = self.is_quorate(component);
            self.drop_tail(&members, quorate, rng);
            let ids: Vec<MemberId> = members
                .iter()
                .filter_map(|n| self.ports[*n].joined)
                .collect();
            let view: BTreeSet<MemberId> = ids.iter().copied().collect();
            for node in 0..total {
                if self.ports[node].component != Some(component) {
                    continue;
                }
                self.quorum(node, quorate, false);
                if self.ports[node].joined.is_some() && self.ports[node].view != view {
                    let new = |id: &&MemberId| !self.ports[node].view.contains(id);
                    let joined = ids.iter().filter(new).copied().collect();
                    let (view_id, members) = (self.views, ids.clone());
                    let port = &mut self.ports[node];
                    port.inbox.push_back(Input::Confchg {
                        view: view_id,
                        members,
                        joined,
                    });
                    port.view.clone_from(&view);
                }
                self.quorum(node, quorate, true);
            }
        }
    }

    fn quorum(&mut self, node: usize, quorate: bool, gained: bool) {
        let port = &mut self.ports[node];
        if port.quorate != quorate && quorate == gained {
            port.quorate = quorate;
            port.inbox.push_back(Input::Quorum(quorate));
        }
    }

    /// The last messages of senders that are not (any more) in this component may be missing in
    /// it, unless one of its members has seen them. The same ones on every member.
    fn drop_tail(&mut self, members: &[usize], quorate: bool, rng: &mut Rng) {
        let ids: Vec<MemberId> = members
            .iter()
            .filter_map(|n| self.ports[*n].joined)
            .collect();
        let seen = members
            .iter()
            .map(|n| self.ports[*n].seen.max(self.ports[*n].safe))
            .max()
            .unwrap_or(0);
        let foreign = |input: &Input| match input {
            Input::Deliver { from, seq, bytes } if *seq > seen && !ids.contains(from) => {
                Some((*seq, Rc::clone(bytes), from.nodeid as usize - 1))
            }
            _ => None,
        };
        let mut waiting: Vec<(u64, Rc<[u8]>, usize)> = members
            .iter()
            .flat_map(|n| self.ports[*n].inbox.iter().filter_map(foreign))
            .collect();
        waiting.sort();
        waiting.dedup();
        if waiting.is_empty() || rng.chance(70) {
            return;
        }
        let cut = waiting[rng.below(waiting.len())].0;
        for member in members {
            self.ports[*member].inbox.retain(
                |i| !matches!(i, Input::Deliver { from, seq, .. } if *seq >= cut && !ids.contains(from)),
            );
        }
        for (_, bytes, sender) in waiting.into_iter().filter(|(seq, ..)| *seq >= cut) {
            let component = self.ports[sender].component;
            let with_it = self.ports.iter().filter(|p| p.component == component);
            self.dropped.push(Dropped {
                bytes,
                quorate,
                sender,
                alone: component.is_none() || with_it.count() == 1,
            });
        }
    }
}
