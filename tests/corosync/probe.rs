//! Runs inside a node: is in both groups, follows quorum and cmap, tells of everything on stdout,
//! and takes commands from stdin until that ends.

use std::collections::VecDeque;
use std::io::BufRead;
use std::os::fd::BorrowedFd;
use std::sync::mpsc::{Receiver, TryRecvError, channel};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use pmxcfs::corosync::cmap::Cmap;
use pmxcfs::corosync::cpg::{Cpg, Event, GroupName, Member};
use pmxcfs::corosync::quorum::Quorum;
use pmxcfs::corosync::{Error, STACK_SIZE};

use super::lab::say;

pub fn run() {
    let (send, commands) = channel();
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            let _ = send.send(line);
        }
    });
    let thread = std::thread::Builder::new().stack_size(STACK_SIZE);
    thread
        .spawn(move || Probe::default().run(&commands))
        .unwrap()
        .join()
        .unwrap();
}

struct Group {
    label: &'static str,
    name: GroupName,
    handle: Option<Cpg>,
    joined: bool,
    /// Do not join again by yourself.
    away: bool,
    waiting: VecDeque<Vec<u8>>,
}

impl Group {
    fn new(label: &'static str, name: GroupName) -> Self {
        Group {
            label,
            name,
            handle: None,
            joined: false,
            away: false,
            waiting: VecDeque::new(),
        }
    }

    fn connect(&mut self) -> Result<(), Error> {
        if self.away || self.joined {
            return Ok(());
        }
        if self.handle.is_none() {
            self.handle = Some(Cpg::connect()?);
        }
        if let Some(handle) = &mut self.handle {
            handle.join(&self.name)?;
            self.joined = true;
        }
        Ok(())
    }

    fn work(&mut self) -> Result<(), Error> {
        let Some(handle) = &mut self.handle else {
            return Ok(());
        };
        while let Some(message) = self.waiting.front() {
            match handle.send(message) {
                Ok(()) => drop(self.waiting.pop_front()),
                Err(Error::TryAgain) => break,
                Err(err) => return Err(err),
            }
        }
        let own = Member {
            nodeid: handle.nodeid(),
            pid: std::process::id(),
        };
        let mut left_group = false;
        for event in handle.dispatch()? {
            left_group |= tell(self.label, own, event);
        }
        if left_group && self.away {
            self.lose();
        }
        Ok(())
    }

    fn lose(&mut self) {
        self.handle = None;
        self.joined = false;
    }
}

/// Returns true if we are no longer a member.
fn tell(label: &str, own: Member, event: Event) -> bool {
    match event {
        Event::Deliver { sender, message } => {
            let text = if message.is_empty() || message.len() > 1000 || message[0] == 0 {
                assert!(message == pattern(message.len()), "damaged message");
                "pattern".into()
            } else if message.len() == 1 {
                "pattern".into()
            } else {
                String::from_utf8(message.clone()).unwrap()
            };
            say(&format!(
                "{label} deliver {} {} {text}",
                sender.nodeid,
                message.len()
            ));
            false
        }
        Event::Confchg {
            members,
            left,
            joined,
        } => {
            let list = |members: &[Member]| {
                members
                    .iter()
                    .map(|m| m.nodeid.to_string())
                    .collect::<Vec<_>>()
                    .join(" ")
            };
            let mut line = format!("{label} members {}", list(&members));
            for (word, changed) in [("left", &left), ("joined", &joined)] {
                if !changed.is_empty() {
                    line += &format!(" {word} {}", list(changed));
                }
            }
            say(&line);
            !members.contains(&own)
        }
    }
}

fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|i| (i * 7 / 5) as u8).collect()
}

struct Probe {
    groups: [Group; 2],
    quorum: Option<Quorum>,
    cmap: Option<Cmap>,
}

impl Default for Probe {
    fn default() -> Self {
        let groups = [
            Group::new("dcdb", GroupName::DCDB),
            Group::new("kv", GroupName::KVSTORE),
        ];
        Probe {
            groups,
            quorum: None,
            cmap: None,
        }
    }
}

impl Probe {
    fn run(mut self, commands: &Receiver<String>) {
        loop {
            loop {
                match commands.try_recv() {
                    Ok(command) => self.obey(&command),
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) => return,
                }
            }
            self.quorum();
            self.cmap();
            for group in &mut self.groups {
                let result = group.connect().and_then(|()| group.work());
                match result {
                    Ok(()) | Err(Error::TryAgain) => {}
                    Err(err) => {
                        if group.joined {
                            say(&format!("{} lost {err}", group.label));
                        }
                        group.lose();
                    }
                }
            }
            self.sleep();
        }
    }

    fn sleep(&self) {
        let fds: Vec<BorrowedFd<'_>> = (self.groups.iter())
            .filter_map(|g| g.handle.as_ref().map(Cpg::fd))
            .chain(self.quorum.as_ref().map(Quorum::fd))
            .chain(self.cmap.as_ref().map(Cmap::fd))
            .collect();
        let mut fds: Vec<PollFd<'_>> = fds
            .into_iter()
            .map(|fd| PollFd::new(fd, PollFlags::POLLIN))
            .collect();
        let limit = PollTimeout::try_from(Duration::from_millis(20)).unwrap();
        poll(&mut fds, limit).unwrap();
    }

    fn quorum(&mut self) {
        let was = self.quorum.is_some();
        let result = (|| {
            if self.quorum.is_none() {
                let mut quorum = Quorum::connect()?;
                quorum.track()?;
                self.quorum = Some(quorum);
            }
            self.quorum.as_mut().unwrap().dispatch()
        })();
        match result {
            Ok(events) => {
                for event in events {
                    say(&format!("quorum {}", u8::from(event.quorate)));
                }
            }
            Err(err) => {
                if was {
                    say(&format!("quorum lost {err}"));
                }
                self.quorum = None;
            }
        }
    }

    fn cmap(&mut self) {
        let was = self.cmap.is_some();
        let result = (|| {
            if self.cmap.is_none() {
                let mut cmap = Cmap::connect()?;
                cmap.track()?;
                self.cmap = Some(cmap);
            }
            let cmap = self.cmap.as_mut().unwrap();
            if cmap.dispatch()? || !was {
                let nodes: Vec<String> = cmap
                    .nodes()?
                    .iter()
                    .map(|n| format!("{}={}", n.id, n.name))
                    .collect();
                let (name, version) = (cmap.cluster_name()?, cmap.config_version()?);
                say(&format!("cmap {name} {version} {}", nodes.join(" ")));
            }
            Ok::<(), Error>(())
        })();
        if let Err(err) = result {
            if was {
                say(&format!("cmap lost {err}"));
            }
            self.cmap = None;
        }
    }

    fn obey(&mut self, command: &str) {
        let words: Vec<&str> = command.split(' ').collect();
        let group = self
            .groups
            .iter_mut()
            .find(|g| g.label == words[1])
            .unwrap();
        match words[0] {
            "send" => group.waiting.push_back(words[2].as_bytes().to_vec()),
            "big" => group.waiting.push_back(pattern(words[2].parse().unwrap())),
            "leave" => {
                group.away = true;
                group.handle.as_mut().unwrap().leave().unwrap();
            }
            "join" => group.away = false,
            other => panic!("what is {other}?"),
        }
    }
}
